"""When a page was made, and of what: it says so under its heading."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime
from pathlib import Path


def git(*arguments: str, folder: Path | None = None) -> str:
    """What git prints; "" where there is none, or where it fails."""
    try:
        run = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, encoding="utf-8", errors="replace", timeout=20,
            check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return run.stdout if run.returncode == 0 else ""


def commit(folder: Path | None = None) -> str:
    """The commit of the package needle in a folder, short; "+" where its files differ from it; "" outside of git.

    A folder may lie within somebody else's repository, as that of a virtual environment does: then it has no commit.
    """
    if not git("ls-files", "--", "needle", folder=folder):
        return ""
    head = git("rev-parse", "--short", "HEAD", folder=folder).strip()
    return head + ("+" if head and git("status", "--porcelain", "--", "needle", folder=folder).strip() else "")


def now() -> str:
    """The date and the time, UTC: ``2026-01-31 17:05 UTC``."""
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
