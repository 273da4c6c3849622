"""Beside a worker of Dask: a process that runs its tasks, so that nothing that a task does ends the worker.

A Dask worker has threads, and a process with threads must not be forked. So it imports none of what runs needle: each of its
threads has a helper, a Python of its own with a pool of one process, which ends when the worker does, however that ends.
Tasks and answers are bytes to Dask.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from oracle.runs.pipes import received, send

ROOT = Path(__file__).resolve().parents[2]  # what Python has to find oracle in
# One thread per process: there is a helper per thread of the worker.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class HelperEnded(Exception):
    """The helper ended under a task, whatever ended it."""


# -- in a thread of the worker ----------------------------------------------------------------------------------------

_of_thread = threading.local()


def work(task: bytes) -> tuple[str, bytes, int]:
    """Have the helper of this thread do a task: the address of the worker, the answer, and how many helpers have ended.

    HelperEnded if it ends under the task; the next one gets another helper.
    """
    from distributed import get_worker

    helper = getattr(_of_thread, "helper", None)
    if helper is None:
        helper = _of_thread.helper = _started()
    assert helper.stdin is not None
    assert helper.stdout is not None
    try:
        send(helper.stdin.fileno(), task)
        answer = received(helper.stdout.fileno())
    except BrokenPipeError:
        answer = None
    if answer is None:
        _of_thread.helper = None
        _of_thread.ended = getattr(_of_thread, "ended", 0) + 1
        helper.kill()
        with helper:  # closes its pipes, and takes its status
            pass
        raise HelperEnded(f"the process beside the worker ended with exit status {helper.returncode}")
    ended, _of_thread.ended = getattr(_of_thread, "ended", 0), 0
    return get_worker().address, answer, ended


def _started() -> subprocess.Popen[bytes]:
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, "-m", "oracle.runs.helper"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
        env={**os.environ, **ONE_THREAD, "PYTHONPATH": path},
        start_new_session=True,  # Ctrl-C is for whoever started the campaign
    )


# -- in the helper ----------------------------------------------------------------------------------------------------


def main() -> None:
    """One task after the other, until the worker closes the pipe, or is gone."""
    tasks, answers = os.dup(0), os.dup(1)
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)  # what is printed is no answer
    pool = about = None
    while (data := received(tasks)) is not None:
        lost = 0
        try:
            if pool is None:
                pool, about = _ready()
            lost = pool.lost
            task = pool.submit(*pickle.loads(data))
            while not task.done:
                if tasks in select.select([tasks, *pool.busy], [], [])[0]:
                    break  # nobody sends a second task before the answer: the worker has gone
                pool.wait()
            else:
                send(answers, pickle.dumps((True, task.result(), pool.lost - lost, about)))
                continue
            break
        except BrokenPipeError:
            break
        except Exception as error:
            from oracle.runs.workers import portable

            with contextlib.suppress(BrokenPipeError):
                send(answers, pickle.dumps((False, portable(error), 0 if pool is None else pool.lost - lost, about)))
    if pool is not None:
        pool.close()


def _ready() -> tuple[Any, dict[str, str]]:
    """A pool of one process, with everything imported before it is forked, and what its verdicts depend on."""
    from oracle.runs.runner import warm_up
    from oracle.runs.versions import versions
    from oracle.runs.workers import Pool
    from oracle.systems import candidate

    candidate.choose(None)
    warm_up()
    return Pool(1), versions()


if __name__ == "__main__":
    main()
