"""What a run found, as a table in the terminal, as JSON, as a plot, and as one page that opens offline.

Ratios are medians over rounds of costs measured in the same round, with the range. A target is judged on the
number that is shown, to two decimals.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from rich.text import Text

from oracle import files
from oracle.bench import extras, history
from oracle.bench.heap import Heap
from oracle.bench.measure import Spread, Timing
from oracle.bench.peers import ON_REQUEST
from oracle.memory import blas
from oracle.pages import terminal as pages
from oracle.pages.html import COLOURS, inline, styled, svg
from oracle.pages.made import commit
from oracle.pages.templates import render
from oracle.systems.workloads import WORKLOADS

FORMAT = 1
WIDTH = 160
"""Columns of the table where the output is not a terminal."""
TARGETS = (
    "A target is what the calls to NumPy that the gradient rules need cost on the buffers of the limit (W1 1.7, W3 1.10–1.17, "
    "W5 1.15–1.2, W6 1.05), and room for what makes them a graph: W1 1.95, W5 1.35."
)
"""Where the targets over the limit come from."""


@dataclass
class Extras:
    """None or empty: not measured."""

    import_time: Timing | None = None
    ops: dict[str, Timing] = field(default_factory=dict)
    heap: dict[str, Heap] = field(default_factory=dict)
    depth: dict[int, Timing] = field(default_factory=dict)
    width: dict[int, Timing] = field(default_factory=dict)
    second: Timing | None = None
    adam: dict[str, Timing] = field(default_factory=dict)


@dataclass
class Results:
    threads: int
    rounds: int
    burst: float
    names: list[str]
    workloads: dict[str, Timing] = field(default_factory=dict)
    extras: Extras = field(default_factory=Extras)
    complete: bool = True

    def timed(self) -> Iterable[tuple[str, Timing]]:
        """The workloads with at least one complete round."""
        return ((key, timing) for key, timing in self.workloads.items() if timing.rounds)


def met(value: float, target: float) -> bool:
    return round(value, 2) <= target


# --- terminal


def terminal(results: Results, console: Console) -> None:
    if any(results.timed()):
        console.print(workload_table(results))
    threads = "1 thread" if results.threads == 1 else f"{results.threads} threads"
    console.print(
        f"[dim]Process CPU time, {threads}; medians of per-round ratios (min–max) over {results.rounds} "
        f"rounds of interleaved bursts of {results.burst * 1e3:.0f} ms. BLAS kernel {blas.read_back()}. limit: NumPy by hand. "
        f"✗: needle misses its target. {TARGETS}[/]"
    )
    for line in extra_lines(results.extras):
        console.print(line)
    if results.extras.ops:
        console.print(op_table(results.extras.ops))
    if not results.complete:
        console.print("[bold]interrupted:[/bold] the table holds what was measured until then")


def workload_table(results: Results) -> Table:
    others = [name for name in results.names if name not in ("limit", "needle")]
    columns = ["workload", "limit µs", "needle / limit", "needle / torch", *(f"{name} / limit" for name in others)]
    if results.threads > 1:
        columns.append("by the clock: needle / torch")
    table = pages.table(columns, left=("workload",), title="needle: cost of a training step")
    for key, timing in results.timed():
        workload = WORKLOADS[key]
        row: list[str | Text] = [f"{key:3} {workload.title}", f"{timing.cost('limit').median * 1e6:,.0f}"]
        for over, target in (("limit", workload.target_limit), ("torch", workload.target_torch)):
            ratio = timing.ratio("needle", over)
            row.append(Text(f"{_spread(ratio)} ").append(_mark(ratio.median, target)))
        for name in others:
            ratio = timing.ratio(name, "limit")
            # Those on request are for orientation; with their ranges the table would be too wide.
            row.append(f"{ratio.median:.2f}" if name in ON_REQUEST else _spread(ratio))
        if results.threads > 1:
            row.append(_spread(timing.ratio("needle", "torch", clock="wall")))
        table.add_row(*row)
    return table


def _spread(s: Spread) -> str:
    if s.median < 10:
        return f"{s.median:.2f} ({s.low:.2f}–{s.high:.2f})"
    return f"{s.median:.1f} ({s.low:.1f}–{s.high:.1f})"


def _mark(value: float, target: float | None, unit: str = "") -> Text:
    if target is None:
        return Text("")
    if met(value, target):
        return Text(f"≤ {target:g}{unit} ✓", style="green")
    return Text(f"≤ {target:g}{unit} ✗", style="bold red")


def extra_lines(found: Extras) -> list[Text]:
    lines = []

    def line(what: str, text: str, value: float | None = None, target: float | None = None, unit: str = "") -> None:
        entry = Text(f"{what:13}{text}")
        if value is not None:
            entry.append("  ").append(_mark(value, target, unit))
        lines.append(entry)

    if found.import_time:
        ratio, cost = found.import_time.ratio("needle", "numpy"), found.import_time.cost("numpy").median
        text = f"needle / numpy {_spread(ratio)}, numpy {cost * 1e3:.0f} ms"
        line("import", text, ratio.median, extras.IMPORT_TARGET)
    for name, heap in found.heap.items():
        peak = heap["peak"] / 2**20
        text = f"W3b step, {name}: {peak:.2f} MiB ({heap['tool']})"
        if name == "needle":
            text += f", {heap['cycles']} objects left to the cycle collector"
            line("peak heap", text, peak, extras.HEAP_TARGET / 2**20, " MiB")
        else:
            line("peak heap", text)
    if found.depth:
        deepest = max(found.depth)
        for name in ("needle", "torch"):
            linear = extras.Linearity.of(found.depth, name)
            cost = found.depth[deepest].cost(name).median / deepest
            text = (
                f"{name}: {cost * 1e6:.2f} µs per op at {deepest:,} ops, "
                f"{linear.growth:.2f} × that at 100 (slope {linear.slope:.2f})"
            )
            line("depth", text, *((linear.slope, extras.LINEAR) if name == "needle" else ()))
    if found.second:
        for name in ("needle", "torch"):
            first = f"{name} first"
            graph, second = (found.second.ratio(f"{name} {mode}", first) for mode in ("graph", "second"))
            text = (
                f"{name}: gradients {found.second.cost(first).median * 1e6:,.0f} µs; with a graph "
                f"{_spread(graph)} ×; gradients of their squared norm {_spread(second)} ×"
            )
            line("second order", text)
    for key, timing in found.adam.items():
        text = (
            f"parameters of {key}: needle {timing.cost('needle').median * 1e6:,.0f} µs; needle / torch "
            f"{_spread(timing.ratio('needle', 'torch'))}, / torch fused {_spread(timing.ratio('needle', 'torch fused'))}"
        )
        line("Adam alone", text)
    return lines


def op_table(ops: Mapping[str, Timing]) -> Table:
    columns = ("op", "needle", "torch", "NumPy", "needle / torch")
    table = pages.table(columns, left=("op",), title="overhead per op, forward, 1 element (µs)")
    for name, timing in ops.items():
        costs = [f"{timing.cost(who).median * 1e6:.2f}" for who in ("needle", "torch", "numpy")]
        table.add_row(name, *costs, _spread(timing.ratio("needle", "torch")))
    return table


# --- files


def write(results: Results, folder: Path) -> None:
    """bench.json, bench.svg and bench.html, and a line in the history; the page compares with what was there."""
    earlier, data = _earlier(folder / "bench.json"), as_json(results)
    runs = history.read(folder)
    if results.complete and data["workloads"]:
        runs.append(history.entry(data))
        history.add(folder, runs[-1])
    with styled():
        bars = ratio_plot(results)
        files.save(folder / "bench.svg", svg(bars, alone=True))
        files.save(folder / "bench.html", page(results, svg(bars), earlier, history.trends(runs)))
    files.save(folder / "bench.json", json.dumps(data, indent=1, ensure_ascii=False) + "\n")


def _earlier(path: Path) -> dict[str, Any] | None:
    """The run before as data; None if there is none that can be read."""
    try:
        data = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) and data.get("kind") == "bench" else None


def as_json(results: Results) -> dict[str, Any]:
    found = results.extras
    out: dict[str, Any] = {
        "format": FORMAT,
        "kind": "bench",
        "complete": results.complete,
        "environment": environment(results.threads),
        "rounds": results.rounds,
        "burst_seconds": results.burst,
        "workloads": {key: _workload_json(key, timing) for key, timing in results.timed()},
    }
    if found.import_time:
        ratio = found.import_time.ratio("needle", "numpy")
        out["import"] = {
            "seconds": _costs(found.import_time),
            "needle_over_numpy": asdict(ratio),
            "target": extras.IMPORT_TARGET,
            "met": met(ratio.median, extras.IMPORT_TARGET),
        }
    if found.heap:
        out["heap"] = {"step_of": "W3b", "target_bytes": extras.HEAP_TARGET, **found.heap}
    if found.ops:
        out["ops"] = {name: _costs(timing) for name, timing in found.ops.items()}
    if found.depth:
        out["depth"] = {
            "seconds": {str(d): _costs(timing) for d, timing in found.depth.items()},
            **{name: asdict(extras.Linearity.of(found.depth, name)) for name in ("needle", "torch")},
        }
    if found.width:
        out["width"] = {"seconds": {str(w): _costs(timing) for w, timing in found.width.items()}}
    if found.second:
        out["second_order"] = {"seconds": _costs(found.second)}
    if found.adam:
        out["adam"] = {"seconds": {key: _costs(timing) for key, timing in found.adam.items()}}
    return out


def _costs(timing: Timing) -> dict[str, dict[str, float]]:
    return {name: asdict(timing.cost(name)) for name in timing.cpu}


def _workload_json(key: str, timing: Timing) -> dict[str, Any]:
    workload = WORKLOADS[key]
    out: dict[str, Any] = {
        "title": workload.title,
        "rounds": timing.rounds,
        "seconds_per_step": _costs(timing),
    }
    for over, target in (("limit", workload.target_limit), ("torch", workload.target_torch)):
        out[f"over_{over}"] = {name: asdict(timing.ratio(name, over)) for name in timing.cpu}
        out[f"over_{over}_target"] = target
        out[f"over_{over}_met"] = target is None or met(timing.ratio("needle", over).median, target)
    out["wall_over_torch"] = {name: asdict(timing.ratio(name, "torch", clock="wall")) for name in timing.cpu}
    return out


def environment(threads: int) -> dict[str, Any]:
    """What the numbers depend on."""
    built = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": str(torch.__version__),
        "blas": f"{built.get('name')} {built.get('version')}",
        "kernel": blas.read_back(),
        "system": platform.system(),
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": threads,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


SYSTEMS = {
    "needle": "needle", "torch": "torch", "torch fused": "torch-light", "limit": "hand", "numpy": "hand",
    "MyGrad": "other-1", "HIPS autograd": "other-2", "JAX": "other-3",
}  # fmt: skip
"""What is timed, and its colour, which is the same in every plot."""
CUT = 1.35
"""A bar longer than this multiple of the longest of needle, torch and the targets is cut: it would squeeze the others."""


def ratio_plot(results: Results) -> Figure:
    """Bars from 0: cost of a step over the limit, per workload and library; a stroke is needle's target."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    axes = figure.subplots()
    names = [name for name in results.names if name != "limit"]
    timings = list(results.timed())
    width = 0.8 / max(1, len(names))
    targets = [WORKLOADS[key].target_limit for key, _ in timings]
    most = [timing.ratio(name, "limit").high for _, timing in timings for name in names if name not in ON_REQUEST]
    cut = CUT * max([1.0, *(t for t in targets if t), *sorted(most)])
    for i, name in enumerate(names):
        spreads = [timing.ratio(name, "limit") for _, timing in timings]
        at = [j - 0.4 + (i + 0.5) * width for j in range(len(timings))]
        errors = [[s.median - s.low for s in spreads], [s.high - s.median for s in spreads]]
        if spreads:
            bars = axes.bar(
                at, [s.median for s in spreads], width, yerr=errors, label=name, color=COLOURS[SYSTEMS[name]],
                error_kw={"lw": 0.8, "capsize": 2, "ecolor": COLOURS["ink"]},
            )  # fmt: skip
            for bar, s in zip(bars, spreads, strict=True):
                beyond = s.median > cut
                axes.annotate(
                    f"{s.median:.1f} ↑" if beyond else f"{s.median:.2f}", (bar.get_x() + width / 2, min(s.high, cut)),
                    (0, 3), textcoords="offset points", ha="center", fontsize=7, color=COLOURS["ink"],
                    rotation=90 if beyond else 0, annotation_clip=False,
                )  # fmt: skip
    for j, target in enumerate(targets):
        if target:
            axes.hlines(target, j - 0.4, j - 0.4 + width, color=COLOURS["ink"], lw=2)
    axes.axhline(1, color=COLOURS["axis"], lw=0.8)
    axes.set_ylim(0, cut)
    labels = [f"{key}\n{WORKLOADS[key].title.partition(',')[0]}" for key, _ in timings]
    axes.set_xticks(range(len(timings)), labels)
    axes.tick_params("x", labelsize=7)
    axes.set_ylabel("cost of a step / NumPy by hand")
    title = "Cost of a step over the limit: median with the range of the rounds; the thick stroke is needle's target"
    axes.set_title(
        title, pad=36 if any("↑" in text.get_text() for text in axes.texts) else 6
    )  # above bars that are cut
    if timings:
        figure.legend(fontsize=8, ncols=len(names), loc="outside lower center")
    return figure


