"""Earlier runs of diff in one file, a line of JSON each: what they came to, and how near each quantity came to its limit."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from oracle import files

NAME = "diff-history.jsonl"
MOST = 200  # runs that are kept, the last ones
NEEDED = {"when", "commit", "divergences", "largest_share"}
LONGEST = 1 << 16  # bytes of a line


def entry(summary: Mapping[str, Any], when: str, commit: str, needle: str = "") -> dict[str, Any]:
    """A run as a line of the file; ``needle`` is the folder of another one than ours."""
    shares = {key: share for key, share in summary["largest_share"].items() if " op " not in key}
    return {
        "when": when,
        "commit": commit,
        **({"needle": needle} if needle else {}),
        "seed": summary["seed"],
        "cases": sum(summary["cases"].values()),
        "tensors": summary["tensors"],
        "divergences": len(summary["failures"]),
        "exit_code": int(summary["exit_code"]),
        "start_seconds": round(summary["start_seconds"], 2),
        "wall_seconds": round(summary["wall_seconds"], 2),
        "cpu_seconds": round(summary["cpu_seconds"], 2),
        "digest": summary["digest"],
        "largest_share": {key: float(f"{share:.4g}") for key, share in shares.items()},
    }


def read(folder: Path) -> list[dict[str, Any]]:
    """The runs, oldest first; a line that is none is passed over."""
    return [run for run in files.lines_of(folder / NAME, MOST, NEEDED) if isinstance(run["largest_share"], dict)]


def of(needle: str, runs: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The runs of one needle: how near another came to a limit says nothing of it."""
    return [run for run in runs if run.get("needle", "") == needle]


def add(folder: Path, run: Mapping[str, Any]) -> None:
    """One run more; the file is written anew, whole, and no longer than `MOST` lines."""
    kept = [json.dumps(known) for known in [*read(folder), run][-MOST:]]
    files.save(folder / NAME, "".join(line + "\n" for line in kept if len(line) < LONGEST))
