"""Is the source still that of an earlier run? What a fault or a mutant has shown holds for one text of needle and of the oracle."""

from __future__ import annotations

import hashlib
from pathlib import Path

from oracle.commands import ROOT


def source(root: Path = ROOT) -> str:
    """16 hexadecimal digits of all Python of needle and the oracle."""
    texts = sorted(path for part in ("needle", "oracle") for path in (root / part).rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in texts)).hexdigest()[:16]
