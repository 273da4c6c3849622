"""What needle's own unit tests make of a mutant, each in a forked process with the mutated needle served from memory.

They judge what no case of diff can: files that are not trained, functions that are left to them, what diff leaves alive.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import resource
import signal
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

from oracle.commands import ROOT
from oracle.runs.forked import forked
from oracle.trust.mutants import claims, trial
from oracle.trust.mutants.mutant import Mutant
from oracle.trust.mutants.trial import Outcome

FOLDERS = ("tests/unit/needle", "tests/unit/needle_and_torch")
OPTIONS = ("-x", "-q", "--assert=plain", "--disable-plugin-autoload", "-p", "no:cacheprovider")
MANY = 20  # mutants, from which on it pays to ask first which lines each test runs
PATIENCE = 180  # seconds of processor time; all of needle's own tests take some 7; where it is known which are run …
WAITING = 600  # seconds by the clock, for a test that waits for what never comes
GRACE, SLOWER = 10, 5  # … this much, beside this many times what they take while they are watched


def files_of(names: Iterable[str]) -> tuple[str, ...]:
    """Where the test files of these names lie; ValueError for a name that is nowhere."""
    found = []
    for name in names:
        here = [f"{folder}/{name}" for folder in FOLDERS if (ROOT / folder / name).exists()]
        if not here:
            raise ValueError(f"no test file {name!r} in {' or '.join(FOLDERS)}")
        found += here
    return tuple(found)


def judges_of(mutant: Mutant, excuse: str = "") -> tuple[str, ...]:
    """The test files that judge a mutant, likeliest first: those of its file or function, and then all others of needle's
    own; where its excuse names who kills it, those alone.
    """
    if claims.named_tests(excuse):
        return files_of(claims.named_tests(excuse))
    left = claims.unclaimed(mutant.file, mutant.function) or ""
    return (*files_of(claims.named_tests(left) or claims.BY_TESTS.get(mutant.file, ())), FOLDERS[0])


@dataclass(frozen=True)
class Watched:
    """What a test runs of needle, and how long it takes."""

    lines: trial.Lines
    seconds: float


Runs = Mapping[str, Watched]  # by node id


class _Watching:
    """A pytest plugin that takes down what each test of a file runs; what importing it and needle runs, all of them do."""

    def __init__(self, tracer: trial.Tracer) -> None:
        self.tracer, self.found = tracer, dict[str, Watched]()
        self.on_import: trial.Lines = frozenset()

    def pytest_collection_finish(self) -> None:
        self.on_import = frozenset(self.tracer.lines)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        self.tracer.lines.clear()
        started = time.process_time()
        outcome = yield
        self.found[item.nodeid] = Watched(self.on_import | self.tracer.lines, time.process_time() - started)
        return outcome


def watched(texts: trial.Sources, paths: Sequence[str], workers: int) -> Runs:
    """What each test of some files or folders runs of needle, as it is."""

    def work(path: Path, write: Callable[[bytes], None]) -> None:
        with trial.Tracer() as tracer:
            _apart(texts)
            plugin = _Watching(tracer)
            pytest.main([*(o for o in OPTIONS if o != "-x"), f"--rootdir={ROOT}", str(path)], plugins=[plugin])
        write(pickle.dumps(plugin.found))

    places = [ROOT / path for path in paths]
    files = sorted({f for p in places for f in (p.glob("test_*.py") if p.is_dir() else [p])})
    found: dict[str, Watched] = {}
    for path, data, number in forked(files, work, workers):
        if not data:
            raise RuntimeError(f"what the tests of {path.name} run could not be seen (signal {number})")
        found |= pickle.loads(data)
    return found


class Reaching:
    """A pytest plugin that leaves the tests that run a line, the quickest first; and those of which nothing is known."""

    def __init__(self, tests: Runs, lines: trial.Lines) -> None:
        self.tests, self.lines = tests, lines

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        known = self.tests
        if self.lines:
            items[:] = [i for i in items if i.nodeid not in known or not self.lines.isdisjoint(known[i.nodeid].lines)]
        items.sort(key=lambda i: known[i.nodeid].seconds if i.nodeid in known else 0.0)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        if self.tests:
            seconds = sum(self.tests[i.nodeid].seconds for i in session.items if i.nodeid in self.tests)
            _allow(min(PATIENCE, math.ceil(time.process_time() + GRACE + SLOWER * seconds)))


class _First:
    """A pytest plugin that remembers the first test that failed, or the first file that could not be collected."""

    def __init__(self) -> None:
        self.name = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and not self.name:
            self.name = report.nodeid

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed and not self.name:
            self.name = report.nodeid


def _allow(seconds: int) -> None:
    """Processor time of this process, from its start."""
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, PATIENCE))


def _apart(texts: trial.Sources) -> None:
    """In a child: what was imported already knows another needle."""
    os.chdir(ROOT)
    for name, module in list(sys.modules.items()):
        if (getattr(module, "__file__", None) or "").startswith(str(ROOT / "tests")):
            del sys.modules[name]
    trial.load(texts)


def _outcome(texts: trial.Sources, paths: Sequence[str], reaching: Reaching) -> Outcome:
    """Runs in a child, which is never used again."""
    try:
        _apart(texts)
    except SyntaxError:
        return Outcome("invalid")
    except Exception:
        return Outcome("killed", "import")
    first = _First()
    code = pytest.main([*OPTIONS, f"--rootdir={ROOT}", *paths], plugins=[first, reaching])
    if code == pytest.ExitCode.OK or (code == pytest.ExitCode.NO_TESTS_COLLECTED and not first.name):
        return Outcome("survived")
    if not first.name:
        raise RuntimeError(f"pytest ended with {code!r} and no failing test")
    return Outcome("killed", "test", test=first.name)


def try_tests(
    texts: trial.Sources, tasks: Iterable[tuple[Mutant | None, Sequence[str]]], workers: int, tests: Runs | None = None
) -> Iterator[tuple[Mutant | None, Outcome]]:
    """Each mutant (None: needle as it is) before the tests of some files, until the first of them fails.

    Where it is known what ``tests`` run, before those that can notice it.
    """

    def work(task: tuple[Mutant | None, Sequence[str]], write: Any) -> None:
        trial.limit_memory()
        _allow(PATIENCE)
        signal.alarm(WAITING)
        mutant, paths = task
        changed = texts if mutant is None else {**texts, mutant.file: mutant.apply(texts[mutant.file])}
        try:
            lines = frozenset((mutant.file, line) for line in mutant.reach) if mutant is not None else frozenset()
            found: dict[str, Any] = asdict(
                _outcome(changed, paths, Reaching(tests or {}, lines if tests else frozenset()))
            )
        except BaseException as error:
            found = {"error": f"{type(error).__name__}: {error}"}
        write(json.dumps(found).encode())

    for (mutant, _), data, number in forked(tasks, work, workers):
        if data:
            found = json.loads(data)
            if "error" in found and mutant is None:
                raise RuntimeError(f"the unit tests could not be run on needle: {found['error']}")
            # a mutant may upset pytest itself: it has not been killed, and the others are judged all the same
            yield mutant, Outcome("survived", oracle_errors=[found["error"]]) if "error" in found else Outcome(**found)
        else:
            slow = number in (signal.SIGXCPU, signal.SIGALRM, signal.SIGKILL)
            yield mutant, Outcome("killed", "test", test="(out of time)" if slow else "(crash)")
