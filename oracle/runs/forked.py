"""A child for each task, forked when everything is imported, so that nothing leaks from one task to the next."""

from __future__ import annotations

import os
import selectors
import signal
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from oracle.apart import die_with_parent, leave_signals_to_parent

Task = TypeVar("Task")


def forked(
    tasks: Iterable[Task], work: Callable[[Task, Callable[[bytes], None]], None], workers: int
) -> Iterator[tuple[Task, bytes, int]]:
    """One child per task, ``workers`` at a time: the task, what the child wrote, and the signal that ended it (or 0).

    ``work(task, write)`` runs in the child. Leaving the loop early ends all children.
    """
    selector = selectors.DefaultSelector()
    running: dict[int, tuple[int, Task, bytearray]] = {}
    waiting = iter(tasks)
    try:
        while True:
            while len(running) < workers:
                try:
                    task = next(waiting)
                except StopIteration:
                    break
                reading, pid = _fork(task, work)
                running[reading] = (pid, task, bytearray())
                selector.register(reading, selectors.EVENT_READ)
            if not running:
                return
            for key, _ in selector.select():
                reading = key.fd
                pid, task, data = running[reading]
                chunk = os.read(reading, 1 << 20)
                if chunk:
                    data += chunk
                    continue
                selector.unregister(reading)
                os.close(reading)
                del running[reading]
                status = os.waitpid(pid, 0)[1]
                yield task, bytes(data), os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    finally:
        for reading, (pid, _, _) in running.items():
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            os.close(reading)
        selector.close()


def _fork(task: Task, work: Callable[[Task, Callable[[bytes], None]], None]) -> tuple[int, int]:
    reading, writing = os.pipe()
    parent = os.getpid()
    pid = os.fork()
    if pid:
        os.close(writing)
        return reading, pid
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        leave_signals_to_parent()
        die_with_parent(parent, signal.SIGKILL)
        os.close(reading)
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)

        def write(data: bytes) -> None:
            view = memoryview(data)
            while view:
                view = view[os.write(writing, view) :]

        work(task, write)
    finally:
        os._exit(0)