def trend_plot(trends: Mapping[str, list[list[float]]]) -> Figure:
    """needle over the limit, run after run, a plot per workload: the median, the range of the rounds, the target."""
    figure = Figure(figsize=(11, 2.2), layout="constrained")
    for axes, (key, spreads) in zip(figure.subplots(1, len(trends), squeeze=False)[0], trends.items(), strict=True):
        at, (medians, lows, highs) = range(1, len(spreads) + 1), zip(*spreads, strict=True)
        axes.fill_between(at, lows, highs, color=COLOURS["needle"], alpha=0.2, lw=0)
        axes.plot(at, medians, marker="o", ms=3, color=COLOURS["needle"])
        target = WORKLOADS[key].target_limit if key in WORKLOADS else None
        if target:
            axes.axhline(target, color=COLOURS["ink"], lw=1)
        axes.set_xticks([1, len(spreads)])
        axes.set_title(key)
    return figure


def scaling_plot(found: Extras) -> Figure:
    """Cost against depth, cost per op against depth, cost against width."""
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    by_depth, per_op, by_width = figure.subplots(1, 3)
    _lines(by_depth, found.depth, "ops in the chain", "seconds, forward + backward")
    by_depth.set_title("Cost over depth")
    _lines(per_op, found.depth, "ops in the chain", "µs per op", per_key=1e6)
    per_op.set_title("Cost per op over depth")
    per_op.set_yscale("linear")
    per_op.set_ylim(bottom=0)
    _lines(by_width, found.width, "width of MLP w-w-w, batch 32", "seconds per step")
    by_width.set_title("Cost over width")
    return figure


