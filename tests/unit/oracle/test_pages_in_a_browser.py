"""Every page in headless Chromium: dark and light, as wide as a phone, a tablet and a desk.

Looked at: nothing on the console, no request to anybody, nothing wider than the window, text that can be read.
"""

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from matplotlib.figure import Figure

from oracle import files
from oracle.bench import report as bench_report
from oracle.bench.measure import Timing
from oracle.blame import report
from oracle.cases import case as c
from oracle.memory import outcome
from oracle.memory import report as memory_report
from oracle.memory.baseline import Known
from oracle.memory.gates import Row, judge
from oracle.memory.panel import PANEL
from oracle.memory.probe import STEPS, Measured
from oracle.pages import templates
from oracle.pages.html import COLOURS, inline, styled, svg
from oracle.rules.verdict import Divergence, Suspect
from oracle.runs import diff, history, page, told
from oracle.runs.closer import Closer
from oracle.runs.drawn import drawing
from oracle.runs.page import Beside
from oracle.runs.result import Failed
from oracle.runs.runner import Plan, Run
from oracle.systems.trace import Failure
from oracle.systems.workloads import WORKLOADS
from oracle.trust import kill_page, kill_table

playwright = pytest.importorskip("playwright.sync_api", reason="NOT CHECKED IN A BROWSER: playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="NOT CHECKED IN A BROWSER: there is no chromium; apt-get install chromium"
)
WIDTHS = (390, 800, 1200)
MODES = ("light", "dark")
CONTRAST = 4.5  # WCAG AA, for text of any size

# Each text with its colour, and the colour of what lies below it, as the browser has computed them.
UNREADABLE = """
limit => {
  const parse = text => {
    const n = (text.match(/[\\d.]+(e-?\\d+)?/g) || []).map(Number);
    if (text.startsWith('rgb')) return [n[0] / 255, n[1] / 255, n[2] / 255, n.length > 3 ? n[3] : 1];
    if (text.startsWith('color(srgb')) return [n[0], n[1], n[2], n.length > 3 ? n[3] : 1];
    return [0, 0, 0, 0];
  };
  const over = (a, b) => [0, 1, 2].map(i => a[i] * a[3] + b[i] * (1 - a[3])).concat([1]);
  const light = c => {
    const [r, g, b] = c.map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = element => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) layers.push(parse(getComputedStyle(e).backgroundColor));
    return layers.reduceRight((below, layer) => over(layer, below), [1, 1, 1, 1]);
  };
  document.querySelectorAll('details').forEach(d => { d.open = true; });
  const found = [], walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let seen = 0;
  for (let node; (node = walk.nextNode());) {
    const e = node.parentElement;
    if (!node.data.trim() || ['STYLE', 'SCRIPT', 'style', 'title', 'desc'].includes(e.tagName)) continue;
    seen += 1;
    const style = getComputedStyle(e), below = ground(e);
    const colour = over(parse(e instanceof SVGElement ? style.fill : style.color), below);
    const [a, b] = [light(colour), light(below)].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < limit) found.push(`${node.data.trim().slice(0, 30)}: ${ratio.toFixed(2)}`);
  }
  return [seen, found];
}
"""
TOO_WIDE = """
() => {
  document.querySelectorAll('details').forEach(d => { d.open = true; });
  const root = document.documentElement, window_ = root.clientWidth;
  const scrolls = e => { for (; e; e = e.parentElement)
    if (['auto', 'scroll'].includes(getComputedStyle(e).overflowX)) return true; return false; };
  const found = [...document.body.querySelectorAll('*')].filter(
    e => e.getBoundingClientRect().right > window_ + 0.5 && !(e.ownerSVGElement || scrolls(e.parentElement)));
  const names = found.slice(0, 5).map(e => `${e.tagName}: ${e.textContent.trim().slice(0, 30)}`);
  return root.scrollWidth > window_ ? [`the page is ${root.scrollWidth} wide`, ...names] : names;
}
"""


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as p:
        chromium = p.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"] if hasattr(os, "geteuid") and not os.geteuid() else []
        )
        yield chromium
        chromium.close()


