"""``python -m oracle faults``: every fault of the catalogue against the cases of ``nox -s diff``, and the kill table.

Each fault runs in a process of its own, forked when everything is imported and the first cases are drawn, so that
nothing leaks from one to the next. The cases are those of the default run of ``nox -s diff``, in its order; a fault is
killed by the first divergence.
"""

from __future__ import annotations

import itertools
import json
import os
import pickle
import signal
import statistics
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

import needle
from oracle import files
from oracle.blame import judged, report, suspect
from oracle.cases import case as c
from oracle.cases import shrink
from oracle.commands import ROOT, session
from oracle.exits import ExitCode, decided, saved
from oracle.operations import OPERATIONS
from oracle.pages import terminal
from oracle.pages.made import commit, now
from oracle.pages.markdown import table as markdown_table
from oracle.rules.judge import judge
from oracle.rules.verdict import HIGHER, Divergence, Suspect
from oracle.runs import runner
from oracle.runs.draws import SHARD_SIZE, shard_cases
from oracle.runs.forked import forked
from oracle.trust import kill_page
from oracle.trust.faults import CONTROLS, FAULTS, Fault
from oracle.trust.source import source
from oracle.trust.touched import Touched

BASELINE = Path("reports/baselines/faults.json")
PAGE = Path("reports/faults.md")
SEEDS = (0, 1, 2)
HELD_OUT = 977  # seed of the cases on which the probability of a kill is estimated
ESTIMATED = 20  # of them
WAVES = (40, 200, 1000)  # cases of each seed, after which those faults go on that are alive
FEW = 4  # faults: it is not worth while to find out what cases have to do with so few
PATIENCE = 900  # seconds for one fault
SHRINKS = 40  # cases tried while the first kill of a fault is shrunk
HEADINGS = ("fault", "what is wrong", "cases", "per case", "rule", "suspect named", "right", "words", "layers, steps")
WORDS = {"fault", "what is wrong", "rule", "suspect named", "layers, steps"}  # the columns that are not numbers
SYNONYMS = {
    "backward": ("backward", "vjp", "gradient"),
    "forward": ("forward", "value", "output"),
    "accumulation": ("accumulation", "contribution"),
    "parameters": ("module.parameters",),
}


@dataclass
class Kill:
    """How one seed went."""

    seed: int
    cases: int  # judged until the kill, or all of them
    rule: str | None = None  # None: survived
    suspect: str = ""
    right: bool = False
    layers: int | None = None  # of the shrunk case
    steps: int | None = None
    digest: str = ""
    higher: bool = False  # in a gradient of second or third order
    words: str = ""  # what needle seems to do instead, on the case before it was shrunk
    words_right: bool | None = None


@dataclass
class Row:
    """One line of the kill table."""

    name: str
    group: str
    about: str
    expected: str
    kills: list[Kill] = field(default_factory=list)
    probability: float | None = None
    error: str = ""
    seconds: float = 0.0
    ended: bool = False  # its process has died, or did not come back: no more can be said

    @property
    def killed(self) -> bool:
        """Killed with every seed."""
        return bool(self.kills) and all(k.rule is not None for k in self.kills)

    @property
    def cases(self) -> float | None:
        """Median of the cases until the kill."""
        return statistics.median(k.cases for k in self.kills) if self.killed else None

    @property
    def right(self) -> float:
        """Share of the kills with the right suspect."""
        found = [k for k in self.kills if k.rule is not None]
        return sum(k.right for k in found) / len(found) if found else 0.0

    @property
    def rules(self) -> str:
        """The rules that killed, the usual one first."""
        return ", ".join(rule for rule, _ in Counter(k.rule for k in self.kills if k.rule).most_common())

    @property
    def suspect(self) -> str:
        """The suspect named most often."""
        return next(iter(Counter(k.suspect for k in self.kills if k.rule).most_common(1)), ("", 0))[0]

    @property
    def small(self) -> str:
        """Layers and steps of the shrunk cases, medians."""
        shrunk = [(k.layers, k.steps) for k in self.kills if k.layers is not None and k.steps is not None]
        return ", ".join(f"{statistics.median(sizes):g}" for sizes in zip(*shrunk, strict=True))


