"""Anybody's arrays as NumPy's: ndarray, torch, and what has ``.numpy()``, ``__array__`` or ``__dlpack__``."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.utils.dlpack

from oracle.operations.tape import U
from oracle.systems.noise import UNITS

Array = npt.NDArray[Any]

# Unit roundoff by the name of a dtype; NumPy has no bfloat16 of its own, JAX brings one along.
_UNITS = {"float64": 2.0**-53, "complex128": 2.0**-53}
_UNITS |= {str(dtype).removeprefix("torch."): unit for dtype, unit in UNITS.items()}


def unit_of(dtype: object) -> float:
    """The unit roundoff of a dtype of NumPy, torch or JAX; float32's for what is no float."""
    return _UNITS.get(str(dtype).removeprefix("torch."), U)


def array(value: Any, name: str = "the candidate") -> tuple[Array, float]:
    """A copy as an ndarray, and the unit roundoff of the dtype that it had. TypeError for what is no array of numbers."""
    if not isinstance(value, np.ndarray | torch.Tensor):
        value = _handed_over(value)
    if isinstance(value, torch.Tensor):
        unit = unit_of(value.dtype)
        value = value.detach().resolve_conj().resolve_neg().cpu()
        value = (value.float() if value.dtype is torch.bfloat16 else value).numpy()
    else:
        unit = unit_of(value.dtype)
        if value.dtype.kind == "V" or str(value.dtype) == "bfloat16":
            value = value.astype(np.float32)
    if value.dtype.kind not in "fciub":
        raise TypeError(f"{name} is {type(value).__name__} of dtype {value.dtype}, not an array of numbers")
    return np.array(value), unit


def _handed_over(value: Any) -> Any:
    """In the way that the value offers."""
    if callable(getattr(value, "numpy", None)):
        return np.asarray(value.numpy())
    if hasattr(value, "__array__") or not hasattr(value, "__dlpack__"):
        return np.asarray(value)
    return torch.utils.dlpack.from_dlpack(value)
