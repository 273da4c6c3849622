"""Gates A and B without memray, cheap enough for every case of `nox -s diff`.

What was born while a window was open is all that the collector lists when it closes, because everything older was set
aside (``gc.freeze()``): so looking at it costs next to nothing, however much is imported.
"""

from __future__ import annotations

import gc
import sys
from types import TracebackType
from typing import Any

import numpy as np

from oracle.systems.trace import Observation


def live_tensors(ndl: Any) -> int:
    """How many Tensors live, up to a constant, in no time: every instance of a class holds a reference to the class."""
    return sys.getrefcount(ndl.Tensor) + sys.getrefcount(ndl.nn.Parameter)


class Window:
    """``with Window(needle) as window: …``; afterwards, what the block has left behind.

    Collection is off in between, also the automatic one: what other code has left would be counted otherwise.
    ``closely`` looks at survivors and cycles too; without it, only the number of live Tensors is taken.
    """

    def __init__(self, ndl: Any, closely: bool) -> None:
        self.ndl, self.closely = ndl, closely  # the module, not the class: the class's references are counted
        self.more = 0  # live Tensors
        self.collected = 0  # objects that only the cycle collector could free
        self.nodes = 0  # Tensors with an op that have survived
        self.op = ""  # … of one of them
        self._before: int | None = None

    def __enter__(self) -> Window:
        self._enabled = gc.isenabled()
        gc.disable()
        if self.closely:
            gc.freeze()
        self._before = live_tensors(self.ndl)
        return self

    def count(self) -> None:
        """Take the number of live Tensors."""
        assert self._before is not None
        self.more = live_tensors(self.ndl) - self._before

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.closely:
            if kind is None:
                self.collected = gc.collect()
                for thing in gc.get_objects():
                    # type(), because isinstance asks the objects
                    if issubclass(type(thing), self.ndl.Tensor) and getattr(thing, "op", None) is not None:
                        self.nodes += 1
                        self.op = self.op or type(thing.op).__name__.strip("_")
            gc.unfreeze()
        if self._enabled:
            gc.enable()

    def report(self, obs: Observation, *, number: bool) -> None:
        """Put it into an observation; ``number`` says whether the number of live Tensors is to be constant."""
        if number:
            obs.put("live tensors", "change", np.int64(self.more))
        if self.closely:
            obs.put("graph", f"at {self.op}" if self.op else "none", np.int64(self.nodes))
            obs.put("cycles", "objects", np.int64(self.collected))
