"""``python -m oracle diff``: progress while it runs, a summary at the end."""

from __future__ import annotations

import math
import os
import secrets
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from oracle import commands, files
from oracle.blame import report
from oracle.blame.headline import headline
from oracle.exits import ExitCode, saved, shown
from oracle.pages import terminal
from oracle.runs import page
from oracle.runs.formats import RULES, percent
from oracle.runs.formats import Asked as Formats


def diff(
    *,
    seed: int | None,
    cases: int,
    minutes: float | None,
    workers: int | None,
    keep_going: bool | None,
    digits: bool,
    folder: Path,
    needle: Path | None = None,
    require: Sequence[str] = (),
    verbose: bool = False,
    formats: Formats | None = None,
) -> int:
    """Run, show progress and the first failure at once, print the summary, write ``summary.json``; returns the exit code.

    ``keep_going`` None is whether another needle is under test: whoever brings one wants to know all that is wrong with it.
    """
    console = terminal.console(80, aside=formats is not None and formats.talks_aside)
    folder = commands.meant(folder)
    unwritable = files.tried(folder)
    if unwritable:
        where = commands.shown(folder)
        print(
            f"failing cases will not be written to {where}: {unwritable}; `--out` names another folder", file=sys.stderr
        )
    else:
        files.set_aside(folder, "summary.json", "diff.html", "needle.md", "needle.html")
    try:
        with console.status("importing NumPy and torch") if terminal.watched(console) else nullcontext():
            from oracle.runs import runner
            from oracle.runs.draws import SHARD_SIZE

        offer = _offer() if needle is not None else None
        if offer is not None:
            offer.required = tuple(require)
        plan = runner.Plan(
            seed=secrets.randbelow(2**20) if seed is None else seed,
            cases=cases,
            workers=workers or os.cpu_count() or 1,
            minutes=minutes,
            digits=digits,
            keep_going=needle is not None if keep_going is None else keep_going,
            folder=folder,
            needle=needle,
            **({} if offer is None else {"offer": offer}),
        )
        whole = _rounded(cases, SHARD_SIZE)
        length = f"{whole:,} cases" + (f" ({cases:,} in whole shards)" if whole != cases else "")
        if minutes is not None:
            length = f"{minutes:g} minute{'s' * (minutes != 1)}"
        if needle is not None:
            console.print(f"the needle of {needle}", markup=False)
        console.print(
            f"needle against torch: {length}, seed {plan.seed}, {plan.workers} worker{'s' * (plan.workers > 1)}"
        )
        with terminal.progress(console) as show:
            first = True

            def progress(run: runner.Run, text: str) -> None:
                nonlocal first
                if first and run.result.failed and not run.plan.foreign:
                    first = False
                    console.print(
                        "\nthe first failure, as it was found; a smaller one is looked for:", style="bold red"
                    )
                    show_failure(console, run, run.result.failed[0])
                    sys.stdout.flush()
                tensors = f"{text}, {run.result.tally.tensors:,} tensors, {_failures(run)}"
                total = None if minutes else whole
                show(tensors, run.shards * SHARD_SIZE, total)

            outcome = runner.run(plan, progress)
    except KeyboardInterrupt:
        console.print("[bold yellow]interrupted[/] before the first case")
        return ExitCode.INTERRUPTED
    data = to_json(outcome)
    with saved(f"{commands.shown(folder / 'summary.json')}, `--out` names another folder"):
        report.dump(folder / "summary.json", data)
    page.write(outcome, data, console)
    if plan.foreign:
        from oracle.runs import told

        with saved(f"{commands.shown(folder / 'needle.md')}, `--out` names another folder"):
            told.write(outcome)
    summary(console, outcome, verbose)
    if formats is not None:
        formats.write(data, commands.ROOT if needle is None else needle)
    return outcome.exit_code


def _offer() -> Any:
    """What another needle offers."""
    from oracle.runs import offered

    return offered.offered()


