"""Which cases does a seed give? Shards of a fixed size, each drawn from its own seed, by Hypothesis."""

from __future__ import annotations

import functools
import hashlib
import itertools
import random
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, TypeVar

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.control import BuildContext
from hypothesis.errors import StopTest
from hypothesis.internal.conjecture import providers
from hypothesis.internal.conjecture.data import ConjectureData
from hypothesis.strategies import SearchStrategy

from oracle.cases import case as c
from oracle.cases import corners, coverage, fitting, large, strategies
from oracle.cases.draw_dtypes import whole_cases
from oracle.cases.draw_programs import program_cases
from oracle.cases.features import NOT_IN_DTYPES
from oracle.operations import OPERATIONS

_T = TypeVar("_T")

# Hypothesis draws now and then a constant from the source of whatever happens to be imported. The cases of a seed would
# then depend on the text of the needle under test, and on the command; there is no setting for it.
if hasattr(providers.HypothesisProvider, "_local_constants"):
    providers.HypothesisProvider._local_constants = providers.Constants()  # type: ignore[assignment, attr-defined]

OP_NAMES = tuple(sorted(OPERATIONS))
OPS = -(-len(OP_NAMES) // 2)
SHARD_SIZE = 100
# Cases of each kind in a shard: of single operations every other, so that four shards have each at each order, and six
# more for what has been reached least; what remains trains.
# Four lie in the corners of `oracle.cases.corners`, which come round in 4,000 cases.
# Twelve in a hundred are in other dtypes, six operations and six whole models; two are large, and eight long: of the operations in turn, and of
# those that do something else at a size, each of them beyond 1,024 at first.
SHARD = {
    "train": SHARD_SIZE - OPS - 43,
    "op": OPS,
    "steered": 6,
    "second": 3,
    "long": 8,
    "large": 2,
    "program": 8,
    "dtype": 6,
    "whole": 6,
    "corner": 4,
}
IN_DTYPES = tuple(sorted(set(OP_NAMES) - NOT_IN_DTYPES))
ADDING = ("matmul", "summation", "linear", "layer_norm", "logsumexp", "conv")  # of float16, in float32
SWITCHING = (
    *("relu", "summation", "softmax_loss", "batch_norm", "layer_norm", "linear", "logsumexp", "matmul"),
    "transpose",  # a long axis goes far
)


def draw(kind: str, count: int, seed: int, index: int = 0, known: tuple[str, ...] = OP_NAMES) -> list[c.Case]:
    """``count`` cases of a kind, for the shard of that index; the same seed and index give the same cases.

    Operations take turns: the index says whose it is.
    """
    if kind == "large":
        return independent(large.large_train_cases(), count, seed)
    if kind == "long":
        switching = tuple(name for name in SWITCHING if name in known) or known
        others = max(1, count // 4)
        turns = [(known, index * (count - others) + i) for i in range(count - others)]
        turns += [(switching, index * others + i) for i in range(others)]
        kinds = [_long(of[turn % len(of)], turn // len(of) % 2 == 0) for of, turn in turns]
        return [independent(kind, 1, seed_of(seed, i))[0] for i, kind in enumerate(kinds)]
    if kind == "dtype":
        offered = [name for name in IN_DTYPES if name in known]
        adding = [name for name in ADDING if name in offered]
        beside = [name for name in strategies.WITH_INTEGERS if name in offered]
        half = count // 2
        kinds = [
            _in_dtypes(offered[(index * (count - half) + i) % len(offered)]) for i in range(count - half) if offered
        ]
        kinds += [_adding(adding[index % len(adding)])] if adding else []
        kinds += [_with_integers(beside[(index * (half - 1) + i) % len(beside)]) for i in range(half - 1) if beside]
        return [independent(kind, 1, seed_of(seed, i))[0] for i, kind in enumerate(kinds[:count])]
    if kind == "corner":
        places = [corners.CORNERS[(index * count + i) % len(corners.CORNERS)] for i in range(count)]
        return [independent(corners.corner_cases(*place), 1, seed_of(seed, i))[0] for i, place in enumerate(places)]
    if kind == "steered":
        return independent(_any_op(known), count, seed)
    if kind == "train":
        return independent(strategies.train_cases(), count, seed)
    if kind == "second":
        return independent(strategies.second_order_cases(), count, seed)
    if kind == "whole":
        return independent(whole_cases(), count, seed)
    if kind == "program":
        return independent(program_cases(), count, seed)
    cases: list[c.Case] = []
    for i in itertools.count():
        if len(cases) >= count:
            break
        every = strategies.every_op(known, (index + i) % strategies.TURNS)
        cases.extend(independent(every, 1, seed_of(seed, i))[0])
    del cases[count:]
    random.Random(seed).shuffle(cases)
    return cases


_any_op = functools.cache(strategies.op_cases)
_in_dtypes = functools.cache(strategies.dtype_cases)
_adding = functools.cache(large.long_half_cases)
_with_integers = functools.cache(functools.partial(strategies.dtype_cases, kind="integer"))
DRAWS = 8  # how often cases are drawn anew for those that cannot be made to fit


def fitting_cases(kind: str, count: int, seed: int, lacking: frozenset[str], index: int) -> list[c.Case]:
    """``count`` cases that do without what a needle lacks; fewer only where hardly any would fit.

    Other dtypes, and programs where an optimizer's state cannot be found, are none of the course's: training runs stand in their place.
    """
    if not lacking:
        return draw(kind, count, seed, index)
    names = tuple(name for name in OP_NAMES if f"op {name}" not in lacking)
    found: list[c.Case] = []
    for i in range(DRAWS):
        if len(found) >= count or (kind in ("op", "steered", "long") and not names):
            break
        without = kind in ("dtype", "whole", "corner") or (kind == "program" and fitting.PROGRAMS in lacking)
        of = "train" if without or i >= DRAWS // 2 else kind
        drawn = draw(of, count, seed if i == 0 else seed_of(seed, i), index, names)
        found.extend(made for made in (fitting.fitted(case, lacking) for case in drawn) if made is not None)
    return found[:count]


_long = functools.cache(large.long_op_cases)


class Choices(ConjectureData):
    """Where Hypothesis' strategies take their choices from, without what its engine needs in order to repeat, mutate and shrink them:
    that takes six times as long as to draw, and cases are made smaller by `oracle.cases.shrink`.

    No public part of Hypothesis: a test holds that it makes the same case of the same choices.
    """

    def __init__(self, rng: random.Random) -> None:
        super().__init__(random=rng)
        self.rng = rng

    def draw(self, strategy: SearchStrategy[Any], label: int | None = None, observe_as: str | None = None) -> Any:
        """An example of a strategy."""
        return strategy.do_draw(self)

    def start_span(self, label: int) -> None:
        """Only how deep it is nested is asked for."""
        self.depth += 1

    def stop_span(self, *, discard: bool = False) -> None:
        """The end of what `start_span` has begun."""
        self.depth -= 1

    def draw_integer(self, min_value: Any = None, max_value: Any = None, *, forced: int | None = None, **_: Any) -> int:
        """All alike: whole numbers are sizes, and places in what is chosen from."""
        return self.rng.randint(min_value, max_value) if forced is None else forced

    def draw_boolean(self, p: float = 0.5, *, forced: bool | None = None, **_: Any) -> bool:
        """True with that probability."""
        return self.rng.random() < p if forced is None else forced

    def draw_float(self, *args: Any, forced: float | None = None, observe: bool = True, **bounds: Any) -> float:
        """As Hypothesis draws them: now and then near a bound, very small, or whole."""
        return float(self.provider.draw_float(*args, **bounds)) if forced is None else forced


def independent(source: SearchStrategy[_T], count: int, seed: int) -> list[_T]:
    """``count`` examples that have nothing to do with each other, in which they differ from those of Hypothesis' engine: from one
    example to the next it mutates what it had, and the first ones it keeps small.
    """
    rng = random.Random(seed)
    found: list[_T] = []
    while len(found) < count:
        with BuildContext(choices := Choices(rng), is_final=False, wrapped_test=independent), suppress(StopTest):
            found.append(choices.draw(source))  # or a filter lets nothing through
    return found


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
        cases = fitting_cases(kind, count, seed_of(seed, index, kind), lacking, seed + index)
        if kind in ("op", "long", "large", "dtype", "whole", "corner"):  # what they are for would be lost
            so_far.update(label for case in cases for label in coverage.covered(case))
        elif cases and len({type(case) for case in cases}) == 1:
            steered = coverage.steer(cases, so_far, random.Random(seed_of(seed, index, kind, "steer")), lacking)
            if lacking:  # an edit may have brought along what has no label
                steered = [fitting.fitted(new, lacking) or old for new, old in zip(steered, cases, strict=True)]
            cases = steered
        placed.extend(((i + 0.5) / count, case) for i, case in enumerate(cases))
    return [case for _, case in sorted(placed, key=lambda p: p[0])]
