"""From what a run showed to verdicts. Four gates; the bar of A, B and C is zero, the bar of D is the baseline.

Fewer bytes or allocations than the baseline are no failure: they are shown, with the command that accepts them.

Of a needle of the course only growth is a failure (A and C): its graphs are cycles by design, and it has no baseline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from oracle.cases import case as c
from oracle.memory.baseline import Known
from oracle.memory.probe import FIRST, STRIDE, Measured, Site

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
    course: bool = False  # judged under the course's contract
    hints: dict[str, str] = field(default_factory=dict)  # what fails nothing there: kind -> words
    keepers: list[str] = field(default_factory=list)  # for each holder, which attribute of what: "SGD.u"
    places: list[str] = field(default_factory=list)  # for each holder, the line that looks after it

    @property
    def keepers_of(self) -> dict[str, list[str]]:
        """Who holds what grows -> in which attributes: "Adam" -> "Adam.m", "Adam.v"."""
        found: dict[str, list[str]] = {}
        for keeper in dict.fromkeys(filter(None, self.keepers)):
            owner = keeper if keeper.startswith("module ") else keeper.partition(".")[0]
            found.setdefault(owner, []).append(keeper)
        return found

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
                numbers: dict[str, float] = {
                    "growth": size, "blocks": blocks, "cycles": any(m.collected[1:]), "graphs": m.with_graph,
                }  # fmt: skip
                if self.course:
                    numbers = rates(m)
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
    """Set ``failures``, ``hints`` and ``changes``."""
    row.failures, row.hints, row.changes = {}, {}, []
    for mode, m in row.runs.items():
        if not m.error:
            for gate, text in failures(m, course=row.course).items():
                row.failures.setdefault(gate, text + (f" ({mode} allocators traced)" if len(row.runs) > 1 else ""))
            row.hints = {**(hints(m) if row.course else {}), **row.hints}
    measured = row.runs.get("malloc")  # missing where a run was interrupted: never the other mode's numbers
    if measured is not None and not measured.error and row.known is not None:
        row.changes = against(measured, row.known)
        worse = [str(change) for change in row.changes if change.worse]
        if worse and row.exact:
            row.failures["D"] = "; ".join(worse)


def rates(m: Measured) -> dict[str, float]:
    """What grows with each step, by its column: bytes, blocks, live Tensors; 0 where it does not."""
    size, blocks = m.window
    steps = {"growth": (size, STRIDE), "blocks": (blocks, STRIDE), "Tensors": (m.tensors[FIRST:], 1)}
    return {column: grows(series) / step for column, (series, step) in steps.items()}


def grows(series: Sequence[int]) -> float:
    """By how much a series rises from entry to entry; 0 unless its last third lies above its first, at the top and the bottom.

    What merely goes up and down, as caches do, does not grow.
    """
    third = max(1, len(series) // 3)
    first, last = series[:third], series[-third:]
    if len(series) < 2 or max(last) <= max(first) or min(last) <= min(first):
        return 0.0
    return (sum(last) - sum(first)) / third / (len(series) - third)


def hints(m: Measured) -> dict[str, str]:
    """What a needle of the course may do by design, and what does not grow."""
    found = {}
    if any(m.collected[1:]):
        found["cycles"] = (
            f"graphs are freed by the cycle collector alone: up to {_count(max(m.collected[1:]), 'object')} a step hold one another"
        )
    if m.with_graph and not rates(m)["Tensors"]:
        found["kept"] = (
            f"{_count(m.with_graph, 'Tensor')} with an op outlive the step that made them: not more with each step, but as long "
            "as they live, so do the activations of that step"
        )
    if m.wide:
        found["float64"] = f"float64, twice the memory of float32: {', '.join(m.wide)}"
    return found


def failures(m: Measured, *, course: bool = False) -> dict[str, str]:
    """Gates A, B and C: what is wrong, by gate."""
    if course:
        return _growth(m)
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


def _growth(m: Measured) -> dict[str, str]:
    rate, found = rates(m), {}
    if rate["Tensors"]:
        found["A"] = f"{rate['Tensors']:,.3g} live Tensors more with each step"
    if rate["growth"] or rate["blocks"]:
        found["C"] = f"{rate['growth']:,.0f} B of live memory in {rate['blocks']:,.3g} blocks more with each step"
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

    A line is known by file and source text, and one that has been edited by its function and what it holds; changes below 1 % of
    the peak are left out.
    """
    old = {(s.where.partition(":")[0], s.line): s.size for s in known.at_peak}
    here = {(s.where.partition(":")[0], s.line) for s in m.at_peak}
    gone = [s for s in known.at_peak if (s.where.partition(":")[0], s.line) not in here]
    lines = []
    for site in m.at_peak:
        before = old.get((site.where.partition(":")[0], site.line), 0)
        if not before:
            edited = [s for s in gone if _function(s) == _function(site) and abs(s.size - site.size) * 100 < known.peak]
            if edited:
                gone.remove(edited[0])
                before = edited[0].size
        change = site.size - before
        if abs(change) * 100 < known.peak:
            continue
        if before:
            sizes = f"{before:,} → {site.size:,} B at the peak (x{site.size / before:.2f})"
        else:
            sizes = f"{site.size:,} B at the peak, not among the largest before"
        lines.append((abs(change), f"{site.where}: {sizes}: {site.line}"))
    return [text for _, text in sorted(lines, reverse=True)]


def _function(site: Site) -> tuple[str, str]:
    """The file and the name of the function, of ``needle/nn.py:12 forward``."""
    file, _, rest = site.where.partition(":")
    return file, rest.partition(" ")[2]


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}{'s' * (n != 1)}"
