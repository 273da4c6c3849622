"""Which cases does a seed give? Shards of a fixed size, each drawn from its own seed, by Hypothesis."""

from __future__ import annotations

import hashlib
import itertools
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.internal.conjecture import providers
from hypothesis.strategies import SearchStrategy

from oracle.cases import case as c
from oracle.cases import coverage, fitting, strategies
from oracle.operations import OPERATIONS

_T = TypeVar("_T")

# Hypothesis draws now and then a constant from the source of whatever happens to be imported. The cases of a seed would
# then depend on the text of the needle under test, and on the command; there is no setting for it.
if hasattr(providers.HypothesisProvider, "_local_constants"):
    providers.HypothesisProvider._local_constants = providers.Constants()  # type: ignore[assignment, attr-defined]

OP_NAMES = sorted(OPERATIONS)
SHARD_SIZE = 100
# Cases of each kind in a shard: every op once, because single operations cost next to nothing.
SHARD = {"train": SHARD_SIZE - len(OP_NAMES) - 3, "op": len(OP_NAMES), "second": 3}


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
