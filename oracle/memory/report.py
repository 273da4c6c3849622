"""The memory-regression report: terminal, Markdown, JSON and one HTML page that opens offline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.text import Text

from oracle import files
from oracle.cases import case as c
from oracle.commands import command
from oracle.memory import baseline, course
from oracle.memory.gates import GATES, Row, moved
from oracle.memory.outcome import Run
from oracle.memory.probe import FIRST, STRIDE, Measured
from oracle.pages.html import COLOURS, inline, styled, svg
from oracle.pages.made import now
from oracle.pages.markdown import table as markdown_table
from oracle.pages.templates import render
from oracle.pages.terminal import table

WIDTH = 120
DESCRIBED = 200  # characters of a model's description
PLOTTED = 12  # generated models in the page's plots; failing ones always
ACCEPT = command("memory", panel_only=True, accept=True)
TEMPLATE = Path(__file__).with_name("page.html")
HEADINGS = (
    "model", "growth", "blocks", "cycles", "graphs", "peak", "live end", "allocs", "torch", "NumPy", "baseline", "verdict",
)  # fmt: skip
WORDS = ("model", "verdict")
UNITS = (
    "growth: bytes, over steps 20 to 120; blocks: the same in allocated blocks; cycles: objects left to the cycle "
    "collector; graphs: live Tensors with an op after loss and gradients were dropped; peak and live end: bytes; allocs: "
    "allocations per step; torch, NumPy: needle's peak against theirs; baseline: the number that has changed most, against "
    "the accepted one; !: the number that fails its gate"
)


# -- one row ----------------------------------------------------------------------------------------------------------


def cells(row: Row) -> list[str]:
    """What the table says of a row; the worst of its runs for what must be zero."""
    if row.course:
        return course.cells(row)
    m = row.main
    if m is None:
        return [row.name, *["-"] * (len(HEADINGS) - 2), "not measured"]
    if row.errors:
        return [row.name, *["-"] * (len(HEADINGS) - 2), "error"]
    runs = list(row.runs.values())
    texts = [
        row.name,
        f"{max(r.growth[0] for r in runs):,}",
        f"{max(r.growth[1] for r in runs):,}",
        f"{max(max(r.collected[1:], default=0) for r in runs):,}",
        f"{max(r.with_graph for r in runs):,}",
        f"{m.peak:,}",
        f"{m.end:,}",
        f"{m.allocations:,g}",
        _ratio(row, row.torch),
        _ratio(row, row.by_hand),
        _delta(row),
        "FAILS " + " ".join(sorted(row.failures)) if row.failures else "better" if row.better else "ok",
    ]
    return [text + "!" * (column in row.marked) for column, text in zip(HEADINGS, texts, strict=True)]


def _ratio(row: Row, other: Measured | None) -> str:
    """needle's peak as a multiple of another one's."""
    return f"x{row.main.peak / other.peak:.2f}" if other is not None and other.peak and row.main is not None else "-"


def _delta(row: Row) -> str:
    measured = row.runs.get("malloc")
    if row.known is None or measured is None:
        return "none" if row.panel else "-"
    return row.changes[0 if row.changes[0].worse else -1].short if row.changes else "same"


def block(row: Row) -> str:
    """What a failing row says for itself."""
    if row.course:
        return "\n".join(course.lines(course.of_row(row)))
    lines = [f"gate {gate}: {text}" for gate, text in sorted(row.failures.items())]
    lines += [f"  held by  {holder}" for holder in row.holders]
    if not row.holders and set(row.failures) - {"D"}:
        lines.append("  held by  nothing that references from the loop, from needle or from any module lead to")
    run = _worst(row)
    if run is not None and set(row.failures) - {"D"}:
        for site in run.survivors[:5]:
            size = f"{site.size:,} B in {site.blocks:,} blocks"
            lines.append(f"  born at  {site.where}, in {site.births} steps, {size}: {site.line}")
    if "D" in row.failures and row.known is not None and row.main is not None:
        lines += [f"  changed  {text}" for text in moved(row.main, row.known)]
        lines.append(
            f"  way out  none of it is meant: mend needle; it is: `{ACCEPT}`, and commit the file with the reason"
        )
    lines += [f"  less     {change}" for change in row.better]
    if row.flame:
        lines.append(f"  flames   {row.flame}")
    model = c.describe(row.case)
    model = model if len(model) <= DESCRIBED else f"{model[:DESCRIBED]} …"
    lines += [f"  case     {row.name}: {model}", f"  replay   {row.replay}"]
    return "\n".join(lines)


def _worst(row: Row) -> Measured | None:
    """The run that tells most about survivors: the one in which small objects were traced, if there is one."""
    return row.runs.get("python") or row.main


# -- terminal ---------------------------------------------------------------------------------------------------------


def terminal(run: Run, console: Console) -> None:
    """The table; failures; the verdict comes last."""
    shown = table(_headings(run), WORDS, gap=1)
    for row in run.rows:
        shown.add_row(*(Text(text, style="bold red" if _is_bad(text) else "") for text in cells(row)))
    console.print(shown)
    console.print(_facts(run), style="dim", soft_wrap=True, markup=False)
    console.print()
    if run.plan.course:
        _findings(run, console)
    for row in run.failed if not run.plan.course else ():
        console.print(block(row), soft_wrap=True, markup=False)
        console.print()
    for row, error in run.errors if not run.plan.course else ():
        console.print(f"{row.name} was not measured: {error}", soft_wrap=True, markup=False, style="yellow")
    if run.interrupted:
        console.print(f"[bold yellow]interrupted[/] after {run.done} of {run.jobs} measurements")
    if run.accepted:
        console.print(f"{run.plan.baseline} rewritten; commit it with the reason")
    console.print(f"pages in {run.plan.folder}: memory.html, memory.md, memory.json", style="dim")
    console.print(verdict(run))


def _state(run: Run) -> str:
    if run.plan.course:
        return course.verdict(run)[0]
    return "bad" if run.failed else "open" if run.errors or run.interrupted else "good"


def _findings(run: Run, console: Console) -> None:
    for line in course.lines(course.findings(run)):
        console.print(line, soft_wrap=True, markup=False, style="bold" if line[:1].isdigit() else None)
    for text in course.by_design(run):
        console.print(f"no failure: {text}", soft_wrap=True, markup=False)


def _headings(run: Run) -> tuple[str, ...]:
    return course.HEADINGS if run.plan.course else HEADINGS


def _is_bad(text: str) -> bool:
    """Whether a cell is the one that fails, or says so."""
    return text.endswith("!") or text.startswith("FAILS") or text in ("error", "grows")


def verdict(run: Run) -> str:
    """The last line."""
    if run.plan.course:
        state, text = course.verdict(run)
        return {"bad": "[bold red]{}[/]", "good": "[bold green]{}[/]", "open": "[bold yellow]{}[/]"}[state].format(text)
    if run.failed:
        return f"[bold red]{len(run.failed)} of {len(run.rows)} models fail a memory gate[/]"
    if run.errors:
        return f"[bold yellow]{len(run.errors)} models could not be measured[/]"
    if run.interrupted:
        return f"no verdict: {len(run.rows)} models so far, all flat"
    return f"[bold green]memory is flat[/]: 0 bytes, 0 blocks, 0 objects in {len(run.rows)} models; {run.wall:.0f} s"


def _facts(run: Run) -> str:
    if run.plan.course:
        return course.UNITS
    lines = [UNITS, ", ".join(f"{k} {v}" for k, v in run.key.items()) + f", commit {run.commit or 'none'}"]
    if run.baseline_key is None:
        lines.append(f"no baseline yet, gate D is not judged: `{ACCEPT}` writes one")
    elif run.baseline_key != run.key:
        other = ", ".join(f"{k} {v}" for k, v in run.baseline_key.items() if run.key.get(k) != v)
        lines.append(
            f"the baseline was made with {other}: ratios only, gate D is not judged; `{ACCEPT}` adds an entry for this key"
        )
    for row in run.rows:
        if row.better and not row.failures:
            changes = "; ".join(str(change) for change in row.better)
            lines.append(f"{row.name} is better than the baseline: {changes}; `{ACCEPT}` makes it the new one")
    return "\n".join(lines)


def steps(row: Row, console: Console) -> None:
    """The boundary series of one case, for replay."""
    run = row.main
    if run is None or run.error:
        return
    shown = table(("after step", "live B", "blocks", "collector", "Tensors"), left=())
    for t in range(FIRST, len(run.live), STRIDE):
        series = (run.live[t] - run.live[FIRST], run.blocks[t] - run.blocks[FIRST], run.collected[t], run.tensors[t])
        shown.add_row(str(t), *(f"{n:+,}" if n else "0" for n in series))
    console.print(f"{row.name}: {c.describe(row.case)}", soft_wrap=True, markup=False)
    console.print(shown)


# -- files ------------------------------------------------------------------------------------------------------------


def write_case(row: Row, folder: Path) -> None:
    """``<digest>.json`` to replay and ``<digest>.md`` to read."""
    files.save(folder / f"{row.case.digest}.json", c.encode(row.case))
    text = f"# {row.case.digest}: memory\n\n```\n{block(row)}\n```\n\n```json\n{c.encode(row.case).decode()}```\n"
    files.save(folder / f"{row.case.digest}.md", text)


def write(run: Run, folder: Path) -> None:
    """memory.json, memory.md and memory.html."""
    data = msgspec.json.format(msgspec.json.encode(to_json(run)), indent=1)
    files.save(folder / "memory.json", data + b"\n")
    files.save(folder / "memory.md", markdown(run))
    files.save(folder / "memory.html", html(run))


def to_json(run: Run) -> dict[str, Any]:
    """Everything, as data."""
    return {
        "key": run.key,
        "when": now(),
        "commit": run.commit,
        "baseline_key": run.baseline_key,
        "seed": run.plan.seed,
        "interrupted": run.interrupted,
        "wall_seconds": round(run.wall, 1),
        "exit_code": run.exit_code,
        "rows": [
            {
                "name": row.name,
                "panel": row.panel,
                "model": c.describe(row.case),
                "digest": row.case.digest,
                "replay": row.replay,
                "failures": row.failures,
                "hints": row.hints,
                "keepers": row.keepers,
                "places": row.places,
                "changes": [str(change) for change in row.changes],
                "holders": row.holders,
                "flame_graph": row.flame,
                "runs": {
                    mode: {**msgspec.to_builtins(m), "growth": m.growth if m.live else None}
                    for mode, m in row.runs.items()
                },
                "torch_peak": row.torch.peak if row.torch else None,
                "numpy_peak": row.by_hand.peak if row.by_hand else None,
                "baseline": msgspec.to_builtins(row.known) if row.known else None,
            }
            for row in run.rows
        ],
    }


def markdown(run: Run) -> str:
    """The table and the failures."""
    text = ["# Memory of needle", "", verdict(run).replace("[bold green]", "**").replace("[bold red]", "**")
            .replace("[bold yellow]", "**").replace("[/]", "**") + "  ", _facts(run), ""]  # fmt: skip
    text += markdown_table(_headings(run), map(cells, run.rows), WORDS)
    if run.plan.course:
        for sentence, about in course.findings(run):
            text += ["", f"## {sentence}", "", *(f"- {name}: {said}" for name, said in about)]
        return "\n".join([*text, "", *(f"- no failure: {said}" for said in course.by_design(run))]) + "\n"
    text += ["", *(f"- {gate}: {meaning}" for gate, meaning in GATES.items())]
    for row in run.failed:
        text += ["", f"## {row.name}", "", "```", block(row), "```"]
    for row, error in run.errors:
        text += ["", f"## {row.name} was not measured", "", "```", error, "```"]
    return "\n".join(text) + "\n"


# -- the page ---------------------------------------------------------------------------------------------------------


def html(run: Run) -> str:
    """One page: plots as inline SVG, no assets."""
    with styled():
        return _page(run)


def _page(run: Run) -> str:
    shown = [r for r in run.rows if r.panel or r.failures]
    others = [r for r in run.rows if not r.panel and not r.failures]
    plotted = [*shown, *others[: max(0, PLOTTED - sum(not r.panel for r in shown))]]
    return render(
        TEMPLATE,
        run=run,
        earlier=None if run.plan.course else _earlier(run.plan.folder),
        facts=[f"{now()}, seed {run.plan.seed}", *_facts(run).split("\n")],
        verdict=verdict(run).partition("]")[2].replace("[/]", "") if "]" in verdict(run) else verdict(run),
        state=_state(run),
        findings=list(course.findings(run)) if run.plan.course else [],
        by_design=course.by_design(run) if run.plan.course else [],
        headings=_headings(run),
        rows=[(row, [(text, _is_bad(text)) for text in cells(row)]) for row in run.rows],
        failed=[(row, block(row), _failure_plot(row)) for row in run.failed if not run.plan.course],
        gates=GATES,
        series=_series_plot([r for r in plotted if r.main is not None and not r.errors]),
        left_out=max(0, len(run.rows) - len(plotted)),
        peaks=_peaks_plot([r for r in run.rows if r.panel and r.main is not None and not r.errors]),
        trend=_trend_plot(baseline.history(run.plan.baseline), run.key),
    )


INK, NEEDLE, TORCH, HAND, BAD = (COLOURS[name] for name in ("ink", "needle", "torch", "hand", "bad"))


def _earlier(folder: Path) -> dict[str, Any] | None:
    """Date, commit and peaks of the run before, whose report was set aside; None if there is none that can be read."""
    try:
        data = msgspec.json.decode((folder / files.EARLIER / "memory.json").read_bytes())
        peaks = {
            row["name"]: f"{row['runs']['malloc']['peak']:,}"
            for row in data["rows"]
            if row["panel"] and not row["runs"].get("malloc", {"error": "-"}).get("error")
        }
        return {"when": data["when"], "commit": data["commit"], "peaks": peaks}
    except (OSError, msgspec.DecodeError, LookupError, TypeError, ValueError, AttributeError):
        return None


def _figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _curve(m: Measured) -> tuple[list[int], list[float]]:
    """Live bytes after each step: every boundary before FIRST, then those that are judged.

    The jump at FIRST is the harness filling NumPy's cache, and is taken out.
    """
    before = list(range(1, min(FIRST, len(m.live))))
    judged = list(range(FIRST, len(m.live), STRIDE))
    jump = m.live[FIRST] - m.live[FIRST - 1] if judged else 0
    return [*before, *judged], [*(m.live[t] for t in before), *(m.live[t] - jump for t in judged)]


def _series_plot(rows: Sequence[Row]) -> str:
    """Live bytes over steps, a small panel per case."""
    if not rows:
        return ""
    columns = 5
    lines = -(-len(rows) // columns)
    figure, axes = _figure(11.5, 1.55 * lines + 0.3, lines, columns)
    for ax in axes.flat[len(rows) :]:
        ax.set_visible(False)
    for ax, row in zip(axes.flat, rows, strict=False):
        assert row.main is not None
        x, y = _curve(row.main)
        scale, unit = _unit(max(y))
        flat = "C" not in row.failures
        ax.axvspan(FIRST, x[-1], color=NEEDLE if flat else BAD, alpha=0.08, lw=0)
        ax.plot(x, [v / scale for v in y], color=NEEDLE, lw=1.5)
        ax.set_ylim(0, max(y) / scale * 1.25)
        ax.set_xlim(0, x[-1])
        ax.set_title(f"{row.name}, {unit}", color=INK if flat else BAD)
        ax.tick_params(length=2, labelsize=8)
    return inline(
        svg(figure), "Live bytes of needle over steps", f"A panel per model: {', '.join(r.name for r in rows)}"
    )


def _failure_plot(row: Row) -> str:
    """The boundary series of a failing case, against the first judged boundary."""
    run = _worst(row)
    if run is None or run.error or not set(row.failures) - {"D"}:
        return ""
    figure, axes = _figure(11.5, 2.3, 1, 3)
    judged = list(range(FIRST, len(run.live), STRIDE))
    plots = (
        ("live bytes against step 20", judged, [run.live[t] - run.live[FIRST] for t in judged]),
        ("live Tensors against step 20", list(range(1, len(run.tensors))), run.tensors[1:]),
        ("objects for the collector", list(range(1, len(run.collected))), run.collected[1:]),
    )
    for ax, (title, x, y) in zip(axes.flat, plots, strict=True):
        ax.plot(x, y, color=NEEDLE, lw=1.5)
        if max(y) == min(y):
            ax.set_ylim(y[0] - 1, y[0] + 1)
        wrong = max(y) > min(y) or (title.startswith("objects") and any(y))
        ax.set_title(title, color=BAD if wrong else INK)
        ax.set_xlabel("step")
    return inline(svg(figure), f"{row.name} over steps", "; ".join(row.failures.values()))


def _unit(size: float) -> tuple[float, str]:
    return (1e6, "MB") if size >= 1e6 else (1e3, "kB") if size >= 1e3 else (1.0, "B")


def _peaks_plot(rows: Sequence[Row]) -> str:
    """Peak against the baseline and the yardsticks, as multiples of the smallest bar's scale: needle = 1."""
    if not rows:
        return ""
    figure, axes = _figure(11.5, 0.5 * len(rows) + 0.9)
    ax = axes[0, 0]
    for i, row in enumerate(reversed(rows)):
        assert row.main is not None
        peak = row.main.peak
        bars = [("needle", peak, NEEDLE), ("torch", row.torch.peak if row.torch else 0, TORCH),
                ("NumPy by hand", row.by_hand.peak if row.by_hand else 0, HAND)]  # fmt: skip
        for k, (_, value, colour) in enumerate(bars):
            if value:
                ax.barh(i + 0.25 - 0.25 * k, value / peak, height=0.22, color=colour)
                scale, unit = _unit(value)
                label = f"{value / scale:.3g} {unit}" + ("" if k == 0 else f", needle x{peak / value:.2f}")
                ax.text(value / peak + 0.01, i + 0.25 - 0.25 * k, label, va="center", fontsize=7)
        if row.known is not None:
            ax.plot([row.known.peak / peak] * 2, [i + 0.12, i + 0.38], color=INK, lw=2)
    ax.set_yticks(range(len(rows)), [r.name for r in reversed(rows)])
    ax.set_xlabel("peak as a share of needle's")
    for label, colour in (("needle", NEEDLE), ("torch", TORCH), ("NumPy by hand", HAND)):
        ax.barh(0, 0, color=colour, label=label)
    ax.plot([], [], color=INK, lw=2, label="baseline")
    ax.legend(loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=4, frameon=False)
    ax.margins(y=0.02)
    ax.set_xlim(left=0)
    return inline(svg(figure), "Peaks of needle, torch and NumPy by hand", "Each as a share of needle's, by model")


