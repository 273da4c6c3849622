"""``diff.html``, the page of a diff run: one file that opens offline, made from the data of ``summary.json``.

A failing case is drawn, with a closer look at its steps; a run in which needle and torch agree shows what it has reached,
how near it came to the limits, now and in earlier runs, and where the time went.
"""

from __future__ import annotations

import math
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from oracle import commands, files
from oracle.apart import is_interrupt, one_line, plain
from oracle.blame.headline import number
from oracle.exits import ExitCode, saved
from oracle.pages import charts
from oracle.pages.made import commit, now
from oracle.pages.templates import render
from oracle.runs import formats, history
from oracle.runs.closer import Closer, closer
from oracle.runs.drawn import Drawing, drawing

NAME = "diff.html"
TEMPLATE = Path(__file__).with_name("page.html")
SHOWN = 3  # failures that are shown in full
LISTED = 100  # of the others, a line each
LOOKED_BACK = 40  # earlier runs in a spark
BEFORE, BEHIND = 3, 14  # lines of source around the suspect's
LARGEST_SOURCE = 2_000_000
LARGEST_TEXT = 20_000  # characters of an error, or of what a failure shows
HEAT = (0.1, 0.25, 0.5, 0.75, 0.9)  # shares of a limit at which a cell of the heat map gets another colour
GROUPS = {"op": "operation", "layer": "layer", "shape": "shape of operands"}

Summary = Mapping[str, Any]


@dataclass
class Beside:
    """What the page shows of a failure beside its data: none of it has to be there."""

    drawn: Drawing | None = None
    looked: Closer | None = None
    source: list[tuple[int, str, bool]] | None = None  # number of the line, its text, whether it is the one
    files: Sequence[tuple[str, str]] = ()  # what it is, and the command or the name of the file


def write(run: Any, summary: Summary, console: Console) -> None:
    """The page, and the run's line in the history, into the folder of the run.

    Whatever goes wrong with it, a line says so, and the verdict stands: it is known, and about to be shown.
    """
    where = commands.shown(run.plan.folder / NAME)
    try:
        with saved(f"{where}, `--out` names another folder"):
            _write(run, summary)
            if not run.plan.foreign:  # of another needle, its own page is named, with the verdict
                console.print(f"page          {where}", style="dim", soft_wrap=True, markup=False)
    except KeyboardInterrupt:
        print(f"not written: {where}: interrupted", file=sys.stderr)
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        at = f"{Path(frame.filename).name}:{frame.lineno}"
        print(
            f"not written: {where}: {type(error).__name__}: {one_line(error)} ({at}); please report it", file=sys.stderr
        )


def _write(run: Any, summary: Summary) -> None:
    folder = run.plan.folder
    of = run.plan.needle if run.plan.needle is not None else commands.ROOT
    needle = "" if run.plan.needle is None else str(run.plan.needle)
    earlier = history.of(needle, history.read(folder))
    this = history.entry(summary, now(), commit(of), needle)
    beside = [_beside(run, failed, data) for failed, data in _in_full(run, summary)]
    files.save(folder / NAME, html(summary, beside, [*earlier, this]))
    if not run.interrupted:  # part of a run says less of how near it comes
        history.add(folder, this)


def _in_full(run: Any, summary: Summary) -> list[tuple[Any, Mapping[str, Any]]]:
    return list(zip(run.failures, summary["failures"], strict=True))[:SHOWN]


def _beside(run: Any, failed: Any, data: Mapping[str, Any]) -> Beside:
    kind = (data.get("failure") or {}).get("kind", "")
    try:
        looked = None if run.interrupted else closer(failed.case, kind)
    except KeyboardInterrupt as error:
        if not is_interrupt(error):
            raise
        looked = None  # somebody does not want to wait: the verdict is known
    found: list[tuple[str, str]] = []
    if data["written"]:
        path = run.plan.folder / data["case"]
        if path.with_suffix(".py").exists():
            found.append(("script", commands.script(path.with_suffix(".py"))))
        found.append(("keep", commands.keep(path.with_suffix(".json"))))
    return Beside(
        drawing(failed.case, str(data["name"])), looked, source_lines(data, _packages(run.plan.needle)), found
    )


def _packages(needle: Path | None) -> list[Path]:
    """Folders in which ``needle/ops.py`` may lie; a wheel carries ours."""
    return [needle] if needle is not None else [commands.ROOT, commands.CARRIED]


