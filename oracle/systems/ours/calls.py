"""Every call of an op, as it happens: of those on a tape, of those that no tape shows, and of those that an op makes of another.

What a tape holds may have been written into since, and a gradient rule made of other ops hides which of them is wrong. A call
is looked at when it ends, so the innermost one comes first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np

from oracle.systems.ours.model import is_ours
from oracle.systems.trace import same_bits


class CallJudge(Protocol):
    """Who looks at calls: `oracle.rules.calls`. Data is that of arrays, and a tuple of arrays for that of a TensorTuple."""

    @property
    def done(self) -> bool:
        """Whether there is nothing more to be found out."""

    def computed(self, op: Any, definer: type, inputs: Sequence[Any], made: Any, within: Sequence[str]) -> None:
        """``compute`` of ``op``, which the class ``definer`` defines, has made this of the inputs."""

    def differentiated(
        self, op: Any, definer: type, g: Any, needs: Sequence[bool], inputs: Sequence[Any], made: Any, within: Sequence[str]
    ) -> None:  # fmt: skip
        """Its gradient rule has made this of what arrived."""

    def wrote(self, op: Any, definer: type, direction: str, what: str, within: Sequence[str]) -> None:
        """The call has changed what it was given: an operand, the result, or what arrived."""


def data_of(value: Any) -> Any:
    """The array of a Tensor or an array, a tuple of them for a TensorTuple; anything else as it is."""
    data = getattr(value, "cached_data", value)
    return tuple(data_of(part) for part in data) if isinstance(data, tuple) else data


@contextmanager
def calls(ndl: Any, judge: CallJudge | None) -> Iterator[None]:
    """Needle with every call of an op shown to ``judge``; only ours is known well enough for that."""
    if judge is None or not is_ours(ndl):
        yield
        return
    within: list[str] = []
    replaced: list[tuple[type, str, Any]] = []
    kinds = [kind for kind in vars(ndl.ops).values() if isinstance(kind, type) and issubclass(kind, ndl.autograd.Op)]
    try:
        for kind in dict.fromkeys(kinds):
            for name, wrap in (("compute", _compute), ("vjp", _vjp)):
                if name in vars(kind):
                    replaced.append((kind, name, vars(kind)[name]))
                    setattr(kind, name, wrap(vars(kind)[name], kind, judge, within))
        yield
    finally:
        for kind, name, old in replaced:
            setattr(kind, name, old)


def _compute(old: Callable[..., Any], definer: type, judge: CallJudge, within: list[str]) -> Callable[..., Any]:
    def compute(self: Any, *xs: Any) -> Any:
        if judge.done:
            return old(self, *xs)
        given = [data_of(x) for x in xs]
        before = [_copied(x) for x in given]
        within.append(f"{type(self).__name__} forward")
        try:
            made = old(self, *xs)
        finally:
            within.pop()
        if not judge.done:
            for j, (x, was) in enumerate(zip(given, before, strict=True)):
                if not _same(x, was):
                    judge.wrote(self, definer, "forward", f"operand {j}", within)
            judge.computed(self, definer, before, data_of(made), within)
        return made

    return compute


def _vjp(old: Callable[..., Any], definer: type, judge: CallJudge, within: list[str]) -> Callable[..., Any]:
    def vjp(self: Any, g: Any, y: Any, needs: Any, *xs: Any) -> Any:
        if judge.done:
            return old(self, g, y, needs, *xs)
        names = ("what arrives at it", "its own result", *(f"operand {j}" for j in range(len(xs))))
        given = [data_of(x) for x in (g, y, *xs)]
        before = [_copied(x) for x in given]
        within.append(f"{type(self).__name__} backward")
        try:
            made = old(self, g, y, needs, *xs)
        finally:
            within.pop()
        if not judge.done:
            for name, x, was in zip(names, given, before, strict=True):
                if not _same(x, was):
                    judge.wrote(self, definer, "backward", name, within)
            # a chain of layers that has let go of an operand gives what arrives in its place
            if not any(x is g for x in xs):
                arrived, _, *inputs = before
                judge.differentiated(self, definer, arrived, needs, inputs, made, within)
        return made

    return vjp


def _copied(x: Any) -> Any:
    if isinstance(x, tuple):
        return tuple(_copied(part) for part in x)
    return np.array(x)


def _same(x: Any, was: Any) -> bool:
    if isinstance(x, tuple):
        return all(_same(a, b) for a, b in zip(x, was, strict=True))
    return same_bits(np.asarray(x), was)
