"""Many seeds on one pool: each is a run of its own, with its own rounds and steering, so that its digest is a serial run's.

A round of a seed begins when the one before is counted; so that nobody waits for it, several seeds are under way.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from oracle import commands, files
from oracle.apart import Broken, Died, one_line
from oracle.blame import report
from oracle.exits import HeldBack
from oracle.runs import entries
from oracle.runs.draws import SHARD_SIZE
from oracle.runs.result import Failed, Result
from oracle.runs.runner import ROUND, SHOWN, Run, worst_first
from oracle.runs.shard import run_shard
from oracle.runs.shrinking import shrink_failure
from oracle.runs.workers import NoWorkers

AHEAD = 2  # shards that wait for each process, at least: nobody is idle at the end of a round
TOO_MANY = 20  # shards that could not be judged, after which it is no use to go on


class Pool(Protocol):
    """What does the work: `oracle.runs.workers.Pool`, or `oracle.runs.dask_pool.DaskPool`."""

    lost: int

    @property
    def size(self) -> int:
        """How many tasks are done at a time."""

    def submit(self, function: Callable[..., Any], *args: Any, first: bool = False) -> Any:
        """Have a worker call it."""

    def wait(self) -> None:
        """Until a worker says something."""

    def close(self) -> None:
        """End it."""


@dataclass
class Seed:
    """How far a seed has come. All but ``failing`` are the numbers of ``oracle diff`` with it and as many cases."""

    seed: int
    shards: int = 0  # counted, in their order and without a gap
    tensors: int = 0
    failing: int = 0
    digest: str = ""
    lost: list[int] = field(default_factory=list)  # shards that could not be judged: the seed ends with their round

    @property
    def cases(self) -> int:
        """How many cases to ask ``oracle diff`` for, to get them again."""
        return self.shards * SHARD_SIZE


@dataclass
class Plan:
    """What to run."""

    numbers: Iterable[int]  # the seeds
    cases: int  # of each
    minutes: float  # after which no round begins
    folder: Path = report.LATEST
    shard: Callable[..., Result] = run_shard  # what judges one
    lacking: frozenset[str] = frozenset()  # what another needle does not offer
    small: Callable[..., Result] | None = None  # what judges the small cases, with which a run on another needle begins


class _UnderWay:
    """A seed that is being run."""

    def __init__(self, number: int, total: int, small: Result) -> None:
        self.record = Seed(number)
        self.result = Result(coverage=small.coverage.copy(), digests=list(small.digests))  # and of what is counted
        self.total = total
        self.waiting: deque[tuple[int, Any]] = deque()  # shards of the round, in order

    def next_round(self, pool: Pool, plan: Plan) -> bool:
        """Hand out the next round; False if there is none."""
        begin = self.record.shards
        indices = range(begin, min(begin + ROUND, self.total))
        if not indices or self.record.lost:
            return False
        reached = dict(self.result.coverage)
        for index in indices:
            self.waiting.append((index, pool.submit(plan.shard, self.record.seed, index, plan.lacking, reached, None)))
        return True

    def counted(self) -> Iterator[Result]:
        """What is new: the results of shards whose predecessors are counted, each counted here."""
        while self.waiting and self.waiting[0][1].done:
            index, task = self.waiting.popleft()
            try:
                found: Result = task.result()
            except Exception as error:  # whatever a machine comes up with, it costs no more than the shard
                self.record.lost.append(index)
                about = str(error) if isinstance(error, Broken | Died) else f"{type(error).__name__}: {one_line(error)}"
                what = (
                    f"seed {self.record.seed}, shard {index}: {about}; with too little memory, fewer workers take less"
                )
                yield Result(harness_errors=[what])
                continue
            if not self.record.lost:  # behind a gap a digest says nothing; what is found counts
                part = Result(
                    cases=found.cases, coverage=found.coverage, tally=found.tally, digests=list(found.digests)
                )
                self.result.add(part)
                self.record.shards += 1
                self.record.tensors = self.result.tally.tensors
                self.record.digest = self.result.digest
                self.record.failing += found.failing
                yield found
            else:
                yield Result(failed=found.failed)


@dataclass
class Seeds(Run):
    """What many seeds have found."""

    seeds: dict[int, Seed] = field(default_factory=dict)
    found_with: dict[str, list[int]] = field(default_factory=dict)  # culprit -> the seeds that show it
    workers: int = 0  # processes, the most there were at a time
    go_on: str = ""  # the command that goes on
    small: int = 0  # small cases that each run on another needle begins with: the same ones for every seed, judged once

    @property
    def again(self) -> str:
        """The command that goes on."""
        return self.go_on

    def replay(self, failed: Failed) -> str:
        """The command that shows a failure again; where its case could not be written, the cases of its seed."""
        if failed.case.digest in self.written:
            return self.plan.asked.replay(failed.case.digest)
        seed = self.seeds[self.found_with[failed.culprit][0]]
        cases = max(seed.cases, SHARD_SIZE)
        return self.plan.asked.diff(seed.seed, cases=cases, digits=False, keep_going=True)


Progress = Callable[[Seeds, Seed | None], None]


def run(plan: Plan, pool: Pool, outcome: Seeds, progress: Progress = lambda run, done: None) -> None:
    """Run seeds until the time or the seeds are used up; ``progress`` is told after each shard, and what seed is done.

    Ctrl-C ends it early: what is counted stays, and is a beginning of each seed.
    """
    started = time.perf_counter()
    numbers = iter(plan.numbers)
    total = -(-plan.cases // SHARD_SIZE)
    active: list[_UnderWay] = []
    making = _Making(pool, outcome)
    more = True
    with HeldBack() as held:
        try:
            small = _small(plan, pool, outcome, making, held)
            while True:
                over = time.perf_counter() - started > 60 * plan.minutes
                over = over or len(outcome.result.harness_errors) >= TOO_MANY
                for one in [one for one in active if not one.waiting]:
                    if over or not one.next_round(pool, plan):
                        active.remove(one)
                        progress(outcome, one.record)
                while more and not over and _left(active) < AHEAD * max(pool.size, 1):
                    number = next(numbers, None)
                    more = number is not None
                    if number is not None:
                        one = _UnderWay(number, total, small)
                        one.next_round(pool, plan)
                        outcome.seeds[number] = one.record
                        active.append(one)
                if not active and not making.waiting:
                    break
                with held.let_through():
                    pool.wait()
                outcome.workers = max(outcome.workers, pool.size)
                outcome.wall = time.perf_counter() - started
                for one in active:
                    for found in one.counted():
                        outcome.shards += 1
                        making.add(found, one.record.seed)
                        progress(outcome, None)
                making.collect()
            making.fold()
            if outcome.plan.foreign:
                with held.let_through():
                    making.tell()
        except KeyboardInterrupt:
            outcome.interrupted = True
        except NoWorkers as error:
            outcome.result.harness_errors.append(str(error))
        pool.close()
        outcome.wall = time.perf_counter() - started
        making.end()


def _small(plan: Plan, pool: Pool, outcome: Seeds, making: _Making, held: HeldBack) -> Result:
    """The small cases, once for all seeds: what they reach steers each seed, and their digest is part of each, as in a run of that
    seed alone. NoWorkers if they cannot be judged: no digest would be a serial run's.
    """
    if plan.small is None:
        return Result()
    task = pool.submit(plan.small, plan.lacking)
    while not task.done:
        with held.let_through():
            pool.wait()
    try:
        found: Result = task.result()
    except Exception as error:
        raise NoWorkers(f"the small cases could not be judged: {one_line(error)}") from None
    outcome.small = sum(found.cases.values())
    kept = Result(
        absent=found.absent, failed=found.failed, oracle_errors=found.oracle_errors, harness_errors=found.harness_errors
    )
    making.add(kept, outcome.plan.seed)  # the first seed shows them again, as any other
    return found


def _left(active: Iterable[_UnderWay]) -> int:
    return sum(not task.done for one in active for _, task in one.waiting)


class _Making:
    """The failing cases: written as they are found, made smaller by the pool, and written once more."""

    def __init__(self, pool: Pool, outcome: Seeds) -> None:
        self.pool, self.outcome = pool, outcome
        self.folded = False
        self.waiting: list[tuple[Failed, Any]] = []
        self.smaller: dict[str, Failed] = {}  # by the culprit of what was found
        self.scripts: dict[str, tuple[str | None, str]] = {}  # by digest: the script, or why there is none

    def add(self, found: Result, seed: int) -> None:
        """Count a shard of a seed; what fails in a new way is written at once."""
        result = self.outcome.result
        known = len(result.failed)
        result.add(found)
        for failed in found.failed:
            self.outcome.found_with.setdefault(failed.culprit, [])
            if seed not in self.outcome.found_with[failed.culprit]:
                self.outcome.found_with[failed.culprit].append(seed)
        for number, failed in enumerate(result.failed[known:], known):
            self.scripts[failed.case.digest] = None, "the campaign ended before it was made"
            self._write(failed)
            if number < SHOWN:
                self.waiting.append((failed, self.pool.submit(made_smaller, failed, first=True)))

    def collect(self) -> None:
        """What the pool has made smaller."""
        for failed, task in [pair for pair in self.waiting if pair[1].done]:
            self.waiting.remove((failed, task))
            try:
                smaller, errors, text, why = task.result()
            except Exception as error:
                self.outcome.result.harness_errors.append(f"{failed.case.digest}: while it was made smaller: {error}")
                continue
            self.outcome.result.oracle_errors.extend(f"{smaller.case.digest}: {e}" for e in errors)
            self.smaller[failed.culprit] = smaller
            self.scripts[smaller.case.digest] = text, why
            self._write(smaller)

    def fold(self) -> None:
        """All that failed, over all seeds; done once."""
        self.folded = True
        folded, outcome = Result(), self.outcome
        for failed in outcome.result.failed:
            smaller = self.smaller.get(failed.culprit, failed)
            smaller.count, smaller.also = failed.count, failed.also
            outcome.found_with.setdefault(smaller.culprit, outcome.found_with[failed.culprit])
            folded.fold(smaller)
        folded.fold_consequences()
        outcome.failures = sorted(folded.failed, key=worst_first)

    def tell(self) -> None:
        """Of another needle: its entries, one for each mistake."""
        outcome, pool = self.outcome, self.pool
        plan = outcome.plan
        kept, basic = entries.told_once(pool, outcome.failures)
        for failed in kept:  # the plain training run of a program is a case of its own
            digest = failed.case.digest
            if digest not in self.scripts:
                self.scripts[digest] = pool.submit(report.scripted, failed.case, failed.divergence).result()
            outcome.found_with.setdefault(failed.culprit, [plan.seed])
        outcome.failures = sorted(kept, key=worst_first)
        again = plan.asked.diff(plan.seed, cases=SHARD_SIZE, digits=False, keep_going=True)
        outcome.entries = entries.entries(
            pool, outcome.failures, plan.asked, again, plan.offer.absent, lambda text: None, plan.offer.lacking, basic
        )

    def end(self) -> None:
        """What is shown is written, and the files of what no longer is are gone."""
        outcome = self.outcome
        if not self.folded:
            self.fold()
        outcome.written = [failed.case.digest for failed in outcome.failures if self._write(failed)]
        for digest in self.scripts.keys() - {failed.case.digest for failed in outcome.failures}:
            for suffix in (".json", ".md", ".py", ".txt"):
                with contextlib.suppress(OSError):
                    (outcome.plan.folder / digest).with_suffix(suffix).unlink(missing_ok=True)

    def _write(self, failed: Failed) -> bool:
        asked, digest = self.outcome.plan.asked, failed.case.digest
        try:
            report.write_scripted(failed.case, failed.divergence, asked, failed.count, *self.scripts[digest])
            if failed.printed:
                files.save(asked.folder / f"{digest}.txt", failed.printed)
        except OSError as error:
            note = f"failing cases not written to {commands.shown(asked.folder)}: {error.strerror}; `--out` names another folder"
            if note not in self.outcome.notes:
                self.outcome.notes.append(note)
            return False
        return True


def made_smaller(failed: Failed) -> tuple[Failed, list[str], str | None, str]:
    """In a worker: the smallest case, what the oracle has to say against itself, and its script, or why there is none."""
    smaller, errors = shrink_failure(failed)
    return smaller, errors, *report.scripted(smaller.case, smaller.divergence)
