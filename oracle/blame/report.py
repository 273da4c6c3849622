"""A Divergence as text, JSON and Markdown; the summary of a run."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from oracle import commands, files
from oracle.apart import Broken, Died, apart
from oracle.blame import script
from oracle.blame.headline import headline, shown
from oracle.blame.locate import suspect
from oracle.cases import case as c
from oracle.rules.verdict import Divergence

LATEST = commands.LATEST


def block(case: c.Case, divergence: Divergence, replay: str) -> str:
    """What the terminal shows of a failing case; ``replay`` is the command that shows it again."""
    d = divergence
    lines = [
        *shown(d),
        ("suspect", suspect(case, d)),
        ("case", f"{case.digest}: {c.describe(case)}"),
        ("replay", replay),
    ]
    return "\n".join([headline(d), *(f"  {name:<8} {text}" for name, text in lines)])


def write(case: c.Case, divergence: Divergence, asked: commands.Asked, count: int = 1) -> Path:
    """``<digest>.json`` to replay, ``<digest>.md`` to read, ``<digest>.py`` to run without the oracle.

    Returns the path of the case.
    """
    path = write_case(case, divergence, asked, count)
    write_script(case, divergence, asked, count)
    return path


def write_case(case: c.Case, divergence: Divergence, asked: commands.Asked, count: int = 1, alone: str = "") -> Path:
    """The case and its page, which takes no time."""
    path = asked.folder / f"{case.digest}.json"
    files.save(path, c.encode(case))
    files.save(path.with_suffix(".md"), markdown(case, divergence, asked, count, alone))
    return path


def write_script(case: c.Case, divergence: Divergence, asked: commands.Asked, count: int = 1) -> None:
    """The standalone script, run once, and a word about it on the page."""
    write_scripted(case, divergence, asked, count, *scripted(case, divergence))


def scripted(case: c.Case, divergence: Divergence) -> tuple[str | None, str]:
    """The standalone script, run once in a child; or None, and why there is none."""
    try:
        return apart(script.checked, case, divergence, heard=bytearray()), ""
    except Exception as error:
        # the case and the page are worth more than the script
        return None, str(error) if isinstance(error, Broken | Died) else f"{type(error).__name__}: {error}"


def write_scripted(
    case: c.Case, divergence: Divergence, asked: commands.Asked, count: int, text: str | None, why: str
) -> None:
    """What `scripted` has made."""
    path = asked.folder / f"{case.digest}.py"
    alone = f"There is no standalone script: {why}"
    if text is not None:
        files.save(path, text)
        alone = f"`{commands.script(path)}` shows it with numpy, torch and a needle alone; same exit codes."
    write_case(case, divergence, asked, count, alone)


def markdown(case: c.Case, divergence: Divergence, asked: commands.Asked, count: int = 1, alone: str = "") -> str:
    """The page beside a failing case."""
    seen = f"\nSeen in {count} generated cases of this run; this is the smallest found.\n" if count > 1 else ""
    replay = asked.replay(case.digest)
    return f"""# {case.digest}: {divergence.place}

```
{block(case, divergence, replay)}
```
{seen}
- Replay it step by step: `{replay}`. It exits with 1 while it diverges, with 0 once it is fixed.
{f"- {alone}" + chr(10) if alone else ""}- When it is fixed, keep it: move `{case.digest}.json` to `tests/cases/`; the tests replay every file there.

The case:

```json
{c.encode(case).decode()}```
"""


def to_json(divergence: Divergence) -> dict[str, Any]:
    """The divergence as plain data."""
    return {k: v for k, v in asdict(divergence).items() if v is not None}


def dump(path: Path, data: Any) -> None:
    """Strict JSON in a file, written in one go."""
    files.save(path, dumped(data))


def dumped(data: Any) -> str:
    """Strict JSON; infinities and nan as text."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(k): plain(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [plain(v) for v in value]
        if isinstance(value, np.generic):
            value = value.item()
        if isinstance(value, float) and not np.isfinite(value):
            return str(value)
        return value

    return json.dumps(plain(data), indent=2) + "\n"
