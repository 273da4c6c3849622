"""Peak heap of one training step: `python -m oracle.bench.heap W3b needle` prints one JSON object.

A process of its own per library, since memray allows one tracker per process.
"""

from __future__ import annotations

import gc
import json
import sys
import tempfile
from pathlib import Path
from typing import TypedDict

from oracle.bench.peers import BUILDERS
from oracle.systems.workloads import WORKLOADS

WARM_UP, COUNTED = 5, 5


class Heap(TypedDict):
    """`peak`: the most that one step takes beyond what was there; `cycles`: what gc finds after 5 steps."""

    peak: int
    tool: str
    cycles: int


def measure(key: str, name: str) -> Heap:
    trainer = BUILDERS[name](WORKLOADS[key])
    trainer.run(WARM_UP)
    gc.collect()
    gc.disable()
    trainer.run(COUNTED)
    cycles = gc.collect()
    try:
        from memray import FileReader, Tracker
    except ImportError:
        import tracemalloc

        tracemalloc.start()
        trainer.run(1)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return Heap(peak=peak, tool="tracemalloc", cycles=cycles)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "step.bin"
        with Tracker(path):
            trainer.run(1)
        with FileReader(path) as reader:
            peak = reader.metadata.peak_memory
    return Heap(peak=peak, tool="memray", cycles=cycles)


if __name__ == "__main__":
    print(json.dumps(measure(*sys.argv[1:3])))