def faults_of(browser, path):
    """What is wrong with a page, in words."""
    return [f"{mode}{what}" for mode in MODES for what in faults_in(browser, path, mode)]


def faults_in(browser, path, mode):
    found = []
    context = browser.new_context(color_scheme=mode, offline=True)
    page = context.new_page()
    page.on("console", lambda message: found.append(f": console: {message.text}"))
    page.on("pageerror", lambda error: found.append(f": error: {error}"))
    page.on("request", lambda request: found.append(f": request: {request.url}"))
    page.set_viewport_size({"width": WIDTHS[0], "height": 900})
    page.goto(path.as_uri())
    assert found.pop(0) == f": request: {path.as_uri()}"
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        found += [f", {width}: too wide: {what}" for what in page.evaluate(TOO_WIDE)]
    seen, dim = page.evaluate(UNREADABLE, CONTRAST)
    assert seen > 0
    found += [f": hard to read: {what}" for what in dim]
    unnamed = page.evaluate("() => [...document.querySelectorAll('svg')].filter(s => !s.querySelector('title')).length")
    found += [f": {unnamed} plots without a title"] * bool(unnamed)
    twice = page.evaluate(
        "() => { const ids = [...document.querySelectorAll('[id]')].map(e => e.id); return ids.length - new Set(ids).size; }"
    )
    found += [f": {twice} ids are not unique"] * bool(twice)
    context.close()
    return found


# -- the pages, with what makes each of them wide, long or odd --------------------------------------------------------


def diff_page(path, failures=(), judged=(), before=0, **changes):
    """A page of a diff run; the cases of ``judged`` are judged for it."""
    run = Run(Plan(seed=3, cases=100, workers=2, folder=Path("reports/latest")), wall=12.5)
    for case in judged:
        run.result.judge(case, validate=True)
    run.failures = [Failed(case, part, count=7) for case, part, _ in failures]
    summary = {**diff.to_json(run), **changes}
    beside = [b for _, _, b in failures][: page.SHOWN]
    for _, (case, part, b) in zip(range(page.SHOWN), failures, strict=False):
        b.drawn = drawing(case, part.name)
    runs = [history.entry(summary, f"2026-01-{day + 1:02} 09:00 UTC", "0123abc") for day in range(before + 1)]
    path.write_text(page.html(summary, beside, runs), "utf-8")


LONG = "a_name_that_never_ends_" * 12
NESTED = c.TrainCase(
    model=(
        c.Residual((c.Linear(8), c.Branch((c.Residual((c.Tanh(),)),), (c.LayerNorm(), c.ReLU())), c.BatchNorm())),
        c.Ops((c.OpStep("exp", (0,)), c.OpStep("tanh", (1,)))),
        c.Sequential((c.Sequential((c.Sequential((c.Sequential((c.Sequential((c.Dropout(0.5),)),)),)),)),)),
        c.Linear(3),
    ),
    data=c.Data(rows=4, features=8, offset=-1e30, atoms=(c.Atom(1, 2.5),)),
    loss=c.SoftmaxLoss(), optimizer=c.Adam(lr=0.1), seed=1, steps=12, clip=c.Clip(1.0),
)  # fmt: skip
OPERATION = c.OpCase(op="add", operands=(c.Operand((9, 1), tuple(range(9))), c.Operand((3,), (1.0, "nan", 2.0))))
FLAT = c.TrainCase(
    model=(c.Linear(2), c.Tanh()), data=c.Data(rows=2, features=2), loss=c.MSELoss(), optimizer=c.SGD(lr=0.1), seed=0
)


