"""A whole run of ``nox -s diff``: shards of generated cases on a pool of processes, merged in a fixed order.

A shard is a fixed number of cases drawn from its own seed. Shards run in waves: what the waves before have reached steers
the next one, and the run ends after the first wave with a failure. So what is found depends on the seed and on the
number of cases, never on the number of workers.

No process of the pool runs needle: each forks a child for a shard, and if needle ends that, another one for every case.
"""

from __future__ import annotations

import hashlib
import itertools
import multiprocessing
import os
import random
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.internal.conjecture import providers
from hypothesis.strategies import SearchStrategy

import needle
from oracle import commands
from oracle.apart import Broken, Died, apart, is_interrupt, leave_signals_to_parent, tell, time_limit
from oracle.blame import culprit, judged, named, report
from oracle.cases import case as c
from oracle.cases import coverage, inputs, shrink, strategies
from oracle.exits import ExitCode, held
from oracle.operations import OPERATIONS
from oracle.rules.training import judge_digits
from oracle.rules.verdict import Divergence, Tally, Verdict
from oracle.systems import layers, peer
from oracle.systems.trace import ENDED, Failure

_T = TypeVar("_T")

# Hypothesis draws now and then a constant from the source of whatever happens to be imported. The cases of a seed would
# then depend on the text of the needle under test, and on the command; there is no setting for it.
if hasattr(providers.HypothesisProvider, "_local_constants"):
    providers.HypothesisProvider._local_constants = providers.Constants()  # type: ignore[assignment, attr-defined]

OP_NAMES = sorted(OPERATIONS)
SHARD_SIZE = 100
# Cases of each kind in a shard: every op once, because single operations cost next to nothing.
SHARD = {"train": SHARD_SIZE - len(OP_NAMES) - 3, "op": len(OP_NAMES), "second": 3}
WAVE = 8  # shards between two looks at the failures
# Checks of the oracle itself, on one case in so many, chosen by digest; a failing case gets both before it is reported.
PEER_SHARE = 4  # rule P
VALIDATION_SHARE = 8  # the truth against torch float64
DIGITS_SECONDS = 600.0  # the run on real data takes 10 s
DEADLY_TRIES = 40  # of smaller cases, each in a process of its own
SHRINK_SECONDS = 10.0  # for one try of a smaller case
SHOWN = 10  # failures that are shrunk; the rest is written out as it was found


@dataclass
class Failed:
    """A failing case."""

    case: c.Case
    divergence: Divergence
    count: int = 1
    also: Counter[str] = field(default_factory=Counter)  # of these, cases in which only this consequence showed

    @property
    def culprit(self) -> str:
        """What is to blame, without places."""
        return culprit(self.case, self.divergence)


