"""Modes, containers, Linear's constructor, parameters(), and the layers that are an operation or less."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from needle import nn, ops
from oracle.trust.faults.chapter import Chapter, const, labels_of, square
from oracle.trust.patches import Patch, around, replace, wrap

fault = Chapter("layer")


def mode(training: bool, which: Callable[[Any], list[Any]]) -> Any:
    def switch(self: Any) -> Any:
        for module in which(self):
            module.training = training
        return self

    return switch


def _direct(self: Any) -> list[Any]:
    """A module and its direct children only."""
    parts = [v for value in vars(self).values() for v in (value if isinstance(value, list | tuple) else [value])]
    return [self, *(m for m in parts if isinstance(m, nn.Module))]


def _two_levels(self: Any) -> list[Any]:
    return [m for child in _direct(self) for m in _direct(child)]


def _parameters(change: Callable[[list[Any]], list[Any]]) -> Patch:
    return around("nn.Module.parameters", lambda old, self: change(old(self)))


def _initial(change: Callable[[Any], None]) -> Patch:
    """Linear built as usual, then changed."""

    def make(old: Any) -> Any:
        def init(self: Any, *args: Any, **kwargs: Any) -> None:
            old(self, *args, **kwargs)
            change(self)

        return init

    return wrap("nn.Linear.__init__", make)


fault(
    "eval-not-nested",
    "eval() reaches direct children only",
    "Module.eval",
    replace("nn.Module.eval", mode(False, _direct)),
)
fault(
    "eval-two-levels", "eval() reaches two levels", "Module.eval", replace("nn.Module.eval", mode(False, _two_levels))
)
fault(
    "train-not-nested",
    "train() reaches direct children only",
    "Module.train",
    replace("nn.Module.train", mode(True, _direct)),
)
fault("train-never", "train() does not undo eval()", "Module.train", replace("nn.Module.train", lambda self: self))
fault(
    "residual-no-skip",
    "fn(x) without x",
    "Residual forward",
    replace("nn.Residual.forward", lambda self, x: self.fn(x)),
)
fault(
    "residual-doubled",
    "fn(x) + 2x",
    "Residual forward",
    replace("nn.Residual.forward", lambda self, x: self.fn(x) + x + x),
)
fault(
    "residual-subtracts",
    "fn(x) − x",
    "Residual forward",
    replace("nn.Residual.forward", lambda self, x: self.fn(x) - x),
)
fault(
    "residual-detached",
    "no gradient flows through the skip",
    "Residual backward|accumulation",
    replace("nn.Residual.forward", lambda self, x: self.fn(x) + x.detach()),
)
fault(
    "residual-in-place",
    "the skip is added into the output of the body",
    "Residual|writes|forward",
    replace("nn.Residual.forward", lambda self, x: _added_in_place(self.fn(x), x)),
)
fault(
    "flatten-order",
    "square matrices are flattened column by column",
    "Flatten forward",
    replace(
        "nn.Flatten.forward",
        lambda self, x: ops.reshape(x.transpose() if square(x.cached_data) else x, (x.shape[0], -1)),
    ),
)
fault(
    "flatten-squeezes",
    "a batch of 1 loses its axis",
    "Flatten forward",
    around("nn.Flatten.forward", lambda old, self, x: ops.reshape(x, (x.size,)) if x.shape[0] == 1 else old(self, x)),
)
fault(
    "flatten-detached",
    "no gradient flows through",
    "Flatten forward",
    around("nn.Flatten.forward", lambda old, self, x: old(self, x.detach())),
)
fault(
    "linear-no-bias",
    "the bias is not added",
    "Linear forward",
    replace("nn.Linear.forward", lambda self, x: ops.linear(x, self.weight, None)),
)
fault(
    "linear-transposed",
    "a square weight is used transposed",
    "Linear forward",
    around(
        "nn.Linear.forward",
        lambda old, self, x: (
            ops.linear(x, ops.transpose(self.weight), self.bias) if square(self.weight) else old(self, x)
        ),
    ),
)
fault(
    "linear-bias-ignored-flag",
    "bias=False makes a bias all the same",
    "Linear|parameters",
    wrap("nn.Linear.__init__", lambda old: lambda self, i, o, bias=True, **kw: old(self, i, o, True, **kw)),
)
fault(
    "linear-init-fan-out",
    "weights are scaled by the number of outputs",
    "Linear|constructor",
    _initial(
        lambda m: setattr(
            m.weight, "cached_data", (m.weight.cached_data * np.sqrt(m.in_features / m.out_features)).astype(np.float32)
        )
    ),
)
fault(
    "linear-init-zero-bias",
    "biases start at 0",
    "Linear|constructor",
    _initial(lambda m: None if m.bias is None else setattr(m.bias, "cached_data", 0 * m.bias.cached_data)),
)
fault(
    "linear-init-gain",
    "weights lack the factor √2",
    "Linear|constructor",
    _initial(lambda m: setattr(m.weight, "cached_data", m.weight.cached_data / np.float32(math.sqrt(2)))),
)
fault(
    "linear-bias-shape",
    "the bias has shape (n,)",
    "Linear|constructor|shape",
    _initial(lambda m: None if m.bias is None else setattr(m.bias, "cached_data", m.bias.cached_data.reshape(-1))),
)
fault(
    "linear-float64",
    "weights are float64",
    "Linear|constructor|dtype",
    _initial(lambda m: setattr(m.weight, "cached_data", m.weight.cached_data.astype(np.float64))),
)
fault(
    "sequential-reversed",
    "two layers of equal width change places",
    "Sequential|forward|Linear",
    around(
        "nn.Sequential.forward",
        lambda old, self, x: _in_order(self.modules[::-1], x) if len(self.modules) == 2 else old(self, x),
    ),
)
fault(
    "sequential-skips-last",
    "the last of more than three layers is skipped",
    "Sequential|forward|missing",
    around(
        "nn.Sequential.forward",
        lambda old, self, x: _in_order(self.modules[:-1], x) if len(self.modules) > 3 else old(self, x),
    ),
)
fault(
    "sequential-first-twice",
    "the first layer runs twice if it keeps the shape",
    "Sequential|forward",
    around(
        "nn.Sequential.forward",
        lambda old, self, x: old(self, _if_same(self.modules[0](x), x)) if self.modules else old(self, x),
    ),
)
fault(
    "identity-detached",
    "no gradient flows through Identity",
    "Identity forward",
    replace("nn.Identity.forward", lambda self, x: x.detach()),
)
fault(
    "identity-halves",
    "Identity halves large values",
    "Identity forward",
    replace("nn.Identity.forward", lambda self, x: x * 0.5 if x.size > 4 else x),
)
fault("parameters-reversed", "parameters() gives them in reverse", "parameters", _parameters(lambda ps: ps[::-1]))
fault(
    "parameters-repeated",
    "parameters() gives tied parameters twice",
    "parameters",
    wrap("nn.Module._walk", lambda old: lambda self, prefix, seen: old(self, prefix, _forgetful())),
)
fault(
    "parameters-vectors-lost",
    "parameters() leaves out those of one dimension",
    "parameters",
    _parameters(lambda ps: [p for p in ps if p.ndim > 1] or ps),
)
fault(
    "loss-labels-shifted",
    "labels count from 1",
    "SoftmaxLoss|SoftmaxCrossEntropy",
    around(
        "nn.SoftmaxLoss.forward",
        lambda old, self, z, y: old(self, z, const((labels_of(y).astype(int) + 1) % z.shape[1])),
    ),
)
fault(
    "loss-smoothed",
    "labels are smoothed by 0.01",
    "SoftmaxLoss|SoftmaxCrossEntropy",
    around(
        "nn.SoftmaxLoss.forward",
        lambda old, self, z, y: old(self, z, y) * 0.99 + ops.logsoftmax(z).sum() * (-0.01 / z.size),
    ),
)
fault(
    "relu-layer-twice",
    "the layer negates first",
    "ReLU forward",
    replace("nn.ReLU.forward", lambda self, x: ops.relu(-x)),
)
fault(
    "conv-layer-bias",
    "nn.Conv leaves its bias out",
    "Conv forward|Conv backward",
    around("nn.Conv._ops", lambda old, self, x: tuple(step for step in old(self, x) if step[0] is not ops._ewise_add)),
)
fault(
    "conv-layer-padding",
    "nn.Conv pads by half its kernel, whatever it is told",
    "Conv forward|Reshape forward",  # the rows that a case makes of the images do not fit then
    wrap("nn.Conv.__init__", lambda old: lambda self, *args, padding=None, **named: old(self, *args, **named)),
)
fault(
    "conv-layer-turned",
    "nn.Conv reads its images with rows and columns exchanged",
    "Conv forward",
    around("nn.Conv._ops", lambda old, self, x: _turned(old(self, x))),
)
fault(
    "conv-layer-initial",
    "the weight of nn.Conv starts as if a number had kernel_size inputs of each channel, and not their square",
    "Conv constructor",
    wrap("nn.Conv.__init__", lambda old: lambda self, *args, **named: _too_large(self, old(self, *args, **named))),
)
fault(
    "softmax-layer-axis",
    "nn.Softmax adds up over the batch",
    "Softmax forward",
    wrap("nn.Softmax.__init__", lambda old: lambda self, axis=0: old(self, axis)),
)
fault(
    "mse-sum-over-features",
    "MSELoss is the mean over the batch alone",
    "MSELoss",
    around("nn.MSELoss.forward", lambda old, self, p, t: old(self, p, t) * (p.size // p.shape[0])),
)
fault(
    "mse-half",
    "MSELoss is half the mean square, whose gradient is the difference",
    "MSELoss",
    around("nn.MSELoss.forward", lambda old, self, p, t: old(self, p, t) * 0.5),
)
fault(
    "mse-absolute",
    "MSELoss takes the absolute difference where that is larger than 4",
    "MSELoss",
    around("nn.MSELoss.forward", lambda old, self, p, t: old(self, *(_shrunk(v, p, t) for v in (p, t)))),
)


def _turned(steps: Any) -> Any:
    """Rows and columns exchanged in front of the convolution, and exchanged back behind it."""
    swap = (ops.Transpose((1, 2)), ())
    place = next(i for i, step in enumerate(steps) if isinstance(step[0], ops.Conv))
    return (*steps[:place], swap, steps[place], swap, *steps[place + 1 :])


def _too_large(layer: Any, built: None) -> None:
    layer.weight.cached_data = layer.weight.cached_data * np.float32(math.sqrt(layer.kernel_size))


def _shrunk(v: Any, p: Any, t: Any) -> Any:
    """Where p and t are far apart, the root of what they are."""
    far = np.abs(p.cached_data - t.cached_data)
    factor = np.where(far > 4, 1 / np.sqrt(np.maximum(far, 1e-20)), 1).astype(far.dtype)
    return v * const(factor)


def _added_in_place(y: Any, x: Any) -> Any:
    y.cached_data = np.ascontiguousarray(y.cached_data)
    if y.cached_data.flags.writeable and y.requires_grad and y is not x:
        y.cached_data += x.cached_data
        return y + x * 0.0
    return y + x


def _in_order(modules: Any, x: Any) -> Any:
    for module in modules:
        x = module(x)
    return x


def _if_same(y: Any, x: Any) -> Any:
    return y if y.shape == x.shape else x


class _forgetful(set):  # type: ignore[type-arg]
    """A set that does not remember Tensors: they are found as often as they occur."""

    def add(self, thing: Any) -> None:
        return
