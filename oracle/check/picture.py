"""``python -m oracle.check.picture``: how the tolerance of a few numbers comes about, in characters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from oracle.check.arrays import Array
from oracle.check.measuring import LIMIT, Measured, replicas

WIDTH = 2 * 24 + 1  # characters from −limit to +limit


def line(truth: float, allowed: float, noisy: list[float], theirs: float, ours: float) -> str:
    """One number: ``:`` the replicas with noise, ``t`` torch in float32, ``y`` yours (``>`` and ``<`` where it is off the line)."""
    marks = [" "] * WIDTH

    def put(value: float, mark: str) -> None:
        at = round((value - truth) / allowed * (WIDTH // 2)) + WIDTH // 2
        marks[min(max(at, 0), WIDTH - 1)] = mark if 0 <= at < WIDTH else "<" if at < 0 else ">"

    for value in noisy:
        put(value, ":")
    put(theirs, "t")
    put(ours, "y")
    return f"|{''.join(marks)}|"


def picture(program: Callable[[], dict[str, Any]], name: str, ours: Array) -> str:
    """All elements of one result."""
    runs: list[Array] = []

    def watched() -> dict[str, Any]:
        given = program()
        runs.append(given[name].detach().double().numpy().copy())
        return given

    found: Measured
    for found in replicas(watched):  # noqa: B007
        pass
    theirs, _, *noisy = runs
    lines = [f"{'truth':>12}  {f'-{LIMIT:g}':<{WIDTH // 2}} 0{f'+{LIMIT:g}':>{WIDTH // 2}}  allowed"]
    for at in np.ndindex(*found.truth[name].shape):
        truth, allowed = float(found.truth[name][at]), float(found.allowed[name][at])
        row = line(truth, allowed, [float(r[at]) for r in noisy], float(theirs[at]), float(ours[at]))
        lines.append(f"{truth:>12.7f} {row}  {allowed:.1e}")
    return "\n".join(lines)


def example() -> str:
    """A layer norm of four numbers far from zero, and one whose variance is taken in one pass."""
    x = np.array([100.0, 100.3, 98.4, 99.0], np.float32)
    mean = x.mean()
    ours = (x - mean) / np.sqrt((x * x).mean() - mean * mean + np.float32(1e-5))

    def program() -> dict[str, Any]:
        return {"y": torch.nn.functional.layer_norm(torch.from_numpy(x), (4,))}

    return picture(program, "y", ours)


if __name__ == "__main__":
    print(example())
