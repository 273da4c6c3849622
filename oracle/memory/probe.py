"""One run of a case under memray: what lives at every step boundary, to the byte. Runs in a process of its own.

What exact zero needs, each measured to break it: caches and free lists of the interpreter cleared at every boundary;
NumPy's own cache of small blocks empty at the start, and full at every boundary that is judged; eight steps of a
throw-away copy before tracking; tracking begun before the model is built; garbage collection off between boundaries;
gradients and loss dropped before a boundary; a harness that appends nothing.

Steps 1 to 19 run with NumPy's cache as it is: they give peak, live end and allocations. From 20 on growth is judged.
"""

from __future__ import annotations

import gc
import importlib.util
import linecache
import sys
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from oracle.cases import case as c
from oracle.cases import inputs
from oracle.memory.program import Program
from oracle.systems.window import live_tensors

WARM_UP = 8
FIRST = 20  # growth is judged from this boundary on …
STRIDE = 10  # … at every tenth: there NumPy's cache is filled, which costs 14,000 records
STEPS = 120
MARK = 40_961  # bytes of the allocation that marks a boundary; an odd number, told apart from others by its function
FREEING = {1, 5, 15}  # PYMALLOC_FREE, FREE, MUNMAP
MMAP = 14
ARENAS = (1 << 20, 1 << 18)  # what the interpreter maps for its small objects: those are counted singly, or not at all
HARNESS = ("mark", "small_blocks", "<genexpr>")  # functions of this file whose blocks are no finding
SHOWN = 8  # sites


class Site(msgspec.Struct):
    """A line that allocated: what survives of it, or what it holds at the peak."""

    where: str  # "needle/ops.py:12 compute"
    line: str  # the source
    size: int
    blocks: int
    births: int = 0  # in how many different steps the survivors were born


class Measured(msgspec.Struct):
    """What a run showed. Boundary 0 follows the building of the model, boundary t the t-th step."""

    live: list[int] = []  # bytes at every boundary
    blocks: list[int] = []
    collected: list[int] = []  # what gc.collect() found at every boundary
    tensors: list[int] = []  # live Tensors at every boundary, against boundary FIRST
    with_graph: int = 0  # Tensors with an op that live after the last boundary
    peak: int = 0
    end: int = 0
    allocations: float = 0.0  # per step
    survivors: list[Site] = []  # born after boundary FIRST and alive at the end; most births first
    at_peak: list[Site] = []
    holders: list[str] = []  # who holds what survives, in words
    keepers: list[str] = []  # for each holder, which attribute of what: "SGD.u"
    places: list[str] = []  # for each holder, the line of needle that looks after it
    wide: list[str] = []  # what is float64 after the last step
    error: str = ""
    of_needle: bool = False  # the error is needle's own doing: it raised, crashed or did not come back
    seconds: float = 0.0

    @property
    def window(self) -> tuple[list[int], list[int]]:
        """Live bytes and blocks at the boundaries that are judged."""
        return self.live[FIRST::STRIDE], self.blocks[FIRST::STRIDE]

    @property
    def growth(self) -> tuple[int, int]:
        """max − min of live bytes and blocks over the window."""
        size, blocks = self.window
        return max(size) - min(size), max(blocks) - min(blocks)


class Job(msgspec.Struct):
    """What a child process is asked to do."""

    case: c.TrainCase
    task: str = "measure"  # "measure", "explain", "torch", "by hand"
    plant: str = ""  # "file.py:name": a function of the Program and the step, called after every step
    keep: str = ""  # where memray's file is kept


# -- the loop ---------------------------------------------------------------------------------------------------------

Plant = Callable[[Any], Any]


def load_plant(spec: str) -> Plant | None:
    """The planted leak ``file.py:name``."""
    if not spec:
        return None
    path, _, name = spec.rpartition(":")
    module_spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    assert module_spec is not None
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[module_spec.name] = module
    module_spec.loader.exec_module(module)
    plant: Plant = getattr(module, name)
    return plant


