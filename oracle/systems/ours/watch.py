"""Who looks on while a model computes: at its layers, and at its tapes."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from oracle.systems import recorded
from oracle.systems.ours.model import array_of
from oracle.systems.trace import Clock, same_bits

Record = list[tuple[str, Any, Any]]  # path, input and output of every layer, in the order of execution


@dataclass
class Closely:
    """What layers did that their numbers do not show; paths of the first one, the innermost, or empty."""

    detached: str = ""  # something of it requires a gradient, and what it gives is a constant
    wrote: str = ""  # its input has other bits afterwards


class Watch:
    """Wraps the ``forward`` of every layer, and hands tapes to rule OP if there are ``findings`` to add to."""

    def __init__(self, modules: Mapping[str, Any], clock: Clock) -> None:
        self.modules, self.clock = modules, clock
        self.findings: recorded.TapeJudge | None = None
        self.closely: Closely | None = None
        self._record: Record | None = None
        for path, module in modules.items():
            self._wrap(path, module)

    def _wrap(self, path: str, module: Any) -> None:
        # weak, or every case would leave its models behind in a circle
        forward, of, watch = type(module).forward, weakref.ref(module), weakref.ref(self)

        def wrapped(*args: Any) -> Any:
            looking: Any = watch()
            closely = looking.closely
            before = None if closely is None else np.array(array_of(args[0]))
            out = forward(of(), *args)
            if closely is not None and before is not None and not same_bits(array_of(args[0]), before):
                closely.wrote = closely.wrote or path
            if closely is not None and not getattr(out, "requires_grad", True) and _asks(of(), args[0]):
                closely.detached = closely.detached or path
            if looking._record is not None:
                looking._record.append((path, args[0], out))
            return out

        module.forward = wrapped

    @contextmanager
    def recording(self) -> Iterator[Record]:
        """What the layers called inside are given, and what they make."""
        record: Record = []
        self._record = record
        try:
            yield record
        finally:
            self._record = None

    @contextmanager
    def unwatched(self) -> Iterator[None]:
        """The model as the user has it, with no layer wrapped: needle may then compute layers together, let go of what it
        needs no more, or write into it.
        """
        wrapped = [(module, module.forward) for module in self.modules.values()]
        for module, _ in wrapped:
            del module.forward
        try:
            yield
        finally:
            for module, forward in wrapped:
                module.forward = forward

    def tape(self, root: Any, *, retain: bool = True) -> list[recorded.Node]:
        """The tape, for rule OP: the backward pass frees it."""
        return recorded.record(root, retain=retain) if self.findings is not None else []

    def judge(
        self, tape: list[recorded.Node], cotangent: Any, record: Record, *, backward: bool = True, graph: bool = False
    ) -> None:
        """Rule OP, at once: the optimizer rebinds the parameters, and nothing of the step may be held on to."""
        if self.findings is not None and tape:
            self.clock.turn("OP")
            labels = {id(made): path for path, given, made in record if made is not given}
            seed = None if cotangent is None else array_of(cotangent)
            self.findings.judge(tape, seed, backward=backward, labels=labels, second=graph)
            self.clock.turn("observing")


def _asks(module: Any, x: Any) -> bool:
    """Whether the input of a layer requires a gradient, or a parameter that it has itself or in its layers."""
    return bool(getattr(x, "requires_grad", False)) or any(p.requires_grad for p in module.parameters())
