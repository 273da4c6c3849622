"""``python -m oracle.runs.beside [DIR]``: a helper of `oracle.runs.helper`, with a pool of one process for all that runs needle.

DIR is the folder of another needle than ours.

It ends when the worker does, however that ends: then its standard input is closed.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import sys
from functools import cache
from pathlib import Path
from typing import Any

from oracle.runs.helper import Different
from oracle.runs.pipes import received, send
from oracle.runs.runner import warm_up
from oracle.runs.versions import differences, versions
from oracle.runs.workers import Pool, portable
from oracle.systems import candidate
from oracle.systems.foreign import ForeignError


def main(folder: str) -> None:
    """One task after the other, until the worker closes the pipe, or is gone."""
    tasks, answers = os.dup(0), os.dup(1)
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)  # what is printed is no answer
    warm_up()
    with contextlib.closing(Pool(1)) as pool, contextlib.suppress(BrokenPipeError, _Gone):
        while (data := received(tasks)) is not None:
            before = pool.lost
            try:
                answer = True, _done(pool, tasks, folder, *pickle.loads(data))
            except Exception as error:
                if isinstance(error, _Gone):
                    raise
                answer = False, portable(error)
            send(answers, pickle.dumps((*answer, pool.lost - before, versions()["kernel"])))


class _Gone(Exception):
    """Nobody waits for the answer."""


def _done(pool: Pool, tasks: int, folder: str, wanted: dict[str, str], packed: bytes) -> Any:
    """The answer to a task. Different where it is not for what is installed here."""
    _imported(folder)
    if wrong := differences(wanted, versions()):
        raise Different("; ".join(wrong))
    function, *args = pickle.loads(packed)
    task = pool.submit(function, *args)
    while not task.done:
        if tasks in select.select([tasks, *pool.busy], [], [])[0]:
            raise _Gone  # no second task comes before the answer to the first: the worker has ended
        pool.wait()
    return task.result()


@cache
def _imported(folder: str) -> None:
    """Needle can be imported, and stays the same while this lives. Different if it is not on this machine."""
    try:
        candidate.choose(Path(folder) if folder else None)
    except ForeignError as error:
        raise Different(str(error)) from None


if __name__ == "__main__":
    main("".join(sys.argv[1:]))
