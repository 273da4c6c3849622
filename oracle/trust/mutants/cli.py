"""``python -m oracle mutants``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from oracle import files
from oracle.commands import ROOT, command
from oracle.exits import ExitCode, decided, saved
from oracle.pages import terminal
from oracle.trust.mutants import campaign as cp
from oracle.trust.mutants import report
from oracle.trust.mutants.claims import ALL_FILES
from oracle.trust.mutants.operators import OPERATORS


def main(arguments: argparse.Namespace, root: Path = ROOT) -> int:
    """Run, show, write; the exit code."""
    if arguments.from_latest:
        return accept_latest(root)
    kept = cp.read(root / cp.BASELINE)
    unknown = [o for o in arguments.operators or () if o not in OPERATORS]
    if unknown:
        print(f"mutants: no operator {unknown[0]!r}; there are {', '.join(OPERATORS)}", file=sys.stderr)
        return ExitCode.USAGE
    if strangers := cp.strangers(root, arguments.file or ALL_FILES, arguments.key or ()):
        print(
            f"mutants: no mutant of today's source has the key {strangers[0]!r}; reports/mutants.md lists those that live",
            file=sys.stderr,
        )
        return ExitCode.USAGE
    keys = frozenset(arguments.key) if arguments.key else None
    if arguments.only_survivors:
        keys = cp.survivors_of(root / cp.BASELINE)
    if arguments.unjudged:
        keys = cp.keys_of(root, *(arguments.file or ALL_FILES)) - kept["mutants"].keys()
    if arguments.excuses and arguments.accept:
        print("mutants: --excuses asks the unit tests alone, which is nothing to accept", file=sys.stderr)
        return ExitCode.USAGE
    if arguments.excuses:
        keys = frozenset(cp.excuses(root / cp.EXCUSED))
    plan = cp.Plan(
        files=arguments.file or ALL_FILES,
        operators=arguments.operators or tuple(OPERATORS),
        budget=arguments.budget,
        seed=arguments.seed,
        part=(0, 1) if arguments.all or keys is not None else (arguments.seed % cp.PARTS, cp.PARTS),
        keys=keys,
        ladder=not arguments.operators and keys is None,
        diff=not arguments.excuses and not arguments.by_tests,
        resume=arguments.resume,
        root=root,
        **({"workers": arguments.workers} if arguments.workers else {}),
    )
    try:
        with terminal.progress(terminal.console(), every=100) as show:
            found = cp.run(
                plan,
                lambda found, text: show(
                    f"{text}, {len(found.survivors())} alive", len(found.outcomes), len(found.mutants)
                ),
            )
    except cp.NotAlive as error:
        print(f"mutants: {error}", file=sys.stderr)
        return ExitCode.PART
    content = cp.to_json(found)
    if arguments.by_tests:
        content["mutants"] = cp.with_tests(kept["mutants"], content["mutants"])
    lost = _lost(kept, content)
    with saved(str(cp.LATEST)):
        cp.write(root / cp.LATEST, content)
    _show(found, content, lost)
    if arguments.accept:
        if found.interrupted:
            print("not accepted: the run was interrupted", file=sys.stderr)
        else:
            whole = plan.files if plan.part[1] == 1 and plan.keys is None and not arguments.operators else ()
            if _partial(plan):
                content = cp.excusing(merged(cp.still_there(root, kept), content, whole), found.excused)
            _accept(root, content, found.excused)
            return found.exit_code if not _partial(plan) else 0
    wrong = found.resurrected() or found.false_alarms()  # a part is too few mutants for a score
    return decided(
        part=lost or (wrong if _partial(plan) else found.exit_code == ExitCode.PART), interrupted=found.interrupted
    )


def accept_latest(root: Path) -> int:
    """Accept what the last whole run found, with the excuses that have been written since."""
    content, excused = cp.read(root / cp.LATEST), cp.excuses(root / cp.EXCUSED)
    if not content.get("complete"):
        print(f"mutants: {cp.LATEST} is not that of a whole run: run `{command('mutants')}` first", file=sys.stderr)
        return ExitCode.USAGE
    content = cp.excusing(content, excused)
    rows = [r for r in content["mutants"].values() if r["kind"] == "mutant"]
    wrong = [
        k for k, r in content["mutants"].items()
        if "excused" in r and cp.wrongly(r["excused"], r["status"], r.get("test", ""), content.get("tests", False))
    ]  # fmt: skip
    if wrong:
        print(f"mutants: excused, and the reason is shown to be wrong: {', '.join(wrong)}", file=sys.stderr)
        return ExitCode.PART
    _accept(root, content, excused)
    terminal.console().print(report.summary(content))
    overall, numeric = report.shares(report.counts(rows))
    return decided(part=overall < cp.REQUIRED or numeric < cp.REQUIRED_NUMERIC)


def _accept(root: Path, content: dict[str, Any], excused: dict[str, cp.Excuse]) -> None:
    cp.write(root / cp.BASELINE, content)
    files.save(root / cp.TABLE, report.markdown(content, excused))
    print(f"accepted: {cp.TABLE} and {cp.BASELINE}")


def _partial(plan: cp.Plan) -> bool:
    return plan.keys is not None or set(plan.files) != set(ALL_FILES) or set(plan.operators) != set(OPERATORS)


def merged(old: dict[str, Any], new: dict[str, Any], files: Sequence[str] = ()) -> dict[str, Any]:
    """The old results with the new ones in their places; of ``files`` that were judged as a whole, the new ones alone."""
    kept = {k: v for k, v in old["mutants"].items() if v.get("file") not in files}
    head = {k: v for k, v in old.items() if k != "cases"} if kept else {}
    return {**new, **head, "cases": max(old.get("cases", 0), new["cases"]), "mutants": {**kept, **new["mutants"]}}


def _lost(kept: dict[str, Any], content: dict[str, Any]) -> list[str]:
    """Mutants that were killed by the accepted run and live now, on as many cases of the same seed."""
    if kept.get("seed") != content["seed"] or kept.get("cases", 0) > content["cases"]:
        return []
    killed = {k for k, v in kept["mutants"].items() if v["kind"] == "mutant" and v["status"] == "killed"}
    return [k for k, v in content["mutants"].items() if k in killed and v["status"] != "killed"]


def _show(found: cp.Campaign, content: dict[str, Any], lost: Sequence[str]) -> None:
    name = {m.key: str(m) for m in found.mutants}
    for title, keys in (
        ("survivors", [m.key for m in found.survivors()]),
        ("excused, and the reason is shown to be wrong", [m.key for m in found.resurrected()]),
        ("false alarms: only the rounding differs, and a rule fails", [m.key for m in found.false_alarms()]),
        ("killed before, alive now", list(lost)),
    ):
        if keys:
            print(f"{title}:")
        for key in keys:
            o = found.outcomes[key]
            fired = f", condition held {o.fired} times" if "_m.rare" in name[key] else ""
            judged = f"{o.rule} {o.quantity}, case {o.case}" if o.case else f"{o.cases} cases reach it"
            test = f", killed by {o.test}" if o.test else ""
            print(f"  {key} {name[key]} ({judged}{fired}{test})")
    errors = sorted({e for o in found.outcomes.values() for e in o.oracle_errors})
    for error in errors[:10]:
        print(f"the engine itself raised on a mutant, case {error}")
    if found.plan.keys is not None:
        there = {m.key for m in found.mutants}
        if gone := [key for key in found.excused if key in found.plan.keys and key not in there]:
            print(f"excused, and no mutant of today's source: {', '.join(gone)}")
    terminal.console().print(report.summary(content))
    trials = max(found.wall - found.baseline_seconds, 1e-9)
    print(
        f"{len(found.outcomes)} mutants on up to {found.cases} cases, seed {found.plan.seed}, {found.plan.workers} workers: "
        f"{found.wall:.0f} s, {60 * len(found.outcomes) / trials:.0f} mutants a minute"
        + (" (interrupted: the rest was not judged)" if found.interrupted else "")
    )
