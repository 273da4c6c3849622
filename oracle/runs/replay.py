"""``python -m oracle replay``: a case, step by step."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from oracle.apart import CASE_SECONDS, Broken, Died, apart, begin
from oracle.blame import report
from oracle.cases import case as c
from oracle.exits import ExitCode, held, shown
from oracle.pages import terminal


def find(name: str, folders: Sequence[Path]) -> c.Case:
    """The case of a file, or of a digest (or its beginning) looked up in the folders."""
    path = Path(name)
    if path.suffix == ".json" or path.is_file():
        return c.read(path)
    found = {p.stem: p for folder in folders for p in sorted(folder.glob(f"{name}*.json")) if p.stem != "summary"}
    if not found:
        looked = " and ".join(str(f) for f in folders)
        raise c.CaseError(f"no case {name!r} in {looked}; give the path of a case file, or run `nox -s diff` first")
    if len(found) > 1:
        raise c.CaseError(f"{name!r} is short for several cases: {', '.join(sorted(found))}; give more of the digest")
    return c.read(next(iter(found.values())))


def replay(name: str, folders: Sequence[Path], *, foreign: bool = False) -> int:
    """Show the case step by step; returns the exit code."""
    console = terminal.console()
    try:
        case = find(name, folders)
        about = c.describe(case)
    except (c.CaseError, UnicodeEncodeError) as error:
        print(f"replay: {error}", file=sys.stderr)
        return ExitCode.USAGE
    if isinstance(case, c.TrainCase) and case.memory is not None:
        from oracle.runs.memory import replay_case

        return replay_case(case, console)
    from oracle.cases import inputs
    from oracle.rules.verdict import Verdict
    from oracle.runs import runner

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
        if death.endless and not death.doing:
            return _no_verdict(console, f"the case {death.how}, and not inside needle")
        if not death.doing:  # not inside needle
            raise
        verdict = Verdict(case, runner.died(case, death))
    except Broken as error:
        if "MemoryError" in error.kind:
            return _no_verdict(console, f"the case is too large for the memory of this machine: {error.message}")
        raise
    if rows:
        console.print(_table(rows))
    console.print()
    if verdict.divergence is not None:
        console.print(report.block(case, verdict.divergence), soft_wrap=True, markup=False)
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
    import needle
    from oracle.rules.verdict import Evidence
    from oracle.runs.runner import verdict_on

    verdict = verdict_on(case, validate=True)
    verdict.evidence = Evidence()  # holds on to needle, which no pickle can
    if not isinstance(case, c.TrainCase):
        return [], verdict
    begin()
    return _steps(case, needle, verdict), verdict


def _table(rows: Sequence[tuple[str, ...]]) -> Table:
    headings = ("step", "lr", "loss (needle)", "loss (torch)", "|gradients|", "|update|", "verdict")
    table = terminal.table(headings, left=("verdict",))
    for row in rows:
        table.add_row(*row)
    return table


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