def _trend_plot(history: list[tuple[str, baseline.File]], key: dict[str, str]) -> str:
    """Peaks over the git history of the baseline, each against its first."""
    points: dict[str, list[tuple[int, int]]] = {}
    names = []
    for name, file in history:
        entry, _ = baseline.entry_for(file, key)
        if entry is None:
            continue
        names.append(name)
        for case, known in entry.cases.items():
            points.setdefault(case, []).append((len(names) - 1, known.peak))
    if len(names) < 2:
        return ""
    columns = 5
    rows = -(-len(points) // columns)
    figure, axes = _figure(11.5, 1.55 * rows + 0.3, rows, columns)
    for ax in axes.flat[len(points) :]:
        ax.set_visible(False)
    most = max(p for line in points.values() for _, p in ((i, p / line[0][1]) for i, p in line if line[0][1]))
    for ax, (case, line) in zip(axes.flat, points.items(), strict=False):
        ax.plot([i for i, _ in line], [p / (line[0][1] or 1) for _, p in line], marker="o", ms=3, lw=1.5, color=NEEDLE)
        ax.set_ylim(0, 1.15 * most)
        ax.set_xlim(-0.2, len(names) - 0.8)
        ax.set_xticks([0, len(names) - 1], [names[0], names[-1]])
        ax.set_title(case)
        ax.tick_params(length=2, labelsize=8)
    return inline(svg(figure), "Peaks over the history of the baseline", "Each model's peak as a multiple of its first")
