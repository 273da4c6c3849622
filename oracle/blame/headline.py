"""What happened and where: a line, and the numbers."""

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


def shown(divergence: Divergence) -> list[tuple[str, str]]:
    """What needle, torch and the truth show, each with its name."""
    d = divergence
    if d.failure is not None:
        lines = [("needle", d.failure.message or "(no message)")]
        if d.failure.where:
            lines.append(("at", d.failure.where))
    else:
        if d.rule in ("missing", "unexpected", "exact"):
            lines = [("finding", d.message)]
        else:
            dtype = f"   ({d.dtype})" if d.dtype else ""
            lines = [("needle", number(d.ours) + dtype)]
            if d.peer is not None:
                lines.append(("torch", number(d.peer) + "   (float32)"))
            if d.truth is not None:
                lines.append(
                    ("truth" if d.dtype else "expected", number(d.truth) + ("   (float64)" if d.dtype else ""))
                )
        if d.error is not None and d.allowed is not None:
            lines.append(("error", f"{d.error:.2g}, allowed {d.allowed:.2g} (rule {d.rule})"))
    return lines
