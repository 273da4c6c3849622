"""Processes for the memory gates: memray allows one Tracker per process, so every case gets a process of its own.

A *nursery* has everything imported and forks a child for each job it reads; where forking is not safe it does one job
itself and ends. The parent has one nursery per worker and speaks JSON lines with it.
"""

from __future__ import annotations

import gc
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from oracle.apart import (
    Broken,
    Died,
    apart,
    die_with_parent,
    frames_of,
    leave_signals_to_parent,
    one_line,
    place,
    plain,
    threads,
)
from oracle.memory.probe import Job, Measured
from oracle.systems.candidate import candidate, choose, chosen, home, is_inside
from oracle.systems.foreign import ForeignError

FORKS = sys.platform == "linux"
LIMIT = 180.0  # seconds for one job


def perform(job: Job) -> Measured:
    """The answer to a job, in this process; an exception becomes ``error``."""
    started = time.perf_counter()
    try:
        if job.task in ("measure", "explain"):
            candidate()
        if job.task == "measure":
            from oracle.memory.probe import measure

            found = measure(job)
        elif job.task == "explain":
            from oracle.memory.blame import explain

            found = explain(job)
        else:
            from oracle.memory.yardstick import measure_other

            found = measure_other(job)
    except BaseException as error:
        frames = frames_of(error.__traceback__)
        ours = [f for f in frames if is_inside(f[0])]
        if ours:
            message = f"needle raises {plain(type(error).__name__)}: {one_line(error)} (at {place(frames, home())})"
        else:
            message = traceback.format_exc(limit=-3).strip()
        found = Measured(error=message, of_needle=bool(ours))
    found.seconds = time.perf_counter() - started
    return found


# -- the nursery ------------------------------------------------------------------------------------------------------


def nursery() -> None:
    """Read jobs from stdin, a line each; answer each with a line."""
    leave_signals_to_parent()
    if len(sys.argv) > 1:
        die_with_parent(int(sys.argv[1]), signal.SIGKILL)
    import oracle.systems.ours  # noqa: F401 - imported once, for all children; needle in each of them

    wrong = ""
    try:
        choose(Path(sys.argv[2]) if len(sys.argv) > 2 else None)
    except ForeignError as error:
        wrong = str(error)

    gc.collect()
    gc.freeze()
    out = os.dup(1)
    os.dup2(2, 1)  # nothing that a case prints gets into the answers
    for line in sys.stdin.buffer:
        job = msgspec.json.decode(line, type=Job)
        if wrong:
            os.write(out, msgspec.json.encode(Measured(error=wrong, of_needle=True)) + b"\n")
            continue
        if not FORKS:
            os.write(out, msgspec.json.encode(perform(job)) + b"\n")
            return
        os.write(out, msgspec.json.encode(_forked(job)) + b"\n")


def _forked(job: Job) -> Measured:
    """The answer of a child of its own; if it gives none, what became of it."""
    try:
        return apart(perform, job, patience=LIMIT, heard=bytearray())
    except Died as death:
        of_needle = job.task in ("measure", "explain") and death.number != signal.SIGKILL
        where = place(death.frames, home()) if death.frames else ""
        what = f"needle {death.how}" if of_needle else f"the process of this case {death.how}"
        return Measured(error=f"{what} (at {where})" if where else what, of_needle=of_needle)
    except Broken as error:
        return Measured(error=str(error))


# -- the parent -------------------------------------------------------------------------------------------------------


class Worker:
    """A nursery, started when it is needed and started again when it has gone."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self._closed = False
        self._lock = threading.Lock()

    def do(self, job: Job) -> Measured:
        """Have a job done; a worker that was closed meanwhile starts no nursery, which nobody would end."""
        with self._lock:
            if self._closed:
                return Measured(error="not measured: the run has ended")
            process = self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        timer = threading.Timer(LIMIT + 30, _kill, [process])
        timer.start()
        try:
            process.stdin.write(msgspec.json.encode(job) + b"\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except (OSError, ValueError):  # ValueError: its pipes were closed
            answer = b""
        finally:
            timer.cancel()
        if not FORKS or not answer:
            with self._lock:
                self._end()
        if not answer:
            return Measured(error=f"no answer: the process died, or took more than {LIMIT:g} s")
        return msgspec.json.decode(answer, type=Measured)

    def _running(self) -> subprocess.Popen[bytes]:
        """The nursery, started when there is none."""
        if self.process is None or self.process.poll() is not None:
            settings = {"PYTHONHASHSEED": "0"} | threads(1)
            folder = chosen()
            command = [
                sys.executable,
                "-m",
                "oracle.memory.child",
                str(os.getpid()),
                *([] if folder is None else [str(folder)]),
            ]
            pipe = subprocess.PIPE
            self.process = subprocess.Popen(
                command, stdin=pipe, stdout=pipe, env={**os.environ, **settings}, start_new_session=True
            )
        return self.process

    def close(self) -> None:
        """End the nursery, for good."""
        with self._lock:
            self._closed = True
            self._end()

    def _end(self) -> None:
        process, self.process = self.process, None
        if process is not None:
            _kill(process)
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    with suppress(OSError):  # a job that it never read: closing flushes into a broken pipe
                        stream.close()


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a nursery and the child that it waits for."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        process.kill()


class Pool:
    """Several workers: ``submit(job)`` gives a Future of its Measured."""

    def __init__(self, workers: int) -> None:
        self._all = [Worker() for _ in range(workers)]
        self._free: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        for worker in self._all:
            self._free.put(worker)
        self._threads = ThreadPoolExecutor(workers)

    def submit(self, job: Job) -> Future[Measured]:
        """Have a job done by the next free worker."""
        return self._threads.submit(self._do, job)

    def _do(self, job: Job) -> Measured:
        worker = self._free.get()
        try:
            return worker.do(job)
        finally:
            self._free.put(worker)

    def map(self, jobs: Sequence[Job]) -> list[Measured]:
        """The answers to several jobs, in their order."""
        return [f.result() for f in [self.submit(job) for job in jobs]]

    def close(self) -> None:
        """End all workers, also in the middle of a job."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for worker in self._all:
            worker.close()


@contextmanager
def pool(workers: int) -> Iterator[Pool]:
    """A Pool that ends with the block."""
    made = Pool(workers)
    try:
        yield made
    finally:
        made.close()


if __name__ == "__main__":
    nursery()
