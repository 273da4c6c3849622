"""The tolerance of a program: eight runs in float64, seven of them with noise, and how far these come apart."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from oracle.check.arrays import Array, array
from oracle.operations.tape import REPLICAS, TINY, U
from oracle.rules.compare import G_LIMIT
from oracle.systems.noise import (
    LEAST_HALF,
    UNITS,
    Plain,
    Refused,
    Refusing,
    Rounding,
    Widening,
    limits_of_float32,
    ordinary_kernels,
)

LIMIT = G_LIMIT  # of the noise that seven replicas show: rule G's, and calibrated with it
Program = Callable[[], Mapping[str, Any]]
Results = dict[str, Array]

# A program in float64 has no wider truth: noise well above its own rounding is measured, and scaled down to it. That its
# truth rounds too counts twice.
_COARSE = 2.0**-38
_TWICE = 2.0


@dataclass(frozen=True)
class Measured:
    """What a program's results are, and by how much a correct implementation may differ from them, element by element."""

    truth: Results  # the program in float64
    allowed: Results  # in absolute numbers; inf where the noise decides between a number and none
    torch: Results  # the program as it is
    unit: float  # unit roundoff that was assumed

    def share(self, name: str, ours: Array) -> Array:
        """The error as a share of what is allowed, in units in which `LIMIT` is the limit; inf for what is no number."""
        truth, allowed = self.truth[name], self.allowed[name]
        with np.errstate(all="ignore"):
            share = np.abs(ours - truth) / allowed * LIMIT
            share = np.where(np.isnan(share), np.where(np.isinf(allowed) & ~np.isnan(ours), 0.0, np.inf), share)
            alike = (ours == truth) | (np.isnan(ours) & np.isnan(truth))
            if not np.iscomplexobj(truth) and self.torch[name].dtype.kind == "f":  # beyond the range of the dtype: ±∞
                most = np.finfo(self.torch[name].dtype).max
                alike |= np.isinf(ours) & (np.abs(truth) > most) & (np.sign(ours) == np.sign(truth))
        return np.asarray(np.where(alike, 0.0, share), dtype=np.float64)


def tolerance(program: Program, *, unit: float = 0.0) -> Measured:
    """What ``program()`` gives, and by how much a correct implementation may differ.

    ``program`` is ordinary torch and returns tensors by name. ``unit`` is the unit roundoff of what is compared with it, if
    that is less precise than the program itself.
    """
    *_, last = replicas(program, unit)
    return last


def replicas(program: Program, unit: float = 0.0) -> Iterator[Measured]:
    """The tolerance after two replicas, after three, …, after all eight: it only grows, so who is within it may stop."""
    __tracebackhide__ = True
    callable_program(program)
    again = same_random_numbers()
    with Refusing():
        peer, units = _results(program, Plain())
    double = bool(units) and max(units.values()) < U and unit < U
    noise_unit = _COARSE if double else max(unit, U)
    scale = 2.0**-53 / _COARSE * _TWICE if double else 1.0
    runs: list[Results] = []
    for replica in range(REPLICAS):
        again()
        with ordinary_kernels(), nullcontext() if double else limits_of_float32(), Widening():
            run = _results(program, Rounding(replica or None, noise_unit))[0]
        runs.append({name: _wide(a) for name, a in run.items()})
        if not replica:
            continue
        if replica == 1:
            again()
            same_again(program, peer, runs)
        allowed = {}
        for name in runs[0]:
            own = noise_unit if double else max(noise_unit, units.get(name, U))
            least = LEAST_HALF / 2 if own == UNITS[torch.float16] else TINY
            allowed[name] = LIMIT * scale * spread(np.stack([r[name] for r in runs]), own, least / scale)
        yield Measured(runs[0], allowed, peer, 2.0**-53 if double else noise_unit)


def same_again(program: Program, peer: Results, runs: Sequence[Results]) -> None:
    """Refuses a program that gives other numbers each time: how far these lie apart would be taken for rounding. It is asked
    once more where noise moves much, or torch is far off: hardly ever.
    """
    with np.errstate(all="ignore"):
        if all(_near(peer[n], a, _FAR) and _near(runs[1][n], a, _FAR) for n, a in runs[0].items() if n in peer):
            return
        with Plain():
            second = {n: array(v)[0] for n, v in by_name(program()).items() if v is not None}
        other = [n for n, a in peer.items() if n not in second or not _near(second[n], a, _SAME)]
    if other:
        raise Refused(
            f"the program gave another {', '.join(other)} when it was called again: what it reads and draws must be the same in "
            "each call. Make within it what changes, as in torch.Generator().manual_seed(0) or np.random.default_rng(0)"
        )


_FAR, _SAME = 2.0**-13, 2.0**-16  # of the largest number


def _near(a: Array, b: Array, most: float) -> bool:
    if a.shape != b.shape:
        return False
    a, b = _wide(a), _wide(b)  # whole numbers and truth values, too
    size = np.abs(b[np.isfinite(b)]).max(initial=0)
    return bool(np.all((np.abs(a - b) <= most * size) | (a == b) | (np.isnan(a) & np.isnan(b))))


def spread(stack: Array, unit: float, least: float) -> Array:
    """Rule G's tolerance for (replicas, *shape), where numbers may also be complex, infinite or none at all."""
    exact = stack[0]
    with np.errstate(all="ignore"):
        noise = np.abs(stack[1:] - exact).max(axis=0, initial=0)
        agree = (stack == exact).all(axis=0) | np.isnan(stack).all(axis=0)
        noise = np.where(np.isfinite(noise), noise, np.where(agree, 0.0, np.inf))
        size = np.where(np.isfinite(exact), np.abs(exact), 0.0)
        finite = noise[np.isfinite(noise)]
        common = finite.max(initial=0) + unit * size.max(initial=0)
        return np.asarray(noise + 0.01 * common + unit * size + least)


def _wide(a: Array) -> Array:
    return a.astype(np.complex128 if a.dtype.kind == "c" else np.float64)


def callable_program(program: Any) -> None:
    """TypeError for what a program gives instead of the program."""
    __tracebackhide__ = True
    if not callable(program):
        raise TypeError(
            "the program is a function that is handed over and not called, `program` and not `program()`, "
            f"but got {type(program).__name__}"
        )


def by_name(given: Any) -> Mapping[str, Any]:
    """What a program has returned; TypeError if it is anything else than tensors by name."""
    __tracebackhide__ = True
    if not isinstance(given, Mapping):
        raise TypeError(f'a program returns tensors by name, {{"y": tensor}}, but got {type(given).__name__}')
    return given


def _results(program: Program, mode: Any) -> tuple[Results, dict[str, float]]:
    """What the program gives under a mode, read before the mode puts back what the program has written to."""
    with mode:
        given = by_name(program())
        results, units = {}, {}
        for name, value in given.items():
            if value is None:
                continue
            results[name], unit = array(value, f"the program's {name}")
            if results[name].dtype.kind in "fc" and hasattr(
                value, "dtype"
            ):  # .item() is as precise as where it is from
                units[name] = unit
    return results, units


def same_random_numbers() -> Callable[[], None]:
    """What sets all generators back to where they are now: every run draws the same numbers."""
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()

    def again() -> None:
        torch.set_rng_state(before[0])
        np.random.set_state(before[1])
        random.setstate(before[2])

    return again
