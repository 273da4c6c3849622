"""``python -m oracle memory``: the panel and generated models through the four gates; a table, a page, a verdict."""

from __future__ import annotations

import importlib.util
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future, as_completed
from pathlib import Path

import msgspec
from rich.console import Console

from oracle import files
from oracle.cases import case as c
from oracle.cases import fitting, shrink
from oracle.commands import Asked, meant, session, shown
from oracle.exits import ExitCode, saved
from oracle.memory import baseline, report
from oracle.memory.child import Pool, pool
from oracle.memory.gates import Row, failures, judge
from oracle.memory.outcome import Plan, Run
from oracle.memory.panel import PANEL, traced
from oracle.memory.probe import FIRST, STEPS, STRIDE, Job, Measured
from oracle.pages import terminal
from oracle.pages.made import commit
from oracle.runs.offered import offered
from oracle.systems.candidate import chosen
from oracle.systems.foreign import Offer
from oracle.systems.ours import is_foreign

CASES, COURSE_CASES = 30, 8  # generated models: of ours, of another needle
# Of another needle: a long chain is for `nox -s diff`, and the digits are but other numbers for a model that is there twice.
NOT_OF_COURSE = ("deep chain", "digits")
SMALL = ("MLP", "Adam")  # in which Python's own small objects are traced too, for another needle
SHRUNK = 3  # failing generated models that are made smaller; the rest is only listed
SHRINK_BUDGET = 80  # measurements for each
NO_MEMRAY = (
    "memory: SKIPPED, nothing was checked: memray is not installed (it does not exist for Windows). "
    f"The gates without memray run in `{session('diff')}`."
)


def memory(
    *, cases: int | None, seed: int | None, workers: int | None, panel_only: bool, accept: bool, folder: Path,
    model: str | None = None, needle: Path | None = None,
) -> int:  # fmt: skip
    """Run, show progress, print the table, write the reports; returns the exit code."""
    foreign = is_foreign(needle)
    if accept and foreign:
        print("memory: the baseline is that of ours: --accept goes without --needle", file=sys.stderr)
        return 2
    if model is not None and model not in PANEL:
        print(f"memory: --model must be one of {', '.join(map(repr, PANEL))}, got {model!r}", file=sys.stderr)
        return 2
    if model is not None and accept:
        print("memory: an entry of the baseline is the whole panel: --accept goes without --model", file=sys.stderr)
        return 2
    if importlib.util.find_spec("memray") is None:
        print(NO_MEMRAY, file=sys.stderr)
        return ExitCode.NO_VERDICT
    console = terminal.console(report.WIDTH)
    plan = Plan(
        cases=0 if panel_only or model is not None else cases or (COURSE_CASES if foreign else CASES),
        seed=secrets.randbelow(2**20) if seed is None else seed,
        workers=workers or os.cpu_count() or 1,
        panel_only=panel_only,
        model=model,
        accept=accept,
        folder=meant(folder),
        needle=needle,
        offer=offered() if foreign else Offer(),
    )
    folder = plan.folder
    unwritable = files.tried(folder)
    if unwritable:
        print(
            f"nothing will be written to {shown(folder)}: {unwritable}; `--out` names another folder", file=sys.stderr
        )
    else:
        files.set_aside(folder, "memory*", cases=False)
    what = model or ("panel" if panel_only else f"panel and {plan.cases} generated models, seed {plan.seed}")
    whose = f"the needle of {shown(needle)}" if needle is not None else "needle"
    console.print(
        f"memory of {whose}: {what}, {STEPS} steps each, {plan.workers} worker{'s' * (plan.workers != 1)}",
        soft_wrap=True,
        markup=False,
    )
    with terminal.progress(console) as show:
        outcome = run(plan, lambda run, text: show(text, run.done, run.jobs))
    with saved(f"{shown(folder)}, `--out` names another folder"):
        report.write(outcome, folder)
    report.terminal(outcome, console)
    return outcome.exit_code


