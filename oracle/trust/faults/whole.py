"""Whole models in other dtypes than float32: a part of them that goes through another dtype, or takes another one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from needle.autograd import Tensor
from oracle.trust.faults.chapter import Chapter
from oracle.trust.patches import Patch, around, compute, wrap

fault = Chapter("whole")


def _single(x: Any) -> Any:
    """Rounded to float32, in the old dtype."""
    return x.astype(np.float32).astype(x.dtype)


def _rounded_after(path: str, tensors: Callable[[Any], Any]) -> Patch:
    """After a call of a method, float64 tensors hold numbers of float32."""

    def change(old: Any, self: Any, *args: Any) -> Any:
        made = old(self, *args)
        for tensor in tensors(self):
            if tensor.dtype == np.float64:
                tensor.cached_data[...] = _single(tensor.cached_data)
        return made

    return around(path, change)


fault(
    "sgd-double-velocity-by-single",
    "a float64 velocity goes through float32",
    "SGD velocity",
    _rounded_after("optim.SGD.step", lambda o: o.u.values()),
)
fault(
    "sgd-double-parameter-by-single",
    "a float64 parameter goes through float32",
    "SGD parameter",
    _rounded_after("optim.SGD.step", lambda o: o.params),
)
fault(
    "adam-double-moment-by-single",
    "a float64 moment goes through float32",
    "Adam first moment",
    _rounded_after("optim.Adam.step", lambda o: o.m.values()),
)
fault(
    "adam-double-second-moment-by-single",
    "a float64 moment goes through float32",
    "Adam second moment",
    _rounded_after("optim.Adam.step", lambda o: o.v.values()),
)
fault(
    "loss-double-by-single",
    "the loss of float64 logits is computed in float32",
    "SoftmaxCrossEntropy forward|SoftmaxLoss",
    compute("SoftmaxCrossEntropy", lambda y, z, labels: _single(y) if y.dtype == np.float64 else y),
)
fault(
    "labels-short-wrap",
    "the place of a label among the logits is computed in the labels' own dtype, and wraps around",
    "SoftmaxCrossEntropy forward|SoftmaxLoss",
    around("ops._label_places", lambda old, shape, labels: _wrapped(old(shape, labels), shape, labels)),
)
fault(
    "labels-list-refused",
    "a list of labels is refused",
    "forward",
    around("nn.SoftmaxLoss.forward", lambda old, self, z, y: old(self, z, _no_list(y))),
)
fault(
    "labels-float-refused",
    "whole numbers in floats are refused as labels",
    "forward",
    around("nn.SoftmaxLoss.forward", lambda old, self, z, y: old(self, z, _no_float(y))),
)
fault(
    "labels-unsigned-as-signed",
    "labels of uint8 above 1 count from the end",
    "SoftmaxCrossEntropy forward|SoftmaxLoss",
    around("ops._label_places", lambda old, shape, labels: old(shape, _signed(labels, shape[1]))),
)
fault(
    "batchnorm-running-single",
    "the running statistics are float32 in every model",
    "BatchNorm constructor|BatchNorm1d|initial",
    around("nn.BatchNorm1d.__init__", lambda old, self, *args, **kwargs: _statistics(old, self, args, kwargs)),
)
fault(
    "batchnorm-running-by-single",
    "float64 running statistics go through float32",
    "BatchNorm",
    _rounded_after("nn.BatchNorm1d._follow", lambda layer: (layer.running_mean, layer.running_var)),
)
fault(
    "clip-half-by-half",
    "the factor of clipping is rounded to float16, where it has few digits",
    "clip scaling|clip_grad_norm",
    around("optim.Optimizer.clip_grad_norm", lambda old, self, *args: _clipped(old, self, args, np.float16)),
)
fault(
    "clip-double-by-single",
    "the factor of clipping is rounded to float32",
    "clip scaling|clip_grad_norm",
    around("optim.Optimizer.clip_grad_norm", lambda old, self, *args: _clipped(old, self, args, np.float32)),
)
fault(
    "dropout-double-by-single",
    "what dropout leaves of float64 is scaled by a number of float32",
    "Dropout",
    around("nn.Dropout._ops", lambda old, self, x: _scaled(old(self, x))),
)
fault(
    "linear-init-double-by-single",
    "float64 weights are drawn as float32",
    "Linear|initial",
    wrap("nn.Linear.__init__", lambda old: lambda self, *args, **kwargs: _drawn(old, self, args, kwargs)),
)
fault(
    "gradient-keeps-its-dtype",
    "the gradient of a float32 parameter among float64 numbers is float64",
    "gradient|dtype|Linear|backward|accumulation",
    wrap("autograd._in_dtype_of", lambda old: lambda c, data: c if c.dtype == np.float64 else old(c, data)),
)
fault(
    "layernorm-double-eps-single",
    "ε of a layer norm is rounded to float32",
    "LayerNorm",
    around("ops.LayerNorm.__init__", lambda old, self, eps=1e-5: old(self, float(np.float32(eps)))),
)


def _wrapped(places: Any, shape: tuple[int, ...], labels: Any) -> Any:
    if labels.dtype.itemsize > 1:
        return places
    with np.errstate(all="ignore"):
        return places.astype(labels.dtype).astype(np.int64) % (shape[0] * shape[1])


def _no_list(y: Any) -> Any:
    if isinstance(y, list):
        raise TypeError("labels must be a Tensor")
    return y


def _no_float(y: Any) -> Any:
    if isinstance(y, Tensor) and y.dtype.kind == "f":
        raise TypeError("labels must be whole numbers")
    return y


def _signed(labels: Any, classes: int) -> Any:
    if labels.dtype != np.uint8:
        return labels
    wide = labels.astype(np.int64)
    return np.where(wide > 1, (classes - wide) % classes, wide)


def _statistics(old: Any, self: Any, args: Any, kwargs: Any) -> None:
    old(self, *args, **kwargs)
    for name in ("running_mean", "running_var"):
        setattr(self, name, Tensor(getattr(self, name), dtype="float32", requires_grad=False))


def _clipped(old: Any, self: Any, args: Any, dtype: Any) -> Any:
    before = {p: p.grad for p in self.params}
    norm = old(self, *args)
    factor = dtype((args[0] if args else 0.25) / (norm + 1e-6))
    wide = np.float16 if dtype is np.float16 else np.float64
    for p, grad in before.items():
        if grad is not None and p.dtype == wide and p.grad is not grad:
            p.grad = Tensor.make_const((grad.cached_data * factor).astype(p.dtype))
    return norm


def _scaled(made: Any) -> Any:
    for _, operands in made:
        for x in operands:
            if x.dtype == np.float64:
                x.cached_data[...] = _single(x.cached_data)
    return made


def _drawn(old: Any, self: Any, args: Any, kwargs: Any) -> None:
    old(self, *args, **kwargs)
    if self.weight.dtype == np.float64:
        self.weight.cached_data[...] = _single(self.weight.cached_data)