def source_lines(failure: Mapping[str, Any], folders: Sequence[Path]) -> list[tuple[int, str, bool]] | None:
    """The lines around the suspect's, or around the one that raised; None where the file is not found."""
    place = (failure.get("suspect") or {}).get("line") or (failure.get("failure") or {}).get("where") or ""
    file, _, line = str(place).partition(" ")[0].rpartition(":")
    if not (file and line.isdigit()):
        return None
    for path in (folder / inner / file for folder in folders for inner in ("", "needle")):
        try:
            inside = any(path.resolve().is_relative_to(folder.resolve()) for folder in folders)
            if not inside or not path.is_file() or path.stat().st_size > LARGEST_SOURCE:
                continue
            text = path.read_text("utf-8", errors="replace").splitlines()
        except OSError:
            continue
        at = int(line)
        if at <= len(text):
            around = range(max(1, at - BEFORE), min(len(text), at + BEHIND) + 1)
            return [(n, text[n - 1][:200], n == at) for n in around]
    return None


# -- the page ---------------------------------------------------------------------------------------------------------


def html(summary: Summary, beside: Sequence[Beside], runs: Sequence[Mapping[str, Any]]) -> str:
    """The page. ``beside`` has one entry for each of the first failures, ``runs`` are the earlier ones and this one."""
    code = ExitCode(summary["exit_code"])
    failures = summary["failures"]
    rest = failures[len(beside) :]
    return render(
        TEMPLATE,
        summary=summary,
        verdict=formats.verdict(summary),
        state={ExitCode.AGREE: "good", ExitCode.PART: "bad"}.get(code, "open"),
        codes="; also ".join(f"{int(c)}: {ExitCode(c).meaning}" for c in summary["exit_codes"]),
        total=sum(summary["cases"].values()),
        this=runs[-1],
        before=runs[-2] if len(runs) > 1 else None,
        errors=[(what, text[:LARGEST_TEXT]) for what, text in formats.problems(summary)],
        notes=[plain(note, 1000) for note in summary["notes"][:20]],
        failures=[_failure(f, b) for f, b in zip(failures, beside, strict=False)],
        others=[(f["case"], plain(f["headline"], 200), plain(f["culprit"], 200), f["count"]) for f in rest[:LISTED]],
        more=max(0, len(rest) - LISTED),
        nearest=_nearest(summary, runs[-LOOKED_BACK:]),
        rules=formats.RULES,
        heat=_heat(summary),
        coverage=_coverage(summary),
        labels=len(summary["coverage"]) - len(set(summary["not_offered"]) & set(summary["coverage"])),
        time=_time(summary),
    )


def _failure(f: Mapping[str, Any], beside: Beside) -> dict[str, Any]:
    """What the template needs of a failure."""
    values = []
    if f.get("failure") is None and f["rule"] not in ("missing", "unexpected", "exact"):
        expected = "truth" if f.get("dtype") else "expected"
        for name, key in (("needle", "ours"), ("torch", "peer"), (expected, "truth")):
            if f.get(key) is not None:
                values.append((name, plain(number(f[key]), 200)))
    suspect = f.get("suspect") or {}
    message = (f.get("failure") or {}).get("message") or f.get("message", "")
    words = [suspect.get(key) for key in ("what", "place", "words", "known")]
    limit = None
    if f.get("error") is not None and f.get("allowed") is not None:
        limit = f"off by {_short(f['error'])}, allowed is {_short(f['allowed'])}{_times(f['error'], f['allowed'])}"
    return {
        "data": f,
        "element": plain(f"{f['quantity']} {f['name']}{list(f.get('index') or ()) or ''}", 200),
        "culprit": plain(f["culprit"], 200),
        "headline": plain(f["headline"], 300),
        "message": plain(message, 1000),
        "block": f["block"][:LARGEST_TEXT],
        "numbers": values,
        "limit": limit,
        "rule": formats.RULES.get(formats.rule_of(f), ""),
        "suspect": "; ".join(plain(str(w), 300) for w in words if w),
        "line": suspect.get("line") or (f.get("failure") or {}).get("where") or "",
        "drawn": beside.drawn,
        "charts": _charts(beside.looked),
        "once": _once(beside.looked),
        "source": beside.source,
        "files": beside.files,
    }


def _short(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.2g}"