# -- who is to blame --------------------------------------------------------------------------------------------------


def matches(expected: str, named: str) -> bool:
    """Whether all words of one of the alternatives of ``expected`` occur in what the oracle says."""
    text = named.partition(";")[0].lower()
    return any(all(_occurs(word, text) for word in way.split()) for way in expected.split("|"))


def _occurs(word: str, text: str) -> bool:
    rows = [name for name, op in OPERATIONS.items() if word in op.covers]
    return any(w.lower() in text for w in (*SYNONYMS.get(word, (word,)), *rows))


# -- one fault --------------------------------------------------------------------------------------------------------


class Cases:
    """The cases of ``nox -s diff`` with a seed, drawn as they are needed, and what of needle each has to do with."""

    def __init__(self, touched: Touched | None = None) -> None:
        self.shards: dict[tuple[int, int], list[c.Case]] = {}
        self.touched = touched
        self.paths: dict[tuple[int, int], frozenset[str]] = {}  # of those cases that have been looked at

    def case(self, seed: int, i: int) -> c.Case:
        """Case ``i`` of a seed."""
        place = seed, i // SHARD_SIZE
        if place not in self.shards:
            self.shards[place] = shard_cases(*place)
        return self.shards[place][i % SHARD_SIZE]

    def may_show(self, fault: Fault, seed: int, i: int) -> bool:
        """Whether the fault can show in case ``i`` of a seed."""
        paths = self.paths.get((seed, i))
        return paths is None or self.touched is None or self.touched.may_show(fault.patch, paths)

    def look_at(self, places: Sequence[tuple[int, int]], workers: int) -> None:
        """Draw the cases of these seeds and numbers, and find out what each has to do with."""
        if self.touched is None:
            return
        for seed, i in places:
            self.case(seed, i)
        size = SHARD_SIZE // 4
        parts = [places[i : i + size] for i in range(0, len(places), size)]
        for part, data, _ in forked(parts, self._look, workers):
            # of a child that has died, nothing is known
            self.paths.update(zip(part, pickle.loads(data), strict=True) if data else ())

    def _look(self, part: Sequence[tuple[int, int]], write: Callable[[bytes], None]) -> None:
        assert self.touched is not None
        warnings.simplefilter("ignore")
        write(pickle.dumps([self.touched.by(partial(diverged, self.case(seed, i))) for seed, i in part]))


def diverged(case: c.Case) -> Divergence | None:
    """The divergence of a case; an error of the oracle is a finding about the oracle, and no kill."""
    return judge(case, needle, peer_too=False, evidence=False).divergence


def kill(fault: Fault, cases: Cases, seed: int, numbers: range, shrunk: int, errors: list[str]) -> Kill | None:
    """Run one fault with these cases of one seed until it is killed; the patch is in force already."""
    for i in numbers:
        if not cases.may_show(fault, seed, i):
            continue
        case = cases.case(seed, i)
        try:
            found = diverged(case)
            named = found if found is None else judged(case, needle, peer_too=False).divergence
        except Exception:
            errors.append(_raised(1))
            continue
        if found is None or named is None:
            continue
        result = Kill(seed, i + 1, found.rule, suspect(case, named), digest=case.digest)
        result.right = matches(fault.suspect, result.suspect)
        result.higher = found.quantity in ("second", *HIGHER)
        if named.suspect is not None and named.suspect.words:
            result.words = named.suspect.words
            result.words_right = explains(fault.words, named.suspect)
        if shrunk:
            smallest = shrink.shrink(case, partial(_fails_alike, like=found), shrunk)
            result.layers, result.steps = size(smallest)
            result.digest = smallest.digest
        return result
    return None


