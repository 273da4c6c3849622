"""Changes to needle at run time that undo themselves: what faults and correct variants are made of.

A patch names what it replaces by its path below ``needle`` ("ops.Tanh.vjp") and says what to put there, given what is
there now. A path that no longer exists is an error, so that a catalogue of patches cannot rot unnoticed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

import needle
from needle.autograd import Value

Make = Callable[[Any], Any]


class PatchError(RuntimeError):
    """A patch names something that needle does not have."""


@dataclass(frozen=True)
class Patch:
    """Replacements: (path below needle, function from the old attribute to the new one)."""

    changes: tuple[tuple[str, Make], ...]

    def __add__(self, other: Patch) -> Patch:
        return Patch(self.changes + other.changes)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """needle with the replacements made, for as long as the context lasts."""
        done: list[tuple[Any, str, Any]] = []
        try:
            for path, make in self.changes:
                owner, name = find(path)
                old = vars(owner)[name]
                done.append((owner, name, old))
                setattr(owner, name, make(old))
            yield
        finally:
            for owner, name, old in reversed(done):
                setattr(owner, name, old)


def find(path: str) -> tuple[Any, str]:
    """The owner and the name of an attribute; PatchError unless the owner itself defines it."""
    *way, name = path.split(".")
    owner: Any = needle
    for i, step in enumerate(way):
        if not hasattr(owner, step):
            raise PatchError(f"needle has no {'.'.join(way[: i + 1])}: the patch of {path} must follow")
        owner = getattr(owner, step)
    if name not in vars(owner):
        raise PatchError(f"needle.{'.'.join(way)} defines no {name}: the patch of {path} must follow")
    return owner, name


def wrap(path: str, make: Make) -> Patch:
    """Replace an attribute by ``make(what it was)``."""
    return Patch(((path, make),))


def replace(path: str, new: Any) -> Patch:
    """Replace an attribute."""
    return wrap(path, lambda old: new)


def compute(op: str, change: Callable[..., Any]) -> Patch:
    """An op's value: ``change(right value, *operands)`` instead of the right value."""

    def make(old: Any) -> Any:
        def patched(self: Any, *xs: Any) -> Any:
            y = old(self, *xs)
            return tuple(change(y, *xs)) if type(y) is tuple else np.asarray(change(y, *xs))

        return patched

    return wrap(f"ops.{op}.compute", make)


def vjp(op: str, change: Callable[..., Any]) -> Patch:
    """An op's gradient rule: ``change(right contributions, g, y, *operands)`` instead of the right contributions.

    On ndarrays alone: the differentiable walk keeps the right rule.
    """

    def make(old: Any) -> Any:
        def patched(self: Any, g: Any, y: Any, needs: Sequence[bool], *xs: Any) -> Any:
            right = old(self, g, y, needs, *xs)
            if isinstance(xs[0] if xs else g, Value):
                return right
            wrong = tuple(change(right, g, y, *xs))
            return tuple(None if r is None else w for r, w in zip(right, wrong, strict=True))

        return patched

    return reading(op) + wrap(f"ops.{op}.vjp", make)


def reading(op: str) -> Patch:
    """For another gradient rule, which may look at inputs and a result that the right one has no need of: needle must not
    let go of them.
    """
    kind = getattr(needle.ops, op)
    flags = [name for name in ("reads_inputs", "reads_result") if not getattr(kind, name)]
    patch = Patch(tuple((f"ops.{op}.{name}", lambda old: True) for name in flags))
    if issubclass(kind, needle.ops._KeepsNormalised):
        patch += wrap("ops._KeepsNormalised._keep", lambda old: lambda self, *saved: _kept_and_read(self, old, saved))
    return patch


def _kept_and_read(op: Any, keep: Any, saved: Any) -> None:
    keep(op, *saved)
    op.reads_inputs = op.reads_result = True


def of_chain(change: Callable[[list[Any]], list[Any]]) -> Patch:
    """What the operands of a chain of layers get: a list of (tensor, contribution), in the order in which they arrive."""

    def make(old: Any) -> Any:
        def patched(self: Any, g: Any, adjoints: Any, shared: Any) -> None:
            got: list[Any] = []
            gather = replace("chain._accumulate", lambda adjoints, shared, x, c, g: got.append((x, c)))
            with gather.applied():
                first: dict[Any, Any] = {}
                old(self, g, first, set())
            for x, c in change([*first.items(), *got]):
                needle.autograd._accumulate(adjoints, shared, x, c, g)

        return patched

    return wrap("chain.Chain.backward", make)


def contribution(op: str, change: Callable[[Any], Any], which: int | None = None) -> Patch:
    """An op's gradient rule with ``change`` applied to each contribution, or to one of them."""

    def changed(right: Any, *_: Any) -> Any:
        return [c if c is None or which not in (None, i) else change(c) for i, c in enumerate(right)]

    return vjp(op, changed)


def around(path: str, change: Callable[..., Any]) -> Patch:
    """A function or method: ``change(the old one, *arguments)`` instead of its result."""

    def make(old: Any) -> Any:
        def patched(*args: Any, **kwargs: Any) -> Any:
            return change(old, *args, **kwargs)

        return patched

    return wrap(path, make)