def clear_caches() -> None:
    """Caches of the interpreter that fill up as new lines run."""
    if sys.version_info >= (3, 13):
        sys._clear_internal_caches()
    else:
        sys._clear_type_cache()


def small_blocks() -> Iterator[list[Any]]:
    """Arrays of each size below 1024 bytes and of each rank: more than the 7 blocks that NumPy's cache keeps of a kind.

    Kept, they leave the cache empty; freed, full. Left alone, the number of blocks in it creeps up whenever a step uses
    one more at a time than any before it: of 40 clean models, one "grew" so. Large ranks first, and copies, because
    `np.empty` itself takes a block for the shape and puts it into the cache.
    """
    for shape in (*((1,) * rank for rank in range(7, 1, -1)), *((size,) for size in range(1, 1024))):
        block = np.empty(shape, np.uint8)
        yield [block, *(block.copy() for _ in range(7))]


def fill_numpy_cache() -> None:
    """From here on, whatever is freed goes back to the system."""
    for _ in small_blocks():
        pass


@contextmanager
def profiled() -> Iterator[None]:
    """memray profiles, and for a profiled function the interpreter makes tables as long as its code: made here already.

    Otherwise they count as live memory, 10 to 20 kB of it, and every edit of a function would change the peak.
    """
    sys.setprofile(lambda *event: None)
    try:
        yield
    finally:
        sys.setprofile(None)


def mark() -> None:
    """The record of this allocation separates two steps."""
    bytearray(MARK)


class Watched:
    """A Program under watch: everything that it notes down is allocated beforehand."""

    def __init__(self, case: c.TrainCase, plant: Plant | None) -> None:
        import needle

        self.ndl, self.case, self.plant = needle, case, plant
        self.batches = inputs.batches(case)
        self.losses = np.zeros(case.steps, dtype=np.float32)
        self.collected = array("q", bytes(8 * (case.steps + 1)))
        self.tensors = array("q", bytes(8 * (case.steps + 1)))

    def build(self) -> Any:
        """A fresh program, with the plant in it."""
        program = Program(self.case, self.ndl, self.batches, self.losses)
        if self.plant is not None:
            self.plant(program)
        return program

    def run(self, program: Any, first: int, steps: int) -> None:
        """Boundary ``first``, then steps ``first`` … ``steps - 1`` with a boundary after each."""
        with np.errstate(all="ignore"):
            self.boundary(program, first)
            for t in range(first, steps):
                program.step(t)
                self.boundary(program, t + 1)

    def boundary(self, program: Any, t: int) -> None:
        """Drop what may be dropped, collect, count, and leave a mark in memray's stream."""
        program.release()
        self.collected[t] = gc.collect()
        clear_caches()
        if t >= FIRST and t % STRIDE == 0:
            fill_numpy_cache()
        self.tensors[t] = live_tensors(self.ndl)
        mark()

    def warm_up(self) -> None:
        """Eight steps of a throw-away copy; from then on, nothing is collected but at boundaries."""
        gc.freeze()  # what was imported need not be looked at again
        with profiled():
            self.run(self.build(), 0, min(WARM_UP, self.case.steps))
            fill_numpy_cache()
        gc.collect()
        self.ballast = list(small_blocks())  # kept for good
        gc.freeze()
        gc.disable()


def measure(job: Job) -> Measured:
    """Gates A to D on a case."""
    from memray import FileDestination, Tracker

    watched = Watched(job.case, load_plant(job.plant))
    watched.warm_up()
    python = (job.case.memory or c.Memory()).allocators == "python"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(job.keep) if job.keep else Path(folder) / "run.bin"
        with Tracker(destination=FileDestination(path, overwrite=True), trace_python_allocators=python):
            program = watched.build()
            watched.run(program, 0, job.case.steps)
        graph = sum(1 for thing in gc.get_objects() if is_node(thing, watched.ndl))
        wide = program.wide()
        found = replay(path)
    found.collected = list(watched.collected)
    base = watched.tensors[min(FIRST, job.case.steps)]
    found.tensors = [n - base for n in watched.tensors]
    found.with_graph, found.wide = graph, wide
    return found


