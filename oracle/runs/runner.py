"""A whole run of ``nox -s diff``: shards of generated cases on a pool of processes, merged in a fixed order.

A shard is a fixed number of cases drawn from its own seed. Shards run in waves, small ones first, and the run ends after the
first wave with a failure; what a round of waves has reached steers the next round. So what is found depends on the seed
and on the number of cases, never on the number of workers, nor on whether one of them was ended.

No worker of the pool runs needle: each forks a child for a shard, and if needle ends that, another one for the case that
was at work, and for those around it.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.internal.conjecture import providers
from hypothesis.strategies import SearchStrategy

import needle
from oracle import commands, files
from oracle.apart import Broken, Died, Frame, apart, begin, frames_of, home, is_interrupt, one_line, place, plain
from oracle.blame import culprit, judged, named, report
from oracle.cases import case as c
from oracle.cases import coverage, fitting, inputs, shrink, strategies
from oracle.exits import ExitCode, held
from oracle.operations import OPERATIONS
from oracle.rules.training import judge_digits
from oracle.rules.verdict import Divergence, Tally, Verdict
from oracle.runs.workers import Pool, Task
from oracle.systems import layers, peer
from oracle.systems.foreign import Offer
from oracle.systems.ours import is_ours
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
ROUND = 8  # shards that are steered alike, by what the rounds before have reached
WAVES = (2, 2, 4)  # shards of the first round between two looks at the failures: what is obvious shows at once
ENOUGH = 12  # failing cases, after which a shard ends
# Checks of the oracle itself, on one case in so many, chosen by digest; a failing case gets both before it is reported.
PEER_SHARE = 4  # rule P
VALIDATION_SHARE = 8  # the truth against torch float64
DIGITS_SECONDS = 600.0  # the run on real data takes 10 s
DEADLY_TRIES = 40  # of smaller cases, each in a process of its own
ENDLESS_TRIES = 12  # of smaller cases that may not come back
ENDLESS_SECONDS = 2.0  # for one of those
SHRINK_SECONDS = 10.0  # for one try of a smaller case
SHOWN = 10  # failures that are shrunk; the rest is written out as it was found


@dataclass
class Failed:
    """A failing case."""

    case: c.Case
    divergence: Divergence
    count: int = 1
    also: Counter[str] = field(default_factory=Counter)  # of these, cases in which only this consequence showed
    printed: bytes = b""  # by needle while the case was judged, cut at a size

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
    absent: Counter[str] = field(default_factory=Counter)  # what another needle does not offer with some inputs
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
        self.absent.update(other.absent)
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
    def failing(self) -> int:
        """How many cases have failed."""
        return sum(failed.count for failed in self.failed)

    @property
    def digest(self) -> str:
        """The same seed and number of cases give the same digest, whatever the number of workers."""
        return hashlib.sha256("".join(self.digests).encode()).hexdigest()[:16]

    def judge(self, case: c.Case, *, validate: bool | None = None) -> None:
        """Judge one case and count it."""
        try:
            number = int(case.digest, 16)
            verdict = verdict_on(
                case,
                peer_too=number % PEER_SHARE == 0,
                validate=number % VALIDATION_SHARE == 0 if validate is None else validate,
            )
        except BaseException as error:
            if is_interrupt(error):
                raise
            # a failure of the harness is a finding about the harness, and must not end the run
            last = plain(traceback.format_exc(limit=-2).strip(), 2000)
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
        found = verdict.divergence
        if found is not None and found.failure is not None and found.failure.absent and not is_ours(needle):
            self.absent[f"{found.failure.kind}: {found.failure.message}"] += 1  # with these inputs
            found = None
        for divergence in (*verdict.beside, *([] if found is None else [found])):
            self.fold(Failed(case, divergence))


def draw(kind: str, count: int, seed: int, names: Sequence[str] = OP_NAMES) -> list[c.Case]:
    """``count`` cases of a kind; the same seed gives the same cases."""
    if kind == "train":
        return independent(strategies.train_cases(), count, seed)
    if kind == "second":
        return independent(strategies.second_order_cases(), count, seed)
    rounds = independent(strategies.every_op(names), -(-count // len(names)), seed, at_once=1)
    cases: list[c.Case] = [case for cases in rounds for case in cases]
    random.Random(seed).shuffle(cases)
    return cases[:count]


DRAWS = 8  # how often cases are drawn anew for those that cannot be made to fit


def fitting_cases(kind: str, count: int, seed: int, lacking: frozenset[str]) -> list[c.Case]:
    """``count`` cases that do without what a needle lacks; fewer only where hardly any would fit."""
    if not lacking:
        return draw(kind, count, seed)
    names = [name for name in OP_NAMES if f"op {name}" not in lacking]
    found: list[c.Case] = []
    for i in range(DRAWS):
        if len(found) >= count or (kind == "op" and not names):
            break
        drawn = draw(kind, count, seed if i == 0 else seed_of(seed, i), names)
        found.extend(made for made in (fitting.fitted(case, lacking) for case in drawn) if made is not None)
    return found[:count]


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
        cases = fitting_cases(kind, count, seed_of(seed, index, kind), lacking)
        if not cases:
            continue
        steered = coverage.steer(cases, so_far, random.Random(seed_of(seed, index, kind, "steer")), lacking)
        if lacking:  # an edit may have brought along what has no label
            steered = [fitting.fitted(new, lacking) or old for new, old in zip(steered, cases, strict=True)]
        cases = steered
        placed.extend(((i + 0.5) / count, case) for i, case in enumerate(cases))
    return [case for _, case in sorted(placed, key=lambda p: p[0])]


def verdict_on(case: c.Case, *, peer_too: bool = True, validate: bool = False) -> Verdict:
    """`oracle.blame.judged`, where code of needle may raise while the harness looks at what needle has made, too."""
    try:
        return judged(case, needle, peer_too=peer_too, validate=validate)
    except BaseException as error:
        frames = frames_of(error.__traceback__)
        if is_interrupt(error) or not any(file.startswith(home(needle) + os.sep) for file, _, _ in frames):
            raise
        return _looked_at(case, error, frames)


def _looked_at(case: c.Case, error: BaseException, frames: tuple[Frame, ...]) -> Verdict:
    phase = "being looked at"
    kind = plain(type(error).__name__)
    failure = Failure(phase, kind, one_line(error), place(frames, home(needle)))
    message = f"needle raised {kind} while {phase}: {failure.message}"
    found = Divergence(0, f"exception in {phase}", kind, "exception", message, failure=failure)
    return named(Verdict(case, found), needle)


def run_shard(
    seed: int,
    index: int,
    lacking: frozenset[str] = frozenset(),
    reached: Mapping[str, int] | None = None,
    enough: int | None = None,
) -> Result:
    """All cases of one shard; those that need what the needle under test lacks are left out, and counted.

    ``reached`` counts what the rounds before have covered. The shard ends with its ``enough``-th failing case.
    """
    started, cpu_started = time.perf_counter(), time.process_time()
    drawn = shard_cases(seed, index, reached, lacking)
    cases = [case for case in drawn if not lacking or lacking.isdisjoint(fitting.needs(case))]
    drawing, cpu_drawing = time.perf_counter() - started, time.process_time() - cpu_started
    result = judge_apart(cases, enough)
    result.left_out = len(drawn) - len(cases)
    result.spend({"drawing": drawing})
    result.cpu_seconds += cpu_drawing
    result.digests = [hashlib.sha256("".join(result.digests).encode()).hexdigest()]
    return result


def judge_all(cases: Sequence[c.Case], enough: int | None = None) -> Result:
    """The verdicts on some cases; ends with the ``enough``-th failing one."""
    result = Result()
    started, cpu_started = time.perf_counter(), time.process_time()
    for case in cases:
        begin()
        before = (result.tally.tensors, result.steps, result.failing)
        result.judge(case)
        after = (result.tally.tensors, result.steps, result.failing)
        changes = [b - a for a, b in zip(before, after, strict=True)]
        result.digests.append(f"{case.digest} {changes};")
        if enough is not None and result.failing >= enough:
            break
    result.spend({"counting": time.perf_counter() - started - sum(result.seconds.values())})
    result.cpu_seconds = time.process_time() - cpu_started
    return result


def judge_apart(cases: Sequence[c.Case], enough: int | None = None) -> Result:
    """The verdicts on some cases, in a child. Where needle ends it, the case that was at work is judged alone.

    Ends with the ``enough``-th failing case, and with the first endless loop: each one behind it could take as long.
    """
    result = Result()
    while cases:
        left = None if enough is None else enough - result.failing
        if left is not None and left <= 0:
            break
        try:
            result.add(apart(judge_all, cases, left, heard=bytearray()))
            break
        except Died as death:
            first = death
        at = first.at
        before, case, cases = cases[:at], cases[at], cases[at + 1 :]
        alone = _ended(case, first) if first.endless else _alone(case)  # as long once more would tell nothing new
        if not alone.failed and not alone.harness_errors:
            # not by itself: with those before it once more, or was it ended from outside?
            try:
                result.add(apart(judge_all, [*before, case], left, heard=bytearray()))
                continue
            except Died as death:
                alone = _not_alone(cases=[*before, case], first=first, death=death)
                cases = [*before, case, *cases][death.at + 1 :] if death.at < at else cases
                before = before[: death.at]
        if before:
            # none of these ended it; should one do so now, that is its own finding
            result.add(judge_apart(before, left))
        result.add(alone)
        if any(_endless(failed) for failed in result.failed):
            result.unjudged += len(cases)
            break
    return result


def _alone(case: c.Case) -> Result:
    """The verdict on a case in a child of its own."""
    heard = bytearray()
    try:
        one = apart(judge_all, [case], heard=heard)
    except Died as death:
        one = _ended(case, death)
    for failed in one.failed:
        failed.printed = bytes(heard)
    return one


def _ended(case: c.Case, death: Died) -> Result:
    """What to say of a case whose process has ended."""
    one = Result(digests=[f"{case.digest} {death.how};"])
    if of_needle(death):
        one.count(Verdict(case, died(case, death)))
    else:  # not inside needle
        one.harness_errors.append(f"{case.digest}: {c.describe(case)}: {death}")
    return one


def _not_alone(cases: Sequence[c.Case], first: Died, death: Died) -> Result:
    """What to say of a process that ends twice among some cases, and with none of them alone."""
    case = cases[min(death.at, len(cases) - 1)]
    one = Result(digests=[f"{case.digest} {death.how};"])
    if signal.SIGKILL in (first.number, death.number) or not of_needle(death):
        one.harness_errors.append(
            f"{case.digest}: {death}, twice, which no case does to it alone; with too little memory, `--workers 1` takes less"
        )
    else:
        how = f"{death.how}, not by this case alone: after {death.at} others in one process"
        again = Died(how, death.doing, death.endless, death.at, death.frames, death.number)
        one.count(Verdict(case, died(case, again)))
    return one


def of_needle(death: Died) -> bool:
    """Whether the end of a process is needle's doing: in a phase of its own, in a line of its own, or by an exit, which no code
    of the harness has.
    """
    inside = any(os.path.abspath(file).startswith(home(needle) + os.sep) for file, _, _ in death.frames)
    return bool(death.doing) or inside or not (death.number or death.endless)


def died(case: c.Case, death: Died) -> Divergence:
    """The end of a process inside needle as a divergence."""
    step, _, phase = (death.doing or "0 being looked at").partition(" ")
    where = place(death.frames, home(needle)) if death.frames else ""
    failure = Failure(phase, ENDED, death.how + (f" in {where}" if where and not death.endless else ""), where)
    message = f"needle does not return from {phase}: {death}"
    found = Divergence(int(step), f"exception in {phase}", ENDED, "exception", message, failure=failure)
    verdict = named(Verdict(case, found), needle)
    assert verdict.divergence is not None
    return verdict.divergence


def _endless(failed: Failed) -> bool:
    failure = failed.divergence.failure
    return failure is not None and failure.kind == ENDED and "does not come back" in failure.message


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
    heard = bytearray()
    try:
        verdict, accuracy = apart(_judge_digits, case, patience=DIGITS_SECONDS, heard=heard)
    except Died as death:
        if not of_needle(death):
            raise
        verdict, accuracy = Verdict(case, died(case, death)), float("nan")
    result.count(verdict)
    result.cases.clear()  # reported on its own, not among the generated cases
    result.coverage.clear()
    result.seconds.clear()
    return Digits(result, verdict.steps, verdict.tally.tensors, accuracy)


def _judge_digits(case: c.TrainCase) -> tuple[Verdict, float]:
    verdict, accuracy = judge_digits(case, needle)
    return named(verdict, needle), accuracy


# -- failures ---------------------------------------------------------------------------------------------------------


def shrink_failure(failed: Failed) -> tuple[Failed, list[str]]:
    """The smallest case that fails in the same quantity, and what the oracle has to say against itself."""
    if failed.divergence.name == ENDED:
        return _shrink_deadly(failed), []
    heard = bytearray()
    try:
        smaller, errors = apart(_shrink_failure, failed, patience=SHRINK_SECONDS, heard=heard)
    except Died:  # a smaller case does worse; what is known is kept
        return failed, []
    heard.clear()
    try:
        smaller.divergence, errors = apart(_once_more, smaller, heard=heard)
    except Died:
        return failed, []
    smaller.printed = bytes(heard)
    return smaller, errors


def _shrink_deadly(failed: Failed) -> Failed:
    """The smallest case that ends its process, or does not come back, in the same place: a child for each try."""
    known = {failed.case.digest: (failed.divergence, failed.printed)}
    patience = ENDLESS_SECONDS if _endless(failed) else None

    def fails(case: c.Case) -> bool:
        heard = bytearray()
        try:
            apart(judge_all, [case], patience=patience, heard=heard)
        except Died as death:
            if not of_needle(death) or death.endless != _endless(failed):
                return False
            found = died(case, death)
            known[case.digest] = found, bytes(heard)
            # an endless loop is somewhere else each time that it is looked at
            return death.endless or culprit(case, found) == failed.culprit
        except Broken:
            pass  # a case that the harness cannot count
        return False

    smallest = shrink.shrink(failed.case, fails, ENDLESS_TRIES if _endless(failed) else DEADLY_TRIES)
    divergence, printed = known[smallest.digest]
    return Failed(smallest, divergence, failed.count, failed.also, printed)


def _shrink_failure(failed: Failed) -> tuple[Failed, list[str]]:
    def fails(case: c.Case) -> bool:
        begin()
        try:
            found = verdict_on(case).divergence
        except Exception:
            return False
        # a smaller case may fail elsewhere in the model, but in the same way, and the same part must be to blame: with
        # several faults, the case of a rare one could end as one more case of a common one
        if found is None or (found.quantity, found.rule) != (failed.divergence.quantity, failed.divergence.rule):
            return False
        return culprit(case, found) == failed.culprit

    return Failed(shrink.shrink(failed.case, fails), failed.divergence, failed.count, failed.also), []


def _once_more(failed: Failed) -> tuple[Divergence, list[str]]:
    """The last judgement of a case that is reported, with all that the oracle has to say against itself."""
    begin()
    verdict = verdict_on(failed.case, validate=True)
    return verdict.divergence or failed.divergence, verdict.oracle_errors


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
    ends = failure is not None and (failure.kind == ENDED or _endless(failed))
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
    """The generated cases, and the task of the run on real data, if it was begun: behind a first wave without a failure."""
    real: Task | None = None
    lacking = plan.offer.lacking
    for waves in _rounds(plan, started):
        reached = dict(outcome.result.coverage)
        enough = None if plan.keep_going else ENOUGH
        # all waves at once, so that nobody waits for the last shard of one; what is done in vain is dropped
        tasks = [[pool.submit(run_shard, plan.seed, i, lacking, reached, enough) for i in wave] for wave in waves]
        while tasks:
            for index, task in zip(waves.pop(0), tasks.pop(0), strict=True):
                try:
                    outcome.result.add(_outcome(task))
                except (Broken, Died) as error:
                    what = "a worker process died" if isinstance(error, Died) else str(error)
                    hint = "with too little memory, `--workers 1` takes less"
                    outcome.result.harness_errors.append(f"shard {index}: {what}; {hint}")
                outcome.shards += 1
                outcome.wall = time.perf_counter() - started
                progress(outcome, "comparing")
            if outcome.result.failed and not plan.keep_going:
                pool.drop(task for wave in tasks for task in wave)
                return real
            if plan.digits and real is None:
                real = pool.submit(run_digits, plan.seed, first=True)
    return real


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