def run(plan: Plan, tick: Callable[[Run, str], None] = lambda run, text: None) -> Run:
    """Run a plan. Ctrl-C ends it early, with what is known so far."""
    started = time.perf_counter()
    outcome = Run(plan, baseline.key(), commit())
    try:
        with pool(plan.workers) as workers:
            try:
                _measure(outcome, workers, tick)
                _compare(outcome)
                _explain(outcome, workers, tick)
            except KeyboardInterrupt:
                outcome.interrupted = True
                _compare(outcome)
    except KeyboardInterrupt:
        outcome.interrupted = True
    outcome.rows = [r for r in outcome.rows if r.runs]
    panel = [r for r in outcome.rows if r.panel]
    if plan.accept and not outcome.interrupted and not outcome.errors:
        measured = {r.name: (r.case.digest, r.main) for r in panel if r.main is not None}
        baseline.accept(plan.baseline, outcome.key, measured)
        outcome.accepted = True
        _compare(outcome)
    outcome.wall = time.perf_counter() - started
    return outcome


def generated(count: int, seed: int, offer: Offer | None = None) -> list[c.TrainCase]:
    """Models as `nox -s diff` draws them, trained for longer; such as another needle offers."""
    from oracle.runs.draws import fitting_cases, seed_of

    if offer is not None and offer.cannot_train:
        return []
    drawn = fitting_cases(
        "train", count, seed_of(seed, "memory"), offer.lacking if offer is not None else frozenset(), 0
    )
    return [as_memory_case(case) for case in drawn if isinstance(case, c.TrainCase)]


def _of_course(offer: Offer) -> dict[str, c.TrainCase]:
    """The panel without what another needle does not offer, and each model once."""
    found: dict[str, c.TrainCase] = {}
    for name, case in PANEL.items():
        twice = case.memory is not None and case.memory.create_graph
        if name in NOT_OF_COURSE or offer.cannot_train or (twice and "backward second order" in offer.lacking):
            continue
        fitted = fitting.fitted(case, offer.lacking)
        if isinstance(fitted, c.TrainCase) and fitted not in found.values():
            found[name] = fitted
    return found


def as_memory_case(case: c.TrainCase) -> c.TrainCase:
    """The case for the memory gates: 120 steps, evaluated now and then."""
    return msgspec.structs.replace(case, steps=STEPS, memory=c.Memory())


def _measure(outcome: Run, workers: Pool, tick: Callable[[Run, str], None]) -> None:
    plan = outcome.plan
    outcome.rows = [
        Row(name, case, panel=True, replay=plan.again(model=name), course=plan.course)
        for name, case in (_of_course(plan.offer) if plan.course else PANEL).items()
        if plan.model in (None, name)
    ]
    if plan.cases:
        tick(outcome, "drawing models")
        outcome.rows += [
            Row(
                case.digest,
                case,
                panel=False,
                replay=plan.again(seed=plan.seed, cases=plan.cases),
                course=plan.course,
            )
            for case in generated(plan.cases, plan.seed, plan.offer)
        ]
    # the longest first
    panel = [r for r in outcome.rows if r.panel]
    jobs = [(r, "python", Job(traced(r.case, "python"))) for r in panel if not r.course or r.name in SMALL]
    jobs += [(r, "malloc", Job(r.case)) for r in outcome.rows]
    others = ("torch",) if plan.course else ("torch", "by hand")
    jobs += [(r, other, Job(r.case, other)) for r in panel for other in others]
    outcome.jobs = len(jobs)
    running: dict[Future[Measured], tuple[Row, str]] = {workers.submit(job): (r, what) for r, what, job in jobs}
    for future in as_completed(running):
        row, what = running[future]
        found = future.result()
        if what in ("malloc", "python"):
            row.runs[what] = found
        elif what == "torch":
            row.torch = found
        else:
            row.by_hand = found if found.live else None
        outcome.done += 1
        tick(outcome, row.name)


def _compare(outcome: Run) -> None:
    entry, same = baseline.entry_for(baseline.read(outcome.plan.baseline), outcome.key)
    outcome.baseline_key = None if entry is None else entry.key
    for row in outcome.rows:
        known = entry.cases.get(row.name) if entry is not None and row.panel and not row.course else None
        row.known = known if known is not None and known.case == row.case.digest else None
        row.exact = same
        if not (outcome.plan.accept and not outcome.accepted):
            judge(row)
        else:
            row.known = None
            judge(row)


# -- failures ---------------------------------------------------------------------------------------------------------


