"""Work in a process of its own: whatever the code of a candidate does there, the process that counts lives on.

`apart` forks, so that everything is imported already; where the system cannot fork, it calls the function as it is. The
parent holds the clock: nothing is raised inside a child that takes too long (an exception that comes in the middle of
torch's dispatch leaves torch broken, and a candidate may swallow it), its process is ended, and never used again.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import io
import os
import pickle
import re
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")
Frame = tuple[str, int, str]  # file, line, function

CASE_SECONDS = 30.0  # generous: a case takes 20 ms
LAST_WORDS = 2.0  # seconds that a process has to say where it is, before it is ended
HEARD = 1 << 16  # bytes of what a candidate prints that are kept
MEMORY = (
    4 << 30
)  # bytes that a child may add to what its parent had, or half of what the machine has: a case takes 2 GB at most
FORKS = hasattr(os, "fork")


def threads(number: int) -> dict[str, str]:
    """The environment in which NumPy and torch have so many threads. One where there is a process per core, and where sums are to have
    one order.
    """
    return dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(number))


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, SIGTERM or SIGHUP, told apart from a KeyboardInterrupt that needle raises."""


class Died(Exception):
    """The process of `apart` ended, or was ended for taking too long, before it had an answer."""

    def __init__(
        self,
        how: str,
        doing: str = "",
        endless: bool = False,
        at: int = 0,
        frames: tuple[Frame, ...] = (),
        number: int = 0,
    ) -> None:
        super().__init__(how, doing, endless, at, frames, number)
        self.how = how  # "ended with exit status 0"
        self.doing = doing  # what it had told last
        self.endless = endless
        self.at = at  # how many pieces of work were finished before, see `begin`
        self.frames = frames  # where it was, the innermost first, if that is known
        self.number = number  # of the signal that ended it, or 0

    def __str__(self) -> str:
        return f"the process {self.how}"


class Broken(Exception):
    """An exception out of `apart`, as text: not every exception can be pickled."""

    def __init__(self, kind: str, message: str, where: str, text: str) -> None:
        super().__init__(kind, message, where, text)
        self.kind, self.message, self.where, self.text = kind, message, where, text

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}"


def plain(text: str, size: int = 500) -> str:
    """A text of somebody else's in one line that any file and any terminal takes, cut at a size."""
    text = " ".join(text[: 4 * size].split()).encode("utf-8", "backslashreplace").decode()
    text = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
    return text if len(text) <= size else text[:size] + "…"


def one_line(error: BaseException) -> str:
    """The message of an exception, in one line; an exception may well raise another when it is asked for it."""
    try:
        message = plain(str(error))
        if isinstance(error, MemoryError) and _may_add is not None:
            message = f"{message or 'out of memory'} (a case is given {_may_add / 1e9:.1f} GB)"
        return message
    except BaseException as other:
        if isinstance(other, Interrupted):
            raise
        return "(no message: asking for it raises)"


def frames_of(tb: TracebackType | None) -> tuple[Frame, ...]:
    """The frames of a traceback, the innermost first."""
    return tuple((f.filename, f.lineno or 0, f.name) for f in reversed(traceback.extract_tb(tb)))


def place(frames: tuple[Frame, ...], inside: str | None = None) -> str:
    """The innermost frame as ``needle/ops.py:351 in compute``; of a folder, if one of them lies ``inside`` of it.

    An error that NumPy raises says little by its own place: what counts is the line of needle that called it.
    """
    found = [f for f in frames if inside and os.path.abspath(f[0]).startswith(os.path.join(inside, ""))]
    for file, line, name in (*found, *frames):
        return f"{'/'.join(file.replace(chr(92), '/').split('/')[-2:])}:{line} in {name}"
    return ""


def home(module: Any) -> str:
    """The folder of a package, for `place`."""
    return str(Path(str(getattr(module, "__file__", None) or "nowhere/x")).resolve().parent)


def ended(status: int) -> str:
    """A status of ``os.waitpid`` in words."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number in (signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT):
            return f"crashed: {str(signal.strsignal(number)).lower()}"
        name = signal.Signals(number).name if number in set(signal.Signals) else str(number)
        return f"was ended by signal {name}"
    return f"ended with exit status {os.waitstatus_to_exitcode(status)}"


def is_interrupt(error: BaseException | None) -> bool:
    """Whether somebody wants the run to end. While Python's own handler is in force, any KeyboardInterrupt is Ctrl-C."""
    if isinstance(error, Interrupted):
        return True
    return isinstance(error, KeyboardInterrupt) and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def leave_signals_to_parent() -> None:
    """In a child: Ctrl-C is the parent's to handle, who shows what is known so far; SIGTERM ends the child."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)


def die_with_parent(parent: int, number: signal.Signals) -> None:
    """In a child: have the system send a signal when the parent has gone, however it went. (Linux alone can.)

    To be exact, when the *thread* has gone that forked: that must be one that lives as long as its process.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, int(number))  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os.kill(os.getpid(), number)


