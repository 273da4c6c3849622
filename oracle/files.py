"""Files that a run writes: whole or not at all, into a folder that was tried before the run."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

EARLIER = "earlier"  # what an older run has left
_CASE = re.compile(r"[0-9a-f]{8}")


def save(path: Path, data: str | bytes) -> None:
    """Write a file in one go: whoever reads it sees the old one or the new one, and a full disk leaves no half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = data.encode("utf-8", "backslashreplace") if isinstance(data, str) else data
    half = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        half.write_bytes(content)
        os.replace(half, path)
    except BaseException:
        with contextlib.suppress(OSError):
            half.unlink()
        raise


def in_lines(content: Mapping[str, Any], rows: str) -> str:
    """JSON with one row a line, so that two runs can be compared. ``rows`` names the list, or the mapping, that is written so, last."""
    head = {key: value for key, value in content.items() if key != rows}
    of = content[rows]
    if isinstance(of, Mapping):
        lines = [f"{_line(key)}: {_line(of[key])}" for key in sorted(of)]
    else:
        lines = [_line(row) for row in of]
    begin, end = "{}" if isinstance(of, Mapping) else "[]"
    before = f"{_line(head)[:-1]}, " if head else "{"
    return f"{before}{_line(rows)}: {begin}\n" + ",\n".join(lines) + f"\n{end}}}\n"


def lines_of(path: Path, most: int, needed: Collection[str]) -> list[dict[str, Any]]:
    """The last lines of a file, a mapping of JSON each, oldest first; a line that is none with these keys is passed over."""
    try:
        text = path.read_text("utf-8", errors="replace")
    except OSError:
        return []
    found = []
    for line in text.splitlines()[-most:]:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and row.keys() >= set(needed):
            found.append(row)
    return found


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def tried(folder: Path) -> str:
    """Makes a folder and writes into it; why that cannot be, or "". Said before a run, it costs nobody the run."""
    try:
        save(folder / ".tried", b"tried\n" * 100)
        (folder / ".tried").unlink()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def set_aside(folder: Path, *reports: str, cases: bool = True) -> None:
    """Move what an older run has left, its reports (patterns) and its failing cases, into ``earlier/``: it is not today's.

    A case is a run's own if its page lies beside it, with its digest at the top; other files are somebody else's.
    """
    old = [path for pattern in reports for path in sorted(folder.glob(pattern))]
    for page in sorted(folder.glob("*.md")) if cases else ():
        if _CASE.fullmatch(page.stem) and _is_page(page):
            old += [page.with_suffix(suffix) for suffix in (".json", ".py", ".txt", ".md")]
    for path in old:
        if path.is_file():
            (folder / EARLIER).mkdir(exist_ok=True)
            os.replace(path, folder / EARLIER / path.name)


def _is_page(path: Path) -> bool:
    with contextlib.suppress(OSError), path.open("rb") as file:
        return file.read(len(path.stem) + 4) == f"# {path.stem}: ".encode()
    return False