def red(folder):
    """Numbers that part, an exception, and more entries than are shown in full."""
    suspect = Suspect("Tanh backward", "layer 0.1.left.0.0", words=LONG, line="needle/ops.py:607")
    numbers = Divergence(
        3, "adjoint", "0.1.left.0.0", "G", "needle's adjoint differs", (13, 3), 3414.10986, 3265.4502,
        3265.45036, "float32", 1.5e2, 0.028, suspect=suspect,
    )  # fmt: skip
    raises = Divergence(0, "exception in forward", "IndexError", "exception", "needle raises",
                        failure=Failure("forward", "IndexError", LONG, "needle/ops.py:9 in compute"))  # fmt: skip
    curve = [1.9, 1.2, 0.9, float("inf"), 0.7]
    looked = Closer(list(range(5)), curve, [1.9, 1.1, 0.8, 0.75, 0.7], [1, 3, 5], [0.2, 5e3, 7e8])
    source = [(n, f"    text {LONG}" * (n == 5), n == 5) for n in range(1, 9)]
    first = Beside(looked=looked, source=source, files=[("script", f"python {LONG}.py"), ("keep", "mv a b")])
    others = [(OPERATION, raises, Beside()) for _ in range(5)]
    failures = [(NESTED, numbers, first), *others]
    diff_page(folder / "red.html", failures, [OPERATION], before=2, exit_code=1, exit_codes=[1], notes=[LONG])


def needle(path):
    entry = SimpleNamespace(sentence=f"{LONG} is not what the course says", program=f"import needle\n{LONG}")
    entries = [(entry, [("case", LONG), ("replay", "x")], severity) for severity in ("wrong", "hint")]
    rows = [("judged", LONG), ("", "x")]
    texts = {"folder": LONG, "made": "2026-01-01", "verdict": "2 entries"}
    path.write_text(templates.render(told.TEMPLATE, **texts, entries=entries, rows=rows), "utf-8")


def memory(folder, name, **changes):
    row = {"live": [500] * (STEPS + 1), "blocks": [5] * (STEPS + 1)} | changes
    zeros = [0] * (STEPS + 1)
    measured = Measured(row["live"], row["blocks"], zeros, zeros, 0, 10_000, 500, 7.5)
    rows = [
        Row(model, PANEL[model], panel=True, runs={"malloc": measured}, torch=measured, by_hand=measured,
            known=Known("", 9_000, 500, 7.5, []), replay="nox -s memory")
        for model in list(PANEL)[:3]
    ]  # fmt: skip
    run = outcome.Run(
        outcome.Plan(0, 0, 1, folder=folder, baseline=folder / "none.json"), {"python": "3"}, "0123abc", rows
    )
    for row in rows:
        judge(row)
    folder.mkdir()
    files.save(folder / "earlier/memory.json", msgspec.json.encode(memory_report.to_json(run)))
    (folder / name).write_text(memory_report.html(run), "utf-8")


def bench(folder, **changes):
    def timing(**costs):
        cpu = {name.replace("_", " "): [cost * 1e-6 * k for k in (1, 2, 3)] for name, cost in costs.items()}
        return Timing(cpu, cpu)

    names = ["limit", "needle", "torch", "torch fused", "MyGrad", "HIPS autograd", "JAX"]
    each = timing(limit=20, needle=50, torch=300, torch_fused=250, MyGrad=900, HIPS_autograd=800, JAX=30)
    results = bench_report.Results(1, 3, 0.01, names, workloads=dict.fromkeys(WORKLOADS, each))
    results.extras.ops = {"x + y": timing(needle=3.0, torch=4.0, numpy=2.0)}
    results.extras.depth = {d: timing(needle=3.0 * d, torch=4.0 * d) for d in (100, 1000)}
    results.extras.width = {w: timing(limit=1.0 * w, needle=2.0 * w, torch=3.0 * w) for w in (1, 10)}
    report.dump(folder / "bench.json", bench_report.as_json(results))
    bench_report.write(results if not changes else bench_report.Results(1, 3, 0.01, names, **changes), folder)


