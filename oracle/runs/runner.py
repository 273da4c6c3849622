"""A whole run of ``nox -s diff``: shards of generated cases on a pool of processes, merged in a fixed order.

A shard is a fixed number of cases drawn from its own seed. Shards run in waves, small ones first, and the run ends after the
first wave with a failure; what a round of waves has reached steers the next round. So what is found depends on the seed
and on the number of cases, never on the number of workers, nor on whether one of them was ended.

No worker of the pool runs needle: each forks a child for a shard, and if needle ends that, another one for the case that
was at work, and for those around it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from oracle import commands, files
from oracle.apart import Broken, Died
from oracle.blame import report
from oracle.blame.entry import HINT, Entry
from oracle.cases import case as c
from oracle.cases import inputs
from oracle.exits import ExitCode, held
from oracle.runs import entries
from oracle.runs.draws import SHARD_SIZE
from oracle.runs.real_data import Digits, run_digits
from oracle.runs.result import Failed, Result
from oracle.runs.shard import joined, run_battery, run_shard
from oracle.runs.shrinking import shrink_failure
from oracle.runs.workers import Pool, Task
from oracle.systems import higher, peer
from oracle.systems.foreign import Offer
from oracle.systems.ours import is_foreign
from oracle.systems.trace import ENDED

ROUND = 8  # shards that are steered alike, by what the rounds before have reached
WAVES = (2, 2, 4)  # shards of the first round between two looks at the failures: what is obvious shows at once
PARTS = 2  # of the first shard, each a task: a short run is that shard, and nobody waits for the first failure
ENOUGH = 12  # failing cases, after which a shard ends; of the first one, each part by itself, as if it were a shard
SHOWN = 10  # failures that are shrunk; the rest is written out as it was found


def warm_up() -> None:
    """Pay torch's first optimizer and first kernels, vmap and the noise for torch once, before the workers are forked: each of their
    children would pay for itself. Needle is not run here.
    """
    data = c.Data(rows=2, features=2)
    optimizers: tuple[c.Optimizer, ...] = (c.SGD(momentum=0.9), c.Adam())
    for optimizer in optimizers:
        model = (c.Linear(2), c.BatchNorm(), c.ReLU())
        case = c.TrainCase(model=model, data=data, loss=c.SoftmaxLoss(), optimizer=optimizer, seed=0)
        about = (inputs.slots(case), inputs.batches(case), inputs.masks(case, 1))
        peer.TorchRun(case, *about).step(0, {})
    higher.truth(c.OpCase("tanh", (c.Operand((1,), (0.5,)),), order=3))


@dataclass
class Plan:
    """What to run."""

    seed: int
    cases: int
    workers: int = field(default_factory=lambda: os.cpu_count() or 1)
    minutes: float | None = None
    digits: bool = True
    keep_going: bool = False
    offer: Offer = field(default_factory=Offer)  # what a needle other than ours offers, and what it does by design
    folder: Path = report.LATEST
    needle: Path | None = None  # where a needle other than ours lies

    @property
    def foreign(self) -> bool:
        """Whether it is judged under the course's contract."""
        return is_foreign(self.needle)

    @property
    def asked(self) -> commands.Asked:
        """What the commands of this run have in common."""
        return commands.Asked(self.needle, self.folder)


@dataclass
class Run:
    """What a run found."""

    plan: Plan
    result: Result = field(default_factory=Result)
    digits: Digits | None = None
    failures: list[Failed] = field(default_factory=list)  # shrunk and folded
    entries: list[Entry] = field(default_factory=list)  # of another needle: what is told of it
    notes: list[str] = field(default_factory=list)  # what was left out, or not written, and why
    interrupted: bool = False
    wall: float = 0.0
    start: float = 0.0  # seconds until cases were handed out: imports, a look at needle, torch's first step
    shards: int = 0
    written: list[str] = field(default_factory=list)  # digests of the failures that have a file

    @property
    def codes(self) -> list[ExitCode]:
        """All exit codes that hold, the one to exit with first."""
        return held(
            harness=self.result.harness_errors,
            contradiction=self.result.oracle_errors,
            part=self.failures or [entry for entry in self.entries if entry.severity < HINT],
            interrupted=self.interrupted,
            no_verdict=(not self.result.tally.tensors and not self.failures) or self.plan.offer.cannot_train,
        )

    @property
    def exit_code(self) -> ExitCode:
        """The code to exit with."""
        return self.codes[0]

    @property
    def again(self) -> str:
        """The command that runs the same cases again: those of the shards that are done, or all, if none is."""
        plan = self.plan
        done = self.shards * SHARD_SIZE
        return plan.asked.diff(
            plan.seed,
            cases=done or (plan.cases if plan.minutes is None else None),
            minutes=None if done else plan.minutes,
            digits=plan.digits,
            keep_going=plan.keep_going,
        )

    def replay(self, failed: Failed) -> str:
        """The command that shows a failure again; where its case could not be written, the whole run."""
        digest = failed.case.digest
        return self.plan.asked.replay(digest) if digest in self.written else self.again


