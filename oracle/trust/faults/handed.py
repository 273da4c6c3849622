"""Writing into what the user has handed in: data, labels, targets, cotangents. All numbers of the step are right."""

from __future__ import annotations

from typing import Any

from oracle.trust.faults.chapter import Chapter
from oracle.trust.patches import Patch, around

fault = Chapter("handed in")


def _then(path: str, write: Any) -> Patch:
    """After a call, ``write(*its arguments)``."""

    def change(old: Any, *args: Any, **kwargs: Any) -> Any:
        made = old(*args, **kwargs)
        write(*args, **kwargs)
        return made

    return around(path, change)


def _shift(x: Any, by: Any) -> None:
    """Of a Tensor or an array, where it can be written into."""
    x = getattr(x, "cached_data", x)
    if getattr(getattr(x, "flags", None), "writeable", False):
        x -= by if isinstance(by, int) else by.astype(x.dtype)


def _raise(labels: Any) -> None:
    """By 1, in any dtype of labels."""
    x = getattr(labels, "cached_data", labels)
    if getattr(getattr(x, "flags", None), "writeable", False):
        x += x.dtype.type(1)


def _leaf(path: str, by: Any, training: bool) -> Patch:
    """After a layer has read what no op has made, it is shifted."""

    def write(layer: Any, x: Any) -> None:
        # inside no_grad, everything looks like a leaf
        if x.is_leaf() and layer.training == training and (x * layer.weight).requires_grad:
            _shift(x, by(layer, x.cached_data))

    return _then(path, write)


fault(
    "loss-shifts-labels",
    "the loss counts the labels from 1 in place",
    "SoftmaxLoss forward",
    _then("nn.SoftmaxLoss.forward", lambda self, logits, y: _raise(y)),
)
fault(
    "mse-subtracts-in-target",
    "the loss subtracts in the array of the target",
    "MSELoss forward",
    _then("nn.MSELoss.forward", lambda self, prediction, y: _shift(y, prediction.cached_data)),
)
fault(
    "batchnorm-centres-input",
    "the mean is subtracted in the array of the input, which is put back to nobody",
    "BatchNorm forward",
    _leaf("nn.BatchNorm1d.forward", lambda layer, x: x.mean(0), True),
)
fault(
    "layernorm-centres-input",
    "the mean is subtracted in the array of the input",
    "LayerNorm forward",
    _leaf("nn.LayerNorm1d.forward", lambda layer, x: x.mean(-1, keepdims=True), True),
)
fault(
    "batchnorm-centres-evaluated",
    "in evaluation, the running mean is subtracted in the array of the input",
    "BatchNorm forward",
    _leaf("nn.BatchNorm1d.forward", lambda layer, x: layer.running_mean.cached_data, False),
)
fault(
    "backward-clears-cotangent",
    "the gradient that a backward pass starts from is cleared behind it",
    "backward",
    _then(
        "autograd.Tensor.backward",
        lambda self, out_grad=None, **more: _shift(out_grad, 1) if out_grad is not None else None,
    ),
)
