"""Small charts without matplotlib, which takes longer to import than many a run: lines over steps, and a spark in a row.

They are as wide as a phone, and drawn in the colours of style.css.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from markupsafe import Markup

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 344, 170, 62, 8, 8, 34
MOST = 200  # points of a line


def lines(
    title: str,
    xs: Sequence[int],
    series: Mapping[str, Sequence[float]],
    *,
    across: str,
    limit: float | None = None,
    logarithmic: bool = False,
) -> Markup:
    """A figure: a line per system, each in its own colour; what is not finite is left out. ``limit`` is drawn across.

    Returns an empty text where no point can be drawn.
    """
    from markupsafe import Markup, escape

    xs = xs[:MOST]
    usable = {
        name: [(x, y) for x, y in zip(xs, ys, strict=False) if math.isfinite(y) and (y > 0 or not logarithmic)]
        for name, ys in series.items()
    }
    values = [y for points in usable.values() for _, y in points] + ([limit] if limit is not None else [])
    if not any(usable.values()):
        return Markup("")
    to, back = (math.log10, lambda v: 10.0**v) if logarithmic else (float, float)
    low, high = _span([to(v) for v in values])
    first, last = xs[0], max(xs[-1], xs[0] + 1)

    def at(x: float, y: float) -> str:
        across_ = LEFT + (x - first) / (last - first) * (WIDTH - LEFT - RIGHT)
        return f"{across_:.1f},{_up(to(y), low, high):.1f}"

    parts = []
    ticks = _decades(low, high) if logarithmic else [low, (low + high) / 2, high]
    for value, label in zip(ticks, _labels([back(value) for value in ticks]), strict=True):
        y = _up(value, low, high)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="var(--line)"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
    for where, x, anchor in ((LEFT, first, "start"), (WIDTH - RIGHT, last, "end")):
        parts.append(f'<text x="{where}" y="{HEIGHT - BOTTOM + 16}" text-anchor="{anchor}">{x}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 4}" text-anchor="middle">{escape(across)}</text>')
    if limit is not None:
        y = _up(to(limit), low, high)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="var(--bad)" stroke-dasharray="5 3"/>')
    for name, points in reversed(usable.items()):  # the first lies on top
        colour = f"var(--{name})"
        dash = ' stroke-dasharray="6 4"' if name == "needle" and len(usable) > 1 else ""  # shows what lies below it
        path = " ".join(at(*p) for p in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
        parts += [
            f'<circle cx="{x}" cy="{y}" r="2.5" fill="{colour}"/>' for x, y in (at(*p).split(",") for p in points)
        ]
    key = (
        "".join(f'<i style="background: var(--{name})"></i>{escape(name)}' for name in usable)
        if len(usable) > 1
        else ""
    )
    told = "; ".join(f"{name}: " + ", ".join(f"{y:.4g}" for _, y in points[:20]) for name, points in usable.items())
    return Markup(
        f'<figure class="chart"><figcaption>{escape(title)}<span class="key">{key}</span></figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}" font-size="12" fill="var(--ink)">'
        f"<title>{escape(title)}</title><desc>{escape(told)}</desc>{''.join(parts)}</svg></figure>"
    )


def _span(values: Sequence[float]) -> tuple[float, float]:
    """The ends of an axis: no two of them are the same, and what rounding alone tells apart lies on one line."""
    low, high = min(values), max(values)
    room = max((high - low) * 0.05, max(abs(low), abs(high)) * 0.01) or 1.0
    return low - room, high + room


def _decades(low: float, high: float) -> list[float]:
    """Whole powers of ten, as exponents, at most five; the ends where there are none."""
    whole = range(math.ceil(low), math.floor(high) + 1)
    return [float(n) for n in whole[:: -(-len(whole) // 5)]] if whole else [low, high]


def _labels(values: Sequence[float]) -> list[str]:
    """Numbers with as few digits as tell them apart."""
    shown = [[f"{value:.{digits}g}" for value in values] for digits in range(2, 8)]
    return next((labels for labels in shown if len(set(labels)) == len(labels)), shown[-1])


def _up(value: float, low: float, high: float) -> float:
    return TOP + (high - value) / (high - low) * (HEIGHT - TOP - BOTTOM)


def spark(what: str, values: Sequence[float | None]) -> Markup:
    """Shares of a limit, run after run, the last one on the right; the height is the limit. None is a run without it."""
    from markupsafe import Markup, escape

    told = ", ".join("-" if v is None else f"{v:.0%}" for v in values)
    step = 116 / max(len(values) - 1, 1)
    points = [
        (2 + i * step if len(values) > 1 else 118, 22 - 20 * min(max(v, 0.0), 1.0))
        for i, v in enumerate(values)
        if v is not None and math.isfinite(v)
    ]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dot = f'<circle cx="{points[-1][0]:.1f}" cy="{points[-1][1]:.1f}" r="2" fill="var(--needle)"/>' if points else ""
    return Markup(
        f'<svg width="120" height="24" viewBox="0 0 120 24" role="img" aria-label="{escape(what)}: {told}">'
        f"<title>{escape(what)}: {told}</title>"
        '<path d="M0 2H120" stroke="var(--bad)" stroke-dasharray="4 3"/><path d="M0 22.5H120" stroke="var(--line)"/>'
        f'<polyline points="{path}" fill="none" stroke="var(--needle)" stroke-width="1.5"/>{dot}</svg>'
    )
