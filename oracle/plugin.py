"""A needle as one test of a suite: ``pytest --oracle-needle DIR [--oracle-cases N] [--oracle-seed S]``.

pytest loads this wherever oracle is installed, so it imports nothing heavy, does nothing without its flag, and runs the
comparison in a process of its own: what a wrong needle does there costs the suite one test.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from oracle.apart import threads
from oracle.exits import ExitCode

NAME = "needle against PyTorch"


def pytest_addoption(parser: pytest.Parser) -> None:
    """The flags."""
    group = parser.getgroup("oracle", "compare a needle with PyTorch")
    group.addoption(
        "--oracle-needle", metavar="DIR", help="add a test that compares the package needle in this folder with PyTorch"
    )
    group.addoption("--oracle-cases", metavar="N", type=int, help="cases of that test (default: 400)")
    group.addoption("--oracle-seed", metavar="S", type=int, help="seed of that test (default: 0)")


def pytest_configure(config: pytest.Config) -> None:
    """A flag that nothing comes of is refused: whoever has lost the first in a script would see a suite that passes."""
    given = [name for name in ("oracle_cases", "oracle_seed") if config.getoption(name) is not None]
    if given and config.getoption("oracle_needle") is None:
        raise pytest.UsageError(f"--{given[0].replace('_', '-')} goes with --oracle-needle DIR")


def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """The test, after all others."""
    needle = config.getoption("oracle_needle")
    if needle is not None:
        folder = Path(config.invocation_params.dir, needle)
        items.append(NeedleItem.from_parent(session, name=NAME, nodeid=f"oracle::{NAME}", needle=folder))


class Parted(Exception):
    """The text of a run that is no success."""


class _Shown:
    """A text that pytest shows with the failure alone: in CI, a string is in the short summary, too, at any length."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __str__(self) -> str:
        return self.text

    def toterminal(self, writer: Any) -> None:
        """Called by pytest."""
        writer.line(self.text)


class NeedleItem(pytest.Item):
    """One run of ``oracle diff``; it passes if that exits with 0."""

    def __init__(self, *, needle: Path, **other: Any) -> None:
        super().__init__(**other)
        self.needle = needle

    def runtest(self) -> None:
        """Run, and raise Parted unless all that was judged agrees."""
        get = self.config.getoption
        cases, seed = (
            default if get(x) is None else get(x) for x, default in (("oracle_cases", 400), ("oracle_seed", 0))
        )
        words = ["--needle", self.needle, "--cases", cases, "--seed", seed, "--no-digits"]
        done = subprocess.run(
            [sys.executable, "-m", "oracle", "diff", *map(str, words), "--json", "-", "--no-github"],
            cwd=self.config.invocation_params.dir,
            env=os.environ | threads(1),
            capture_output=True,
            encoding="utf-8",
            errors="replace",
        )
        if done.stdout:
            summary = json.loads(done.stdout)
            for key in ("tensors", "digest", "seed"):
                self.user_properties.append((f"oracle {key}", summary[key]))
        if done.returncode != ExitCode.AGREE:
            raise Parted(done.stderr.strip())
        self.add_report_section("call", "oracle", done.stderr)  # of a failure it is the text, and shown once

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """What the run says, without a traceback."""
        if isinstance(excinfo.value, Parted):
            return _Shown(str(excinfo.value))
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, int | None, str]:
        """Where the test stands."""
        return self.needle, None, NAME