def _lines(axes: Axes, timings: Mapping[int, Timing], x: str, y: str, per_key: float = 0.0) -> None:
    for name in next(iter(timings.values())).cpu if timings else ():
        costs = [t.cost(name).median * (per_key / key if per_key else 1) for key, t in timings.items()]
        axes.plot(list(timings), costs, marker="o", ms=3, label=name, color=COLOURS[SYSTEMS[name]])
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid()
    if timings:
        axes.legend(fontsize=8)


def page(
    results: Results, bars: str, earlier: dict[str, Any] | None, trends: Mapping[str, list[list[float]]] | None = None
) -> str:
    """One HTML page, without links to anything; ``earlier`` is the data of the run before, ``trends`` those of all that can
    be compared.
    """
    found = results.extras
    others = [name for name in results.names if name not in ("limit", "needle")]
    rows: list[dict[str, Any]] = []
    now = environment(results.threads)
    for key, timing in results.timed():
        workload = WORKLOADS[key]
        judged = []
        for over, target in (("limit", workload.target_limit), ("torch", workload.target_torch)):
            ratio = timing.ratio("needle", over)
            fine = target is None or met(ratio.median, target)
            judged.append({"ratio": _spread(ratio), "target": target, "met": fine})
        rows.append(
            {
                "name": f"{key} {workload.title}",
                "limit": f"{timing.cost('limit').median * 1e6:,.0f}",
                "judged": judged,
                "was": _was(earlier, key),
                "others": [_spread(timing.ratio(name, "limit")) for name in others],
            }
        )
    targets = [j["met"] for row in rows for j in row["judged"] if j["target"] is not None]
    return render(
        Path(__file__).with_name("page.html"),
        results=results,
        environment=now,
        why=TARGETS,
        trend=inline(
            svg(trend_plot(trends)), "needle over the limit, run after run", "bench-history.jsonl has the numbers"
        )
        if trends and max(map(len, trends.values())) > 1
        else "",
        judged=len(targets),
        missed=targets.count(False),
        earlier=_about(earlier, now),
        others=others,
        rows=rows,
        bars=inline(
            bars, "Cost of a training step over the limit", "Bars per workload and library; the table has the numbers"
        ),
        scaling=inline(svg(scaling_plot(found)), "Cost over depth and width, needle and torch")
        if found.depth and found.width
        else "",
        lines=[line.plain for line in extra_lines(found)],
        ops=[
            (name, *(f"{t.cost(who).median * 1e6:.2f}" for who in ("needle", "torch", "numpy")))
            for name, t in found.ops.items()
        ],
    )


def _was(earlier: dict[str, Any] | None, key: str) -> str:
    """needle over the limit in the run before."""
    try:
        return f"{earlier['workloads'][key]['over_limit']['needle']['median']:.2f}" if earlier else "-"
    except (LookupError, TypeError, ValueError):
        return "-"


def _about(earlier: dict[str, Any] | None, now: dict[str, Any]) -> dict[str, Any] | None:
    """When the run before was, of which commit, and what of its environment is another one."""
    if earlier is None:
        return None
    then = dict(earlier.get("environment") or {})
    other = [f"{k} {then.get(k)}" for k in now if k not in ("when", "commit") and then.get(k) != now[k]]
    return {"when": then.get("when", "an unknown date"), "commit": then.get("commit"), "other": ", ".join(other)}
