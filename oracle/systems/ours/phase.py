"""Needle at work: what it raises becomes an observed failure, and the time is its own."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import numpy as np

from oracle.apart import Frame, frames_of, home, is_interrupt, one_line, place, plain, tell
from oracle.systems.surroundings import around_a_call
from oracle.systems.trace import CHANGED, Clock, Failure


class Failed(Exception):
    """An exception of needle, on its way to the Observation."""

    def __init__(self, failure: Failure) -> None:
        self.failure = failure


_listener: Callable[[FrameType, str, Any], Any] | None = None


@contextmanager
def heard_by(listener: Callable[[FrameType, str, Any], Any]) -> Iterator[None]:
    """Python tells the listener, as ``sys.settrace`` has it, of the calls in phases: of all that the harness calls, it would take
    twice as long.
    """
    global _listener
    before, _listener = _listener, listener
    try:
        yield
    finally:
        _listener = before


class Phase:
    """Whatever needle raises inside becomes an observed failure of this phase; the time is needle's own."""

    def __init__(self, name: str, clock: Clock, ndl: Any) -> None:
        self.name, self.clock, self.ndl = name, clock, ndl
        self._quiet = np.errstate(all="ignore")

    def __enter__(self) -> None:
        self._quiet.__enter__()
        self._traced = sys.gettrace()
        if _listener is not None:
            sys.settrace(_listener)
        self._around = around_a_call()
        self.clock.turn("needle")
        tell(f"{self.clock.step} {self.name}")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.clock.turn("observing")
        changed = self._around.restore()
        if _listener is not None:
            sys.settrace(self._traced)
        self._quiet.__exit__(kind, error, tb)
        # sys.exit() is no way out of a comparison: every exception is needle's, but for somebody's Ctrl-C
        if error is not None and not is_interrupt(error):
            frames, of = frames_of(tb), home(self.ndl)
            where, inside = place(frames, of), at_work(frames, of)
            failure = Failure(
                self.name, plain(type(error).__name__), one_line(error), where, _operator(tb), lines_of(tb, of), inside
            )
            tell()  # not before the message has been asked for: that is needle's code too
            raise Failed(failure) from None
        tell()
        if changed:
            raise Failed(Failure(self.name, CHANGED, "; ".join(changed)))


_ORACLE = str(Path(__file__).resolve().parents[2]) + os.sep


def at_work(frames: tuple[Frame, ...], of: str) -> bool:
    """Whether a line of needle was at work, and not a line of the harness that asks for a name or a keyword."""
    for file, _, _ in frames:
        if file.startswith((of + os.sep, _ORACLE)):
            return not file.startswith(_ORACLE)
    return False


def lines_of(tb: TracebackType | None, of: str) -> tuple[str, ...]:
    """The lines of a package on the way to an exception, the innermost first, each with the name of its function."""
    found = []
    while tb is not None:
        code = tb.tb_frame.f_code
        if os.path.abspath(code.co_filename).startswith(of + os.sep):
            file = "/".join(code.co_filename.replace("\\", "/").split("/")[-2:])
            found.append(f"{file}:{tb.tb_lineno} in {code.co_qualname}")
        tb = tb.tb_next
    return tuple(reversed(found))


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
