"""A pool of processes that live as long as a run: what runs needle is a child of theirs, see `oracle.apart`.

The process that decides and writes hands out tasks and takes the answers. A worker that has ended, whatever ended it, is
replaced, and its task done again by another one: tasks are functions of their arguments, so the answer is the same.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import signal
import traceback
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

from oracle.apart import FORKS, Broken, Died, die_with_parent, ended, flushed, leave_signals_to_parent, one_line, plain
from oracle.runs.pipes import received, send
from oracle.systems.candidate import choose, chosen

ATTEMPTS = 3  # at a task whose worker ends under it


class NoWorkers(Exception):
    """Nobody does what is asked, and nobody is about to come."""


class Does(Protocol):
    """What has things done: `Pool`, or one with other processes."""

    def submit(self, function: Callable[..., Any], *args: Any) -> Any:
        """Have a worker call it."""


class Waits(Protocol):
    """What a task asks to go on."""

    def wait(self) -> None:
        """Until a worker says something."""


class Task:
    """Something to be done by a worker."""

    def __init__(self, pool: Waits, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self.pool, self.function, self.args = pool, function, args
        self.done = False
        self.attempts = 0
        self._value: Any = None
        self._error: BaseException | None = None

    def result(self) -> Any:
        """The answer, once it is there. Raises what the function raised, or Died if its workers ended under it."""
        while not self.done:
            self.pool.wait()
        if self._error is not None:
            raise self._error
        return self._value

    def settle(self, value: Any = None, error: BaseException | None = None) -> None:
        """The answer is known."""
        self.done, self._value, self._error = True, value, error


@dataclass
class _Worker:
    pid: int
    to: int
    come: int
    task: Task | None = None


class Pool:
    """``submit`` tasks, ask them for their ``result``; ``drop`` what is no longer wanted."""

    def __init__(self, workers: int) -> None:
        self.size = workers
        self.lost = 0  # workers that ended and were replaced
        self._queue: deque[Task] = deque()
        self._workers: list[_Worker] = []
        self._spawned = None if FORKS else ProcessPoolExecutor(workers, initializer=choose, initargs=(chosen(),))

    def submit(self, function: Callable[..., Any], *args: Any, first: bool = False) -> Any:
        """Have a worker call it; with ``first``, before what is waiting."""
        if self._spawned is not None:
            return self._spawned.submit(function, *args)
        task = Task(self, function, args)
        self._queue.appendleft(task) if first else self._queue.append(task)
        self._hand_out()
        return task

    def drop(self, tasks: Iterable[Any]) -> None:
        """Forget tasks; a worker that is busy with one is ended."""
        if self._spawned is not None:
            for future in tasks:
                future.cancel()
            return
        gone = {id(task) for task in tasks}
        self._queue = deque(task for task in self._queue if id(task) not in gone)
        for worker in list(self._workers):
            if worker.task is not None and id(worker.task) in gone:
                self._end(worker)
        self._hand_out()

    def close(self) -> None:
        """End all workers, whatever they do."""
        if self._spawned is not None:
            self._spawned.shutdown(wait=False, cancel_futures=True)
        self._queue.clear()
        for worker in list(self._workers):
            self._end(worker)

    def wait(self) -> None:
        """Until a worker says something."""
        self._hand_out()
        by_pipe = {worker.come: worker for worker in self._workers if worker.task is not None}
        if not by_pipe:
            raise RuntimeError("nobody is at work on what is waited for")
        for number in select.select(list(by_pipe), [], [])[0]:
            worker = by_pipe[number]
            task = worker.task
            assert task is not None
            answer = received(worker.come)
            if answer is None:
                self._lost(worker, task)
                continue
            worker.task = None
            good, value = pickle.loads(answer)
            task.settle(value) if good else task.settle(error=value)
        self._hand_out()

    @property
    def busy(self) -> list[int]:
        """The pipes in which workers will say something: for whoever waits for something else, too."""
        return [worker.come for worker in self._workers if worker.task is not None]

    def _lost(self, worker: _Worker, task: Task) -> None:
        status = self._end(worker)
        self.lost += 1
        if task.attempts < ATTEMPTS:
            self._queue.appendleft(task)
        else:
            task.settle(error=Died(ended(status)))

    def _hand_out(self) -> None:
        while self._queue:
            free = next((worker for worker in self._workers if worker.task is None), None)
            if free is None:
                if len(self._workers) >= self.size:
                    return
                free = self._start()
            task = self._queue.popleft()
            task.attempts += 1
            free.task = task
            with contextlib.suppress(BrokenPipeError):  # it has ended, which `wait` will see
                send(free.to, pickle.dumps((task.function, task.args)))

    def _start(self) -> _Worker:
        flushed()
        theirs, to = os.pipe()
        come, answers = os.pipe()
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            try:
                leave_signals_to_parent()
                die_with_parent(parent, signal.SIGKILL)
                for number in (to, come, *(n for w in self._workers for n in (w.to, w.come))):
                    os.close(number)
                _work(theirs, answers)
            finally:
                os._exit(70)
        os.close(theirs)
        os.close(answers)
        worker = _Worker(pid, to, come)
        self._workers.append(worker)
        return worker

    def _end(self, worker: _Worker) -> int:
        self._workers.remove(worker)
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker.pid, signal.SIGKILL)
        status = os.waitpid(worker.pid, 0)[1]
        os.close(worker.to)
        os.close(worker.come)
        return status


def _work(tasks: int, answers: int) -> NoReturn:
    """In a worker: one task after the other, until the parent closes the pipe."""
    while (task := received(tasks)) is not None:
        function, args = pickle.loads(task)
        try:
            answer: tuple[bool, Any] = (True, function(*args))
        except BaseException as error:
            answer = (False, portable(error))
        send(answers, pickle.dumps(answer))
    os._exit(0)


def portable(error: BaseException) -> BaseException:
    """The exception itself where it can be handed over, or its text."""
    with contextlib.suppress(Exception):
        pickle.loads(pickle.dumps(error))
        return error
    frame = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{os.path.basename(frame.filename)}:{frame.lineno}"
    return Broken(plain(type(error).__name__), one_line(error), where, "".join(traceback.format_exception(error)))
