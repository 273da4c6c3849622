"""Earlier runs of the bench in one file, a line of JSON each: what a step cost over the limit, of which commit, on what."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from oracle import files

NAME = "bench-history.jsonl"
MOST = 200  # runs that are kept, the last ones
SAME = ("processor", "kernel", "numpy", "threads")
"""What of the environment two runs must have in common, beside the length of a burst, to be points of one line."""


def entry(data: Mapping[str, Any]) -> dict[str, Any]:
    """A run, as bench.json has it, as a line of the file."""
    now = data["environment"]
    spreads = {key: found["over_limit"]["needle"] for key, found in data["workloads"].items()}
    return {
        "when": now["when"],
        "commit": now["commit"],
        "on": [*(now[name] for name in SAME), data["burst_seconds"]],
        "over_limit": {key: [round(s[part], 4) for part in ("median", "low", "high")] for key, s in spreads.items()},
    }


def read(folder: Path) -> list[dict[str, Any]]:
    """The runs, oldest first; a line that is none is passed over."""
    return files.lines_of(folder / NAME, MOST, {"when", "commit", "on", "over_limit"})


def add(folder: Path, run: Mapping[str, Any]) -> None:
    """One run more; the file is written anew, whole, and no longer than `MOST` lines."""
    files.save(folder / NAME, "".join(json.dumps(known) + "\n" for known in [*read(folder), run][-MOST:]))


def trends(runs: Sequence[Mapping[str, Any]]) -> dict[str, list[list[float]]]:
    """Workload -> median, least and most of each run that can be compared with the last one, oldest first."""
    found: dict[str, list[list[float]]] = {}
    for run in (run for run in runs if run["on"] == runs[-1]["on"]):
        for key, spread in run["over_limit"].items():
            found.setdefault(key, []).append(spread)
    return found
