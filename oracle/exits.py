"""What the exit code says, and the one place that sees to it that it is true.

`ExitCode` is the table. `supervised` runs a command in a process of its own and takes its exit code from what that process
*reports*: a needle that calls ``os._exit(0)``, crashes the interpreter or registers an exit handler reports nothing. In
that process an exception that nobody expected becomes 4 and one line, SIGTERM is Ctrl-C, and a closed pipe is silence.
This module imports nothing heavy, and never needle.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import os
import platform
import select
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from enum import IntEnum
from typing import Any

from oracle.apart import Broken, Interrupted, die_with_parent, ended, flushed, one_line


class ExitCode(IntEnum):
    """The exit codes of every command and of the standalone scripts. If several hold, `decided` says which comes first."""

    AGREE = 0  # the run is finished, something was judged, and all of it agrees
    PART = (
        1  # needle and torch part: numbers, an exception, a crash or an endless loop; elsewhere: what is judged fails
    )
    USAGE = 2  # called wrongly: a wrong flag, no such case, no needle that can be imported
    CONTRADICTION = 3  # the oracle contradicts itself: no verdict on needle
    HARNESS = 4  # the harness itself failed
    NO_VERDICT = 5  # nothing could be judged
    INTERRUPTED = 130  # by Ctrl-C, SIGTERM or SIGHUP

    @property
    def meaning(self) -> str:
        """The code in words, as a run shows it."""
        return _MEANING[self]


_MEANING = {
    ExitCode.AGREE: "they agree",
    ExitCode.PART: "they part",
    ExitCode.USAGE: "usage",
    ExitCode.CONTRADICTION: "the oracle contradicts itself",
    ExitCode.HARNESS: "the harness itself failed",
    ExitCode.NO_VERDICT: "nothing could be judged",
    ExitCode.INTERRUPTED: "interrupted",
}
_FIRST = (ExitCode.HARNESS, ExitCode.CONTRADICTION, ExitCode.PART, ExitCode.INTERRUPTED, ExitCode.NO_VERDICT)


def held(**holds: Any) -> list[ExitCode]:
    """The codes that hold, the one to exit with first: ``held(part=failures, interrupted=True)``; AGREE if none does."""
    names = {code.name.lower(): code for code in _FIRST}
    found = {names[name] for name, value in holds.items() if value}
    return [code for code in _FIRST if code in found] or [ExitCode.AGREE]


def decided(**holds: Any) -> ExitCode:
    """The code to exit with."""
    return held(**holds)[0]


def shown(codes: list[ExitCode]) -> str:
    """All codes that hold, as a line: ``exit code 3: the oracle contradicts itself; also 1: they part``."""
    first, *others = codes
    return "; also ".join([f"exit code {first}: {first.meaning}", *(f"{c}: {c.meaning}" for c in others)])


@contextlib.contextmanager
def saved(what: str) -> Iterator[None]:
    """Writing a report inside: where that fails, the verdict stands, and a line says what was not written."""
    try:
        yield
    except OSError as error:
        print(f"not written: {what}: {error.strerror or error}", file=sys.stderr)


IMPORT_SECONDS = 60.0  # for the import of needle
CAUGHT = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


# -- one command ------------------------------------------------------------------------------------------------------


def guarded(work: Callable[[], int]) -> int:
    """The code of ``work()``; whatever it raises becomes a code, and a line on stderr."""
    try:
        return work()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return ExitCode.INTERRUPTED
    except BaseException as error:
        if isinstance(error, SystemExit) and _last_frame(error).filename == argparse.__file__:
            return int(error.code or 0)  # it has said what there is to say
        print(_failed(error), file=sys.stderr)
        return ExitCode.HARNESS


def _last_frame(error: BaseException) -> traceback.FrameSummary:
    return traceback.extract_tb(error.__traceback__)[-1]


def _failed(error: BaseException) -> str:
    """One line: what failed, where, and what to report. The traceback goes into a file."""
    text = "".join(traceback.format_exception(error))
    if isinstance(error, Broken):
        what, where = str(error), error.where
        text += f"\nin the child:\n{error.text}"
    else:
        what = f"{type(error).__name__}: {one_line(error)}"
        frame = _last_frame(error)
        where = f"{os.path.basename(frame.filename)}:{frame.lineno}"
    about = f"oracle {' '.join(sys.argv[1:])}\nPython {sys.version}\n{platform.platform()}\n\n{text}"
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="oracle-", suffix=".txt", delete=False, encoding="utf-8", errors="replace"
        ) as file:
            file.write(about)
        kept = f"please report it with {file.name}"
    except OSError:
        kept = f"please report it with this:\n{about}"
    return f"the harness itself failed, which says nothing about needle: {what} ({where}); {kept}"


_told: int | None = None  # where the process of a command reports to


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Needle is imported inside: if the process ends there, `supervised` knows why."""
    _tell(b"<")
    yield
    _tell(b">")


def _tell(data: bytes) -> None:
    if _told is not None:
        with contextlib.suppress(OSError):  # who would hear it has gone
            os.write(_told, data)


