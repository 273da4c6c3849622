"""A mutated package in a forked process, judged by the engine; the verdict comes back through a pipe.

The parent has imported everything once. A child serves needle's modules from memory, one of them mutated, judges cases
until one diverges, and leaves by ``os._exit``. Timers whose signals nobody handles stop loops, a limit on the address
space stops blow-ups. Nothing is ever written to the source tree.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import inspect
import json
import os
import pickle
import signal
import sys
import time
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from oracle.cases import case as c
from oracle.rules.judge import judge
from oracle.runs.forked import forked
from oracle.systems.ours import BESIDE
from oracle.trust.mutants import damage
from oracle.trust.mutants.claims import ALL_FILES
from oracle.trust.mutants.mutant import RUNGS, Mutant

FIRST = 20  # cases after which most mutants are dead
EVIDENCE = 0.25  # share of rule G's tolerance beyond which correct code makes a case no evidence
GRACE = 5.0  # seconds of processor time that any case may take …
SLOWER = 40.0  # … beside this many times what it took needle itself
WAITING = (
    10  # times as long by the clock: for what sleeps and burns nothing, on a machine that does other things as well
)
MEMORY = 3 << 30  # bytes of address space that a child may add
ORACLE_ERRORS = 3  # errors of the engine itself after which a mutant is given up

Sources = dict[str, bytes]  # "optim" -> text; "" is the package itself
Lines = frozenset[tuple[str, int]]


def sources(root: Path) -> Sources:
    """All modules of needle, read once: what others edit meanwhile changes nothing."""
    return {"" if p.stem == "__init__" else p.stem: p.read_bytes() for p in sorted((root / "needle").glob("*.py"))}


class _FromMemory(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, texts: Mapping[str, bytes]) -> None:
        self.texts = texts

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        package, _, rest = fullname.partition(".")
        if package != "needle" or rest not in self.texts:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, origin=_filename(rest), is_package=not rest)

    def exec_module(self, module: types.ModuleType) -> None:
        name = module.__name__.partition(".")[2]
        module.__dict__["_m"] = damage
        module.__file__ = str(BESIDE / f"{name or '__init__'}.py")  # it is still our needle, with our tape
        exec(compile(self.texts[name], _filename(name), "exec"), module.__dict__)


def _filename(name: str) -> str:
    return f"<memory>/needle/{name or '__init__'}.py"


def load(texts: Mapping[str, bytes]) -> Any:
    """A fresh needle made of these texts; whatever needle was there before is forgotten."""
    for name in [m for m in sys.modules if m == "needle" or m.startswith("needle.")]:
        del sys.modules[name]
    sys.meta_path[:] = [f for f in sys.meta_path if not isinstance(f, _FromMemory)]
    sys.meta_path.insert(0, _FromMemory(texts))
    return importlib.import_module("needle")


# -- the unmutated needle ---------------------------------------------------------------------------------------------


@dataclass
class Judged:
    """A case, and what the unmutated needle makes of it."""

    case: c.Case
    lines: Lines  # of needle's functions that it runs
    shares: dict[str, float]  # "G gradient" -> largest share of the tolerance
    seconds: float
    failure: str = ""  # a divergence of needle itself: it must not have one

    def is_evidence(self, rule: str, quantity: str) -> bool:
        """Rule G measures its noise: correct code that comes near the limit here makes the case no evidence."""
        op = self.case.op if isinstance(self.case, c.OpCase) else ""
        return rule != "G" or self.shares.get(f"G op {op}" if op else f"G {quantity}", 0.0) <= EVIDENCE


class Tracer:
    """Which lines of needle's functions run."""

    def __init__(self) -> None:
        self.names = {_filename(name): name for name in ALL_FILES}
        self.lines: set[tuple[str, int]] = set()

    def anew(self) -> None:
        """Nothing has run, and what needle remembers of earlier calls is computed, and seen, again."""
        self.lines.clear()
        for name, module in list(sys.modules.items()):
            if name.partition(".")[0] == "needle":
                for cached in vars(module).values():
                    if hasattr(cached, "cache_clear"):
                        cached.cache_clear()

    def __enter__(self) -> Tracer:
        self.anew()
        sys.settrace(self._call)
        return self

    def __exit__(self, *exception: object) -> None:
        sys.settrace(None)

    def _call(self, frame: types.FrameType, event: str, arg: Any) -> Any:
        code = frame.f_code
        if code.co_filename not in self.names or not code.co_flags & inspect.CO_OPTIMIZED:
            return None
        return self._line

    def _line(self, frame: types.FrameType, event: str, arg: Any) -> Any:
        self.lines.add((self.names[frame.f_code.co_filename], frame.f_lineno))
        return self._line


def baseline(texts: Sources, cases: Sequence[c.Case]) -> tuple[list[Judged], Lines]:
    """The unmutated needle on cases; and the lines of its functions that run on import."""
    with Tracer() as on_import:
        ndl = load(texts)
    judged = []
    for case in cases:
        started = time.process_time()
        try:
            with Tracer() as tracer:
                verdict = judge(case, ndl, peer_too=False)
        except Exception as error:
            judged.append(Judged(case, frozenset(tracer.lines), {}, 0.0, f"{type(error).__name__}: {error}"))
            continue
        failure = verdict.divergence.message if verdict.divergence is not None else ""
        seconds = time.process_time() - started
        judged.append(Judged(case, frozenset(tracer.lines), dict(verdict.tally.largest), seconds, failure))
    return judged, frozenset(on_import.lines)