def _explain(outcome: Run, workers: Pool, tick: Callable[[Run, str], None]) -> None:
    """For what failed: a smaller case, the holder, a flame graph."""
    failed = outcome.failed
    if outcome.plan.course:
        _name_holders(outcome, workers, tick)
        failed = [
            next((r for r in rows if not r.panel), rows[0]) for rows in outcome.leaks.values() if not rows[0].panel
        ]
    for i, row in enumerate([r for r in failed if not r.panel][:SHRUNK]):
        tick(outcome, f"shrinking {i + 1} of {min(SHRUNK, len(failed))}")
        row.case = shrunk(row.case, set(row.failures), lambda job: workers.submit(job).result(), course=row.course)
        row.replay = Asked(outcome.plan.needle, outcome.plan.folder).replay(row.case.digest)
        row.runs = {mode: workers.submit(Job(traced(row.case, mode))).result() for mode in ("malloc", "python")}
        judge(row)
        row.name = row.case.digest
    for row in failed[:SHRUNK]:
        tick(outcome, f"explaining {row.name}")
        row.flame = flame_graph(row, _explained(row, workers), workers, outcome.plan.folder)
    for row in failed:
        if not row.panel and row.name == row.case.digest:
            with saved(shown(outcome.plan.folder / f"{row.name}.json")):
                report.write_case(row, outcome.plan.folder)


def _name_holders(outcome: Run, workers: Pool, tick: Callable[[Run, str], None]) -> None:
    """Of another needle: of each failing row, and of one in which something outlives its step without growing."""
    kept = [row for row in outcome.rows if "kept" in row.hints and not row.failures][:1]
    for row in [*outcome.failed, *kept]:
        tick(outcome, f"explaining {row.name}")
        _explained(row, workers)


def _explained(row: Row, workers: Pool) -> str:
    """Who holds what survives; the allocators under which it shows."""
    worst = next((mode for mode, m in row.runs.items() if failures(m, course=row.course)), "malloc")
    found = workers.submit(Job(traced(row.case, worst), "explain")).result()
    row.holders, row.keepers, row.places = found.holders, found.keepers, found.places
    return worst


def shrunk(
    case: c.TrainCase,
    gates: set[str],
    do: Callable[[Job], Measured],
    budget: int = SHRINK_BUDGET,
    *,
    course: bool = False,
) -> c.TrainCase:
    """The smallest case found in which one of the same gates fails."""

    def fails(candidate: c.Case) -> bool:
        if not isinstance(candidate, c.TrainCase) or candidate.memory is None or candidate.steps < FIRST + STRIDE:
            return False
        found = do(Job(candidate))
        return not found.error and bool(gates & set(failures(found, course=course)))

    smallest = shrink.shrink(case, fails, budget)
    assert isinstance(smallest, c.TrainCase)
    return smallest


def flame_graph(row: Row, mode: str, workers: Pool, folder: Path) -> str:
    """A page of memray's beside the report, without assets from the web; its file name, or "" if there is none."""
    leaks = [] if set(row.failures) == {"D"} else ["--leaks"]
    if files.tried(folder):
        return ""
    page = folder.resolve() / f"memory-{row.name.replace(' ', '-')}-flame.html"
    with tempfile.TemporaryDirectory() as place:  # never in a folder with a file named like a standard module
        kept = Path(place) / "run.bin"
        if workers.submit(Job(traced(row.case, mode), keep=str(kept))).result().error or not kept.exists():
            return ""
        command = [sys.executable, "-m", "memray", "flamegraph", "--no-web", "-f", *leaks, "-o", str(page), str(kept)]
        made = subprocess.run(command, cwd=place, capture_output=True, timeout=120, check=False)
    return page.name if made.returncode == 0 else ""


def replay_case(case: c.TrainCase, console: Console, again: str) -> int:
    """Replay of a case with ``memory``: the gates on it; 0 they hold, 1 one does not, 4 it could not be measured."""
    if importlib.util.find_spec("memray") is None:
        print(NO_MEMRAY, file=sys.stderr)
        return ExitCode.NO_VERDICT
    assert case.memory is not None
    with pool(1) as workers:
        row = Row(case.digest, case, panel=False, course=is_foreign(chosen()))
        row.runs = {case.memory.allocators: workers.submit(Job(case)).result()}
        judge(row)
        if row.failures:
            _explained(row, workers)
    row.replay = again
    report.steps(row, console)
    if row.errors:
        console.print(row.errors[0], markup=False, soft_wrap=True)
        return ExitCode.PART if row.broken else ExitCode.HARNESS
    if row.failures:
        console.print(report.block(row), markup=False, soft_wrap=True)
        return ExitCode.PART
    console.print("[bold green]memory is flat[/]: gates A, B and C hold")
    return ExitCode.AGREE
