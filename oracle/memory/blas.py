"""Which kernels OpenBLAS computes with: read back, listed, and chosen for a child process.

OpenBLAS chooses by the CPU when NumPy is loaded, or takes what ``OPENBLAS_CORETYPE`` names. What it rounds, and how often it
allocates, depends on it. The name asked for is not the name to go by: an unknown one is passed over without a word,
Zen reads back Haswell, Prescott reads back Katmai, and SkylakeX reads back SkylakeX even where the CPU cannot run it.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np

UNKNOWN = "unknown"  # no OpenBLAS, or one that does not say

# kernel -> (what it reads back, the CPU features that it needs), from the weakest CPU to the strongest
KERNELS = {
    "Prescott": ("Katmai", {"SSE3"}),
    "Nehalem": ("Nehalem", {"SSE42"}),
    "Sandybridge": ("Sandybridge", {"AVX"}),
    "Haswell": ("Haswell", {"AVX2", "FMA3"}),
    "Zen": ("Haswell", {"AVX2", "FMA3"}),
    "SkylakeX": ("SkylakeX", {"AVX512F", "AVX512CD", "AVX512BW", "AVX512DQ", "AVX512VL"}),
}

# All that a machine may have preset and that chooses kernels or vector code; a child gets what is asked, and none of the rest.
CHOOSING = (
    "OPENBLAS_CORETYPE",
    "OPENBLAS_L2_SIZE",
    "NPY_DISABLE_CPU_FEATURES",
    "NPY_ENABLE_CPU_FEATURES",
    "ATEN_CPU_CAPABILITY",
)
_NAMED = ("scipy_openblas_get_corename64_", "scipy_openblas_get_corename", "openblas_get_corename64_", "openblas_get_corename")  # fmt: skip


@cache
def read_back() -> str:
    """The kernels that this process computes with, as OpenBLAS names them, or ``UNKNOWN``."""
    for path in _libraries():
        try:
            library = ctypes.CDLL(str(path))
        except OSError:
            continue
        for name in _NAMED:
            function = getattr(library, name, None)
            if function is not None:
                function.argtypes, function.restype = [], ctypes.c_char_p
                return str(function().decode())
    return UNKNOWN


def _libraries() -> list[Path]:
    """Where OpenBLAS may be: what NumPy's own extension module has loaded, and the libraries in NumPy's wheel."""
    extension = importlib.import_module("numpy._core._multiarray_umath").__file__
    package = Path(np.__file__).parent
    bundled = [*package.parent.glob("numpy.libs/*openblas*"), *package.glob(".dylibs/*openblas*")]
    return [*([Path(extension)] if extension else []), *bundled]


def environment(kernel: str | None = None, chosen: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment for a child process: ``kernel`` (None: the CPU's own), ``chosen``, and nothing of ``CHOOSING`` else."""
    kept = {name: value for name, value in os.environ.items() if name not in CHOOSING}
    return kept | ({} if kernel is None else {"OPENBLAS_CORETYPE": kernel}) | dict(chosen or {})


@dataclass(frozen=True)
class Machine:
    """What this CPU can do, as NumPy sees it in a process in which nothing is preset."""

    kernel: str  # what OpenBLAS chooses by itself
    features: frozenset[str] = frozenset()
    dispatched: tuple[str, ...] = field(default=())  # of NumPy's vector code, what this CPU uses beyond the baseline

    @property
    def kernels(self) -> list[str]:
        """The kernels that can be chosen here: none where NumPy is not built on OpenBLAS, or for another kind of CPU."""
        if self.kernel == UNKNOWN:
            return []
        return [name for name, (_, needed) in KERNELS.items() if needed <= self.features]


_LOOK = """
import json
from numpy._core import _multiarray_umath as m
from oracle.memory import blas
features = sorted(name for name, there in m.__cpu_features__.items() if there)
print(json.dumps([blas.read_back(), features, [name for name in m.__cpu_dispatch__ if name in features]]))
"""


def machine() -> Machine:
    """Look at this machine, in a child: in this process a variable may have switched features off."""
    run = subprocess.run(
        [sys.executable, "-c", _LOOK],
        env=environment(),
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=True,
    )
    kernel, features, dispatched = json.loads(run.stdout)
    return Machine(kernel, frozenset(features), tuple(dispatched))
