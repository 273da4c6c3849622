"""From what a run showed to verdicts. Four gates; the bar of A, B and C is zero, the bar of D is the baseline.

Fewer bytes or allocations than the baseline are no failure: they are shown, with the command that accepts them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from oracle.cases import case as c
from oracle.memory.baseline import Known
from oracle.memory.probe import FIRST, Measured

GATES = {
    "A": "no live Tensor has an op once loss and gradients are dropped, and their number is constant",
    "B": "nothing is left for the cycle collector",
    "C": "live bytes and blocks do not grow",
    "D": "peak, live end and allocations are no more than those of the baseline",
}


@dataclass(frozen=True)
class Change:
    """A number that is not the one of the baseline."""

    column: str  # of the table
    old: float
    new: float

    @property
    def worse(self) -> bool:
        """More than in the baseline."""
        return self.new > self.old

    @property
    def short(self) -> str:
        """Which number and its ratio, for the table."""
        return f"{self.column} x{self.new / self.old:.3f}" if self.old else f"{self.column} {self.new:+,g}"

    def __str__(self) -> str:
        name, unit, form = ("allocations per step", "", ",g") if self.column == "allocs" else (self.column, " B", ",")
        ratio = f" (x{self.new / self.old:.3f})" if self.old else ""
        return f"{name} {self.old:{form}} → {self.new:{form}}{unit}, {self.new - self.old:+{form}}{ratio}"


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
    changes: list[Change] = field(default_factory=list)  # against the baseline, whatever its key
    holders: list[str] = field(default_factory=list)
    replay: str = ""
    flame: str = ""  # file name of a flame graph

    @property
    def main(self) -> Measured | None:
        """The run whose peak counts; the only one of a generated case."""
        return self.runs.get("malloc") or next(iter(self.runs.values()), None)

    @property
    def better(self) -> list[Change]:
        """What is less than in the baseline of the same key."""
        return [change for change in self.changes if self.exact and not change.worse]

    @property
    def marked(self) -> set[str]:
        """The columns whose numbers fail their gates."""
        found = {change.column for change in self.changes if "D" in self.failures and change.worse}
        for m in self.runs.values():
            if not m.error:
                size, blocks = m.growth
                numbers = {"growth": size, "blocks": blocks, "cycles": any(m.collected[1:]), "graphs": m.with_graph}
                found |= {column for column, number in numbers.items() if number}
        return found

    @property
    def broken(self) -> bool:
        """Whether needle itself kept it from being measured."""
        return any(m.error and m.of_needle for m in self.runs.values())

    @property
    def errors(self) -> list[str]:
        """Runs that came to nothing."""
        return [m.error for m in self.runs.values() if m.error]


def judge(row: Row) -> None:
    """Set ``failures`` and ``changes``."""
    row.failures, row.changes = {}, []
    for mode, m in row.runs.items():
        if not m.error:
            for gate, text in failures(m).items():
                row.failures.setdefault(gate, text + (f" ({mode} allocators traced)" if len(row.runs) > 1 else ""))
    measured = row.runs.get("malloc")  # missing where a run was interrupted: never the other mode's numbers
    if measured is not None and not measured.error and row.known is not None:
        row.changes = against(measured, row.known)
        worse = [str(change) for change in row.changes if change.worse]
        if worse and row.exact:
            row.failures["D"] = "; ".join(worse)


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


def against(m: Measured, known: Known) -> list[Change]:
    """Gate D: what differs from the baseline, the largest growth first."""
    changes = [
        Change("peak", known.peak, m.peak),
        Change("live end", known.end, m.end),
        Change("allocs", known.allocations, m.allocations),
    ]
    return sorted((x for x in changes if x.new != x.old), key=lambda x: -x.new / (x.old or 1))


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