# -- in the child -----------------------------------------------------------------------------------------------------

_answers: tuple[int, int] | None = None  # where this process answers to, if it is one of `apart`; and its own number


def tell(doing: str = "") -> None:
    """In a process of `apart`: what it is at work on."""
    _write(doing.encode("ascii", "replace") + b"\n")


def flushed() -> None:
    """What was printed goes out now: before a fork, or a child would print it again, and before an end without exit handlers."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            with contextlib.suppress(Exception):
                stream.flush()


def begin() -> None:
    """In a process of `apart`: the next piece of work begins, with all its time before it."""
    flushed()
    _write(b"!\n")


def _write(data: bytes) -> None:
    if _answers is None:
        return
    number, owner = _answers
    if os.getpid() != owner:
        os._exit(0)  # a copy that needle has made by os.fork: nothing of ours is done twice
    try:
        while data:
            data = data[os.write(number, data) :]
    except OSError:  # needle has closed it
        os._exit(71)


def _child(pipes: tuple[int, int, int], quiet: bool, parent: int, function: Callable[..., Any], args: Any) -> NoReturn:
    global _answers
    answers, faults, output = pipes
    leave_signals_to_parent()
    os.setsid()  # whatever it starts ends with it
    die_with_parent(parent, signal.SIGKILL)
    _limit()
    if quiet:
        nothing = os.open(os.devnull, os.O_RDONLY)
        for old, new in ((nothing, 0), (output, 1), (output, 2)):
            os.dup2(old, new)
        for name, number in (("stdout", 1), ("stderr", 2)):
            raw = io.BufferedWriter(io.FileIO(number, "w", closefd=False))
            setattr(sys, name, io.TextIOWrapper(raw, "utf-8", "backslashreplace", line_buffering=True))
    faulthandler.enable(faults, all_threads=False)  # says where it was, if it crashes
    _answers = answers, os.getpid()
    try:
        data = pickle.dumps((True, function(*args)))
    except BaseException as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{os.path.basename(frame.filename)}:{frame.lineno}"
        about = (plain(type(error).__name__), one_line(error), where, "".join(traceback.format_exception(error)))
        data = pickle.dumps((False, about))
    flushed()
    _write(b"=%d\n" % len(data) + data)
    os._exit(0)  # neither exit handlers nor threads of needle keep it


_may_add: int | None = None  # bytes, where the system sees to it


def _limit() -> None:
    """No core files, and not all the memory of the machine: what asks for more than its share gets a MemoryError."""
    global _may_add
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if sys.platform == "linux":  # no other system counts what is mapped into this limit
            mine = int(Path("/proc/self/statm").read_text("ascii").split()[5]) * os.sysconf("SC_PAGE_SIZE")
            most = min(MEMORY, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)
            if (
                resource.getrlimit(resource.RLIMIT_DATA)[1] == resource.RLIM_INFINITY
            ):  # a child of a child has its share
                resource.setrlimit(resource.RLIMIT_DATA, (mine + most, mine + most))
            _may_add = most
            threading.stack_size(2 << 20)  # in place of 8 MB, of which a thread uses next to nothing, and which count


LULL = 0.005  # seconds: a child tells something hundreds of times a second, and to wake up for each costs both of them


# -- in the parent ----------------------------------------------------------------------------------------------------


def apart(function: Callable[..., T], *args: Any, patience: float | None = None, heard: bytearray | None = None) -> T:
    """``function(*args)`` in a child, which has ``patience`` seconds, and again as many from each `begin` on.

    What the child prints goes into ``heard``, cut at a size; without it, the child shares the parent's streams.
    Raises `Broken` for what the function raises, `Died` if it does not come back.
    """
    patience = CASE_SECONDS if patience is None else patience
    if not FORKS:
        return function(*args)
    flushed()
    pipes = [os.pipe() for _ in range(3)]  # answers, faults, output
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        try:
            for reading, _ in pipes:
                os.close(reading)
            _child((pipes[0][1], pipes[1][1], pipes[2][1]), heard is not None, parent, function, args)
        finally:
            os._exit(70)
    for _, writing in pipes:
        os.close(writing)
    talk = _Talk(child, [reading for reading, _ in pipes], heard)
    endless, status = False, None
    try:
        endless = not talk.listen(patience)
        if endless:
            os.kill(child, signal.SIGABRT)  # upon which it says where it is
            talk.listen(LAST_WORDS)
        status = _gone(child)
        if status is not None:
            talk.drain()
    finally:
        _end(child)
        if status is None:
            status = os.waitpid(child, 0)[1]
        talk.close()
    if talk.answer is not None:
        try:
            good, value = _Answer(io.BytesIO(talk.answer)).load()
        except Exception as error:  # it can be pickled, and not read again
            raise Broken(type(error).__name__, one_line(error), "pickle", traceback.format_exc()) from None
        if good:
            return value  # type: ignore[no-any-return]
        raise Broken(*value)
    how = f"does not come back within {patience:g} s" if endless else ended(status)
    number = 0 if endless or not os.WIFSIGNALED(status) else os.WTERMSIG(status)
    raise Died(how, talk.doing, endless, max(talk.begun - 1, 0), talk.frames, number)


class _Answer(pickle.Unpickler):
    """Imports nothing for the sake of an answer: what is of a class of needle's own would bring needle with it."""

    def find_class(self, module: str, name: str) -> Any:
        if module not in sys.modules and module.partition(".")[0] != "oracle":
            raise pickle.UnpicklingError(f"the answer is made of {module}.{name}, which is not imported here")
        return super().find_class(module, name)


