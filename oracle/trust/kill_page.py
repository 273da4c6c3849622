"""``faults.html``, the kill table as a page: made from the data of ``faults.json`` and from the table that is committed."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from oracle.apart import plain
from oracle.pages.templates import render

NAME = "faults.html"
TEMPLATE = Path(__file__).with_name("faults.html")
WITHIN = (1, 3, 10, 30, 100, 300, 1000, 4000)  # cases until a kill

Table = Mapping[str, Any]


def html(table: Table, known: Mapping[str, float], *, made: str, of: int, interrupted: bool = False) -> str:
    """The page. ``known`` has the faults that the committed table kills, with the cases until then; ``of`` faults were to be run."""
    faults = table["faults"]
    unjudged = [f for f in faults if f["error"]]
    alive = [f for f in faults if not f["killed"] and not f["error"]]
    lost = [f["name"] for f in faults if not f["killed"] and f["name"] in known]
    killed = sum(bool(f["killed"]) for f in faults)
    return render(
        TEMPLATE,
        table=table,
        made=made,
        verdict=f"{killed} of {len(faults)} faults killed with every seed",
        state="bad" if lost else "open" if alive or unjudged or interrupted else "good",
        interrupted=interrupted,
        left=of - len(faults),
        lost=lost,
        alive=[_row(f, known) for f in alive],
        unjudged=[_row(f, known) for f in unjudged],
        groups=_groups(faults, known),
        within=_within(faults, table["budget"]),
        rules=_bars(Counter(k["rule"] for f in faults for k in f["kills"] if k["rule"] is not None)),
        known=bool(known),
    )


def _row(fault: Table, known: Mapping[str, float]) -> dict[str, Any]:
    """A line: what is shown of a fault, and which number of it fails."""
    kills = [k for k in fault["kills"] if k["rule"] is not None]
    shrunk = [k for k in kills if k["layers"] is not None]
    was = known.get(fault["name"])
    return {
        "name": fault["name"],
        "about": plain(fault["about"], 300),
        "cases": f"{fault['cases']:g}" if fault["killed"] else "no verdict" if fault["error"] else "alive",
        "killed": fault["killed"],
        "was": "" if was is None else f"{was:g}",
        "share": "" if fault["probability"] is None else f"{fault['probability']:.0%}",
        "rules": ", ".join(rule for rule, _ in Counter(k["rule"] for k in kills).most_common()),
        "suspect": plain(kills[0]["suspect"].partition(";")[0], 120) if kills else "",
        "right": f"{fault['right']:.0%}" if kills else "",
        "small": _small(shrunk),
        "error": plain((fault["error"].strip().splitlines() or [""])[-1], 300),
    }


def _small(shrunk: Sequence[Table]) -> str:
    if not shrunk:
        return ""
    return ", ".join(f"{statistics.median(k[name] for k in shrunk):g}" for name in ("layers", "steps"))


def _groups(faults: Sequence[Table], known: Mapping[str, float]) -> list[dict[str, Any]]:
    """Each group: how many are killed, how fast, how often the right one is named; and its faults, the slowest first."""
    groups = []
    for group in dict.fromkeys(f["group"] for f in faults):
        part = [f for f in faults if f["group"] == group]
        cases = [f["cases"] for f in part if f["killed"]]
        kills = [k for f in part for k in f["kills"] if k["rule"] is not None]
        ordered = sorted(part, key=lambda f: (f["killed"], -(f["cases"] or 0), f["name"]))
        groups.append(
            {
                "name": group,
                "faults": len(part),
                "killed": len(cases),
                "median": f"{statistics.median(cases):g}" if cases else "",
                "most": f"{max(cases):g}" if cases else "",
                "right": f"{sum(k['right'] for k in kills) / len(kills):.0%}" if kills else "",
                "rows": [_row(f, known) for f in ordered],
            }
        )
    return groups


def _within(faults: Sequence[Table], budget: int) -> list[tuple[str, str, float]]:
    """How many faults are killed within so many cases: the number of cases, the share in words, and the width of a bar."""
    if not faults:  # ended before the first one
        return []
    steps = sorted({*(n for n in WITHIN if n < budget), budget})
    found = []
    for most in steps:
        count = sum(bool(f["killed"]) and f["cases"] <= most for f in faults)
        found.append(
            (f"{most:,} case{'s' * (most != 1)}", f"{count / len(faults):.0%}, {count}", 100 * count / len(faults))
        )
    return found


def _bars(counts: Counter[str]) -> list[tuple[str, str, float]]:
    total = sum(counts.values())
    return [(name, f"{n / total:.0%}, {n}", 100 * n / total) for name, n in counts.most_common()]