def is_node(thing: Any, ndl: Any) -> bool:
    """Whether it is a Tensor that an op made: type(), because isinstance asks the objects."""
    return issubclass(type(thing), ndl.Tensor) and getattr(thing, "op", None) is not None


# -- memray's stream --------------------------------------------------------------------------------------------------


Living = dict[int, tuple[int, int, Any]]  # address -> (size, step of birth, record)


class _Stream:
    """Records in their order, as a heap: what lives, with the marks told apart."""

    def __init__(self) -> None:
        self.living: Living = {}
        self.size = self.count = self.born = 0
        self.births: list[int] = []  # allocations before each mark

    def take(self, record: Any) -> bool:
        """Apply one record; True for a mark."""
        self.count += 1
        if record.allocator in FREEING:
            gone = self.living.pop(record.address, None)
            self.size -= gone[0] if gone is not None else 0
            return False
        if record.size == MARK + 1 and _is_mark(record):
            self.births.append(self.born)
            return True
        if not (record.allocator == MMAP and record.size in ARENAS):
            self.born += 1
            gone = self.living.get(record.address)
            self.size += record.size - (gone[0] if gone is not None else 0)
            self.living[record.address] = (record.size, len(self.births), record)
        return False


def replay(path: Path) -> Measured:
    """Live bytes and blocks at every mark; peak, live end and allocations of the steps before FIRST."""
    from memray import FileReader

    found, stream, peak_at = Measured(), _Stream(), 0
    with FileReader(path) as reader:
        for record in reader.get_allocation_records():
            if stream.take(record):
                found.live.append(stream.size)
                found.blocks.append(len(stream.living))
            elif stream.size > found.peak and len(stream.births) < FIRST:
                found.peak, peak_at = stream.size, stream.count
        births = stream.births
        last = min(FIRST, len(births)) - 1
        found.end = found.live[last]
        found.allocations = (births[last] - births[last // 2]) / max(1, last - last // 2)
        first = min(FIRST, len(births) - 1)
        kept = [entry for entry in stream.living.values() if first < entry[1] < len(births)]
        found.survivors = _sites(kept, lambda s: (s.births, s.size))
    with FileReader(path) as reader:
        stream = _Stream()
        for record in reader.get_allocation_records():
            stream.take(record)
            if stream.count == peak_at:
                found.at_peak = _sites(stream.living.values(), lambda s: (s.size, s.blocks))
                break
    return found


def _is_mark(record: Any) -> bool:
    stack = record.stack_trace(1)
    return bool(stack) and stack[0][0] == "mark"


def _place(record: Any) -> tuple[str, str, int]:
    """The innermost frame that is not inside a library: function, file, line."""
    stack: list[tuple[str, str, int]] = record.stack_trace()
    for frame in stack:
        if "site-packages" not in frame[1] and "/lib/python" not in frame[1] and not frame[1].startswith("<"):
            return frame
    return stack[0] if stack else ("?", "?", 0)


def _sites(entries: Iterable[tuple[int, int, Any]], rank: Callable[[Site], tuple[int, int]]) -> list[Site]:
    """The lines that allocated something, the first by rank: (size, step of birth, record) each."""
    sites: dict[tuple[str, str, int], Site] = {}
    births: dict[tuple[str, str, int], set[int]] = {}
    for size, step, record in entries:
        function, file, line = place = _place(record)
        if place not in sites:
            short = "/".join(Path(file).parts[-2:])
            sites[place] = Site(f"{short}:{line} {function}", linecache.getline(file, line).strip(), 0, 0)
            births[place] = set()
        sites[place].size += size
        sites[place].blocks += 1
        births[place].add(step)
    sites = {place: site for place, site in sites.items() if place[0] not in HARNESS}
    for place, site in sites.items():
        site.births = len(births[place])
    return sorted(sites.values(), key=rank, reverse=True)[:SHOWN]
