"""What needle's own unit tests make of a mutant, each in a forked process with the mutated needle served from memory.

They judge what no case of diff can: files that are not trained, functions that are left to them, what diff leaves alive.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from oracle.runs.forked import forked
from oracle.trust.mutants import claims, trial
from oracle.trust.mutants.mutant import Mutant
from oracle.trust.mutants.trial import Outcome

ROOT = Path(__file__).parents[3]
FOLDERS = ("tests/unit/needle", "tests/unit/needle_and_torch")
OPTIONS = ("-x", "-q", "--assert=plain", "--disable-plugin-autoload", "-p", "no:cacheprovider")
PATIENCE = 180  # seconds of processor time; all of needle's own tests take some 7


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


def _outcome(texts: trial.Sources, paths: Sequence[str]) -> Outcome:
    """Runs in a child, which is never used again."""
    os.chdir(ROOT)
    for name, module in list(sys.modules.items()):
        if (getattr(module, "__file__", None) or "").startswith(str(ROOT / "tests")):
            del sys.modules[name]  # a test file that is imported already knows another needle
    try:
        trial.load(texts)
    except SyntaxError:
        return Outcome("invalid")
    except Exception:
        return Outcome("killed", "import")
    first = _First()
    code = pytest.main([*OPTIONS, f"--rootdir={ROOT}", *paths], plugins=[first])
    if code == pytest.ExitCode.OK:
        return Outcome("survived")
    if not first.name:
        raise RuntimeError(f"pytest ended with {code!r} and no failing test")
    return Outcome("killed", "test", test=first.name)


def try_tests(
    texts: trial.Sources, tasks: Iterable[tuple[Mutant | None, Sequence[str]]], workers: int
) -> Iterator[tuple[Mutant | None, Outcome]]:
    """Each mutant (None: needle as it is) before the tests of some files, until the first of them fails."""

    def work(task: tuple[Mutant | None, Sequence[str]], write: Any) -> None:
        trial.limit_memory()
        resource.setrlimit(resource.RLIMIT_CPU, (PATIENCE, PATIENCE))
        mutant, paths = task
        changed = texts if mutant is None else {**texts, mutant.file: mutant.apply(texts[mutant.file])}
        try:
            found: dict[str, Any] = asdict(_outcome(changed, paths))
        except BaseException as error:
            found = {"error": f"{type(error).__name__}: {error}"}
        write(json.dumps(found).encode())

    for (mutant, _), data, number in forked(tasks, work, workers):
        if data:
            found = json.loads(data)
            if "error" in found:
                raise RuntimeError(f"the unit tests could not be run on {mutant or 'needle'}: {found['error']}")
            yield mutant, Outcome(**found)
        else:
            slow = number in (signal.SIGXCPU, signal.SIGALRM, signal.SIGKILL)
            yield mutant, Outcome("killed", "test", test="(out of time)" if slow else "(crash)")
