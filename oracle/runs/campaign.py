"""``oracle campaign``: seed after seed for as long as asked, on this machine or on many, into a ledger that goes on."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console

from oracle import commands, files
from oracle.exits import ExitCode, saved, shown
from oracle.pages import terminal
from oracle.runs import diff

CASES = 4000  # of a seed


def campaign(
    *,
    minutes: float,
    scheduler: str | None,
    workers: int | None,
    ledger: Path | None,
    seed: int | None,
    seeds: int | None,
    cases: int,
    folder: Path,
    needle: Path | None = None,
) -> int:
    """Run, show progress and print what came of it; returns the exit code."""
    from oracle.runs import ledger as ledgers

    console = terminal.console(80)
    folder = commands.meant(folder)
    path = folder / ledgers.NAME if ledger is None else commands.meant(ledger)
    try:
        kept = ledgers.Kept(path)
    except ledgers.Damaged as error:
        print(f"campaign: {error}", file=sys.stderr)
        return ExitCode.USAGE
    for where, flag in ((folder, "--out"), (path.parent, "--ledger")):
        unwritable = files.tried(where)
        if unwritable:  # an hour of work would be lost
            print(f"campaign: nothing can be written to {where}: {unwritable}; `{flag}` names another", file=sys.stderr)
            return ExitCode.USAGE
    first = kept.before.next_seed if seed is None else seed
    done = {one.seed for one in kept.before.seeds}
    if first in done:
        print(f"campaign: {commands.shown(path)} has seed {first} already; without `--seed` it goes on behind the last one", file=sys.stderr)  # fmt: skip
        return ExitCode.USAGE
    with console.status("importing NumPy and torch") if terminal.watched(console) else nullcontext():
        from oracle.runs import offered, runner
        from oracle.runs import seeds as many
        from oracle.runs.dask_pool import DaskPool
        from oracle.runs.shard import run_battery
        from oracle.runs.versions import versions
        from oracle.runs.workers import NoWorkers
        from oracle.systems.candidate import chosen
        from oracle.systems.foreign import Offer
        from oracle.systems.ours import is_foreign

    wanted = workers or os.cpu_count() or 1
    about, other = versions(), chosen() if is_foreign(chosen()) else None
    whose = ledgers.mixed(kept.before, other, about["needle"])
    if whose:
        print(f"campaign: {commands.shown(path)} has seeds of {whose}, and those of two needles do not add up; `--ledger` names another file", file=sys.stderr)  # fmt: skip
        return ExitCode.USAGE
    # what it offers is tried in children of this process, which forks no more once there are threads of Dask
    offer = Offer() if needle is None else offered.offered()
    plan = runner.Plan(
        seed=first, cases=cases, workers=wanted, digits=False, keep_going=True, folder=folder, offer=offer,
        needle=chosen(),
    )  # fmt: skip
    go_on = commands.command(
        "campaign", needle=needle, minutes=f"{minutes:g}", scheduler=scheduler, workers=workers, ledger=ledger,
        cases=None if cases == CASES else cases, out=folder,
    )  # fmt: skip
    run = many.Seeds(plan, go_on=go_on)
    if needle is not None:
        console.print(f"the needle of {needle}", markup=False, soft_wrap=True)
    _begun(console, kept, about)
    with console.status("starting workers") if terminal.watched(console) else nullcontext():
        try:
            pool = DaskPool(scheduler, wanted)
        except NoWorkers as error:
            print(f"campaign: {error}", file=sys.stderr)
            return ExitCode.USAGE
    at = "here" if scheduler is None else f"at {scheduler}"
    begins = f"needle against torch: {minutes:g} minutes, {cases:,} cases of each seed from {first} on, {_many(pool.size, 'worker')} {at}"
    diff.say(console, begins)

    def keep() -> None:
        with saved(f"{commands.shown(path)}, the ledger"):
            kept.add(run, about, dict(pool.kernels))

    with terminal.progress(console) as show:
        told = [0]
        show("the first shards", 0, minutes)

        def progress(run: Any, finished: Any) -> None:
            if finished is not None:
                keep()
                console.print(_line(finished, run), style="dim", soft_wrap=True, markup=False)
            for failed in run.result.failed[told[0] :]:
                told[0] += 1
                page = commands.shown(folder / failed.case.digest) + ".md"
                fails = f"seed {run.found_with[failed.culprit][0]} fails: {failed.culprit}; {page}"
                diff.say(console, fails, indent=2, style="bold red")
            words = f"{run.result.tally.tensors:,} tensors of {_many(len(run.seeds), 'seed')}, {_failing(run)}"
            show(words, run.wall / 60, minutes)

        small = run_battery if plan.foreign else None
        what = many.Plan(_numbers(first, seeds, done), cases, minutes, folder, lacking=offer.lacking, small=small)
        many.run(what, pool, run, progress)
    if pool.lost:
        run.notes.append(f"{_many(pool.lost, 'time')} a worker ended; what it was at was done again")
    for worker, why in pool.refused.items():
        run.notes.append(f"the worker at {worker} has something else installed, and got nothing to do: {why}")
    keep()
    if plan.foreign and not run.interrupted:
        from oracle.runs import told as tell

        with saved(f"{commands.shown(folder / 'needle.md')}, `--out` names another folder"):
            tell.write(run)
    _summary(console, run, kept, path)
    return run.exit_code


def _numbers(first: int, count: int | None, done: set[int]) -> Iterator[int]:
    """Seeds from the first on that are not done yet."""
    number = first
    while count is None or count > 0:
        if number not in done:
            yield number
            count = None if count is None else count - 1
        number += 1


def _begun(console: Console, kept: Any, about: dict[str, str]) -> None:
    """What the ledger has already, and with what else than today."""
    from oracle.runs.versions import differences

    before = kept.before
    if not before.seeds:
        return
    diff.say(console, f"the ledger goes on: {_of_ledger(before)}")
    known: dict[str, None] = {}
    for one in before.campaigns:
        known.update(dict.fromkeys(differences(about, one.versions)))
    if known:
        diff.say(console, f"earlier campaigns had other versions: now {'; '.join(known)}", style="yellow")


def _of_ledger(ledger: Any) -> str:
    cases = sum(ledger.cases.values())
    failing = sum(one.count for one in ledger.failures)
    return (
        f"{_many(len(ledger.campaigns), 'campaign')}, {_many(len(ledger.seeds), 'seed')}, {cases:,} cases, "
        f"{ledger.tensors:,} tensors, {f'{failing:,} cases fail' if failing else 'none fails'}"
    )


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"


def _failing(run: Any) -> str:
    count = run.result.failing
    return f"{count:,} cases fail" if count else "none fails"


def _line(seed: Any, run: Any) -> str:
    """A seed that is done."""
    lost = f", without shard {', '.join(map(str, seed.lost))}" if seed.lost else ""
    failing = f", {seed.failing} fail" if seed.failing else ""
    return f"{run.wall:6.0f} s  seed {seed.seed}: {seed.cases:,} cases{failing}{lost}, {seed.tensors:,} tensors, digest {seed.digest}"


def _summary(console: Console, run: Any, kept: Any, path: Path) -> None:
    """What the campaign has done and found."""
    result = run.result
    total = sum(result.cases.values())
    console.print()
    for name, text in _facts(run, total, kept, path):
        diff.say(console, f"{name:<13} {text}", indent=14)
    console.print()
    diff.problems(console, run)
    if run.interrupted:
        kept_all = ", all of which are in the ledger" if kept.saved else ""
        console.print(f"interrupted after {total:,} cases{kept_all}", style="bold yellow")
    diff.no_verdict(console, run, ours=False)  # workers end for many reasons
    console.print(f"it goes on with: {run.again}", soft_wrap=True, markup=False)
    if run.exit_code == ExitCode.AGREE:
        console.print(f"0 divergences in {total:,} cases", style="bold green")
    else:
        console.print(shown(run.codes), style="dim")
    if run.plan.foreign and not run.interrupted:
        from oracle.runs import told

        console.print()
        told.head(console, run)
        told.show(console, run)
    else:
        diff.show_failures(console, run, total)


def _facts(run: Any, total: int, kept: Any, path: Path) -> Iterator[tuple[str, str]]:
    begun = sorted(number for number, seed in run.seeds.items() if seed.shards)
    yield "seeds", f"{len(begun)}: {_spans(begun)}" if begun else "none"
    for name, text in diff.facts(run, total, verbose=False, more=""):
        if name not in ("time", "digest", "surface"):
            yield name, text
    if run.small:
        yield "small cases", f"{run.small}, the same for each seed: judged once, and not counted above"
    speed = f"{total / run.wall:.1f} cases/s" if run.wall else ""
    core = total / max(run.result.cpu_seconds, 1e-9)
    yield "time", f"{run.wall:,.0f} s on {run.workers} workers, {speed}, {core:.0f} per second of a core"
    if kept.saved:
        yield "ledger", f"{commands.shown(path)}: {_of_ledger(kept.now)}"
    else:
        yield "ledger", f"{commands.shown(path)} could not be written and does not have all of this"


def _spans(numbers: list[int]) -> str:
    """``1 to 7, 9``."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and spans[-1][1] == number - 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(str(a) if a == b else f"{a} to {b}" for a, b in spans)
