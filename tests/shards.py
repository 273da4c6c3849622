"""What is like a shard, and costs nothing; and one that ends the process that it runs in, or one above it."""

import os
import signal
from collections import Counter
from pathlib import Path

from oracle.rules.verdict import Tally
from oracle.runs.result import Result

OF_THE_WORKER, OF_THE_HELPER, OF_THE_POOL = 3, 2, 1  # how far up: the process of the pool is the one that runs a shard
POISON = (2, 3)  # seed and index
ONCE = {(1, 2): OF_THE_WORKER, (1, 5): OF_THE_HELPER, (3, 1): OF_THE_POOL}


def shard(seed, index, lacking, reached, enough):
    """It depends on its seed, its place, and what steers it."""
    steered = sum(reached.values())
    tally = Tally(tensors=1000 * seed + index + steered, largest={"G loss": 1 / (2 + index)}, where={"G loss": "here"})
    digest = f"{seed} {index} {sorted(reached.items())};"
    label = f"op {seed + index}"
    return Result(cases=Counter(op=100), coverage=Counter({label: 1}), tally=tally, steps=1, digests=[digest])


def deadly(seed, index, *more):
    """A poison shard, and three that end something once: a file in the working directory says that they have."""
    once = Path(f"ended-{seed}-{index}")
    if (seed, index) == POISON:
        end(OF_THE_WORKER)
    elif (seed, index) in ONCE and not once.exists():
        once.touch()
        end(ONCE[seed, index])
    return shard(seed, index, *more)


def end(levels):
    import psutil

    process = psutil.Process()
    for _ in range(levels - 1):
        process = process.parent()
    os.kill(process.pid, signal.SIGKILL)
    signal.pause()
