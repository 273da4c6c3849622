"""One needle in a process of its own: ``python -m oracle.bench.contestant FOLDER`` times the needle of FOLDER on request.

All but needle is the bench of this tree, so that two needles run the same code. Requests and answers are lines of JSON: a
method of `Contestant` with its arguments, and what it returned. The process ends with its standard input.
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path

from oracle.apart import leave_signals_to_parent
from oracle.bench import measure
from oracle.bench.peers import BUILDERS
from oracle.memory.blas import read_back
from oracle.systems.workloads import WORKLOADS


class Contestant:
    """What can be asked; `start` comes before `burst`."""

    def __init__(self, folder: str) -> None:
        sys.path.insert(0, folder)  # only now: it may hold another oracle
        import needle

        self.folder = str(Path(needle.__file__).parents[1])

    def who(self) -> tuple[str, str]:
        """Where needle comes from, and the kernel that multiplies its matrices."""
        return self.folder, read_back()

    def check(self, key: str) -> list[float]:
        """The losses of the first steps of a workload."""
        trainer = BUILDERS["needle"](WORKLOADS[key].for_check())
        return [trainer.run(1) for _ in range(measure.CHECK_STEPS)]

    def start(self, key: str, seconds: float) -> int:
        """Build a workload, in place of the one before -> how many of its steps fill a burst of so many seconds."""
        gc.unfreeze()
        self.trainer = BUILDERS["needle"](WORKLOADS[key])
        steps = measure.steps_of(self.trainer.run, seconds)
        gc.collect()
        gc.freeze()
        return steps

    def burst(self, steps: int) -> tuple[float, float]:
        """Process CPU time and time by the clock, in seconds per step."""
        return measure.burst(self.trainer.run, steps)


def main(folder: str) -> None:
    """Answer until there are no more requests; Ctrl-C is for the process that asks."""
    leave_signals_to_parent()
    contestant = Contestant(folder)
    for line in sys.stdin:
        method, *arguments = json.loads(line)
        print(json.dumps(getattr(contestant, method)(*arguments)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
