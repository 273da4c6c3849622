"""The cases of a shard, judged in a child: where needle ends that, another child is for the case that was at work."""

from __future__ import annotations

import functools
import hashlib
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext

from oracle.apart import Died, apart, begin
from oracle.cases import case as c
from oracle.cases import fitting
from oracle.cases.battery import battery
from oracle.rules.verdict import Verdict
from oracle.runs import surface
from oracle.runs.draws import shard_cases
from oracle.runs.judgement import died, of_needle
from oracle.runs.result import Result
from oracle.systems.candidate import candidate
from oracle.systems.ours import is_ours

THREADS = 32  # that a process may have been left with before it is replaced
LISTENING = 1  # shards of which it is noted what of needle they call: it takes half a shard's time more


def run_shard(
    seed: int,
    index: int,
    lacking: frozenset[str] = frozenset(),
    reached: Mapping[str, int] | None = None,
    enough: int | None = None,
    part: tuple[int, int] = (0, 1),
) -> Result:
    """All cases of one shard; those that need what the needle under test lacks are left out, and counted.

    ``reached`` counts what the rounds before have covered. Of ``part`` (1, 2), the second half is judged;
    `joined` makes one result of all parts. What is judged ends with its ``enough``-th failing case, or its first endless loop: a part
    knows nothing of the others, so that it does not matter which is done first.
    """
    started, cpu_started = time.perf_counter(), time.process_time()
    drawn = _drawn(seed, index, None if reached is None else tuple(reached.items()), frozenset(lacking))
    at, of = part
    drawn = drawn[len(drawn) * at // of : len(drawn) * (at + 1) // of]
    cases = [case for case in drawn if not lacking or lacking.isdisjoint(fitting.needs(case))]
    drawing, cpu_drawing = time.perf_counter() - started, time.process_time() - cpu_started
    result = judge_apart(cases, enough, listening=index < LISTENING)
    result.left_out = len(drawn) - len(cases)
    result.spend({"drawing": drawing})
    result.cpu_seconds += cpu_drawing
    return result if of > 1 else joined([result])


@functools.lru_cache(maxsize=1)
def _drawn(
    seed: int, index: int, reached: tuple[tuple[str, int], ...] | None, lacking: frozenset[str]
) -> Sequence[c.Case]:
    """The cases of a shard, kept for its other part: a worker alone has both, one after the other."""
    return shard_cases(seed, index, None if reached is None else dict(reached), lacking)


def joined(parts: Sequence[Result]) -> Result:
    """What all parts of a shard have found, with one digest."""
    result = Result()
    for part in parts:
        result.add(part)
    result.digests = [hashlib.sha256("".join(result.digests).encode()).hexdigest()]
    return result


def run_battery(lacking: frozenset[str]) -> Result:
    """The small cases that are drawn on purpose for another needle."""
    return joined([judge_apart(battery(lacking))])


def judge_all(
    cases: Sequence[c.Case], enough: int | None = None, listening: bool = False, renewed: bool = False
) -> Result:
    """The verdicts on some cases, a digest each; ends with the ``enough``-th failing one, or where needle has left too many
    threads behind, which slow down all that follows, until the harness itself seems to hang: the rest wants another process.

    If the process is ``renewed``, it ends before a case on which the harness failed, too, unless it is the first: what needle did
    before, such as to take all memory, may be why.
    ``listening`` notes what of needle they call; not of another needle, which has another surface.
    """
    result = Result()
    listener = surface.Listener(candidate()) if listening and is_ours(candidate()) else None
    threads = threading.active_count() + THREADS
    started, cpu_started = time.perf_counter(), time.process_time()
    for case in cases:
        begin()
        before, errors = (result.tally.tensors, result.steps, result.failing), len(result.harness_errors)
        with nullcontext() if listener is None else listener.during(case):
            result.judge(case)
        if renewed and len(result.harness_errors) > errors and result.digests:
            del result.harness_errors[errors:]
            break
        after = (result.tally.tensors, result.steps, result.failing)
        changes = [b - a for a, b in zip(before, after, strict=True)]
        result.digests.append(f"{case.digest} {changes};")
        if (enough is not None and result.failing >= enough) or threading.active_count() > threads:
            break
    if listener is not None and not result.failed:
        result.surface = listener.found
    result.spend({"counting": time.perf_counter() - started - sum(result.seconds.values())})
    result.cpu_seconds = time.process_time() - cpu_started
    return result


def judge_apart(cases: Sequence[c.Case], enough: int | None = None, listening: bool = False) -> Result:
    """The verdicts on some cases, in a child. Where needle ends it, the case that was at work is judged alone.

    Ends with the ``enough``-th failing case, and with the first endless loop: each one behind it could take as long.
    """
    result = Result()
    while cases:
        left = None if enough is None else enough - result.failing
        if left is not None and left <= 0:
            break
        try:
            part = apart(judge_all, cases, left, listening, True, heard=bytearray())
            result.add(part)
            cases = cases[len(part.digests) :]
            continue
        except Died as death:
            first = death
        at = first.at
        before, case, cases = cases[:at], cases[at], cases[at + 1 :]
        alone = _ended(case, first) if first.endless else _alone(case)  # as long once more would tell nothing new
        if not alone.failed and not alone.harness_errors:
            # not by itself: with those before it once more, or was it ended from outside?
            try:
                part = apart(judge_all, [*before, case], left, heard=bytearray())
                result.add(part)
                cases = [*before, case, *cases][len(part.digests) :]
                continue
            except Died as death:
                alone = _not_alone(cases=[*before, case], first=first, death=death)
                cases = [*before, case, *cases][death.at + 1 :] if death.at < at else cases
                before = before[: death.at]
        if before:
            # none of these ended it; should one do so now, that is its own finding
            result.add(judge_apart(before, left))
        result.add(alone)
        if any(failed.endless for failed in result.failed):
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
