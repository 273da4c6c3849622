"""From what a run showed to verdicts. Four gates; the bar of A, B and C is zero, the bar of D is the baseline."""

from __future__ import annotations

from dataclasses import dataclass, field

from oracle.cases import case as c
from oracle.memory.baseline import Known
from oracle.memory.probe import FIRST, Measured

GATES = {
    "A": "no live Tensor has an op once loss and gradients are dropped, and their number is constant",
    "B": "nothing is left for the cycle collector",
    "C": "live bytes and blocks do not grow",
    "D": "peak, live end and allocations are those of the baseline",
}


@dataclass
class Row:
    """A case in the report."""

    name: str  # of the panel, or a digest
    case: c.TrainCase
    panel: bool
    runs: dict[str, Measured] = field(default_factory=dict)  # by allocators traced
    torch: Measured | None = None
    by_hand: Measured | None = None
    known: Known | None = None
    exact: bool = False  # the baseline has the same key
    failures: dict[str, str] = field(default_factory=dict)  # gate -> what is wrong
    holders: list[str] = field(default_factory=list)
    replay: str = ""
    flame: str = ""  # file name of a flame graph

    @property
    def main(self) -> Measured | None:
        """The run whose peak counts; the only one of a generated case."""
        return self.runs.get("malloc") or next(iter(self.runs.values()), None)

    @property
    def errors(self) -> list[str]:
        """Runs that came to nothing."""
        return [m.error for m in self.runs.values() if m.error]


def judge(row: Row) -> None:
    """Set ``failures``."""
    row.failures = {}
    for mode, m in row.runs.items():
        if not m.error:
            for gate, text in failures(m).items():
                row.failures.setdefault(gate, text + (f" ({mode} allocators traced)" if len(row.runs) > 1 else ""))
    measured = row.runs.get("malloc")  # missing where a run was interrupted: never the other mode's numbers
    if measured is not None and not measured.error and row.known is not None and row.exact:
        text = against(measured, row.known)
        if text:
            row.failures["D"] = text


def failures(m: Measured) -> dict[str, str]:
    """Gates A, B and C: what is wrong, by gate."""
    found = {}
    drift = set(m.tensors[FIRST:])
    if m.with_graph:
        found["A"] = f"{_count(m.with_graph, 'live Tensor')} with an op after loss and gradients were dropped"
    elif len(drift) > 1:
        found["A"] = f"the number of live Tensors goes from {min(drift):+d} to {max(drift):+d} against step {FIRST}"
    if any(m.collected[1:]):
        steps = sum(1 for n in m.collected[1:] if n)
        most = max(m.collected[1:])
        found["B"] = (
            f"up to {_count(most, 'object')} a step for the cycle collector, in {steps} of {len(m.collected) - 1} steps"
        )
    size, blocks = m.growth
    if size or blocks:
        found["C"] = (
            f"live memory grows by {size:,} B in {_count(blocks, 'block')} over steps {FIRST} to {len(m.live) - 1}"
        )
    return found


def against(m: Measured, known: Known) -> str:
    """Gate D: what differs from the baseline, or ""."""
    pairs = {
        "peak": (m.peak, known.peak, " B"),
        "live end": (m.end, known.end, " B"),
        "allocations per step": (m.allocations, known.allocations, ""),
    }
    changed = []
    for name, (new, old, unit) in pairs.items():
        if new != old:
            ratio = f" (x{new / old:.3f})" if old else ""
            changed.append(f"{name} {old:,g} → {new:,g}{unit}, {new - old:+,g}{ratio}" if unit == "" else
                           f"{name} {old:,} → {new:,}{unit}, {new - old:+,}{ratio}")  # fmt: skip
    return "; ".join(changed)


def moved(m: Measured, known: Known) -> list[str]:
    """The lines that hold more, or less, at the peak than in the baseline, the largest change first.

    A line is known by file, function and source text; changes below 1 % of the peak are left out.
    """
    old = {(s.where.partition(":")[0], s.line): s.size for s in known.at_peak}
    lines = []
    for site in m.at_peak:
        before = old.get((site.where.partition(":")[0], site.line), 0)
        change = site.size - before
        if abs(change) * 100 < known.peak:
            continue
        if before:
            sizes = f"{before:,} → {site.size:,} B at the peak (x{site.size / before:.2f})"
        else:
            sizes = f"{site.size:,} B at the peak, not among the largest before"
        lines.append((abs(change), f"{site.where}: {sizes}: {site.line}"))
    return [text for _, text in sorted(lines, reverse=True)]


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}{'s' * (n != 1)}"
