"""In which dtype is what, of a training run? By the table at the top of needle/ops.py: an op gives the widest of its operands,
and a gradient, or a state, has the dtype of its tensor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from oracle.cases import case as c
from oracle.operations.dtypes import wider

INPUT = ""  # its path


def made(case: c.TrainCase) -> Mapping[str, str]:
    """Path of a layer -> dtype of what it makes, and computes in; that of the data under `INPUT`."""
    assert case.dtypes is not None
    found: dict[str, str] = {INPUT: case.dtypes.data}

    def body(layers: Sequence[c.Layer], prefix: str, dtype: str) -> str:
        for i, layer in enumerate(layers):
            path = f"{prefix}{i}"
            inner = [body(part, f"{path}.{name}", dtype) for name, part in layer.nested()]
            own = () if case.dtypes is None or not _has_numbers(layer) else (case.dtypes.model,)
            dtype = found[path] = wider(dtype, *inner, *own)
        return dtype

    body(case.model, "", case.dtypes.data)
    return found


def _has_numbers(layer: c.Layer) -> bool:
    """Whether a layer computes with parameters of its own."""
    return isinstance(layer, c.Linear) or (layer.used and bool(layer.parameters(1)))  # a tied one has another's weight


def of_tensor(case: c.TrainCase, quantity: str, name: str, layers: Mapping[str, str]) -> str:
    """The dtype of a tensor that a step shows."""
    assert case.dtypes is not None
    if quantity in ("activation", "adjoint", "evaluation", "loss"):
        path = name.partition("#")[0]
        if quantity == "loss":
            return layers[str(len(case.model) - 1)]
        return layers[INPUT if path == "input" else path]
    return "float64" if quantity == "clip norm" else case.dtypes.model