@dataclass
class Result:
    """What a shard found, or several of them."""

    cases: Counter[str] = field(default_factory=Counter)
    steps: int = 0
    out_of_domain: int = 0
    left_out: int = 0
    tally: Tally = field(default_factory=Tally)
    coverage: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=dict)  # what the time went into, see `oracle.systems.trace.Clock`
    cpu_seconds: float = 0.0  # of the processes that judged the generated cases
    largest_difference: float = 0.0
    common: int = 0  # tensors that needle and torch round alike, beyond what the noise allows
    failed: list[Failed] = field(default_factory=list)
    oracle_errors: list[str] = field(default_factory=list)  # the oracle contradicts itself
    harness_errors: list[str] = field(default_factory=list)  # the harness itself failed
    unjudged: int = 0  # cases behind an endless loop in their shard: each of them could take as long
    digests: list[str] = field(default_factory=list)  # one per shard: cases and verdicts

    def add(self, other: Result) -> None:
        """Merge another result; failures are folded by culprit."""
        self.cases.update(other.cases)
        self.steps += other.steps
        self.out_of_domain += other.out_of_domain
        self.left_out += other.left_out
        self.tally.add(other.tally)
        self.coverage.update(other.coverage)
        self.spend(other.seconds)
        self.cpu_seconds += other.cpu_seconds
        self.largest_difference = max(self.largest_difference, other.largest_difference)
        self.common += other.common
        self.oracle_errors.extend(other.oracle_errors)
        self.harness_errors.extend(other.harness_errors)
        self.unjudged += other.unjudged
        self.digests.extend(other.digests)
        for failed in other.failed:
            self.fold(failed)

    def spend(self, seconds: dict[str, float]) -> None:
        """Count time by what it went into."""
        for what, spent in seconds.items():
            self.seconds[what] = self.seconds.get(what, 0.0) + spent

    def fold(self, failed: Failed) -> None:
        """Count a failure, as one more of its kind where the kind is known."""
        for known in self.failed:
            if known.culprit == failed.culprit:
                known.count += failed.count
                return
        self.failed.append(failed)

    def fold_consequences(self) -> None:
        """Fold what a part passes back into what it gives, where both are wrong, and clipping into its norm.

        A gradient rule builds on the value and on what was kept beside it: while the value is wrong, its verdict says
        nothing of its own.
        """
        by_culprit = {failed.culprit: failed for failed in self.failed}
        for failed in list(self.failed):
            before = (
                "clip norm" if failed.culprit == "clip scaling" else failed.culprit.replace(" backward", " forward")
            )
            cause = by_culprit.get(before)
            if cause is not None and cause is not failed:
                cause.count += failed.count
                cause.also[failed.culprit] += failed.count
                self.failed.remove(failed)

    @property
    def digest(self) -> str:
        """The same seed and number of cases give the same digest, whatever the number of workers."""
        return hashlib.sha256("".join(self.digests).encode()).hexdigest()[:16]

    def judge(self, case: c.Case, *, validate: bool | None = None) -> None:
        """Judge one case and count it."""
        try:
            number = int(case.digest, 16)
            with time_limit():
                verdict = judged(
                    case,
                    needle,
                    peer_too=number % PEER_SHARE == 0,
                    validate=number % VALIDATION_SHARE == 0 if validate is None else validate,
                )
        except BaseException as error:
            if is_interrupt(error):
                raise
            # a failure of the harness is a finding about the harness, and must not end the run
            last = traceback.format_exc(limit=-2).strip()
            self.harness_errors.append(f"{case.digest}: {c.describe(case)}: {last}")
            return
        self.count(verdict)

    def count(self, verdict: Verdict) -> None:
        """Count a verdict."""
        case = verdict.case
        self.cases[case.__struct_config__.tag] += 1  # type: ignore[index]
        self.steps += verdict.steps
        self.out_of_domain += verdict.out_of_domain
        self.tally.add(verdict.tally)
        self.coverage.update(coverage.covered(case))
        self.spend(verdict.seconds)
        self.largest_difference = max(self.largest_difference, verdict.largest_difference)
        self.common += verdict.common
        self.oracle_errors.extend(f"{case.digest}: {c.describe(case)}: {e}" for e in verdict.oracle_errors)
        if verdict.divergence is not None:
            self.fold(Failed(case, verdict.divergence))


