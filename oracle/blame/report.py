"""A Divergence as text, JSON and Markdown; the summary of a run."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from oracle.apart import Broken, Died, apart
from oracle.blame import script
from oracle.blame.headline import headline, number
from oracle.blame.locate import suspect
from oracle.cases import case as c
from oracle.rules.verdict import Divergence

LATEST = Path("reports/latest")


def block(case: c.Case, divergence: Divergence) -> str:
    """What the terminal shows of a failing case."""
    d = divergence
    if d.failure is not None:
        lines = [("needle", d.failure.message or "(no message)")]
        if d.failure.where:
            lines.append(("at", d.failure.where))
    else:
        if d.rule in ("missing", "unexpected", "exact"):
            lines = [("finding", d.message)]
        else:
            dtype = f"   ({d.dtype})" if d.dtype else ""
            lines = [("needle", number(d.ours) + dtype)]
            if d.peer is not None:
                lines.append(("torch", number(d.peer) + "   (float32)"))
            if d.truth is not None:
                lines.append(
                    ("truth" if d.dtype else "expected", number(d.truth) + ("   (float64)" if d.dtype else ""))
                )
        if d.error is not None and d.allowed is not None:
            lines.append(("error", f"{d.error:.2g}, allowed {d.allowed:.2g} (rule {d.rule})"))
    lines += [
        ("suspect", suspect(case, d)),
        ("case", f"{case.digest}: {c.describe(case)}"),
        ("replay", f"nox -s replay -- {case.digest}"),
    ]
    return "\n".join([headline(d), *(f"  {name:<8} {text}" for name, text in lines)])


def write(case: c.Case, divergence: Divergence, folder: Path, count: int = 1) -> Path:
    """``<digest>.json`` to replay, ``<digest>.md`` to read, ``<digest>.py`` to run without the oracle.

    Returns the path of the case.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{case.digest}.json"
    path.write_bytes(c.encode(case))
    try:
        text = apart(script.checked, case, divergence)
        (folder / f"{case.digest}.py").write_text(text, encoding="utf-8")
        alone = f"`python {case.digest}.py` shows it with numpy, torch and a needle alone; same exit codes."
    except Exception as error:
        # the case and the page are worth more than the script
        what = str(error) if isinstance(error, Broken | Died) else f"{type(error).__name__}: {error}"
        alone = f"There is no standalone script: {what}"
    (folder / f"{case.digest}.md").write_text(markdown(case, divergence, count, alone), encoding="utf-8")
    return path


def markdown(case: c.Case, divergence: Divergence, count: int = 1, alone: str = "") -> str:
    """The page beside a failing case."""
    seen = f"\nSeen in {count} generated cases of this run; this is the smallest found.\n" if count > 1 else ""
    return f"""# {case.digest}: {divergence.place}

```
{block(case, divergence)}
```
{seen}
- Replay it step by step: `nox -s replay -- {case.digest}`. It exits with 1 while it diverges, with 0 once it is fixed.
{f"- {alone}" + chr(10) if alone else ""}- When it is fixed, keep it: move `{case.digest}.json` to `tests/cases/`; the tests replay every file there.

The case:

```json
{c.encode(case).decode()}```
"""


def to_json(divergence: Divergence) -> dict[str, Any]:
    """The divergence as plain data."""
    return {k: v for k, v in asdict(divergence).items() if v is not None}


def dump(path: Path, data: Any) -> None:
    """Strict JSON (infinities as text), written in one go."""

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

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(plain(data), indent=2) + "\n", encoding="utf-8")