def kills(path, **more):
    """The committed table, with two faults more: one that lives and was killed before, one that could not be judged."""
    table = json.loads(kill_table.BASELINE.read_text("utf-8"))
    alive = {"name": LONG, "about": LONG, "killed": False, "cases": None, "right": 0.0, "kills": [], "error": ""}
    table["faults"] += [{**table["faults"][0], **alive}, {**table["faults"][1], **alive, "error": f"a\n{LONG}"}]
    path.write_text(kill_page.html(table, {LONG: 3.0}, made="2026-01-01", of=len(table["faults"]) + 1, **more), "utf-8")


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    red(folder)
    diff_page(folder / "green.html", judged=[FLAT, OPERATION], before=3, exit_code=0, exit_codes=[0])
    errors = {"oracle_errors": [LONG] * 3, "harness_errors": ["Traceback\n" + LONG], "interrupted": True}
    diff_page(folder / "bare.html", exit_code=3, exit_codes=[3, 4, 130], **errors)
    needle(folder / "needle.html")
    memory(folder / "m", "memory.html", live=[500 + t for t in range(STEPS + 1)])
    memory(folder / "flat", "memory.html")
    kills(folder / "faults.html", interrupted=True)
    bench(folder / "b")
    bench(folder / "i", complete=False)
    return {
        "red": folder / "red.html", "green": folder / "green.html", "bare": folder / "bare.html",
        "needle": folder / "needle.html",
        "kill table": folder / "faults.html",
        "memory": folder / "m/memory.html", "memory flat": folder / "flat/memory.html",
        "bench": folder / "b/bench.html", "bench interrupted": folder / "i/bench.html",
    }  # fmt: skip


@pytest.mark.parametrize(
    "name", ["red", "green", "bare", "needle", "memory", "memory flat", "kill table", "bench", "bench interrupted"]
)
def test_a_page_can_be_read_anywhere(browser, pages, name):
    assert faults_of(browser, pages[name]) == []


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ("<p style='width: 500px'>x</p>", "390: too wide"),
        ("<p>" + "x" * 40 + "</p><style>body { overflow-wrap: normal }</style><p>" + "w" * 400 + "</p>", "too wide"),
        ("<p style='color: #999'>x</p>", "light: hard to read: x"),
        ("<p style='color: #333'>x</p>", "dark: hard to read: x"),
        ("<svg><text fill='#111' y='9'>plot</text><title>t</title></svg>", "dark: hard to read: plot"),
        ("<img src='http://127.0.0.1:9/x.png'>x", "request: http://127.0.0.1:9/x.png"),
        ("x<script>console.error('oh')</script>", "console: oh"),
        ("x<script>throw new Error('no')</script>", "error: no"),
        ("x<svg></svg>", "1 plots without a title"),
        ("<i id='a'>x</i><b id='a'>x</b>", "1 ids are not unique"),
    ],
)
def test_a_planted_fault_of_a_page_is_found(browser, tmp_path, body, what):
    template = tmp_path / "page.html"
    template.write_text(
        '{% extends "base.html" %}{% block title %}t{% endblock %}{% block content %}' + body + "{% endblock %}",
        "utf-8",
    )
    page = tmp_path / "made.html"
    page.write_text(templates.render(template), "utf-8")
    found = faults_of(browser, page)
    assert any(what in line for line in found), found


def test_a_plot_of_a_fixed_colour_is_hard_to_read_in_one_of_the_modes(browser, tmp_path):
    """What the palette is for: matplotlib's own black text is lost on a dark page."""

    def made(colour):
        with styled():
            figure = Figure()
            figure.subplots().set_title("words", color=colour)
            template, page = tmp_path / "page.html", tmp_path / "made.html"
            template.write_text('{% extends "base.html" %}{% block content %}x{{ plot }}{% endblock %}', "utf-8")
            page.write_text(templates.render(template, plot=inline(svg(figure), "a plot")), "utf-8")
        return faults_of(browser, page)

    assert made(COLOURS["ink"]) == []
    assert [line.split(":")[0] for line in made("#000001")] == ["dark"]
