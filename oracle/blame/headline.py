"""What happened and where, in one line."""

from __future__ import annotations

from oracle.rules.verdict import Divergence
from oracle.systems.trace import CHANGED, ENDED


def number(value: float | str | None) -> str:
    """Nine significant digits tell any two float32 apart."""
    return "-" if value is None else value if isinstance(value, str) else f"{value:.9g}"


def headline(divergence: Divergence) -> str:
    """What happened and where, in one line."""
    d = divergence
    if d.failure is not None and d.failure.kind == ENDED:
        how = "crashes" if "crashed" in d.failure.message else "does not return"
        return f"needle {how} at step {d.step}, in {d.failure.phase}"
    if d.failure is not None and d.failure.kind == CHANGED:
        return f"needle changes the state of the process, in {d.failure.phase}"
    if d.failure is not None:
        return f"needle raises {d.failure.kind} at step {d.step}, in {d.failure.phase}"
    return f"needle and torch part at step {d.step}: {d.place}"
