"""Which cases does a seed give? Shards of a fixed size, each drawn from its own seed, by Hypothesis."""

from __future__ import annotations

import functools
import hashlib
import itertools
import random
from collections import Counter
from collections.abc import Mapping
from typing import Any, TypeVar

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.internal.conjecture import providers
from hypothesis.strategies import SearchStrategy

from oracle.cases import case as c
from oracle.cases import coverage, large, strategies
from oracle.cases.draw_programs import program_cases
from oracle.operations import OPERATIONS

_T = TypeVar("_T")

# Hypothesis draws now and then a constant from the source of whatever happens to be imported. The cases of a seed would
# then depend on the text of the needle under test, and on the command; there is no setting for it.
if hasattr(providers.HypothesisProvider, "_local_constants"):
    providers.HypothesisProvider._local_constants = providers.Constants()  # type: ignore[assignment, attr-defined]

OP_NAMES = tuple(sorted(OPERATIONS))
SHARD_SIZE = 100
# Cases of each kind in a shard: every op once, because single operations cost next to nothing.
# Two in a hundred are large, and four long: of the operations in turn, and of those that do something else at a size.
SHARD = {
    "train": SHARD_SIZE - len(OP_NAMES) - 17,
    "op": len(OP_NAMES),
    "second": 3,
    "long": 4,
    "large": 2,
    "program": 8,
}
SWITCHING = ("relu", "summation", "softmax_loss", "batch_norm", "layer_norm", "linear", "logsumexp", "matmul")


def draw(kind: str, count: int, seed: int, index: int = 0) -> list[c.Case]:
    """``count`` cases of a kind, for the shard of that index; the same seed gives the same cases."""
    if kind == "large":
        return independent(large.large_train_cases(), count, seed, at_once=1)
    if kind == "long":
        turns = [(OP_NAMES, index * (count - 1) + i) for i in range(count - 1)] + [(SWITCHING, index)]
        names = [known[turn % len(known)] for known, turn in turns]
        return [independent(_long(name), 1, seed_of(seed, i), at_once=1)[0] for i, name in enumerate(names)]
    if kind == "train":
        return independent(strategies.train_cases(), count, seed)
    if kind == "second":
        return independent(strategies.second_order_cases(), count, seed)
    if kind == "program":
        return independent(program_cases(), count, seed)
    rounds = [
        independent(strategies.every_op(OP_NAMES, (index + i) % 4), 1, seed_of(seed, i), at_once=1)[0]
        for i in range(-(-count // len(OP_NAMES)))
    ]
    cases: list[c.Case] = [case for cases in rounds for case in cases]
    random.Random(seed).shuffle(cases)
    return cases[:count]


_long = functools.cache(large.long_op_cases)


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
        cases = draw(kind, count, seed_of(seed, index, kind), index)
        if kind in ("long", "large"):  # what they are for would be lost
            so_far.update(label for case in cases for label in coverage.covered(case))
        else:
            cases = coverage.steer(cases, so_far, random.Random(seed_of(seed, index, kind, "steer")), lacking)
        placed.extend(((i + 0.5) / count, case) for i, case in enumerate(cases))
    return [case for _, case in sorted(placed, key=lambda p: p[0])]
