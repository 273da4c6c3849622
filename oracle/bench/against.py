"""``nox -s bench -- --against REV``: this needle against that of a revision, in processes that take turns burst by burst.

Where a process puts its data moves a ratio by a per cent or two for as long as it lives. So there are several pairs of
processes: of each pair counts the median over its rounds, and the spread is that from pair to pair.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from oracle import apart
from oracle.bench import measure
from oracle.bench import options as given
from oracle.bench.measure import Disagreement, Spread, Timing
from oracle.commands import ROOT
from oracle.exits import ExitCode, decided
from oracle.memory import blas
from oracle.pages import terminal
from oracle.systems.workloads import WORKLOADS

PAIRS, QUICK_PAIRS = 5, 3
SLOWER = 1.02  # what is slower than this in every pair is worse


class Unusable(Exception):
    """There is no needle to compare with; the message says why, on one line."""


def git(*arguments: str) -> str:
    """What git answers, or Unusable."""
    command = ["git", "-C", str(ROOT), "-c", f"core.hooksPath={os.devnull}", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
    except FileNotFoundError:
        raise Unusable("git, which has the needle to compare with, is not installed") from None
    if done.returncode:
        raise Unusable((done.stderr.strip().splitlines() or ["git fails"])[-1])
    return done.stdout.strip()


@contextmanager
def worktree(revision: str) -> Iterator[Path]:
    """The files of a revision, in a folder that is gone afterwards, or Unusable."""
    try:
        commit = git("rev-parse", "--verify", "--end-of-options", revision + "^{commit}")
    except Unusable as error:
        raise Unusable(f"{revision!r} is no commit of {ROOT} ({error})") from None
    with tempfile.TemporaryDirectory(prefix="needle-") as folder:
        path = Path(folder).resolve() / "tree"
        try:
            git("worktree", "add", "--quiet", "--detach", str(path), commit)
            if not (path / "needle/__init__.py").exists():
                raise Unusable(f"{revision!r} has no needle")
            yield path
        finally:
            git("worktree", "remove", "--force", str(path))


class Process:
    """A `Contestant` in its own process."""

    def __init__(self, folder: Path, threads: int) -> None:
        environment = blas.environment() | {
            **apart.threads(threads),
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        }
        command = [sys.executable, "-m", "oracle.bench.contestant", str(folder)]
        pipe = subprocess.PIPE
        self.folder = folder
        self.process = subprocess.Popen(
            command, env=environment, encoding="utf-8", errors="replace", stdin=pipe, stdout=pipe, stderr=pipe
        )

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def ask(self, method: str, *arguments: object) -> Any:
        """What a method of the contestant returns, or Unusable with the last line of its traceback."""
        assert self.process.stdin
        assert self.process.stdout
        try:
            print(json.dumps([method, *arguments]), file=self.process.stdin, flush=True)
            return json.loads(self.process.stdout.readline())
        except (BrokenPipeError, ValueError):
            said = self.process.communicate()[1].strip().splitlines() or ["it ended without a word"]
            raise Unusable(f"the needle of {self.folder} does not run the bench: {said[-1]}") from None


def run(options: argparse.Namespace) -> ExitCode:
    """The command -> 0 nothing is slower, 1 something is or the needles part, 2 there is no such needle, 130 interrupted."""
    console = terminal.console()
    rounds, seconds = given.bursts(options)
    found: dict[str, list[Timing]] = {key: [] for key in options.workloads or given.WORKLOADS}
    pairs = QUICK_PAIRS if options.quick else PAIRS
    interrupted, kernel = False, ""
    try:
        with worktree(options.against) as old, terminal.progress(console) as progress:
            for i in range(pairs):
                sides = {"new": ROOT, "old": old} if i % 2 else {"old": old, "new": ROOT}
                tick = terminal.counted(progress, f"pair {i + 1} of {pairs}", len(found) * rounds)
                with ExitStack() as stack:
                    pair = {name: stack.enter_context(Process(path, options.threads)) for name, path in sides.items()}
                    kernel = " and ".join(dict.fromkeys(told(side) for side in pair.values()))
                    for key, timings in found.items():
                        timings.append(Timing())
                        compare(key, pair, rounds, seconds, tick, timings[-1])
    except Unusable as error:
        print(f"bench --against: {error}", file=sys.stderr)
        return ExitCode.USAGE
    except Disagreement as error:
        print(f"Not timed: the needles do not agree.\n{error}", file=sys.stderr)
        return ExitCode.PART
    except KeyboardInterrupt:
        interrupted = True
    timed = {key: done for key, timings in found.items() if (done := [t for t in timings if t.rounds])}
    worse = report(timed, options.against, console)
    console.print(
        f"Process CPU time of a step, {options.threads} thread{'s' * (options.threads > 1)}, BLAS kernel {kernel}; medians "
        f"(least and most) of {max(map(len, timed.values()), default=0)} pairs of processes, {rounds} rounds of bursts of {seconds * 1e3:.0f} ms each.",
        style="dim",
    )
    if interrupted:
        console.print("interrupted: no verdict", style="bold yellow")
    else:
        text = f"slower by more than {SLOWER - 1:.0%} in every pair: "
        console.print(text + (", ".join(worse) or "nothing"), style="bold red" if worse else "bold green")
    return decided(part=worse and not interrupted, interrupted=interrupted)


def told(side: Process) -> str:
    """The kernel of a side, whose needle is the one that it should have, or Unusable."""
    folder, kernel = side.ask("who")
    if Path(folder) != side.folder:
        raise Unusable(f"needle comes from {folder}, not from {side.folder}")
    return str(kernel)


def compare(
    key: str, pair: Mapping[str, Process], rounds: int, seconds: float, tick: Callable[[], None], timing: Timing
) -> None:
    """Check that both train alike, or Disagreement; then time them."""
    losses = {name: side.ask("check", key) for name, side in pair.items()}
    for step, (new, old) in enumerate(zip(losses["new"], losses["old"], strict=True)):
        measure.check_loss(new, old, f"{key}: new and old part at step {step}")
    steps = min(side.ask("start", key, seconds) for side in pair.values())
    bursts = {name: partial(side.ask, "burst", steps) for name, side in pair.items()}
    measure.take_turns(bursts, rounds, tick, timing)


def ratio(pairs: Sequence[Timing]) -> Spread:
    """New over old: the median of each pair, then median and range over the pairs."""
    return Spread.of(timing.ratio("new", "old").median for timing in pairs)


def report(found: Mapping[str, Sequence[Timing]], revision: str, console: Console) -> list[str]:
    """The table -> the workloads that are worse."""
    headings = ("workload", "old µs", "new µs", "new / old", "least", "most")
    table = terminal.table(headings, left=("workload",), title=f"needle: this tree against {revision}")
    worse = [key for key, pairs in found.items() if ratio(pairs).low > SLOWER]
    for key, pairs in found.items():
        costs = [Spread.of(timing.cost(side).median for timing in pairs).median * 1e6 for side in ("old", "new")]
        r = ratio(pairs)
        numbers = (*(f"{cost:,.1f}" for cost in costs), *(f"{n:.3f}" for n in (r.median, r.low, r.high)))
        table.add_row(f"{key:3} {WORKLOADS[key].title}", *numbers, style="bold red" if key in worse else "")
    console.print(table)
    return worse