def run(plan: Plan, progress: Callable[[Run, str], None] = lambda run, text: None) -> Run:
    """Run a plan. Ctrl-C ends it early, with what is known so far."""
    started = time.perf_counter()
    outcome = Run(plan)
    warm_up()
    outcome.start = commands.running()
    pool = Pool(plan.workers)
    try:
        real = _generated(plan, pool, outcome, progress, started)
        if real is not None:
            progress(outcome, "real data")
            try:
                outcome.digits = real.result()
                outcome.result.add(outcome.digits.result)
            except inputs.NoDigits as error:
                outcome.notes.append(f"real data left out: {error}")
            except (Broken, Died) as error:
                outcome.result.harness_errors.append(f"on real data: {error}")
        _shrink_all(pool, outcome, progress)
        if plan.foreign:
            outcome.failures, basic = entries.told_once(pool, outcome.failures)
            required = plan.offer.absent
            outcome.entries = entries.entries(
                pool,
                outcome.failures,
                plan.asked,
                outcome.again,
                required,
                lambda text: progress(outcome, text),
                plan.offer.lacking,
                basic,
            )
    except KeyboardInterrupt:
        outcome.interrupted = True
        outcome.failures = outcome.failures or outcome.result.failed
    finally:
        pool.close()
    if pool.lost:
        outcome.notes.append(f"{pool.lost} times a worker process ended; what it was at was done again")
    outcome.failures.sort(key=worst_first)
    _write(outcome)
    outcome.wall = time.perf_counter() - started
    return outcome


def worst_first(failed: Failed) -> tuple[int, int]:
    """Sorts failures: needle does not return, it raises, its numbers are wrong; and what shows in most cases first."""
    failure = failed.divergence.failure
    ends = failure is not None and (failure.kind == ENDED or failed.endless)
    return (0 if ends else 1 if failure is not None else 2), -failed.count


def _write(outcome: Run) -> None:
    """All failing cases first, then the scripts beside them, each of which takes a while; Ctrl-C ends that."""
    plan = outcome.plan
    try:
        for failed in outcome.failures:
            report.write_case(failed.case, failed.divergence, plan.asked, failed.count)
            outcome.written.append(failed.case.digest)
            if failed.printed:
                files.save(plan.folder / f"{failed.case.digest}.txt", failed.printed)
        for failed in outcome.failures:
            report.write_script(failed.case, failed.divergence, plan.asked, failed.count)
    except OSError as error:
        outcome.notes.append(
            f"failing cases not written to {commands.shown(plan.folder)}: {error.strerror}; `--out` names another folder"
        )
    except KeyboardInterrupt:
        outcome.interrupted = True


def _generated(
    plan: Plan, pool: Pool, outcome: Run, progress: Callable[[Run, str], None], started: float
) -> Task | None:
    """The generated cases, and the task of the run on real data, unless there was a failure in the first wave."""
    real: Task | None = None
    first = True  # wave
    lacking = plan.offer.lacking
    if plan.foreign:
        progress(outcome, "special shapes")
        outcome.result.add(_outcome(pool.submit(run_battery, lacking)))
    for waves in _rounds(plan, started):
        reached = dict(outcome.result.coverage)
        enough = None if plan.keep_going else ENOUGH
        # all waves at once, so that nobody waits for the last shard of one; what is done in vain is dropped
        tasks: list[list[list[Task]]] = []
        for wave in waves:
            tasks.append([_submitted(pool, plan.seed, i, lacking, reached, enough) for i in wave])
            if plan.digits and real is None:
                real = pool.submit(run_digits, plan.seed)
        while tasks:
            for index, task in zip(waves.pop(0), tasks.pop(0), strict=True):
                try:
                    outcome.result.add(
                        joined([_outcome(part) for part in task]) if len(task) > 1 else _outcome(task[0])
                    )
                except (Broken, Died) as error:
                    what = "a worker process died" if isinstance(error, Died) else str(error)
                    hint = "with too little memory, `--workers 1` takes less"
                    outcome.result.harness_errors.append(f"shard {index}: {what}; {hint}")
                outcome.shards += 1
                outcome.wall = time.perf_counter() - started
                progress(outcome, "comparing")
            if outcome.result.failed and not plan.keep_going:
                pool.drop(part for wave in tasks for task in wave for part in task)
                if first and real is not None:
                    pool.drop([real])
                return None if first else real
            first = False
    return real


def _submitted(pool: Pool, seed: int, index: int, *about: Any) -> list[Task]:
    """The tasks of a shard."""
    if index or PARTS == 1:
        return [pool.submit(run_shard, seed, index, *about)]
    return [pool.submit(run_shard, seed, index, *about, (part, PARTS)) for part in range(PARTS)]


def _rounds(plan: Plan, started: float) -> Iterator[list[range]]:
    """Indices of the shards, round by round and in waves, until the cases are used up or the time is."""
    index = 0
    total = -(-plan.cases // SHARD_SIZE)
    while plan.minutes is not None or index < total:
        waves = []
        for size in WAVES if index == 0 else (ROUND,):
            if plan.minutes is None:
                size = min(size, total - index)
            elif time.perf_counter() - started > 60 * plan.minutes:
                size = 0
            if size:
                waves.append(range(index, index + size))
            index += size
        if not waves:
            return
        yield waves


def _outcome(task: Task) -> Result:
    result: Result = task.result()
    return result


def _shrink_all(pool: Pool, outcome: Run, progress: Callable[[Run, str], None]) -> None:
    found = outcome.result.failed
    shrunk = [pool.submit(shrink_failure, failed) for failed in found[:SHOWN]]
    folded = Result()
    for i, task in enumerate(shrunk):
        progress(outcome, f"shrinking failure {i + 1} of {len(shrunk)}")
        try:
            smaller, errors = task.result()
        except (Broken, Died) as error:
            outcome.result.harness_errors.append(f"{found[i].case.digest}: while it was made smaller: {error}")
            smaller, errors = found[i], []
        outcome.result.oracle_errors.extend(f"{smaller.case.digest}: {e}" for e in errors)
        folded.fold(smaller)
    for failed in found[SHOWN:]:
        folded.fold(failed)
    folded.fold_consequences()
    outcome.failures = folded.failed
