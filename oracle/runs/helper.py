"""In a worker of Dask: every thread of it has a helper, a process that runs its tasks, so that none of them ends the worker.

A Dask worker has threads, and a process with threads must not be forked. So nothing of what runs needle is imported here: the
helper is a Python of its own, `oracle.runs.beside`. Tasks and answers are bytes to Dask.

A helper has one needle, as it was when the helper first imported it: a campaign on another one, or on one that was edited since, gets a
new helper, for workers of Dask outlive campaigns.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

from oracle.apart import threads
from oracle.runs.pipes import received, send

ROOT = Path(__file__).resolve().parents[2]  # what Python has to find oracle in


class HelperEnded(Exception):
    """The helper ended under a task, whatever ended it."""


class Different(Exception):
    """Here is something else installed than where the task comes from: the verdicts would be others."""


_of_thread = threading.local()


def work(task: bytes, needle: tuple[str, str]) -> tuple[str, bytes, int]:
    """Have the helper of this thread do a task: the address of the worker, the answer, and how many helpers have ended.

    ``needle`` is the folder of another needle than ours, or "", and a hash of what is in it. HelperEnded if the helper ends under
    the task; the next one gets another.
    """
    from distributed import get_worker

    helper = getattr(_of_thread, "helper", None)
    if helper is not None and _of_thread.needle != needle:
        _end(helper)
        helper = None
    if helper is None:
        helper = _of_thread.helper = _started(needle[0])
        _of_thread.needle = needle
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
        _end(helper)
        raise HelperEnded(f"the process beside the worker ended with exit status {helper.returncode}")
    ended, _of_thread.ended = getattr(_of_thread, "ended", 0), 0
    return get_worker().address, answer, ended


def _end(helper: subprocess.Popen[bytes]) -> None:
    helper.kill()
    with helper:  # closes its pipes, and takes its status
        pass


def _started(folder: str) -> subprocess.Popen[bytes]:
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, "-m", "oracle.runs.beside", folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
        env=os.environ | threads(1) | {"PYTHONPATH": path},  # a helper per thread of the worker
        start_new_session=True,  # Ctrl-C is for whoever started the campaign
    )
