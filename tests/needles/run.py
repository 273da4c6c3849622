"""The correct needles beside this file, and the mistakes planted in them: what a run says of each.

``python tests/needles/run.py`` judges all with 400 cases; ``--cases 0`` takes the small cases alone that are drawn on purpose,
``--only TEXT`` the needles and mistakes with that text in their names, ``--only pairs`` the pairs of mistakes. On a correct one
nothing may be found; of a mistake, an entry must name it and point at the function that was changed, also where there is another one
beside it. It ends with 1 if that is not so.
"""

from __future__ import annotations

import argparse
import os
import pickle
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]

from mistakes import CORRECT, MISTAKES, PAIRS, Mistake  # noqa: E402

OF_PAIRS = 100  # cases, beside the small ones, for two mistakes at once


@dataclass
class Outcome:
    """What a run has said of one needle."""

    name: str
    entries: list[dict[str, object]] = field(default_factory=list)
    cases: int = 0
    code: int = -1
    seconds: float = 0.0  # of processor time
    found: bool = False  # an entry names the mistake and points at it
    others: int = 0  # entries that do neither: artefacts, or consequences told as findings of their own
    missed: list[str] = field(default_factory=list)  # mistakes that are not told
    trouble: str = ""


def judged(name: str, folder: Path, cases: int) -> Outcome:
    """A run in a child: each has another package called needle."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(reading)
            with os.fdopen(writing, "wb") as pipe:
                pickle.dump(_run(name, folder, cases), pipe)
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        data = pipe.read()
    _, _, usage = os.wait4(child, 0)
    outcome: Outcome = pickle.loads(data) if data else Outcome(name, trouble="the run itself failed")
    outcome.seconds = usage.ru_utime + usage.ru_stime
    return outcome


def _run(name: str, folder: Path, cases: int) -> Outcome:
    from oracle.runs import offered, runner, told
    from oracle.systems import candidate

    candidate.choose(folder)
    with tempfile.TemporaryDirectory() as out:
        plan = runner.Plan(
            seed=1, cases=cases, workers=1, digits=False, keep_going=True, folder=Path(out), needle=folder,
            offer=offered.offered(),
        )  # fmt: skip
        run = runner.run(plan)
    trouble = [*run.result.oracle_errors, *run.result.harness_errors]
    return Outcome(
        name, told.to_json(run), sum(run.result.cases.values()), int(run.exit_code), trouble="; ".join(trouble)[:500]
    )


def correct(name: str, cases: int) -> Outcome:
    """A correct needle: everything but a hint is an artefact."""
    outcome = judged(name, HERE / name, cases)
    outcome.others = sum(entry["severity"] != "hint" for entry in outcome.entries)
    outcome.found = not outcome.others
    return outcome


def planted(mistakes: Sequence[Mistake], cases: int) -> Outcome:
    """A needle with a mistake, or with several: found if each of them is."""
    first, *others = mistakes
    with tempfile.TemporaryDirectory() as folder:
        outcome = judged(" + ".join(m.name for m in mistakes), first.planted(Path(folder), *others), cases)
    told = [entry for entry in outcome.entries if entry["severity"] != "hint"]
    about = {m.name: [e for e in told if says(m, e) and points(m, e, mistakes)] for m in mistakes}
    outcome.missed = [name for name, entries in about.items() if not entries]
    outcome.found = not outcome.missed
    outcome.others = sum(1 for entry in told if not any(entry in entries for entries in about.values()))
    return outcome


def says(mistake: Mistake, entry: dict[str, object]) -> bool:
    """Whether an entry names a mistake."""
    details = entry["details"]
    text = " ".join([str(entry["sentence"]), str(entry["key"]), *(details if isinstance(details, list) else ())])
    return re.search(mistake.says, text) is not None


def points(mistake: Mistake, entry: dict[str, object], planted: Sequence[Mistake]) -> bool:
    """Whether its place is in the function that was changed."""
    at = re.match(r"needle/([\w./]+):(\d+)", str(entry["place"]))
    if at is None or at[1] != mistake.file:
        return False
    texts = planted[0].texts(*planted[1:])
    return any(int(at[2]) in lines for lines in mistake.lines(texts[mistake.file]))


def main() -> int:
    """Judge them, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=400)
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--verbose", action="store_true")
    given = parser.parse_args()
    from oracle.runs import runner

    runner.warm_up()

    def wanted(name: str) -> bool:
        return not given.only or any(text == name or (text in name and text not in CORRECT) for text in given.only)

    jobs = [(name, lambda name=name: correct(name, given.cases)) for name in CORRECT if wanted(name)]
    jobs += [(m.name, lambda m=m: planted([m], given.cases)) for m in MISTAKES if wanted(m.name)]
    known = {m.name: m for m in MISTAKES}
    pairs = [[known[name] for name in pair] for pair in PAIRS]
    several = [(" + ".join(m.name for m in pair), pair) for pair in pairs]
    jobs += [
        (name, lambda pair=pair: planted(pair, min(given.cases, OF_PAIRS)))
        for name, pair in several
        if not given.only or "pairs" in given.only or name in given.only
    ]
    bad = beside = 0
    print(f"{'':72} {'entries':>7} {'others':>6} {'cases':>6} {'code':>4} {'seconds':>7}")
    for name, job in jobs:
        outcome = job()
        right = outcome.found and not outcome.trouble and outcome.code == (0 if name in CORRECT else 1)
        bad += not right
        beside += outcome.others
        told = [entry for entry in outcome.entries if entry["severity"] != "hint"]
        print(
            f"{name:72.72} {len(told):7} {outcome.others:6} {outcome.cases:6} {outcome.code:4} {outcome.seconds:7.1f}"
            f"{'' if right else '   NOT AS IT SHOULD BE ' + ', '.join([*outcome.missed, outcome.trouble])}",
            flush=True,
        )
        if given.verbose or not right or outcome.others:
            for entry in told:
                print(f"    {entry['count']:4} {entry['sentence']}  [{entry['place']}]  {entry['also'] or ''}")
    print(f"{len(jobs) - bad} of {len(jobs)} as they should be, {beside} entries beside them")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