# -- a mutant ---------------------------------------------------------------------------------------------------------


@dataclass
class Outcome:
    """What became of a mutant."""

    status: str  # "killed", "survived", "unreached", "invalid"
    how: str = ""  # "numeric", "exception", "import", "timeout", "crash"; "test": where unit tests judge
    rule: str = ""
    quantity: str = ""
    case: str = ""  # digest of the case that killed it
    cases: int = 0  # judged, of those that reach the mutant
    number: int = 0  # of the killing case among all cases of the run, from 1
    fired: int = 0  # how often the condition of a rare trigger held
    rung: int = 0  # of the ladder: the largest k that was killed
    test: str = ""  # needle's unit test that kills it
    doubtful: int = 0  # divergences that are no evidence
    oracle_errors: list[str] = field(default_factory=list)

    @property
    def crashed(self) -> bool:
        """Killed without any rule about numbers."""
        return self.status == "killed" and self.how != "numeric"


def attempt(texts: Sources, mutant: Mutant, cases: Sequence[tuple[int, Judged]], beat: Callable[[], None]) -> Outcome:
    """Judge cases until one kills the mutant. Runs in a child."""
    if mutant.kind == "ladder":
        return climb(texts, mutant, cases, beat)
    return _attempt({**texts, mutant.file: mutant.apply(texts[mutant.file])}, cases, beat)


def climb(texts: Sources, mutant: Mutant, cases: Sequence[tuple[int, Judged]], beat: Callable[[], None]) -> Outcome:
    """The outcome of the last rung of the ladder that is killed; ends after two in a row that are not."""
    last = Outcome("survived", cases=len(cases))
    for k in RUNGS:
        out = _attempt({**texts, mutant.file: mutant.apply(texts[mutant.file], k)}, cases, beat)
        if out.status == "killed":
            last, last.rung = out, k
        elif k > last.rung + RUNGS[1] - RUNGS[0]:
            break
    return last


def _allow(seconds: float) -> None:
    """Time from now on: of the processor, so that what else runs decides about no mutant."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, WAITING * seconds)


def _attempt(changed: Sources, cases: Sequence[tuple[int, Judged]], beat: Callable[[], None]) -> Outcome:
    _allow(2 * GRACE)
    try:
        ndl = load(changed)
    except SyntaxError:
        return Outcome("invalid")
    except Exception:
        return Outcome("killed", "import", cases=0, number=1)
    out = Outcome("survived")
    for number, judged in cases:
        _allow(GRACE + SLOWER * judged.seconds)
        beat()
        out.cases += 1
        try:
            found = judge(judged.case, ndl, peer_too=False).divergence
        except Exception as error:
            out.oracle_errors.append(f"{judged.case.digest}: {type(error).__name__}: {error}"[:300])
            if len(out.oracle_errors) >= ORACLE_ERRORS:
                break
            continue
        if found is None:
            continue
        if not judged.is_evidence(found.rule, found.quantity):
            out.doubtful += 1
            continue
        out.status, out.how = "killed", "exception" if found.rule == "exception" else "numeric"
        out.rule, out.quantity, out.case, out.number = found.rule, found.quantity, judged.case.digest, number + 1
        break
    out.fired = sum(damage.fired.values())
    return out


def decoded(data: bytes | None, signal_number: int) -> Outcome:
    """The outcome that a child has sent, or how it died."""
    beats, _, text = (data or b"").partition(b"{")
    if text:
        return Outcome(**json.loads(b"{" + text))
    return Outcome(
        "killed",
        "timeout" if signal_number in (signal.SIGPROF, signal.SIGALRM) else "crash",
        cases=len(beats),
        number=0,
    )


# -- processes --------------------------------------------------------------------------------------------------------


def limit_memory() -> None:
    """What a child may add."""
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
        limit = pages * os.sysconf("SC_PAGE_SIZE") + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    except (ImportError, OSError, ValueError):
        pass  # not Linux: the timer alone protects


def try_mutants(
    texts: Sources, tasks: Iterable[tuple[Mutant, Sequence[tuple[int, Judged]]]], workers: int
) -> Iterator[tuple[Mutant, Outcome]]:
    """Each mutant on its cases, in the order in which they finish."""

    def work(task: tuple[Mutant, Sequence[tuple[int, Judged]]], write: Callable[[bytes], None]) -> None:
        limit_memory()
        outcome = attempt(texts, task[0], task[1], lambda: write(b"."))
        write(json.dumps(asdict(outcome)).encode())

    for (mutant, _), data, number in forked(tasks, work, workers):
        yield mutant, decoded(data, number)


def try_baseline(
    texts: Sources, shards: Iterable[int], draw: Callable[[int], Sequence[c.Case]], workers: int
) -> Iterator[tuple[int, list[Judged], Lines]]:
    """The unmutated needle on shards of cases."""

    def work(shard: int, write: Callable[[bytes], None]) -> None:
        limit_memory()
        write(pickle.dumps(baseline(texts, draw(shard))))

    for shard, data, number in forked(shards, work, workers):
        if not data:
            raise RuntimeError(f"shard {shard} of the unmutated needle did not finish (signal {number})")
        judged, lines = pickle.loads(data)
        yield shard, judged, lines