def _rounded(cases: int, size: int) -> int:
    return -(-cases // size) * size


def _failures(run: Any) -> str:
    count = sum(f.count for f in run.result.failed)
    return "none fails" if not count else f"{count} cases fail"


# -- summary ----------------------------------------------------------------------------------------------------------


SHOWN = 3  # failures that are shown in full; of the others a line


def summary(console: Console, run: Any, verbose: bool = False) -> None:
    """What a run has done and found. A failure is what comes last: what it is, and what to do with it."""
    if run.plan.foreign:
        _summary_of_another(console, run, verbose)
        return
    result = run.result
    total = sum(result.cases.values())
    if verbose:
        console.print()
        _coverage(console, run)
        _tolerances(console, result)
        if result.seconds:
            say(console, _time(run, total), style="dim")
    console.print()
    for name, text in facts(run, total, verbose):
        say(console, f"{name:<13} {text}", indent=14)
    console.print()
    problems(console, run)
    if run.interrupted:
        console.print(
            f"[bold yellow]interrupted[/] after {total:,} cases; {escape(run.again)} runs the same ones again",
            soft_wrap=True,
        )
    no_verdict(console, run)
    if run.exit_code == ExitCode.AGREE:
        console.print(f"[bold green]0 divergences[/] in {total:,} cases; again: {escape(run.again)}", soft_wrap=True)
    else:
        console.print(shown(run.codes), style="dim")
    show_failures(console, run, total)


def _summary_of_another(console: Console, run: Any, verbose: bool) -> None:
    """Of another needle: the verdict first, then what is wrong, the worst first; what was done comes last."""
    from oracle.runs import told

    total = sum(run.result.cases.values())
    console.print()
    told.head(console, run)
    problems(console, run)
    if run.interrupted:
        console.print(f"[bold yellow]interrupted[/] after {total:,} cases", soft_wrap=True)
    if run.result.oracle_errors or run.result.harness_errors:
        no_verdict(console, run)
    told.show(console, run)
    if verbose:
        _coverage(console, run)
        _tolerances(console, run.result)
    for name, text in facts(run, total, verbose):
        if name not in ("cases", "compared", "reached", "nearest"):
            say(console, f"{name:<13} {text}", indent=14)
    console.print(f"{'again':<13} {run.again}", soft_wrap=True, markup=False)
    none = run.exit_code == ExitCode.NO_VERDICT and total  # something was judged, but not what counts
    console.print(f"exit code {ExitCode.NO_VERDICT}: no verdict" if none else shown(run.codes), style="dim")


def problems(console: Console, run: Any) -> None:
    """What was in the way of a verdict, and what was left out."""
    for what, errors in (
        ("the oracle contradicts itself", run.result.oracle_errors),
        ("the harness itself failed", run.result.harness_errors),
    ):
        for error in errors[:5]:
            console.print(f"{what}: {error}", soft_wrap=True, markup=False, style="yellow")
        if len(errors) > 5:
            console.print(f"… and {len(errors) - 5} more like it", style="yellow")
    for note in run.notes:
        say(console, note, style="yellow")


def no_verdict(console: Console, run: Any, *, ours: bool = True) -> None:
    """Why what is said of needle does not count, or is not all; ``ours``: what the harness fails at is to be reported."""
    result = run.result
    if result.oracle_errors:
        say(
            console,
            f"no verdict: the oracle contradicts itself, {len(result.oracle_errors):,} times; what it says of "
            "needle counts for nothing until that is mended",
            style="bold yellow",
        )
    if result.harness_errors and ours:
        console.print(
            f"[bold yellow]the harness itself failed[/], {len(result.harness_errors):,} times; please report the lines above, "
            f"and {escape(run.again)}",
            soft_wrap=True,
        )
    if run.exit_code == ExitCode.NO_VERDICT:
        console.print("[bold yellow]no verdict[/]: nothing could be judged")


def show_failures(console: Console, run: Any, total: int) -> None:
    """The failures, the worst of them last: it stays on the screen."""
    if not run.failures:
        return
    places, count = len(run.failures), sum(f.count for f in run.failures)
    pages = f"; pages in {escape(commands.shown(run.plan.folder))}" if run.written else ""
    console.print(
        f"[bold red]{places} divergence{'s' * (places > 1)}[/] in {count} of {total:,} cases{pages}", soft_wrap=True
    )
    for failed in reversed(run.failures[SHOWN:]):
        say(console, f"  {failed.case.digest} {headline(failed.divergence)}: {failed.culprit}", indent=11)
    for failed in reversed(run.failures[:SHOWN]):
        console.print()
        show_failure(console, run, failed)
        if failed.count > 1:
            also = "".join(f", {count} of them as {what}" for what, count in failed.also.items())
            say(console, f"  seen     in {failed.count} generated cases{also}", indent=11)
        if failed.case.digest in run.written:
            path = run.plan.folder / failed.case.digest
            for name, suffix in (("page", ".md"), ("script", ".py"), ("printed", ".txt")):
                if path.with_suffix(suffix).exists():
                    console.print(
                        f"  {name:<8} {commands.shown(path.with_suffix(suffix))}", soft_wrap=True, markup=False
                    )
            console.print(f"  keep     {commands.keep(path.with_suffix('.json'))}", soft_wrap=True, markup=False)


def show_failure(console: Console, run: Any, failed: Any) -> None:
    """What a failing case shows, in lines as wide as the screen; commands are not broken."""
    for line in report.block(failed.case, failed.divergence, run.replay(failed)).split("\n"):
        if line.startswith("  replay "):
            console.print(line, soft_wrap=True, markup=False)
        else:
            say(console, line, indent=11)


def say(console: Console, text: str, indent: int = 0, style: str | None = None) -> None:
    """A text, folded where the screen ends."""
    width = max(console.width, 40)
    for line in textwrap.wrap(
        text, width, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False
    ):
        console.print(line, soft_wrap=True, markup=False, style=style)


def facts(run: Any, total: int, verbose: bool, more: str = " (--verbose)") -> Iterator[tuple[str, str]]:
    """What was done, in a few lines; ``more`` says where there is more of it."""
    from oracle.cases import coverage

    result = run.result
    kinds = {"train": "training runs", "op": "single operations", "second": "second order", "program": "programs"}
    yield "cases", f"{total:,}: " + ", ".join(f"{result.cases[k]:,} {v}" for k, v in kinds.items())
    yield "compared", f"{result.tally.tensors:,} tensors of {result.steps:,} steps and actions"
    if verbose:
        yield "elements", f"{result.tally.elements:,}; shape and dtype first"
    if verbose or (total and result.out_of_domain > 0.2 * total):
        share = f"{result.out_of_domain / total:.1%}" if total else "-"
        yield "out of domain", f"{result.out_of_domain:,} cases ({share}), judged up to the step where they leave it"
    if result.common:
        alike = "needle and torch make the same error, beyond the measured noise"
        yield "rounded alike", f"{result.common:,} tensors: {alike}"
    if result.unjudged:
        yield "not judged", f"{result.unjudged:,} cases behind an endless loop; a part of the run ends with one"
    if run.digits is not None:
        d = run.digits
        learned = f", test accuracy {d.accuracy:.1%}" if math.isfinite(d.accuracy) else ""
        yield "real data", f"UCI digits: {d.steps} steps, {d.tensors:,} tensors{learned}"
    if result.surface:
        yield "surface", _surface(result, verbose)
    if not verbose and not run.failures:
        lacking = _not_asked(run)
        missed = coverage.missed(result.coverage, lacking)
        reached = f"{len(coverage.LABELS) - len(lacking) - len(missed)} of {len(coverage.LABELS) - len(lacking)} things"
        few = f", not {', '.join(missed[:3])}{' …' * (len(missed) > 3)}" if missed else ""
        yield "reached", f"{reached} that a case may have{few}{more}"
        shares = {k: v for k, v in result.tally.largest.items() if not k.startswith(("P ", "validation"))}
        if shares:
            key = max(shares, key=lambda k: shares[k])
            yield "nearest", f"{percent(shares[key])} of a tolerance, rule {key.partition(' ')[0]}"
    yield "time", _speed(run, total)
    yield "digest", f"{result.digest} of the verdicts, the same for every number of workers"


def _surface(result: Any, verbose: bool) -> str:
    """How much of what needle offers the cases call, and what they do not, by the tests that look after it."""
    from oracle.runs import surface

    unreached = [item for item, called in result.surface.items() if not called]
    total = len(result.surface)
    share = f"{1 - len(unreached) / total:.0%} of the {total} functions, methods, keywords and defaults of needle"
    if not verbose:
        return f"{share} were called by the first cases; for the rest there are unit tests (--verbose)"
    groups = [(excuse.of(unreached), " and ".join(excuse.by)) for excuse in surface.excuses()]
    known = {item for names, _ in groups for item in names}
    listed = [f"by {tests}: {', '.join(names)}" for names, tests in groups if names]
    rare = ", ".join(item for item in unreached if item not in known)
    return f"{share}; of the others are checked {'; '.join(listed)}" + (
        f"; not by these cases alone: {rare}" if rare else ""
    )


def _speed(run: Any, total: int) -> str:
    speed = f"{total / run.wall:.0f} cases/s, " if run.wall else ""
    core = f"{total / max(run.result.cpu_seconds, 1e-9):.0f} per second of a core"
    return f"{run.wall:.0f} s, {speed}{core}" + f", {run.start:.1f} s before the first" * bool(run.start)


def _time(run: Any, total: int) -> str:
    """How fast a run was, which share of the time needle and torch took, and how the rest divides."""
    seconds: dict[str, float] = run.result.seconds
    busy = sum(seconds.values())
    shares = {name: f"{name} {value / busy:.0%}" for name, value in sorted(seconds.items(), key=lambda item: -item[1])}
    inside = [shares.pop(name) for name in ("needle", "torch") if name in shares]
    return f"time: {_speed(run, total)}; inside {', '.join(inside)}; around them {', '.join(shares.values())}"


MANY = 20  # labels of a group that are shown one by one; of larger groups the least reached, and the most


def _coverage(console: Console, run: Any) -> None:
    """How many cases reached what, by group, and by name what none has reached."""
    from oracle.cases import coverage

    reached, lacking = run.result.coverage, _not_asked(run)
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


def _tolerances(console: Console, result: Any) -> None:
    """Per rule, the comparison that came nearest to its limit."""
    table = Table.grid(padding=(0, 2))
    for rule, meaning in RULES.items():
        keys = [k for k in result.tally.largest if k.partition(" ")[0] == rule]
        if keys:
            key = max(keys, key=lambda k: result.tally.largest[k])
            table.add_row(rule, percent(result.tally.largest[key]), result.tally.where[key], meaning)
    table.add_row(
        "", percent(result.largest_difference), "", "largest |needle - torch|, in units of rule G's tolerance"
    )
    console.print("largest share of the tolerance used", style="bold")
    console.print(table)
    console.print()


def _not_asked(run: Any) -> frozenset[str]:
    """The labels that another needle is not asked for: it lacks them, or the course's contract leaves them open."""
    from oracle.cases import coverage

    offer = run.plan.offer
    open_groups = ("program ", "dtype ", "dtypes ", "three times ") if offer.left_open else ()
    return frozenset(n for n in coverage.LABELS if n in offer.lacking or n.startswith(open_groups))


def to_json(run: Any) -> dict[str, Any]:
    """The summary as data."""
    from oracle.cases import coverage
    from oracle.runs import told

    result = run.result
    return {
        "seed": run.plan.seed,
        "workers": run.plan.workers,
        "cases": dict(result.cases),
        "steps": result.steps,
        "tensors": result.tally.tensors,
        "elements": result.tally.elements,
        "out_of_domain": result.out_of_domain,
        "not_offered": run.plan.offer.missing,
        "not_asked": sorted(_not_asked(run)),
        "left_out": result.left_out,
        "digits": None
        if run.digits is None
        else {"steps": run.digits.steps, "tensors": run.digits.tensors, "accuracy": run.digits.accuracy},
        "coverage": {label: result.coverage[label] for label in coverage.LABELS},
        "missed": coverage.missed(result.coverage, _not_asked(run)),
        "surface": result.surface,
        "shares": {label: dict(sorted(shares.items())) for label, shares in sorted(result.shares.items())},
        "largest_share": dict(sorted(result.tally.largest.items())),
        "largest_share_at": dict(sorted(result.tally.where.items())),
        "largest_difference": result.largest_difference,
        "rounded_alike": result.common,
        "seconds": dict(result.seconds),
        "start_seconds": run.start,
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
                "headline": headline(f.divergence),
                "block": report.block(f.case, f.divergence, run.replay(f)),
                **report.to_json(f.divergence),
            }
            for f in run.failures
        ],
        "entries": told.to_json(run),
        "by_design": run.plan.offer.by_design,
        "absent": dict(result.absent),
        "exit_code": run.exit_code,
        "exit_codes": run.codes,  # all that hold
    }
