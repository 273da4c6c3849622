"""What the chapters of the catalogue are made of: a fault, the list of a file's own, and the wrong numbers they share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from needle.autograd import Tensor
from oracle.trust.patches import Patch


@dataclass(frozen=True)
class Fault:
    """One deliberate mistake."""

    name: str
    group: str  # "optimizer", "autograd", "op", "layer", "conditional", "small"
    about: str  # what is wrong, in words
    suspect: str  # who is to blame, in words that the oracle should use
    patch: Patch
    words: str = (
        ""  # what the oracle should say that needle does instead, where it says anything; alternatives with "|"
    )


class Chapter:
    """The faults of one file, in the order in which it adds them by a call, and its skeletons without a fault."""

    def __init__(self, group: str) -> None:
        self.group = group
        self.faults: list[Fault] = []
        self.controls: dict[str, Patch] = {}

    def __call__(self, name: str, about: str, suspect: str, patch: Patch, words: str = "") -> None:
        self.faults.append(Fault(name, self.group, about, suspect, patch, words))


def f16(x: Any) -> Any:
    """Rounded to float16, in the old dtype."""
    return np.asarray(x).astype(np.float16).astype(np.asarray(x).dtype)


def number16(x: float) -> float:
    return float(np.float16(x))


def tf32(x: Any) -> Any:
    """float32 with a mantissa of 10 bits, as tensor cores read it."""
    bits = np.asarray(x, np.float32).view(np.uint32)
    return ((bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)


def labels_of(y: Any) -> Any:
    """Labels as an array, whatever they are handed over as: a Tensor, an array or a list."""
    return np.asarray(getattr(y, "cached_data", y))


def const(x: Any) -> Tensor:
    return Tensor.make_const(np.asarray(x))


def swap(x: Any) -> Any:
    return np.swapaxes(x, -1, -2)


def square(x: Any) -> bool:
    return bool(x.ndim >= 2 and x.shape[-1] == x.shape[-2])


def softmax(z: Any) -> Any:
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)