def explains(expected: str, named: Suspect) -> bool:
    """Whether what needle seems to do instead is what it does, or one of the explanations is that fit."""
    texts = [named.words, *(e.words for e in named.explanations), *(e.key for e in named.explanations)]
    return any(way in text for way in expected.split("|") if way for text in texts)


def _fails_alike(case: c.Case, like: Divergence) -> bool:
    try:
        found = diverged(case)
    except Exception:
        return False
    return found is not None and (found.quantity, found.rule) == (like.quantity, like.rule)


def size(case: c.Case) -> tuple[int, int]:
    """Layers and steps of a case, of a program its actions; a single operation is one of each."""
    if isinstance(case, c.OpCase):
        return 1, 1
    steps = len(case.actions) if isinstance(case, c.ProgramCase) else getattr(case, "steps", 1)
    return sum(1 for _ in c.walk(case.model)), steps


def probability(fault: Fault, cases: Cases, count: int) -> float:
    """Share of a fixed set of cases that kill."""
    found = 0
    for i in range(count):
        try:
            found += cases.may_show(fault, HELD_OUT, i) and diverged(cases.case(HELD_OUT, i)) is not None
        except Exception:
            continue  # an error of the oracle is no kill
    return found / count


def run_fault(fault: Fault, row: Row, cases: Cases, plan: Plan, numbers: range) -> Row:
    """One line of the table, with what these cases of all seeds that have not killed it add to it."""
    started = time.perf_counter()
    with fault.patch.applied():
        for seed in plan.open_in(row):
            errors: list[str] = []
            found = kill(fault, cases, seed, numbers, plan.shrinks if seed == plan.seeds[0] else 0, errors)
            if found is None and numbers.stop >= plan.budget:
                found = Kill(seed, plan.budget)
            if found is not None:
                row.kills.append(found)
            row.error = row.error or next(iter(errors), "")
        row.kills.sort(key=lambda k: plan.seeds.index(k.seed))
        if row.killed and not plan.open_in(row):
            row.error = ""  # what went wrong in a case before a kill is of no importance
        if plan.estimated and row.probability is None and any(k.rule for k in row.kills):
            row.probability = probability(fault, cases, plan.estimated)
    row.seconds += time.perf_counter() - started
    return row


# -- all of them ------------------------------------------------------------------------------------------------------


@dataclass
class Plan:
    """What to run."""

    faults: Sequence[Fault] = tuple(FAULTS.values())
    seeds: Sequence[int] = SEEDS
    budget: int = 4000  # cases, as in the default run of `nox -s diff`
    workers: int = field(default_factory=lambda: os.cpu_count() or 1)
    shrinks: int = SHRINKS
    estimated: int = ESTIMATED

    def open_in(self, row: Row) -> list[int]:
        """The seeds that have neither killed nor let live."""
        return [seed for seed in self.seeds if all(k.seed != seed for k in row.kills)]

    def waves(self) -> list[range]:
        """The numbers of the cases, a few at first: most faults need no more."""
        ends = [0, *(end for end in WAVES if end < self.budget), self.budget]
        return [range(first, last) for first, last in itertools.pairwise(ends)]


def controls() -> list[Fault]:
    """The skeletons of the faults, as faults that must survive."""
    return [Fault(name, "control", "nothing is wrong", "", patch) for name, patch in CONTROLS.items()]


