"""Which kernel OpenBLAS runs on."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np


def kernel() -> str:
    """The name that the OpenBLAS in NumPy's wheel gives to its kernel."""
    for path in Path(np.__file__).parents[1].glob("numpy.libs/*openblas*"):
        name = ctypes.CDLL(str(path)).scipy_openblas_get_corename64_
        name.restype = ctypes.c_char_p
        return str(name().decode())
    return "unknown"
