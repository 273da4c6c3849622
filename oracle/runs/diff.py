"""``python -m oracle diff``: progress while it runs, a summary at the end."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from oracle import commands, files
from oracle.blame import report
from oracle.exits import ExitCode, saved, shown
from oracle.pages import terminal


def diff(
    *,
    seed: int | None,
    cases: int,
    minutes: float | None,
    workers: int | None,
    keep_going: bool,
    digits: bool,
    folder: Path,
    needle: Path | None = None,
) -> int:
    """Run, show progress, print the summary, write ``summary.json``; returns the exit code."""
    console = terminal.console()
    folder = commands.meant(folder)
    unwritable = files.tried(folder)
    if unwritable:
        where = commands.shown(folder)
        print(
            f"failing cases will not be written to {where}: {unwritable}; `--out` names another folder", file=sys.stderr
        )
    else:
        files.set_aside(folder, "summary.json")
    try:
        with console.status("importing NumPy and torch") if terminal.watched(console) else nullcontext():
            from oracle.runs import runner

        lacking = _foreign(needle) if needle is not None else {}
        plan = runner.Plan(
            seed=secrets.randbelow(2**20) if seed is None else seed,
            cases=cases,
            workers=workers or os.cpu_count() or 1,
            minutes=minutes,
            digits=digits,
            keep_going=keep_going,
            folder=folder,
            needle=needle,
            lacking=lacking,
        )
        length = f"{minutes:g} minutes" if minutes is not None else f"{_rounded(cases, runner.SHARD_SIZE):,} cases"
        if needle is not None:
            console.print(f"the needle of {needle}", markup=False)
        console.print(f"needle against torch: {length}, seed {plan.seed}, {plan.workers} workers")
        with terminal.progress(console) as show:

            def progress(run: runner.Run, text: str) -> None:
                tensors = f"{text}, {run.result.tally.tensors:,} tensors, {_failures(run)}"
                total = None if minutes else _rounded(cases, runner.SHARD_SIZE)
                show(tensors, run.shards * runner.SHARD_SIZE, total)

            outcome = runner.run(plan, progress)
    except KeyboardInterrupt:
        console.print("[bold yellow]interrupted[/] before the first case")
        return ExitCode.INTERRUPTED
    with saved(f"{commands.shown(folder / 'summary.json')}, `--out` names another folder"):
        report.dump(folder / "summary.json", to_json(outcome))
    summary(console, outcome)
    return outcome.exit_code


def _foreign(folder: Path) -> dict[str, str]:
    """Another needle takes the place of ours; returns what it does not offer."""
    import needle
    from oracle.runs import offered

    return offered.missing(needle)


def _rounded(cases: int, size: int) -> int:
    return -(-cases // size) * size


def _failures(run: Any) -> str:
    count = sum(f.count for f in run.result.failed)
    return "no divergence" if not count else f"{count} failing cases"


# -- summary ----------------------------------------------------------------------------------------------------------


def summary(console: Console, run: Any) -> None:
    """What a run has done and found; the verdict comes last."""
    result = run.result
    total = sum(result.cases.values())
    kinds = {"train": "training runs", "op": "single operations", "second": "second order"}
    console.print()
    facts = Table.grid(padding=(0, 2))
    facts.add_row("cases", f"{total:,}: " + ", ".join(f"{result.cases[k]:,} {v}" for k, v in kinds.items()))
    facts.add_row("steps", f"{result.steps:,} training steps, synchronised")
    facts.add_row(
        "compared", f"{result.tally.tensors:,} tensors, {result.tally.elements:,} elements; shape and dtype first"
    )
    share = f"{result.out_of_domain / total:.1%}" if total else "-"
    facts.add_row(
        "out of domain", f"{result.out_of_domain:,} cases ({share}), judged up to the step where they leave it"
    )
    if result.common:
        facts.add_row(
            "rounded alike",
            f"{result.common:,} tensors: needle and torch make the same error, beyond the measured noise",
        )
    if run.plan.lacking:
        facts.add_row("not offered", ", ".join(sorted(run.plan.lacking)))
        facts.add_row("left out", f"{result.left_out:,} cases that need it")
    if result.unjudged:
        facts.add_row(
            "not judged", f"{result.unjudged:,} cases behind an endless loop; a part of the run ends with one"
        )
    if run.digits is not None:
        d = run.digits
        facts.add_row(
            "real data", f"UCI digits: {d.steps} steps, {d.tensors:,} tensors, test accuracy {d.accuracy:.1%}"
        )
    console.print(facts)
    console.print()
    _coverage(console, run)
    _tolerances(console, result)
    if result.seconds:
        console.print(_time(run, total), style="dim")
    console.print(f"verdicts: digest {result.digest} (the same for every number of workers)", style="dim")
    console.print()
    for failed in run.failures:
        console.print(report.block(failed.case, failed.divergence, run.replay(failed)), soft_wrap=True, markup=False)
        if failed.count > 1:
            also = "".join(f", {count} of them as {what}" for what, count in failed.also.items())
            console.print(f"  seen     in {failed.count} generated cases{also}", markup=False)
        console.print()
    for what, errors in (
        ("the oracle contradicts itself", result.oracle_errors),
        ("the harness itself failed", result.harness_errors),
    ):
        for error in errors[:5]:
            console.print(f"{what}: {error}", soft_wrap=True, markup=False, style="yellow")
        if len(errors) > 5:
            console.print(f"… and {len(errors) - 5} more like it", style="yellow")
    for note in run.notes:
        console.print(note, soft_wrap=True, markup=False, style="yellow")
    if run.interrupted:
        console.print(
            f"[bold yellow]interrupted[/] after {total:,} cases; {escape(run.again)} runs the same ones again",
            soft_wrap=True,
        )
    if run.failures:
        places = len(run.failures)
        count = sum(f.count for f in run.failures)
        console.print(
            f"[bold red]{places} divergence{'s' * (places > 1)}[/] in {count} of {total:,} cases"
            + (f"; pages in {escape(commands.shown(run.plan.folder))}" if run.written else "")
        )
    if result.oracle_errors:
        console.print(
            f"[bold yellow]no verdict[/]: the oracle contradicts itself, {len(result.oracle_errors):,} times; what it says of "
            "needle counts for nothing until that is mended"
        )
    if result.harness_errors:
        console.print(
            f"[bold yellow]the harness itself failed[/], {len(result.harness_errors):,} times; please report the lines above, "
            f"and {escape(run.again)}",
            soft_wrap=True,
        )
    if run.exit_code == ExitCode.NO_VERDICT:
        console.print("[bold yellow]no verdict[/]: nothing could be judged")
    if run.exit_code == ExitCode.AGREE:
        console.print(f"[bold green]0 divergences[/] in {total:,} cases; again: {escape(run.again)}", soft_wrap=True)
    else:
        console.print(shown(run.codes), style="dim")


def _time(run: Any, total: int) -> str:
    """How fast a run was, which share of the time needle and torch took, and how the rest divides."""
    seconds: dict[str, float] = run.result.seconds
    busy = sum(seconds.values())
    shares = {name: f"{name} {value / busy:.0%}" for name, value in sorted(seconds.items(), key=lambda item: -item[1])}
    inside = [shares.pop(name) for name in ("needle", "torch") if name in shares]
    speed = f"{total / run.wall:.0f} cases/s, {total / max(run.result.cpu_seconds, 1e-9):.0f} per second of a core"
    return f"time: {run.wall:.0f} s, {speed}; inside {', '.join(inside)}; around them {', '.join(shares.values())}"


MANY = 20  # labels of a group that are shown one by one; of larger groups the least reached, and the most


def _coverage(console: Console, run: Any) -> None:
    """How many cases reached what, by group, and by name what none has reached."""
    from oracle.cases import coverage

    reached, lacking = run.result.coverage, run.plan.lacking
    width = console.width - 12  # beside the names of the groups
    table = Table.grid(padding=(0, 2))
    for group, part in coverage.TABLE.items():
        counts = {name: reached[f"{group} {name}"] for name in part.labels if f"{group} {name}" not in lacking}
        shown = [f"{name} {count:,}" for name, count in counts.items()]
        if len(counts) > MANY:
            *least, most = sorted(counts, key=lambda name: counts[name])
            few = " · ".join(f"{name} {counts[name]:,}" for name in least[:5])
            shown = [f"{sum(map(bool, counts.values()))} of {len(counts)}: {few} … {most} {counts[most]:,}"]
        table.add_row(group, _folded(shown, width), style="dim" if len(counts) > MANY else "")
    missed = coverage.missed(reached, lacking)
    names = _folded(missed, width) or f"nothing: each of {len(coverage.LABELS) - len(lacking)} was reached"
    table.add_row("missed", names, style="yellow" if missed else "")
    console.print("cases that reached", style="bold")
    console.print(table)
    console.print()


def _folded(parts: Sequence[str], width: int) -> str:
    """The parts in lines no longer than ``width``, none of them broken."""
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + len(part) + 3 <= width:
            lines[-1] += f" · {part}"
        else:
            lines.append(part)
    return "\n".join(lines)


RULES = {
    "G": "needle against the truth, within 16 x measured noise",
    "L": "the update, from needle's own gradients",
    "T": "torch's optimizer on needle's gradients",
    "OP": "every node of needle's tape by itself, on the first step",
    "P": "torch against the truth (the oracle checking itself)",
    "validation": "the truth against torch float64, limit 1e-4",
}


def _tolerances(console: Console, result: Any) -> None:
    """Per rule, the comparison that came nearest to its limit."""
    table = Table.grid(padding=(0, 2))
    for rule, meaning in RULES.items():
        keys = [k for k in result.tally.largest if k.partition(" ")[0] == rule]
        if keys:
            key = max(keys, key=lambda k: result.tally.largest[k])
            table.add_row(rule, f"{result.tally.largest[key]:.1%}", result.tally.where[key], meaning)
    table.add_row(
        "", f"{result.largest_difference:.1%}", "", "largest |needle - torch|, in units of rule G's tolerance"
    )
    console.print("largest share of the tolerance used", style="bold")
    console.print(table)
    console.print()


def to_json(run: Any) -> dict[str, Any]:
    """The summary as data."""
    from oracle.cases import coverage

    result = run.result
    return {
        "seed": run.plan.seed,
        "workers": run.plan.workers,
        "cases": dict(result.cases),
        "steps": result.steps,
        "tensors": result.tally.tensors,
        "elements": result.tally.elements,
        "out_of_domain": result.out_of_domain,
        "not_offered": run.plan.lacking,
        "left_out": result.left_out,
        "digits": None
        if run.digits is None
        else {"steps": run.digits.steps, "tensors": run.digits.tensors, "accuracy": run.digits.accuracy},
        "coverage": {label: result.coverage[label] for label in coverage.LABELS},
        "missed": coverage.missed(result.coverage, run.plan.lacking),
        "largest_share": dict(sorted(result.tally.largest.items())),
        "largest_share_at": dict(sorted(result.tally.where.items())),
        "largest_difference": result.largest_difference,
        "rounded_alike": result.common,
        "seconds": dict(result.seconds),
        "wall_seconds": run.wall,
        "cpu_seconds": result.cpu_seconds,
        "digest": result.digest,
        "interrupted": run.interrupted,
        "oracle_errors": result.oracle_errors,
        "harness_errors": result.harness_errors,
        "unjudged": result.unjudged,
        "notes": run.notes,
        "again": run.again,
        "failures": [
            {
                "case": f.case.digest,
                "count": f.count,
                "culprit": f.culprit,
                "also": dict(f.also),
                "written": f.case.digest in run.written,
                "replay": run.replay(f),
                **report.to_json(f.divergence),
            }
            for f in run.failures
        ],
        "exit_code": run.exit_code,
        "exit_codes": run.codes,  # all that hold
    }
