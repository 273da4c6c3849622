"""What a test finds though there should be nothing lies where `nox -s diff` would have left it, and is shown once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from oracle import commands, files
from oracle.exits import ExitCode


def agreed(code: int, folder: Path, text: str = "") -> None:
    """Fail unless a run has ended with 0; then what it wrote into a folder moves to reports/latest.

    The text is what pytest has captured, which it shows once: in the message of an assertion, CI would see it twice.
    """
    __tracebackhide__ = True
    if code == ExitCode.AGREE:
        return
    print(text)
    latest = commands.ROOT / commands.LATEST
    files.set_aside(latest, "summary.json", "diff.html")
    written = sorted(path for path in folder.glob("*") if path.is_file())
    for path in written:
        latest.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, latest / path.name)
    where = f"; {len(written)} files in {commands.LATEST}" if written else ""
    pytest.fail(f"exit code {code}: {ExitCode(code).meaning}{where}", pytrace=False)
