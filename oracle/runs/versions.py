"""What the verdicts of a seed depend on: the same of all of it gives the same cases and the same digest, on any machine."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path

from oracle import commands
from oracle.memory import blas
from oracle.pages.made import commit
from oracle.systems import candidate

# What may differ from one machine to another: the rules hold on every CPU (`oracle kernels`), and cases come out of every Python.
MAY_DIFFER = ("python", "kernel", "commit")


@cache
def versions() -> dict[str, str]:
    """Of this process and its needle: name -> version; a hash of their files for needle and oracle, which change without one."""
    found = {
        "needle": _hashed(Path(candidate.home())),
        "commit": commit(Path(candidate.home()).parent) or "none",
        "oracle": _hashed(Path(__file__).resolve().parents[1]),
        "python": platform.python_version(),
        "kernel": blas.read_back(),
    }
    for name in ("torch", "numpy", "hypothesis"):
        found[name] = metadata.version(name).partition("+")[0]  # a build for CUDA computes the same on a CPU
    return found


def _hashed(package: Path) -> str:
    """A hash of the Python files of a package; what a wheel carries of needle is no part of oracle."""
    text = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        if not path.is_relative_to(commands.CARRIED) or package.is_relative_to(commands.CARRIED):
            text.update(f"{path.relative_to(package).as_posix()}\n".encode())
            text.update(path.read_bytes())
    return text.hexdigest()[:12]


def differences(ours: Mapping[str, str], theirs: Mapping[str, str]) -> list[str]:
    """In words, what differs of what must be the same: ``torch 2.13.0, there 2.12.1``."""
    names = sorted((ours.keys() | theirs.keys()) - set(MAY_DIFFER))
    return [
        f"{name} {ours.get(name, 'none')}, there {theirs.get(name, 'none')}"
        for name in names
        if ours.get(name) != theirs.get(name)
    ]
