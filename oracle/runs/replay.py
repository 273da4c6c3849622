"""``python -m oracle replay``: a case, step by step."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from oracle.blame import report
from oracle.cases import case as c
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
    """Show the case step by step; 0 it agrees, 1 it diverges, 2 no such case, 3 the oracle contradicts itself."""
    console = terminal.console()
    try:
        case = find(name, folders)
    except c.CaseError as error:
        print(f"replay: {error}", file=sys.stderr)
        return 2
    if isinstance(case, c.TrainCase) and case.memory is not None:
        from oracle.runs.memory import replay_case

        return replay_case(case, console)
    import needle
    from oracle.blame import judged

    console.print(f"{case.digest}: {c.describe(case)}", soft_wrap=True, markup=False)
    verdict = judged(case, needle, validate=True)
    if isinstance(case, c.TrainCase):
        console.print(_steps(case, needle, verdict))
    console.print()
    if verdict.divergence is not None:
        console.print(report.block(case, verdict.divergence), soft_wrap=True, markup=False)
    for problem in verdict.oracle_errors:
        console.print(f"the oracle contradicts itself: {problem}", soft_wrap=True, markup=False, style="yellow")
    if verdict.divergence is not None:
        return 1
    if verdict.oracle_errors:
        return 3
    compared = f"{verdict.tally.tensors:,} tensors compared"
    if verdict.out_of_domain:
        compared += f"; step {verdict.steps} leaves the domain (values of 1e15 and more) and ends the comparison"
    console.print(f"[bold green]needle and torch agree[/]: {compared}")
    return 0


def _steps(case: c.TrainCase, ndl: Any, verdict: Any) -> Table:
    """What both sides show at each step."""
    import numpy as np

    from oracle.systems.lockstep import Lockstep

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for heading in ("step", "lr", "loss (needle)", "loss (torch)", "|gradients|", "|update|", "verdict"):
        table.add_column(heading, justify="left" if heading == "verdict" else "right")
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
        table.add_row(
            str(t),
            "default" if lr is None else f"{lr:g}",
            _loss(seen),
            _loss(peer),
            f"{norm:.6g}",
            f"{moved:.6g}",
            word,
        )
    return table


def _loss(values: dict[str, dict[str, Any]]) -> str:
    losses = values.get("loss", {})
    return ", ".join(f"{float(v):.9g}" if v.size == 1 else f"shape {v.shape}" for v in losses.values()) or "-"
