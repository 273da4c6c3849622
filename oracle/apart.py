"""Work in a process of its own: whatever the code of a candidate does there, the process that counts lives on.

`apart` forks, so that everything is imported already; where the system cannot fork, it calls the function as it is.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pickle
import select
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")

CASE_SECONDS = 60.0  # generous: a case takes 20 ms
FORKS = hasattr(os, "fork")


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM, told apart from a KeyboardInterrupt that needle raises."""


class Died(Exception):
    """The process of `apart` ended, or was ended for saying nothing, before it had an answer."""

    def __init__(self, how: str, doing: str, endless: bool) -> None:
        super().__init__(how, doing, endless)
        self.how = how  # "ended with exit status 0"
        self.doing = doing  # what it had told last
        self.endless = endless

    def __str__(self) -> str:
        return f"the process {self.how}"


class Broken(Exception):
    """An exception out of `apart`, as text: not every exception can be pickled."""

    def __init__(self, kind: str, message: str, where: str, text: str) -> None:
        super().__init__(kind, message, where, text)
        self.kind, self.message, self.where, self.text = kind, message, where, text

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}"


def one_line(error: BaseException) -> str:
    """The message of an exception, in one line; an exception may well raise another when it is asked for it."""
    try:
        return " ".join(str(error).split())
    except Exception:
        return "(no message: asking for it raises)"


def ended(status: int) -> str:
    """A status of ``os.waitpid`` in words."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
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


def die_with_parent(parent: int, number: signal.Signals) -> None:
    """In a child: have the system send a signal when the parent has gone, however it went. (Linux alone can.)"""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, int(number))  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os.kill(os.getpid(), number)


_answers: int | None = None  # where this process answers to, if it is one of `apart`


def tell(doing: str = "") -> None:
    """In a process of `apart`: it is alive, and at work on this."""
    if _answers is not None:
        os.write(_answers, doing.encode("ascii", "replace") + b"\n")


def apart(function: Callable[..., T], *args: Any, patience: float | None = None) -> T:
    """``function(*args)`` in a child, which must `tell` something now and then: ``patience`` is in seconds.

    Raises `Broken` for what the function raises, `Died` if it does not come back.
    """
    patience = 1.5 * CASE_SECONDS if patience is None else patience
    if not FORKS:
        return function(*args)
    reading, writing = os.pipe()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        try:
            die_with_parent(parent, signal.SIGKILL)
            os.close(reading)
            _answer(writing, function, args)
        finally:
            os._exit(70)
    os.close(writing)
    data, endless, status = bytearray(), False, None
    try:
        while True:
            if not select.select([reading], [], [], patience)[0]:
                endless = True
                break
            part = os.read(reading, 1 << 20)
            if not part:
                break
            data += part
    finally:
        os.close(reading)
        if endless or sys.exc_info()[0] is not None:
            os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
    told, found, answer = data.partition(b"\x80")  # with which every pickle begins
    if found:
        try:
            good, value = pickle.loads(found + answer)
        except (EOFError, pickle.UnpicklingError):
            pass  # it died while it answered
        else:
            if good:
                return value  # type: ignore[no-any-return]
            raise Broken(*value)
    how = f"does not come back within {patience:g} s" if endless else ended(status)
    doing = told.decode().split("\n")[-2] if b"\n" in told else ""
    raise Died(how, doing, endless)


def _answer(writing: int, function: Callable[..., Any], args: Any) -> NoReturn:
    global _answers
    leave_signals_to_parent()
    _answers = writing
    try:
        data = pickle.dumps((True, function(*args)))
    except BaseException as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{os.path.basename(frame.filename)}:{frame.lineno}"
        about = (type(error).__name__, one_line(error), where, "".join(traceback.format_exception(error)))
        data = pickle.dumps((False, about))
    view = memoryview(data)
    while view:
        view = view[os.write(writing, view) :]
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(0)


@contextlib.contextmanager
def time_limit(seconds: float | None = None) -> Iterator[None]:
    """TimeoutError inside what takes too long: a needle that hangs is a failing needle, not a hanging run."""
    seconds = CASE_SECONDS if seconds is None else seconds
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(signum: int, frame: Any) -> None:
        raise TimeoutError(f"the case takes longer than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
