"""``python -m oracle faults --guards``: every label of the coverage table with the fault that only cases with the label can notice.

The cases are the first of a default run of ``nox -s diff``. First each is run once with nothing wrong, and every guard is asked whether it would be: a
case in which it would not is the same to the last bit with the guard planted. So no case without the label can notice a guard that would be
wrong in none of them. Then each guard is planted in the first of its cases, until enough of them have shown it; where they are too few, in cases
of other seeds that have the label.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import time
import tomllib
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from oracle import files
from oracle.blame import report
from oracle.cases import coverage
from oracle.cases.features import LABELS
from oracle.commands import session
from oracle.exits import ExitCode, decided
from oracle.pages import terminal
from oracle.pages.markdown import table as markdown_table
from oracle.runs import runner
from oracle.runs.draws import SHARD_SIZE
from oracle.runs.forked import forked
from oracle.trust.guards.guard import Guard
from oracle.trust.guards.planted import GUARDS, killed, looked_at
from oracle.trust.kill_table import Cases

PAGE = Path("reports/guards.md")
BASELINE = Path("reports/baselines/guards.json")
REASONS = Path(__file__).with_name("unguarded.toml")
SEED = 0
MORE = (1, 2, 3, 4)  # seeds of the cases in which guards are planted that would be wrong in too few of the first
STRETCH = 2000  # cases of each seed
KILLS = 3  # cases that must have shown a guard: one may be an accident
TRIES = 12  # cases in which a guard is planted before it counts as not noticed
PATIENCE = 900  # seconds for a part
HEADINGS = ("label", "wrong", "would be in", "with the label", "planted in", "noticed in")


Place = tuple[int, int]  # seed and number of a case


@dataclass
class Row:
    """A label, and its guard."""

    label: str
    about: str
    cases: list[Place] = field(default_factory=list)  # in which the guard would be wrong
    labelled: int = 0  # cases of the first seed with the label
    strays: list[Place] = field(default_factory=list)  # cases without the label in which it would be wrong
    tried: int = 0
    kills: list[Place] = field(default_factory=list)
    words: str = ""  # how the first kill reads

    @property
    def guarded(self) -> bool:
        """Noticed often enough, and by nobody else."""
        return len(self.kills) >= KILLS and not self.strays


@dataclass
class Looked:
    """What a look at cases in which nothing is wrong gives."""

    fired: dict[Place, set[str]] = field(default_factory=dict)  # labels of the guards that would be wrong
    labels: dict[Place, set[str]] = field(default_factory=dict)
    alarms: dict[Place, str] = field(default_factory=dict)  # of those that diverge all the same

    def __ior__(self, other: Looked) -> Looked:
        self.fired |= other.fired
        self.labels |= other.labels
        self.alarms |= other.alarms
        return self


def reasons() -> dict[str, str]:
    """The labels without a guard: why."""
    groups = tomllib.loads(REASONS.read_text(encoding="utf-8"))["group"]
    return {label: group["reason"] for group in groups for label in group["labels"]}


def look(cases: Cases, places: Sequence[Place], guards: Sequence[Guard], *, every: bool = True) -> Looked:
    """Run cases with nothing wrong: all of them, or those with the label of a guard."""
    seen, labels = Looked(), {g.label for g in guards}
    for place in places:
        case = cases.case(*place)
        covered = coverage.covered(case)
        if not every and covered.isdisjoint(labels):
            continue
        seen.labels[place] = covered
        seen.fired[place], divergence = looked_at(case, guards)
        if divergence:
            seen.alarms[place] = divergence
    return seen


def plant(cases: Cases, guard: Guard, row: Row, kills: int = KILLS, tries: int = TRIES) -> Row:
    """Plant a guard in the first of its cases."""
    for place in row.cases[:tries]:
        words = killed(cases.case(*place), guard)
        row.tried += 1
        if words:
            row.kills.append(place)
            row.words = row.words or words
        if len(row.kills) >= kills:
            break
    return row


def rows_of(seen: Looked, guards: Sequence[Guard]) -> list[Row]:
    """The lines before anything is planted."""
    rows = []
    for g in guards:
        row = Row(g.label, g.about)
        row.labelled = sum(seed == SEED and g.label in labels for (seed, _), labels in seen.labels.items())
        for place, fired in sorted(seen.fired.items()):
            if g.label in fired:
                (row.cases if g.label in seen.labels[place] else row.strays).append(place)
        rows.append(row)
    return rows


Progress = Callable[[str, int, int], None]


def run(guards: Sequence[Guard], count: int, workers: int, progress: Progress) -> tuple[list[Row], dict[Place, str]]:
    """The table, and the false alarms."""
    runner.warm_up()
    cases = Cases()
    seen = _looked(cases, [SEED], guards, count, workers, progress)
    few = {row.label for row in rows_of(seen, guards) if len(row.cases) < 2 * KILLS}  # some cases will not notice
    if few:
        seen |= _looked(cases, MORE, [g for g in guards if g.label in few], count, workers, progress)
    rows = {row.label: row for row in rows_of(seen, guards)}
    of = {g.label: g for g in guards}
    parts = max(1, len(rows) // 20)
    chunks = [list(rows)[i::parts] for i in range(parts)]

    def planting(labels: Sequence[str], write: Callable[[bytes], None]) -> None:
        _begin()
        write(pickle.dumps([plant(cases, of[label], rows[label]) for label in labels]))

    for i, (labels, data, _) in enumerate(forked(chunks, planting, workers)):
        if not data:
            raise RuntimeError(f"the process that planted the guards of {', '.join(labels)} has died")
        rows |= {row.label: row for row in pickle.loads(data)}
        progress("planting guards", (i + 1) * 20, len(rows))
    return list(rows.values()), seen.alarms


def _looked(
    cases: Cases, seeds: Sequence[int], guards: Sequence[Guard], count: int, workers: int, progress: Progress
) -> Looked:
    """A look at the cases of these seeds, which are then drawn; beyond the first seed, at those with a label of a guard."""
    shards = [(seed, range(i, min(i + SHARD_SIZE, count))) for seed in seeds for i in range(0, count, SHARD_SIZE)]

    def looking(part: tuple[int, Sequence[int]], write: Callable[[bytes], None]) -> None:
        _begin()
        seed, numbers = part
        found = look(cases, [(seed, i) for i in numbers], guards, every=seed == SEED)
        place = seed, numbers[0] // SHARD_SIZE
        write(pickle.dumps((found, place, cases.shards[place])))

    seen = Looked()
    for i, ((seed, numbers), data, _) in enumerate(forked(shards, looking, workers)):
        if not data:
            raise RuntimeError(f"the process that looked at the cases from {numbers[0]} of seed {seed} has died")
        found, place, shard = pickle.loads(data)
        seen |= found
        cases.shards[place] = shard
        progress(f"looking at cases, seed {seed}", (i + 1) * SHARD_SIZE, len(shards) * SHARD_SIZE)
    return seen


def _begin() -> None:
    signal.alarm(PATIENCE)
    warnings.simplefilter("ignore")


def markdown(rows: Sequence[Row], count: int) -> str:
    """The table as a page."""
    why = reasons()
    guarded = [r for r in rows if r.guarded]
    lines = [
        "# Guards of the coverage labels",
        "",
        f"`{session('faults')} -- --guards`: a guard of a label is a fault that needle has exactly where it sees what the label is about. In the "
        f"first {count:,} cases of `{session('diff')}` (seed {SEED}) none without the label has anything to do with it, and at least {KILLS} with the "
        f"label have shown it (of seed {SEED}, or where it is rare of the seeds {', '.join(map(str, MORE))}).",
        "",
        f"- labels: **{len(LABELS)}**, guarded **{len(guarded)}**, with a reason why not **{len(why)}**",
        f"- what is wrong: {', '.join(f'{about} ({n})' for about, n in Counter(r.about for r in guarded).most_common())}",
        "",
    ]
    for group in dict.fromkeys(r.label.partition(" ")[0] for r in guarded):
        part = [r for r in guarded if r.label.partition(" ")[0] == group]
        cells = [(r.label, r.about, str(len(r.cases)), str(r.labelled), str(r.tried), str(len(r.kills))) for r in part]
        lines += [f"## {group}: {len(part)}", "", *markdown_table(HEADINGS, cells, {"label", "wrong"}), ""]
    lines += ["## Without a guard", ""]
    lines += markdown_table(("label", "why"), list(why.items()), {"label", "why"})
    return "\n".join([*lines, ""])


def to_json(rows: Sequence[Row], count: int) -> dict[str, Any]:
    """The table as data; of the cases in which a guard would be wrong, how many there are."""
    lines = [{**asdict(r), "cases": len(r.cases), "guarded": r.guarded} for r in rows]
    return {"seed": SEED, "cases": count, "guards": lines}


def known(data: Path = BASELINE) -> dict[str, Mapping[str, Any]]:
    """The guards of the committed table, by label."""
    if not data.exists():
        return {}
    return {row["label"]: row for row in json.loads(data.read_text(encoding="utf-8"))["guards"] if row["guarded"]}


def open_labels(guarded: set[str]) -> tuple[list[str], list[str]]:
    """Labels that have neither a guard nor a reason, and reasons of what is guarded or is no label."""
    why = reasons()
    return [x for x in LABELS if x not in guarded and x not in why], [x for x in why if x in guarded or x not in LABELS]


def guards(
    *, count: int = STRETCH, workers: int | None = None, accept: bool = False, labels: Sequence[str] = ()
) -> int:
    """Run, print and write the table; 0 every label has a guard or a reason, 1 one has not, or a false alarm."""
    console = terminal.console(160)
    chosen = [g for g in GUARDS.values() if not labels or any(word in g.label for word in labels)]
    if not chosen:
        console.print(f"no label has {', '.join(labels)} in it", markup=False)
        return ExitCode.USAGE
    started = time.perf_counter()
    with terminal.progress(console, every=50) as show:
        rows, alarms = run(chosen, count, workers or os.cpu_count() or 1, show)
    for place, words in alarms.items():
        console.print(
            f"case {place[1]} of seed {place[0]}: nothing is wrong, but it diverges: {words}",
            markup=False,
            style="bold red",
        )
    for row in rows:
        if not row.guarded:
            console.print(
                f"{row.label}: would be wrong in {len(row.cases)} of {row.labelled} cases with it, and in {len(row.strays)} others "
                f"{row.strays[:5]}; planted in {row.tried}, noticed in {len(row.kills)}",
                markup=False, style="yellow", soft_wrap=True,
            )  # fmt: skip
    missing, needless = open_labels({r.label for r in rows if r.guarded}) if not labels else ([], [])
    for label in missing:
        console.print(f"{label}: no guard, and no reason in {REASONS.name}", markup=False, style="bold red")
    for label in needless:
        console.print(
            f"{label}: is guarded or no label, and has a reason in {REASONS.name}", markup=False, style="bold red"
        )
    page, data = (
        (PAGE, BASELINE) if accept and not labels else (report.LATEST / PAGE.name, report.LATEST / BASELINE.name)
    )
    page.parent.mkdir(parents=True, exist_ok=True)
    files.save(page, markdown(rows, count))
    files.save(data, files.in_lines(to_json(rows, count), "guards"))
    console.print(
        f"{sum(r.guarded for r in rows)} of {len(rows)} guards noticed by cases with their label alone, {len(reasons())} labels with a reason; "
        f"{time.perf_counter() - started:.0f} s; {page}",
        style="bold red" if missing or needless or alarms else "bold green", soft_wrap=True,
    )  # fmt: skip
    return decided(part=missing or needless or alarms)