def supervised(work: Callable[[], int]) -> int:
    """The code that ``work()`` comes to in a process of its own; never 0 unless it says so.

    SIGINT, SIGTERM and SIGHUP are passed on to it: it shows what is known so far, and 130 comes back. The second one ends
    everything at once.
    """
    global _told
    for number in (0, 1, 2):  # one that is closed would be given to the next file or pipe
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if not hasattr(os, "fork"):
        _prepare()
        return guarded(work)
    reading, writing = os.pipe()
    caught = [number for number in CAUGHT if signal.getsignal(number) is not signal.SIG_IGN]  # as under nohup
    signal.pthread_sigmask(signal.SIG_BLOCK, caught)
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _told = writing
        die_with_parent(parent, signal.SIGTERM)
        _prepare(alone=False)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, caught)
        code = guarded(work)
        _tell(b"=" + bytes([code]))
        flushed()
        os._exit(code)  # neither exit handlers nor threads of needle keep it
    os.close(writing)
    before = {number: signal.getsignal(number) for number in caught}
    told = _Told(child)
    for number in caught:
        signal.signal(number, told)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, caught)
    try:
        report, status, endless = _watched(child, reading)
    except Ended:
        _end(child)
        print("interrupted", file=sys.stderr)
        return ExitCode.INTERRUPTED
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(reading)
    doing, found, code_told = report.partition(b"=")
    if found:
        return code_told[0]
    if doing.endswith(b"<"):
        how = f"does not come back within {IMPORT_SECONDS:g} s" if endless else ended(status)
        print(f"needle cannot be imported: its import {how}", file=sys.stderr)
        return ExitCode.USAGE
    print(
        f"the harness itself failed: its process {ended(status)}, without a verdict; with too little memory, "
        "`--workers 1` takes less; otherwise please report the command and what it needs to happen again",
        file=sys.stderr,
    )
    return ExitCode.HARNESS


class Ended(Exception):
    """Somebody wants an end at once."""


class _Told:
    """Hands on to the child that somebody wants an end; raises Ended for the second time.

    A terminal sends Ctrl-C to all processes: the child leaves it to this one, or it would hear of it twice.
    """

    def __init__(self, child: int) -> None:
        self.child, self.at = child, -1.0

    def __call__(self, number: int, frame: Any) -> None:
        now = time.monotonic()
        if self.at < 0:
            self.at = now
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.child, signal.SIGTERM)
        # `timeout` sends its signal to the process, and then to its group
        elif now - self.at > (0.1 if number == signal.SIGINT else 1.0):
            raise Ended


def _watched(child: int, reading: int) -> tuple[bytes, int, bool]:
    """What the child reports, its status, and whether it was ended because importing needle took for ever."""
    data, endless, until = b"", False, math.inf
    # the end of the child, even if something that outlives it holds the pipe
    watched = [reading, *([os.pidfd_open(child)] if hasattr(os, "pidfd_open") else [])]
    try:
        while watched:
            left = None if until == math.inf else max(until - time.monotonic(), 0)
            ready = select.select(watched, [], [], left)[0]
            if not ready:
                endless = True
                _end(child, wait=False)
                break
            if reading not in ready:
                break
            part = os.read(reading, 1 << 16)
            if not part:
                break
            data += part
            until = time.monotonic() + IMPORT_SECONDS if data.endswith(b"<") else math.inf
        return data, os.waitpid(child, 0)[1], endless
    finally:
        for handle in watched[1:]:
            os.close(handle)


def _end(child: int, wait: bool = True) -> None:
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        os.kill(child, signal.SIGKILL)
        if wait:
            os.waitpid(child, 0)


def _prepare(alone: bool = True) -> None:
    """Signals and streams of the process of a command."""
    for caught in CAUGHT:
        if signal.getsignal(caught) is not signal.SIG_IGN:
            # if there is a parent, it hears of all of them, and hands on SIGTERM alone
            signal.signal(caught, _interrupt if alone or caught == signal.SIGTERM else signal.SIG_IGN)
    if not alone:
        signal.signal(signal.SIGTERM, _interrupt)
    for name, number in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is not None:
            setattr(sys, name, _stream(number, getattr(sys, name)))


_interrupted_at = -1.0


def _interrupt(number: int, frame: Any) -> None:
    """SIGTERM may come twice, from whoever sends it and from the parent: the second one is not to interrupt the summary."""
    global _interrupted_at
    now = time.monotonic()
    if 0 <= now - _interrupted_at < 1:
        return
    _interrupted_at = now
    raise Interrupted


class HeldBack:
    """Inside, Ctrl-C and its like wait until they are let through: what is counted is counted as a whole."""

    def __init__(self) -> None:
        self.asked = self.open = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> HeldBack:
        for number in CAUGHT:
            before = signal.getsignal(number)
            if callable(before):  # neither ignored, as under nohup, nor somebody else's
                self._before[number] = before
                signal.signal(number, self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, frame: Any) -> None:
        self.asked = True
        if self.open:
            self.open = False
            raise Interrupted

    @contextlib.contextmanager
    def let_through(self) -> Iterator[None]:
        """Raises Interrupted if it has been asked for, or is in here."""
        if self.asked:
            raise Interrupted
        self.open = True
        try:
            yield
        finally:
            self.open = False


class _Quiet(io.FileIO):
    """A standard stream whose reader may go away: what is written then goes nowhere, and the run goes on."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data) or 0
        except OSError as error:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            if not isinstance(error, BrokenPipeError) and self.fileno() == 1:
                print(f"not written: standard output: {error.strerror}", file=sys.stderr)
            return len(memoryview(data).cast("B"))


def _stream(number: int, old: Any) -> io.TextIOWrapper:
    """A standard stream that neither a closed pipe nor a letter beyond its encoding can break."""
    raw = _Quiet(number, "w", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding=old.encoding, errors="backslashreplace", line_buffering=True
    )
