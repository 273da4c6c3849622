"""clip_grad_norm: the norm, the factor, and which gradients it sees."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from oracle.trust.faults.chapter import Chapter, const
from oracle.trust.patches import Patch, replace, wrap

fault = Chapter("optimizer")


def _norm(gs: list[Any]) -> float:
    return math.sqrt(sum(float((g.astype(np.float64) ** 2).sum()) for g in gs))


def clip(
    norm: Callable[[list[Any]], float] = _norm,
    factor: Callable[[float, float], float] = lambda norm, most: min(1.0, most / (norm + 1e-6)),
    apply: Callable[[Any, float], Any] = lambda g, factor: (
        g if factor == 1 else g * factor if g.dtype != np.float16 else (g.astype(np.float32) * factor).astype(g.dtype)
    ),
    answer: Callable[[float, float], float] = lambda norm, factor: norm,
    which: Callable[[list[Any]], list[Any]] = lambda ps: ps,
) -> Patch:
    """clip_grad_norm written out plainly, with some of its parts replaced."""

    def clip_grad_norm(self: Any, max_norm: float = 0.25) -> float:
        if not max_norm > 0:
            raise ValueError(f"max_norm must be positive, got {max_norm}")
        params = which([p for p in self.params if p.grad is not None])
        total = norm([p.grad.cached_data for p in params])
        f = factor(total, max_norm)
        for p in params:
            g = apply(p.grad.cached_data, f)
            p.grad = const(g if f == 1 else g.astype(p.dtype, copy=False))
        return answer(total, f)

    return replace("optim.Optimizer.clip_grad_norm", clip_grad_norm)


def _clip_each(self: Any, max_norm: float = 0.25) -> float:
    if not max_norm > 0:
        raise ValueError(f"max_norm must be positive, got {max_norm}")
    total = 0.0
    for p in self.params:
        if p.grad is not None:
            g = p.grad.cached_data
            size = math.sqrt(float((g.astype(np.float64) ** 2).sum()))
            total += size**2
            f = min(1.0, max_norm / (size + 1e-6))
            p.grad = const(g if f == 1 else (g * f).astype(p.dtype, copy=False))
    return math.sqrt(total)


fault.controls["clip_grad_norm written out"] = clip()

NORM, SCALING = "clip norm", "clip scal"

fault(
    "clip-per-parameter",
    "each gradient is clipped by its own norm",
    SCALING,
    replace("optim.Optimizer.clip_grad_norm", _clip_each),
    words="own norm",
)
fault(
    "clip-no-epsilon",
    "max_norm / norm, without 1e-6",
    SCALING,
    clip(factor=lambda norm, most: min(1.0, most / norm) if norm else 1.0),
    words="without 1e-6",
)
fault(
    "clip-upwards",
    "gradients below max_norm are scaled up to it",
    SCALING,
    clip(factor=lambda norm, most: most / (norm + 1e-6)),
    words="scaled up",
)
fault("clip-never", "gradients are not clipped", SCALING, clip(factor=lambda norm, most: 1.0), words="not clipped")
fault(
    "clip-l1",
    "the norm is the sum of absolute values",
    NORM,
    clip(norm=lambda gs: sum(float(np.abs(g.astype(np.float64)).sum()) for g in gs)),
    words="absolute values",
)
fault(
    "clip-max",
    "the norm is the largest absolute value",
    NORM,
    clip(norm=lambda gs: max((float(np.abs(g).max(initial=0)) for g in gs), default=0.0)),
    words="largest absolute",
)
fault(
    "clip-no-root",
    "the norm is not the root of the sum of squares",
    NORM,
    clip(norm=lambda gs: sum(float((g.astype(np.float64) ** 2).sum()) for g in gs)),
    words="without the root",
)
fault(
    "clip-sum-of-norms",
    "norms are added, not their squares",
    NORM,
    clip(norm=lambda gs: sum(math.sqrt(float((g.astype(np.float64) ** 2).sum())) for g in gs)),
    words="sum of the norms",
)
fault(
    "clip-in-place",
    "clipping writes into gradients that the user holds",
    "writes into|alias",
    clip(apply=lambda g, f: np.multiply(g, np.float32(f), g) if f < 1 else g),
)
fault(
    "clip-returns-clipped",
    "the norm after clipping is returned",
    NORM,
    clip(answer=lambda norm, f: norm * f),
    words="after clipping",
)
fault("clip-ignores-first", "the first parameter is left out", NORM, clip(which=lambda ps: ps[1:]), words="is left out")
fault(
    "clip-ignores-last",
    "the last parameter is left out",
    NORM,
    clip(which=lambda ps: ps[:-1] or ps),
    words="is left out",
)
fault(
    "clip-default",
    "the default max_norm is 1",
    SCALING,
    wrap("optim.Optimizer.clip_grad_norm", lambda old: lambda self, max_norm=1.0: old(self, max_norm)),
    words="taken as 1",
)
fault(
    "clip-by-value",
    "gradients are cut to ±max_norm",
    SCALING,
    clip(factor=lambda norm, most: most, apply=lambda g, f: np.clip(g, -f, f)),
    words="cut to",
)
fault(
    "clip-epsilon-in-norm",
    "1e-6 is a part of the returned norm",
    NORM,
    clip(answer=lambda norm, f: norm + 1e-6),
    words="1e-6 is a part",
)
