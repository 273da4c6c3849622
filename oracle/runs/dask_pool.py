"""A pool on the workers of Dask, on this machine or on many: `oracle.runs.workers.Pool` with other processes.

Only what steers and counts runs here, beside the threads of Dask's client: this process forks nothing while there is one.
"""

from __future__ import annotations

import contextlib
import logging
import pickle
import queue
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import dask
import distributed

from oracle.apart import Broken, Died, one_line
from oracle.runs import helper
from oracle.runs.versions import versions
from oracle.runs.workers import NoWorkers, Task
from oracle.systems.candidate import chosen

# A worker gets no task before it has room for it, and Dask gives up a task that ends three workers: `KilledWorker`.
SETTINGS = {"distributed.scheduler.worker-saturation": 1.0, "distributed.scheduler.allowed-failures": 2}
RETRIES = 2  # of a task whose helper ends
CONNECT_SECONDS = 10.0  # for a scheduler to answer, and to have a worker
START_SECONDS = 60.0  # for those of our own, on a machine that is busy with other things
NOBODY_SECONDS = 120.0  # without a worker, before it is no use to wait
LOOK_SECONDS = 2.0  # between two looks at who is there


class DaskPool:
    """``submit`` tasks, ask them for their ``result``; ``drop`` what is no longer wanted."""

    def __init__(self, address: str | None, workers: int) -> None:
        """On the workers of the scheduler at an address; without one, on as many of our own. NoWorkers if there are none."""
        for name in [name for name in logging.root.manager.loggerDict if name.partition(".")[0] == "distributed"]:
            logging.getLogger(name).setLevel(logging.CRITICAL)  # what there is to say of who ends, we say
        dask.config.set(SETTINGS)
        self.lost = 0  # workers, or processes of theirs, that ended and were replaced
        self.kernels: Counter[str] = Counter()  # of OpenBLAS: tasks that were done with them
        self.refused: dict[str, str] = {}  # workers that would give other verdicts, and why
        self._scheduler = address
        self._tasks: dict[str, tuple[Any, Task]] = {}
        self._again: set[str] = set()  # tasks that have been given up once
        self._told: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._name, self._count = uuid.uuid4().hex[:8], 0
        self._there: dict[str, int] = {}  # workers, and how many tasks each does at a time
        self._looked = self._alone_since = 0.0
        self._cluster: Any = None
        self._client: Any = None
        patience = START_SECONDS if address is None else CONNECT_SECONDS
        try:
            if address is None:
                self._cluster = distributed.LocalCluster(
                    n_workers=workers, threads_per_worker=1, processes=True, memory_limit=0, dashboard_address="127.0.0.1:0",
                    silence_logs=logging.CRITICAL,
                )  # fmt: skip
            where = address if self._cluster is None else self._cluster
            self._client = distributed.Client(where, timeout=patience, set_as_default=False)
        except (OSError, ValueError, TypeError) as error:
            self.close()
            raise NoWorkers(f"no scheduler answers at {address}: {one_line(error)}") from None
        until = time.monotonic() + patience
        while not self._look():
            if time.monotonic() > until:
                self.close()
                raise NoWorkers(f"the scheduler at {address} has no workers: `dask worker {address}` starts some")
            time.sleep(0.1)

    @property
    def size(self) -> int:
        """How many tasks are done at a time, now."""
        if time.monotonic() - self._looked > LOOK_SECONDS:
            self._look()
        return self._places()

    def _look(self) -> int:
        """See who is there. NoWorkers if there has been nobody for long."""
        there: dict[str, int] = self._client.nthreads()
        self._looked = time.monotonic()
        self.lost += len(self._there.keys() - there.keys() - self.refused.keys())
        self._there = there
        if there:
            self._alone_since = self._looked
        elif self._looked - self._alone_since > NOBODY_SECONDS and self._alone_since:
            raise NoWorkers(f"for {NOBODY_SECONDS:g} s there has been no worker")
        return self._places()

    def _places(self) -> int:
        return sum(count for address, count in self._there.items() if address not in self.refused)

    def submit(self, function: Callable[..., Any], *args: Any, first: bool = False) -> Task:
        """Have a worker call it; with ``first``, before what is waiting."""
        task = Task(self, function, args)
        self._hand_out(task, first)
        return task

    def _hand_out(self, task: Task, first: bool = False) -> str:
        self._count += 1
        needle = str(chosen() or ""), versions().get("needle", "")
        future = self._client.submit(
            helper.work, pickle.dumps((versions(), pickle.dumps((task.function, *task.args)))), needle,
            key=f"oracle-{self._name}-{self._count}", pure=False, retries=RETRIES, priority=int(first),
            workers=sorted(self._there.keys() - self.refused.keys()) if self.refused else None,
        )  # fmt: skip
        self._tasks[future.key] = future, task
        future.add_done_callback(self._told.put)
        return str(future.key)

    def drop(self, tasks: Iterable[Any]) -> None:
        """Forget tasks; a worker that is busy with one comes to its end, and nobody hears of it."""
        gone = {id(task) for task in tasks}
        futures = [self._tasks.pop(key)[0] for key, (_, task) in list(self._tasks.items()) if id(task) in gone]
        self._client.cancel(futures, force=True)

    def wait(self) -> None:
        """Until a worker says something. NoWorkers if there is nobody who could."""
        settled = False
        while not settled:
            try:
                settled = self._settle(self._told.get(timeout=LOOK_SECONDS))
            except queue.Empty:
                self._look()
        with contextlib.suppress(queue.Empty):
            while True:
                self._settle(self._told.get_nowait())

    def _settle(self, future: Any) -> bool:
        """Hand on what a worker says; False if that is nothing to go by."""
        task = self._tasks.pop(future.key, (None, None))[1]
        if task is None:
            return False
        try:
            address, answer, ended = future.result()  # is made again if its worker has just ended
            good, value, lost, kernel = pickle.loads(answer)
        except distributed.KilledWorker:
            if future.key not in self._again:  # it may have been beside the one that does it
                self._again.add(self._hand_out(task))
                return False
            task.settle(error=Died("ended every worker of Dask that it was given to"))
            return True
        except helper.HelperEnded as error:
            task.settle(error=Died(f"ended {RETRIES + 1} times: {error}"))
            return True
        except distributed.CancelledError:
            raise NoWorkers("the scheduler has gone") from None
        except Exception as error:
            task.settle(error=Broken(type(error).__name__, one_line(error), "a worker of Dask", repr(error)))
            return True
        self.lost += lost + ended
        if isinstance(value, helper.Different):
            self._refuse(address, str(value))
            self._hand_out(task)
            return False
        self.kernels[kernel] += 1
        task.settle(value) if good else task.settle(error=value)
        return True

    def _refuse(self, address: str, why: str) -> None:
        """Give a worker nothing more. NoWorkers if there is no other."""
        self.refused[address] = why
        if not self._look():
            raise NoWorkers("no worker has the same installed as this machine")

    def close(self) -> None:
        """End all workers of our own, and leave the others."""
        futures = [future for future, _ in self._tasks.values()]
        self._tasks.clear()
        with contextlib.suppress(Exception):  # it may have gone
            if futures:
                self._client.cancel(futures, force=True)
        for one in (self._client, self._cluster):
            if one is not None:
                with contextlib.suppress(Exception):
                    one.close()
