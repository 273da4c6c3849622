"""reports/baselines/memory.json: peak, live end and allocations of the panel, as they were accepted.

One entry per key (Python, NumPy, memray, system, BLAS and its kernels, allocators traced): numbers are judged under the
same key, and never under another. The kernels belong to it because they allocate: Haswell's 6 times a step less often than
SkylakeX's, with a model in which nothing else has changed.
"""

from __future__ import annotations

import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from oracle import files
from oracle.memory.blas import read_back
from oracle.memory.probe import Measured, Site
from oracle.pages.made import commit, git

PATH = Path("reports/baselines/memory.json")


class Known(msgspec.Struct):
    """What was accepted for a case."""

    case: str  # digest: another case under the same name has no baseline
    peak: int
    end: int
    allocations: float
    at_peak: list[Site] = []  # the lines that held most


class Entry(msgspec.Struct):
    """What was accepted under one key."""

    key: dict[str, str]
    commit: str
    cases: dict[str, Known]


class File(msgspec.Struct):
    """The whole file."""

    format: int = 1
    entries: list[Entry] = []


def key() -> dict[str, str]:
    """What the numbers depend on beside needle."""
    config: Any = np.show_config(mode="dicts")
    blas = config["Build Dependencies"]["blas"]
    libc = "-".join(platform.libc_ver())
    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "memray": version("memray"),
        "system": " ".join(filter(None, (platform.system(), platform.machine(), libc))),
        "blas": f"{blas['name']} {blas['version']}",
        "kernel": read_back(),
        "allocators": "malloc",
    }


def read(path: Path = PATH) -> File:
    """The file, or an empty one."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=File)
    except FileNotFoundError:
        return File()


def entry_for(file: File, own: dict[str, str]) -> tuple[Entry | None, bool]:
    """The entry to look at, and whether its key is the same; else the one that shares most with it, the last of these."""
    if not file.entries:
        return None, False
    nearest = max(reversed(file.entries), key=lambda e: len(e.key.items() & own.items()))
    return nearest, nearest.key == own


def accept(path: Path, own: dict[str, str], measured: dict[str, tuple[str, Measured]]) -> None:
    """Replace the entry of this key by what was measured: name -> (digest, Measured); other keys stay."""
    cases = {n: Known(d, m.peak, m.end, m.allocations, m.at_peak) for n, (d, m) in measured.items()}
    new = read(path)
    entry = Entry(own, commit(), cases)
    if any(e.key == own for e in new.entries):
        new.entries = [entry if e.key == own else e for e in new.entries]
    else:
        new.entries.append(entry)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.save(path, msgspec.json.format(msgspec.json.encode(new), indent=1) + b"\n")


def history(path: Path = PATH) -> list[tuple[str, File]]:
    """(short commit, file) for every commit that changed the file, oldest first, the working copy last."""
    found = []
    for line in reversed(git("log", "--format=%h", "--", path.as_posix()).split()):
        try:
            found.append((line, msgspec.json.decode(git("show", f"{line}:{path.as_posix()}"), type=File)))
        except (msgspec.DecodeError, json.JSONDecodeError):
            continue
    now = read(path)
    if now.entries and (not found or found[-1][1] != now):
        found.append(("now", now))
    return found