def _times(error: float | str, allowed: float | str) -> str:
    """How many times what is allowed."""
    if isinstance(error, str) or isinstance(allowed, str) or not allowed or not math.isfinite(error / allowed):
        return ""
    times = error / allowed
    return f", {times:.3g} times that" if times < 100 or times >= 1e6 else f", {times:,.0f} times that"


def _charts(looked: Closer | None) -> list[Any]:
    if looked is None or max(len(looked.steps), len(looked.upto)) < 2:
        return []
    losses = {"needle": looked.ours, "torch": looked.peer}
    error = {"needle": looked.shares}
    title = "Largest error up to a step, as a multiple of what is allowed"
    made = [
        charts.lines("Loss over the steps", looked.steps, losses, across="step"),
        charts.lines(title, [k - 1 for k in looked.upto], error, across="step", limit=1.0, logarithmic=True),
    ]
    return [chart for chart in made if chart]


def _once(looked: Closer | None) -> str:
    """What a case of a single step shows: a point is no curve."""
    if looked is None or max(len(looked.steps), len(looked.upto)) != 1:
        return ""
    said = [f"{name} {number(v[0])}" for name, v in (("needle", looked.ours), ("torch", looked.peer)) if v]
    most = f"; its largest error is {looked.shares[0]:.3g} times what is allowed" if looked.shares else ""
    return f"The case has a single step. Its loss: {', '.join(said) or 'none'}{most}."


def _nearest(summary: Summary, runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Per rule and quantity: the largest share of its limit, where, and in the runs before; the largest first."""
    shares = {k: s for k, s in summary["largest_share"].items() if " op " not in k and s > 0}
    rows = []
    for key, share in sorted(shares.items(), key=lambda item: -item[1]):
        past = [run["largest_share"].get(key) for run in runs]
        past = [float(v) if isinstance(v, int | float) else None for v in past]
        rows.append(
            {
                "key": key,
                "share": formats.percent(share),
                "width": round(100 * min(share, 1.0), 1),
                "over": share > 1,
                "at": plain(summary["largest_share_at"].get(key, ""), 120),
                "spark": charts.spark(key, past) if len(runs) > 1 else "",
                "most": max((v for v in past if v is not None and math.isfinite(v)), default=share),
            }
        )
    for row in rows:
        row["most"] = formats.percent(row["most"])
    return rows


def _heat(summary: Summary) -> list[dict[str, Any]]:
    """A table per group: a row per operation, layer or shape, a column per rule that says how near it came."""
    tables = []
    for group, title in GROUPS.items():
        rows = {k.partition(" ")[2]: v for k, v in summary["shares"].items() if k.partition(" ")[0] == group}
        columns = [rule for rule in formats.RULES if any(row.get(rule) for row in rows.values())]
        cells = [
            (
                name,
                f"{row.get('cases', 0):,.0f}",
                [(_cell(row.get(rule)), _colour(row.get(rule))) for rule in columns],
            )
            for name, row in sorted(rows.items(), key=lambda item: -_most(item[1]))
        ]
        if cells:
            tables.append({"title": title, "columns": columns, "rows": cells})
    return tables


def _most(shares: Mapping[str, float]) -> float:
    return max((s for rule, s in shares.items() if rule not in ("P", "validation", "cases")), default=0.0)


def _cell(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}" if share < 100 else f"{share:.0e}"


def _colour(share: float | None) -> str:
    """The class of a cell."""
    if share is None:
        return "heat-0"
    return "fails" if share > 1 else f"heat-{sum(share >= step for step in HEAT)}"


def _coverage(summary: Summary) -> list[tuple[str, int, int, list[tuple[str, int]]]]:
    """Group, labels reached, labels there are, and each label with its number of cases, the rarest first."""
    groups: dict[str, list[tuple[str, int]]] = {}
    lacking = set(summary["not_asked"])
    for label, count in summary["coverage"].items():
        if label not in lacking:
            group, _, name = label.partition(" ")
            groups.setdefault(group, []).append((name, count))
    return [
        (group, sum(1 for _, n in labels if n), len(labels), sorted(labels, key=lambda item: item[1]))
        for group, labels in groups.items()
    ]


def _time(summary: Summary) -> list[tuple[str, str, float]]:
    """What took how long: its name, its share in words, and the width of a bar in percent."""
    seconds = summary["seconds"]
    busy = sum(seconds.values())
    ordered = sorted(seconds.items(), key=lambda item: -item[1])
    return [(what, f"{s / busy:.0%}, {s:.1f} s", round(100 * s / busy, 1)) for what, s in ordered if busy and s > 0]