def _gone(child: int) -> int | None:
    """The status of a child that is about to end, or None where it stays: then its answer is all there is to wait for."""
    until = time.monotonic() + 0.2
    while time.monotonic() < until:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return status
        time.sleep(0.0005)
    return None


def _end(child: int) -> None:
    """End a child and all that it has started."""
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill(child, signal.SIGKILL)


class _Talk:
    """What comes from a child."""

    def __init__(self, child: int, readings: list[int], heard: bytearray | None) -> None:
        self.answers, self.faults, self.output = readings
        self.open = list(readings)
        self.heard = heard
        self.begun = 0
        self.doing = ""
        self.answer: bytes | None = None
        self._data, self._said = bytearray(), bytearray()
        self._length: int | None = None
        # the end of the child itself: copies of it may keep the pipes open
        self.handle = os.pidfd_open(child) if hasattr(os, "pidfd_open") else None

    def listen(self, patience: float) -> bool:
        """Until it has answered or ended; False if it takes too long."""
        until = time.monotonic() + patience
        while self.answer is None and self.answers in self.open:
            watched = [*self.open, *([] if self.handle is None else [self.handle])]
            ready = select.select(watched, [], [], max(until - time.monotonic(), 0))[0]
            begun = self.begun
            if not ready:
                return False
            if not self._take(ready):  # nothing more to read, and it has ended
                return True
            if self.begun != begun:
                until = time.monotonic() + patience
            elif time.monotonic() > until and self.answers not in ready:
                return False  # it prints, and that is all
            if self.answer is None:
                time.sleep(LULL)
        return True

    def drain(self) -> None:
        """What is left in the pipes of a process that has gone."""
        while ready := select.select(self.open, [], [], 0)[0] if self.open else []:
            self._take(ready)

    def _take(self, ready: list[int]) -> bool:
        """Read what is there; False if there was nothing but the end of the process."""
        found = False
        for number in (self.output, self.faults, self.answers):
            if number not in ready:
                continue
            found = True
            part = os.read(number, 1 << 16)
            if not part:
                self.open.remove(number)
            elif number == self.output:
                if self.heard is not None and len(self.heard) < HEARD:
                    self.heard += part
                    if len(self.heard) >= HEARD:
                        self.heard[HEARD:] = b"\n... (cut here)\n"
            elif number == self.faults:
                self._said += part[: HEARD - len(self._said)]
            else:
                self._data += part
                self._lines()
        return found

    def _lines(self) -> None:
        while self._length is None and (end := self._data.find(b"\n")) >= 0:
            line = bytes(self._data[:end])
            del self._data[: end + 1]
            if line.startswith(b"="):
                self._length = int(line[1:])
            elif line == b"!":
                self.begun += 1
                self.doing = ""
            else:
                self.doing = line.decode("ascii", "replace")
        if self._length is not None and len(self._data) >= self._length:
            self.answer = bytes(self._data[: self._length])

    @property
    def frames(self) -> tuple[Frame, ...]:
        """Where it was when it crashed, the innermost frame first."""
        found = re.findall(r'^  File "(.*)", line (\d+) in (.*)$', self._said.decode("utf-8", "replace"), re.MULTILINE)
        return tuple((file, int(line), name) for file, line, name in found)

    def close(self) -> None:
        """Close the pipes."""
        for number in (self.answers, self.faults, self.output, self.handle):
            if number is not None:
                os.close(number)