def run(plan: Plan, progress: Callable[[Row], None] = lambda row: None, known: Sequence[Row] = ()) -> list[Row]:
    """The kill table, in the order of the catalogue; Ctrl-C ends it early, with the faults that have been judged by then.

    ``known`` are lines of an earlier run that need not be made again.
    """
    runner.warm_up()
    done = {row.name: row for row in known}
    rows = {f.name: Row(f.name, f.group, f.about, f.suspect) for f in plan.faults}
    many = len(plan.faults) > FEW
    cases = Cases(Touched([f.patch for f in plan.faults]) if many else None)

    def work(task: tuple[Fault, range], write: Callable[[bytes], None]) -> None:
        fault, numbers = task
        signal.alarm(PATIENCE)
        warnings.simplefilter("ignore")  # a fault may well take the mean of nothing
        try:
            row = run_fault(fault, rows[fault.name], cases, plan, numbers)
        except BaseException:
            row = failed(fault, _raised(3))
        write(pickle.dumps(row))

    with suppress(KeyboardInterrupt):  # what is known so far
        if plan.estimated:
            cases.look_at([(HELD_OUT, i) for i in range(plan.estimated)], plan.workers)
        for numbers in plan.waves():
            waiting = [f for f in plan.faults if f.name not in done]
            seeds = {seed for f in waiting for seed in plan.open_in(rows[f.name])}
            cases.look_at([(seed, i) for seed in sorted(seeds) for i in numbers], plan.workers)
            for (fault, _), data, number in forked([(f, numbers) for f in waiting], work, plan.workers):
                late = f"no end after {PATIENCE} s" if number == signal.SIGALRM else "the process died"
                row = pickle.loads(data) if data else failed(fault, late)
                rows[fault.name] = row
                if row.ended or not plan.open_in(row):
                    done[fault.name] = row
                    progress(row)
    return [done[f.name] for f in plan.faults if f.name in done]


def _raised(frames: int) -> str:
    """The error at hand, with paths as they are in a clone: the table is committed."""
    return traceback.format_exc(limit=-frames).replace(f"{ROOT}{os.sep}", "")


def failed(fault: Fault, error: str) -> Row:
    """The line of a fault about which nothing can be said."""
    return Row(fault.name, fault.group, fault.about, fault.suspect, error=error, ended=True)


# -- the table --------------------------------------------------------------------------------------------------------


def totals(rows: Sequence[Row]) -> dict[str, Any]:
    """The figures that stand above the table."""
    kills = [k for r in rows for k in r.kills if k.rule is not None]
    medians = [r.cases for r in rows if r.cases is not None]
    shrunk = [k for k in kills if k.layers is not None]
    higher = [k for k in kills if k.higher]
    said = [k for k in kills if k.words_right is not None]
    return {
        "faults": len(rows),
        "killed": sum(r.killed for r in rows),
        "median_cases": statistics.median(medians) if medians else None,
        "kills": len(kills),
        "kills_by_exception": sum(k.rule == "exception" for k in kills),
        "right_suspect": _share([k.right for k in kills]),
        "kills_of_higher_order": len(higher),
        "right_suspect_of_higher_order": _share([k.right for k in higher]),
        "words_said": len(said),
        "right_words": _share([bool(k.words_right) for k in said]),
        "median_layers": statistics.median(k.layers for k in shrunk if k.layers is not None) if shrunk else None,
        "median_steps": statistics.median(k.steps for k in shrunk if k.steps is not None) if shrunk else None,
    }


def _share(right: Sequence[bool]) -> float | None:
    return sum(right) / len(right) if right else None


def resumed(plan: Plan, data: Path) -> list[Row]:
    """The lines of an earlier run of the same plan and the same source."""
    if not data.exists():
        return []
    table = json.loads(data.read_text(encoding="utf-8"))
    if (table["seeds"], table["budget"], table["source"]) != (list(plan.seeds), plan.budget, source()):
        return []
    names, fields = {f.name for f in plan.faults}, set(Row.__dataclass_fields__)
    rows = [{k: v for k, v in row.items() if k in fields} for row in table["faults"] if row["name"] in names]
    return [Row(**{**row, "kills": [Kill(**k) for k in row["kills"]]}) for row in rows if not row["ended"]]


