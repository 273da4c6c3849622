"""Needle at work: what it raises becomes an observed failure, and the time is its own."""

from __future__ import annotations

import traceback
from types import TracebackType

import numpy as np

from oracle.apart import is_interrupt, one_line, tell
from oracle.systems.trace import Clock, Failure


class Failed(Exception):
    """An exception of needle, on its way to the Observation."""

    def __init__(self, failure: Failure) -> None:
        self.failure = failure


class Phase:
    """Whatever needle raises inside becomes an observed failure of this phase; the time is needle's own."""

    def __init__(self, name: str, clock: Clock) -> None:
        self.name, self.clock = name, clock
        self._quiet = np.errstate(all="ignore")

    def __enter__(self) -> None:
        self._quiet.__enter__()
        self.clock.turn("needle")
        tell(f"{self.clock.step} {self.name}")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.clock.turn("observing")
        self._quiet.__exit__(kind, error, tb)
        tell()
        # sys.exit() is no way out of a comparison: every exception is needle's, but for somebody's Ctrl-C
        if error is not None and not is_interrupt(error):
            frame = traceback.extract_tb(tb)[-1]
            where = f"{'/'.join(frame.filename.replace(chr(92), '/').split('/')[-2:])}:{frame.lineno} in {frame.name}"
            raise Failed(Failure(self.name, type(error).__name__, one_line(error), where, _operator(tb))) from None


def _operator(tb: TracebackType | None) -> str:
    """Class of the innermost op on the way to an exception; empty if there was none."""
    found = ""
    while tb is not None:
        for name in ("op", "self"):
            thing = tb.tb_frame.f_locals.get(name)
            if hasattr(type(thing), "compute") and hasattr(type(thing), "gradient_as_tuple"):
                found = type(thing).__name__
        tb = tb.tb_next
    return found
