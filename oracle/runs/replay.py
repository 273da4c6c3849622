"""``python -m oracle replay``: a case, step by step."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from oracle import commands, files
from oracle.apart import CASE_SECONDS, Broken, Died, apart, begin, one_line
from oracle.blame import report
from oracle.cases import case as c
from oracle.exits import ExitCode, held, shown
from oracle.pages import terminal

KEPT = Path("tests/cases")
_DIGEST = re.compile("[0-9a-f]{1,8}")


def find(name: str, asked: commands.Asked) -> Path:
    """The file of a path, whatever its name, or of a digest (or its beginning) that is looked up."""
    path = commands.meant(Path(name))
    if path.suffix == ".json" or path.is_file():
        return path
    folders = [commands.meant(folder) for folder in (asked.folder, KEPT, asked.folder / files.EARLIER)]
    for folder in folders if _DIGEST.fullmatch(name) else ():
        found = sorted(p for p in folder.glob(f"{name}*.json") if _DIGEST.fullmatch(p.stem))
        if len(found) > 1:
            several = ", ".join(p.stem for p in found)
            raise c.CaseError(f"{name!r} is short for several cases: {several}; give more of the digest")
        if found:
            return found[0]
    where = " or ".join(commands.shown(folder) for folder in folders[:2])
    raise c.CaseError(
        f"no case {name!r} in {where}; give the path of a case file, or name the folder of the run with `--from`"
    )


def replay(name: str, asked: commands.Asked) -> int:
    """Show the case step by step; returns the exit code."""
    console = terminal.console()
    try:
        path = find(name, asked)
        case = c.read(path)
        looked_up = path != commands.meant(Path(name))
        if looked_up and case.digest != path.stem:
            raise c.CaseError(f"{commands.shown(path)} holds {case.digest}, another case; give its path to replay it")
        about = c.describe(case)
    except (c.CaseError, OSError, UnicodeEncodeError) as error:
        why = f"no case {name[:80]}: {error.strerror}" if isinstance(error, OSError) else one_line(error)
        print(f"replay: {why if len(why) < 500 else why[:500] + ' …'}", file=sys.stderr)
        return ExitCode.USAGE
    again = asked.replay(name if looked_up else path)
    if path.parent.name == files.EARLIER:
        console.print(f"of an earlier run: {commands.shown(path)}", soft_wrap=True, markup=False, style="dim")
    if isinstance(case, c.TrainCase) and case.memory is not None:
        from oracle.runs.memory import replay_case

        return replay_case(case, console, again)
    from oracle.cases import inputs
    from oracle.rules.verdict import Verdict
    from oracle.runs.judgement import died, of_needle

    console.print(f"{case.digest}: {about}", soft_wrap=True, markup=False)
    limit = CASE_SECONDS + (case.steps if isinstance(case, c.TrainCase) else 0)
    rows: list[tuple[str, ...]] = []
    try:
        if isinstance(case, c.TrainCase) and isinstance(case.data, c.Digits):
            inputs.digits(train=True)
        rows, verdict = apart(_judged, case, patience=limit)
    except inputs.NoDigits as error:
        return _no_verdict(console, str(error))
    except Died as death:
        if death.endless and not of_needle(death):
            return _no_verdict(console, f"the case {death.how}, and not inside needle")
        if not of_needle(death):
            raise
        verdict = Verdict(case, died(case, death))
    except Broken as error:
        if "MemoryError" in error.kind:
            return _no_verdict(console, f"the case is too large for the memory of this machine: {error.message}")
        raise
    if rows:
        console.print(_table(rows))
    console.print()
    if verdict.divergence is not None:
        console.print(report.block(case, verdict.divergence, again), soft_wrap=True, markup=False)
    for problem in verdict.oracle_errors:
        console.print(f"the oracle contradicts itself: {problem}", soft_wrap=True, markup=False, style="yellow")
    codes = held(contradiction=verdict.oracle_errors, part=verdict.divergence)
    if codes[0] != ExitCode.AGREE:
        if len(codes) > 1:
            console.print(shown(codes), style="dim")
        return codes[0]
    left = f"step {verdict.steps} leaves the domain (values of 1e15 and more, or rounding alone decides)"
    if not verdict.tally.tensors:
        return _no_verdict(console, left if verdict.out_of_domain else "no tensor could be compared")
    judged = f"{verdict.tally.tensors:,} tensors compared"
    if verdict.out_of_domain:
        judged += f"; {left} and ends the comparison"
    console.print(f"[bold green]needle and torch agree[/]: {judged}")
    return ExitCode.AGREE


def _no_verdict(console: Console, why: str) -> ExitCode:
    console.print(f"no verdict: {why}", soft_wrap=True, markup=False, style="yellow")
    return ExitCode.NO_VERDICT


def _judged(case: c.Case) -> tuple[list[tuple[str, ...]], Any]:
    """The rows of the table and the verdict."""
    from oracle.rules.verdict import Evidence
    from oracle.runs.judgement import verdict_on
    from oracle.systems.candidate import candidate

    verdict = verdict_on(case, validate=True)
    verdict.evidence = Evidence()  # holds on to needle, which no pickle can
    if isinstance(case, c.ProgramCase):
        return _actions(case, verdict), verdict
    if not isinstance(case, c.TrainCase):
        return [], verdict
    begin()
    try:
        return _steps(case, candidate(), verdict), verdict
    except Exception:
        if verdict.divergence is None:
            raise
        return [], verdict  # a table less, where needle breaks even what is around it


def _table(rows: Sequence[tuple[str, ...]]) -> Table:
    headings: tuple[str, ...] = ("step", "lr", "loss (needle)", "loss (torch)", "|gradients|", "|update|", "verdict")
    if len(rows[0]) == 3:  # of a program
        headings = ("action", "what", "verdict")
    table = terminal.table(headings, left=("what", "verdict"))
    for row in rows:
        table.add_row(*row)
    return table


def _actions(case: c.ProgramCase, verdict: Any) -> list[tuple[str, ...]]:
    """Every action of a program, and whether it does what it must."""
    rows: list[tuple[str, ...]] = []
    found = verdict.divergence
    for i, action in enumerate(case.actions):
        word = "agrees" if i < verdict.steps else "out of domain" if verdict.out_of_domain else "-"
        if found is not None and found.step <= i:
            word = f"[bold red]parts: {found.place.replace('[', chr(92) + '[')}[/]" if found.step == i else "-"
        rows.append((str(i), action.text.replace("[", chr(92) + "["), word))
    return rows


def _steps(case: c.TrainCase, ndl: Any, verdict: Any) -> list[tuple[str, ...]]:
    """What both sides show at each step."""
    import numpy as np

    from oracle.systems.lockstep import Lockstep

    rows: list[tuple[str, ...]] = []
    for step in Lockstep(case, ndl).steps():
        t, seen, peer = step.ours.step, step.ours.values, step.peer.values
        grads = seen.get("clipped", seen.get("gradient", {})).values()
        norm = np.sqrt(sum(float((np.asarray(g, dtype=float) ** 2).sum()) for g in grads))
        moved = np.sqrt(
            sum(
                float(((np.asarray(p, dtype=float) - step.before.tensors[n]) ** 2).sum())
                for n, p in seen.get("parameter", {}).items()
                if p.shape == step.before.tensors[n].shape
            )
        )
        lr = case.lr_at(t)
        found = verdict.divergence
        if found is not None and found.step == t:
            word = f"[bold red]parts: {found.place.replace('[', chr(92) + '[')}[/]"
        elif t >= verdict.steps:
            word = "out of domain" if verdict.out_of_domain and found is None else "-"
        else:
            word = "agrees"
        rows.append(
            (
                str(t),
                "default" if lr is None else f"{lr:g}",
                _loss(seen),
                _loss(peer),
                f"{norm:.6g}",
                f"{moved:.6g}",
                word,
            )
        )
    return rows


def _loss(values: dict[str, dict[str, Any]]) -> str:
    losses = values.get("loss", {})
    return ", ".join(f"{float(v):.9g}" if v.size == 1 else f"shape {v.shape}" for v in losses.values()) or "-"