def to_json(rows: Sequence[Row], plan: Plan) -> dict[str, Any]:
    """The table as data."""
    table = []
    for r in rows:
        entry = asdict(r)
        entry.pop("seconds")
        table.append({**entry, "killed": r.killed, "cases": r.cases, "right": r.right})
    about = {"seeds": list(plan.seeds), "budget": plan.budget, "source": source()}
    return {**about, "totals": totals(rows), "faults": table}


def markdown(rows: Sequence[Row], plan: Plan) -> str:
    """The table as a page."""
    t = totals(rows)
    lines = [
        "# Kill table",
        "",
        f"`{session('faults')}` plants {t['faults']} faults in needle, one at a time, and runs the cases of `{session('diff')}` "
        f"(seeds {', '.join(map(str, plan.seeds))}; at most {plan.budget:,} cases each) until one of them shows it. "
        "`oracle/trust/faults/` says what each fault is.",
        "",
        f"- killed with every seed: **{t['killed']} of {t['faults']}**",
        f"- cases until the kill, median over the faults: **{t['median_cases']}**",
        f"- kills that name the right suspect: **{_percent(t['right_suspect'])}** of {t['kills']}"
        f" ({t['kills_by_exception']} kills by an exception); in gradients of second and third order"
        f" **{_percent(t['right_suspect_of_higher_order'])}** of {t['kills_of_higher_order']}",
        f"- what needle seems to do instead is said in {t['words_said']} kills, on the case before it is shrunk, and right in"
        f" **{_percent(t['right_words'])}** of them: what it does, or one of the explanations that fit",
        f"- shrunk cases, median: **{t['median_layers']} layers, {t['median_steps']} steps**",
        "",
    ]
    for group in dict.fromkeys(r.group for r in rows):
        part = [r for r in rows if r.group == group]
        lines += [f"## {group}: {sum(r.killed for r in part)} of {len(part)}", ""]
        cells = [_cells(r, "**survived**") for r in part]
        lines += [*markdown_table(HEADINGS, [[c[h] for h in HEADINGS] for c in cells], WORDS), ""]
    return "\n".join(lines)


def _cells(row: Row, survived: str) -> dict[str, str]:
    """Heading -> what a line of the table says there."""
    return {
        "fault": row.name,
        "what is wrong": row.about,
        "cases": survived if row.cases is None else f"{row.cases:g}",
        "per case": _percent(row.probability),
        "rule": row.rules,
        "suspect named": row.suspect.partition(";")[0],
        "right": _percent(row.right),
        "words": _percent(_share([bool(k.words_right) for k in row.kills if k.words_right is not None])),
        "layers, steps": row.small,
    }


def _percent(share: float | None) -> str:
    """All of them are 100 %, and nothing less is."""
    if share is None:
        return ""
    return f"{share:.1%}" if 0 < share < 0.01 or 0.99 <= share < 1 else f"{share:.0%}"


def write(rows: Sequence[Row], plan: Plan, page: Path, data: Path) -> None:
    """The page and the data."""
    page.parent.mkdir(parents=True, exist_ok=True)
    files.save(page, markdown(rows, plan))
    report.dump(data, to_json(rows, plan))


# -- the command ------------------------------------------------------------------------------------------------------


def known_kills(data: Path = BASELINE) -> dict[str, float]:
    """The committed table: name of each killed fault -> cases until the kill."""
    if not data.exists():
        return {}
    table = json.loads(data.read_text(encoding="utf-8"))["faults"]
    return {row["name"]: row["cases"] for row in table if row["killed"]}