def draw(kind: str, count: int, seed: int) -> list[c.Case]:
    """``count`` cases of a kind; the same seed gives the same cases."""
    if kind == "train":
        return independent(strategies.train_cases(), count, seed)
    if kind == "second":
        return independent(strategies.second_order_cases(), count, seed)
    rounds = independent(strategies.every_op(OP_NAMES), -(-count // len(OP_NAMES)), seed, at_once=1)
    cases: list[c.Case] = [case for cases in rounds for case in cases]
    random.Random(seed).shuffle(cases)
    return cases[:count]


def independent(source: SearchStrategy[_T], count: int, seed: int, at_once: int = 8) -> list[_T]:
    """``count`` examples that have nothing to do with each other, ``at_once`` of them as one example of Hypothesis.

    From one example to the next, Hypothesis mutates what it had: three of ten cases were all but the same as another.
    Its first example is the simplest one, and always the same; it is left out.
    """
    found: list[_T] = []
    together = st.tuples(*[source] * at_once)
    for i in itertools.count():
        if len(found) >= count:
            break
        for examples in draw_from(together, 2, seed_of(seed, i))[1:]:
            found.extend(examples)
    return found[:count]


def draw_from(source: SearchStrategy[_T], count: int, seed: int) -> list[_T]:
    """``count`` examples of a strategy."""
    drawn: list[_T] = []

    @hypothesis.seed(seed)
    @settings(
        max_examples=count,
        database=None,
        derandomize=False,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(source)
    def collect(case: _T) -> None:
        drawn.append(case)

    collect()
    return drawn[:count]


def seed_of(seed: int, *parts: Any) -> int:
    """A seed for a part of a run."""
    text = ":".join(map(str, (seed, *parts)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "little")


def shard_cases(
    seed: int, index: int, reached: Mapping[str, int] | None = None, lacking: frozenset[str] = frozenset()
) -> list[c.Case]:
    """The cases of one shard, the kinds mixed evenly: each comes early, whatever is wrong.

    Part of them get what neither the waves before (``reached``) nor the shard itself would reach otherwise.
    """
    so_far = Counter(reached or {})
    placed: list[tuple[float, c.Case]] = []
    for kind, count in SHARD.items():
        cases = draw(kind, count, seed_of(seed, index, kind))
        cases = coverage.steer(cases, so_far, random.Random(seed_of(seed, index, kind, "steer")), lacking)
        placed.extend(((i + 0.5) / count, case) for i, case in enumerate(cases))
    return [case for _, case in sorted(placed, key=lambda p: p[0])]


def run_shard(
    seed: int, index: int, lacking: frozenset[str] = frozenset(), reached: Mapping[str, int] | None = None
) -> Result:
    """All cases of one shard; those that need what the needle under test lacks are left out, and counted.

    ``reached`` counts what the waves before have covered.
    """
    started, cpu_started = time.perf_counter(), time.process_time()
    drawn = shard_cases(seed, index, reached, lacking)
    cases = [case for case in drawn if lacking.isdisjoint(coverage.covered(case))]
    drawing, cpu_drawing = time.perf_counter() - started, time.process_time() - cpu_started
    result = _judge_apart(cases)
    result.left_out = len(drawn) - len(cases)
    result.spend({"drawing": drawing})
    result.cpu_seconds += cpu_drawing
    result.digests = [hashlib.sha256("".join(result.digests).encode()).hexdigest()]
    return result


def judge_all(cases: Sequence[c.Case]) -> Result:
    """The verdicts on some cases; ends with the first endless loop."""
    result = Result()
    started, cpu_started = time.perf_counter(), time.process_time()
    for i, case in enumerate(cases):
        tell()
        before = (result.tally.tensors, result.steps, sum(f.count for f in result.failed))
        result.judge(case)
        after = (result.tally.tensors, result.steps, sum(f.count for f in result.failed))
        changes = [b - a for a, b in zip(before, after, strict=True)]
        result.digests.append(f"{case.digest} {changes};")
        if result.failed and _endless(result.failed[-1]):
            result.unjudged = len(cases) - i - 1
            break
    result.spend({"counting": time.perf_counter() - started - sum(result.seconds.values())})
    result.cpu_seconds = time.process_time() - cpu_started
    return result


def _judge_apart(cases: Sequence[c.Case]) -> Result:
    """The verdicts on some cases, in a child; where needle ends it, each case in a child of its own."""
    try:
        return apart(judge_all, cases)
    except Died as death:
        whole = death
    result = Result()
    for i, case in enumerate(cases):
        try:
            one = apart(judge_all, [case])
        except Died as death:
            one = Result(digests=[f"{case.digest} {death.how};"])
            if death.doing:
                one.count(Verdict(case, died(case, death)))
            else:  # not inside needle
                one.harness_errors.append(f"{case.digest}: {c.describe(case)}: {death}")
        result.add(one)
        if result.failed and _endless(result.failed[-1]):
            result.unjudged = len(cases) - i - 1
            break
    if not result.failed and not result.harness_errors:
        result.harness_errors.append(
            f"{whole}, which no case does to it alone; with too little memory, `--workers 1` takes less"
        )
    return result


def died(case: c.Case, death: Died) -> Divergence:
    """The end of a process inside needle as a divergence."""
    step, _, phase = death.doing.partition(" ")
    failure = Failure(phase, ENDED, str(death))
    message = f"needle does not return from {phase}: {death}"
    found = Divergence(int(step), f"exception in {phase}", ENDED, "exception", message, failure=failure)
    verdict = named(Verdict(case, found), needle)
    assert verdict.divergence is not None
    return verdict.divergence


def _endless(failed: Failed) -> bool:
    failure = failed.divergence.failure
    return failure is not None and (failure.kind == "TimeoutError" or "does not come back" in failure.message)


# -- real data --------------------------------------------------------------------------------------------------------


def digits_case(seed: int = 0, epochs: int = 6) -> c.TrainCase:
    """The MLPResNet of the course on the UCI digits: two residual blocks with BatchNorm and dropout."""
    rows = 64
    block = (c.Linear(32), c.BatchNorm(), c.ReLU(), c.Dropout(0.1), c.Linear(64), c.BatchNorm())
    model = (c.Linear(64), c.ReLU(), c.Residual(block), c.ReLU(), c.Residual(block), c.ReLU(), c.Linear(10))
    return c.TrainCase(
        model=model,
        data=c.Digits(rows),
        loss=c.SoftmaxLoss(),
        optimizer=c.SGD(lr=0.2, momentum=0.9, weight_decay=1e-3),
        seed=seed,
        steps=epochs * (1437 // rows),
        keep_init=True,
    )


@dataclass
class Digits:
    """What came of the run on real data."""

    result: Result
    steps: int
    tensors: int
    accuracy: float  # of needle, on 360 images that it was not trained on


def run_digits(seed: int) -> Digits:
    """Train on the digits, every step compared, and test what needle has learned."""
    case = digits_case(seed)
    inputs.digits(train=True)
    result = Result()
    try:
        verdict, accuracy = apart(_judge_digits, case, patience=1.5 * DIGITS_SECONDS)
    except Died as death:
        if not death.doing:
            raise
        verdict, accuracy = Verdict(case, died(case, death)), float("nan")
    result.count(verdict)
    result.cases.clear()  # reported on its own, not among the generated cases
    result.coverage.clear()
    result.seconds.clear()
    return Digits(result, verdict.steps, verdict.tally.tensors, accuracy)


def _judge_digits(case: c.TrainCase) -> tuple[Verdict, float]:
    with time_limit(DIGITS_SECONDS):
        verdict, accuracy = judge_digits(case, needle)
    return named(verdict, needle), accuracy


# -- failures ---------------------------------------------------------------------------------------------------------


def shrink_failure(failed: Failed) -> tuple[Failed, list[str]]:
    """The smallest case that fails in the same quantity, and what the oracle has to say against itself."""
    if _endless(failed):  # every try would take as long
        return failed, []
    if failed.divergence.name == ENDED:
        smallest = shrink.shrink(failed.case, lambda case: _dies(case, failed), DEADLY_TRIES)
        return Failed(smallest, failed.divergence, failed.count), []
    try:
        return apart(_shrink_failure, failed)
    except Died:  # a smaller case does worse; what is known is kept
        return failed, []


def _dies(case: c.Case, failed: Failed) -> bool:
    try:
        apart(judge_all, [case])
    except Died as death:
        return bool(death.doing) and culprit(case, died(case, death)) == failed.culprit
    return False


def _shrink_failure(failed: Failed) -> tuple[Failed, list[str]]:
    def fails(case: c.Case) -> bool:
        tell()
        try:
            with time_limit(SHRINK_SECONDS):
                found = judged(case, needle).divergence
        except Exception:
            return False
        # a smaller case may fail elsewhere in the model, but in the same way, and the same part must be to blame: with
        # several faults, the case of a rare one could end as one more case of a common one
        if found is None or (found.quantity, found.rule) != (failed.divergence.quantity, failed.divergence.rule):
            return False
        return culprit(case, found) == failed.culprit

    smallest = shrink.shrink(failed.case, fails)
    tell()
    with time_limit():
        verdict = judged(smallest, needle, validate=True)
    divergence = verdict.divergence or failed.divergence
    return Failed(smallest, divergence, failed.count), verdict.oracle_errors


# -- the pool ---------------------------------------------------------------------------------------------------------


def warm_up() -> None:
    """Pay torch's first optimizer and first kernels once, before the workers are forked. Needle is not run here."""
    data = c.Data(rows=2, features=2)
    optimizers: tuple[c.Optimizer, ...] = (c.SGD(momentum=0.9), c.Adam())
    for optimizer in optimizers:
        model = (c.Linear(2), c.BatchNorm(), c.ReLU())
        case = c.TrainCase(model=model, data=data, loss=c.SoftmaxLoss(), optimizer=optimizer, seed=0)
        about = (inputs.slots(case), inputs.batches(case), inputs.masks(case, 1))
        peer.TorchRun(case, layers.TORCH_LAYERS, *about).step(0, {})


def pool(workers: int) -> ProcessPoolExecutor:
    """A pool of processes that start with everything imported."""
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    return ProcessPoolExecutor(workers, mp_context=context, initializer=leave_signals_to_parent)


@dataclass
class Plan:
    """What to run."""

    seed: int
    cases: int
    workers: int = field(default_factory=lambda: os.cpu_count() or 1)
    minutes: float | None = None
    digits: bool = True
    keep_going: bool = False
    lacking: dict[str, str] = field(default_factory=dict)  # what a needle other than ours does not offer
    folder: Path = report.LATEST
    needle: Path | None = None  # where a needle other than ours lies

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
    notes: list[str] = field(default_factory=list)  # what was left out, or not written, and why
    interrupted: bool = False
    wall: float = 0.0
    shards: int = 0
    written: list[str] = field(default_factory=list)  # digests of the failures that have a file

    @property
    def codes(self) -> list[ExitCode]:
        """All exit codes that hold, the one to exit with first."""
        return held(
            harness=self.result.harness_errors,
            contradiction=self.result.oracle_errors,
            part=self.failures,
            interrupted=self.interrupted,
            no_verdict=not self.result.tally.tensors and not self.failures,
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
    executor = pool(plan.workers)
    try:
        with_digits = executor.submit(run_digits, plan.seed) if plan.digits else None
        for wave in _waves(plan, started):
            reached = dict(outcome.result.coverage)
            lacking = frozenset(plan.lacking)
            futures = [executor.submit(run_shard, plan.seed, index, lacking, reached) for index in wave]
            for future in futures:
                outcome.result.add(_outcome(future))
                outcome.shards += 1
                outcome.wall = time.perf_counter() - started
                progress(outcome, "comparing")
            if outcome.result.failed and not plan.keep_going:
                break
        if with_digits is not None:
            progress(outcome, "real data")
            try:
                outcome.digits = with_digits.result()
                outcome.result.add(outcome.digits.result)
            except inputs.NoDigits as error:
                outcome.notes.append(f"real data left out: {error}")
            except (Broken, Died) as error:
                outcome.result.harness_errors.append(f"on real data: {error}")
        _shrink_all(executor, outcome, progress)
    except KeyboardInterrupt:
        outcome.interrupted = True
        outcome.failures = outcome.failures or outcome.result.failed
    except BrokenProcessPool:
        # no needle runs in it: most likely the system's memory killer
        outcome.result.harness_errors.append("a worker process died; with too little memory, `--workers 1` takes less")
        outcome.failures = outcome.failures or outcome.result.failed
    finally:
        if outcome.interrupted:
            for process in list((executor._processes or {}).values()):
                process.terminate()
        executor.shutdown(wait=not outcome.interrupted, cancel_futures=True)
    outcome.failures.sort(key=worst_first)
    _write(outcome)
    outcome.wall = time.perf_counter() - started
    return outcome


def worst_first(failed: Failed) -> tuple[int, int]:
    """Sorts failures: needle does not return, it raises, its numbers are wrong; and what shows in most cases first."""
    failure = failed.divergence.failure
    ends = failure is not None and (failure.kind == ENDED or _endless(failed))
    return (0 if ends else 1 if failure is not None else 2), -failed.count


def _write(outcome: Run) -> None:
    """All failing cases first, then the scripts beside them, each of which takes a while; Ctrl-C ends that."""
    plan = outcome.plan
    try:
        for failed in outcome.failures:
            report.write_case(failed.case, failed.divergence, plan.asked, failed.count)
            outcome.written.append(failed.case.digest)
        for failed in outcome.failures:
            report.write_script(failed.case, failed.divergence, plan.asked, failed.count)
    except OSError as error:
        outcome.notes.append(
            f"failing cases not written to {commands.shown(plan.folder)}: {error.strerror}; `--out` names another folder"
        )
    except KeyboardInterrupt:
        outcome.interrupted = True


def _waves(plan: Plan, started: float) -> Iterator[Sequence[int]]:
    """Indices of the shards, wave by wave, until the cases are used up or the time is."""
    index = 0
    total = -(-plan.cases // SHARD_SIZE)
    while plan.minutes is not None or index < total:
        if plan.minutes is not None and time.perf_counter() - started > 60 * plan.minutes:
            return
        size = WAVE if plan.minutes is not None else min(WAVE, total - index)
        yield range(index, index + size)
        index += size


def _outcome(future: Future[Result]) -> Result:
    return future.result()


def _shrink_all(executor: ProcessPoolExecutor, outcome: Run, progress: Callable[[Run, str], None]) -> None:
    found = outcome.result.failed
    shrunk = [executor.submit(shrink_failure, failed) for failed in found[:SHOWN]]
    folded = Result()
    for i, future in enumerate(shrunk):
        progress(outcome, f"shrinking failure {i + 1} of {len(shrunk)}")
        try:
            smaller, errors = future.result()
        except Broken as error:
            outcome.result.harness_errors.append(f"{found[i].case.digest}: while it was made smaller: {error}")
            smaller, errors = found[i], []
        outcome.result.oracle_errors.extend(f"{smaller.case.digest}: {e}" for e in errors)
        folded.fold(smaller)
    for failed in found[SHOWN:]:
        folded.fold(failed)
    folded.fold_consequences()
    outcome.failures = folded.failed