def faults(
    *, names: Sequence[str], seeds: int, budget: int, workers: int | None, accept: bool, resume: bool = False,
    shrinks: int = SHRINKS,
) -> int:  # fmt: skip
    """Run, print and write the table; 0 as good as the committed one, 1 a killed fault survives, or a false alarm.

    With ``resume``, the lines of the last run stand, as far as it came.
    """
    console = terminal.console(160)
    chosen = [f for f in FAULTS.values() if not names or any(fnmatch(f.name, n) or f.group == n for n in names)]
    if not chosen:
        console.print(f"no fault is called {', '.join(names)}; oracle/trust/faults/ lists them", markup=False)
        return ExitCode.USAGE
    plan = Plan(chosen, tuple(range(seeds)), budget, workers or os.cpu_count() or 1, shrinks)
    started = time.perf_counter()
    with terminal.progress(console, every=50) as show:
        show("drawing cases", 0, len(chosen))
        right = run(replace(plan, faults=controls(), budget=200, shrinks=0, estimated=0))
        alarms = [r for r in right if r.rules]
        for row in alarms:
            console.print(
                f"{row.name}: nothing is wrong, but it was killed: {row.suspect}", markup=False, style="bold red"
            )
        if alarms:
            console.print("a kill would say nothing about the faults", style="bold red")
            return ExitCode.PART
        if len(right) < len(CONTROLS):
            console.print("interrupted before the first fault", style="bold yellow")
            return ExitCode.INTERRUPTED
        latest = report.LATEST / BASELINE.name
        before = resumed(plan, latest) if resume else []
        count = itertools.count(len(before) + 1)
        rows = run(plan, lambda row: show(row.name, next(count), len(chosen)), before)
    for group in dict.fromkeys(r.group for r in rows):
        console.print(_table(group, [r for r in rows if r.group == group]))
    t = totals(rows)
    for row in rows:
        if row.error:
            console.print(f"{row.name}: {row.error.strip().splitlines()[-1]}", markup=False, style="yellow")
    complete = len(rows) == len(FAULTS)
    page, data = (PAGE, BASELINE) if accept and complete else (report.LATEST / PAGE.name, report.LATEST / BASELINE.name)
    with nullcontext() if page == PAGE else saved(str(page)):
        write(rows, plan, page, data)
    known = known_kills()
    with saved(str(report.LATEST / kill_page.NAME)):
        made = f"{now()}, commit {commit() or 'none'}"
        text = kill_page.html(
            to_json(rows, plan), known, made=made, of=len(chosen), interrupted=len(rows) < len(chosen)
        )
        files.save(report.LATEST / kill_page.NAME, text)
    lost = [r.name for r in rows if not r.killed and r.name in known]
    console.print(
        f"{t['killed']} of {t['faults']} faults killed with every one of {seeds} seeds; median {t['median_cases']} cases; "
        f"right suspect in {_percent(t['right_suspect'])} of {t['kills']} kills"
        + (f", right words in {_percent(t['right_words'])} of {t['words_said']}" if t["words_said"] else "")
        + f"; shrunk to {t['median_layers']} layers "
        f"and {t['median_steps']} steps; {time.perf_counter() - started:.0f} s; {page}, {report.LATEST / kill_page.NAME}",
        style="bold red" if lost else "bold green",
        soft_wrap=True,
    )
    if accept and not complete:
        console.print("nothing accepted: --accept needs all faults; --resume goes on", style="yellow")
    if lost:
        console.print(f"killed according to {BASELINE}, but alive: {', '.join(lost)}", style="bold red", soft_wrap=True)
    interrupted = len(rows) < len(chosen)
    if interrupted:
        console.print(f"interrupted: {len(chosen) - len(rows)} faults were not judged", style="bold yellow")
    return decided(part=lost, harness=[r for r in (*right, *rows) if r.error], interrupted=interrupted)


def _table(group: str, rows: Sequence[Row]) -> Table:
    shown = [h for h in HEADINGS if h not in ("what is wrong", "suspect named")] + ["suspect named"]
    table = terminal.table(shown, WORDS, title=group)
    for row in rows:
        cells = _cells(row, "survived")
        table.add_row(*(escape(cells[h]) for h in shown), style="" if row.killed else "bold red")
    return table
