"""What commands print and pages have in common."""

import io
import math
import re

import jinja2
import pytest
from matplotlib.figure import Figure
from rich.console import Console

from oracle.pages import charts, html, markdown, templates, terminal


def test_where_nobody_watches_progress_is_a_line_now_and_then_or_nothing():
    console = Console(file=io.StringIO(), width=80)
    with terminal.progress(console) as show:
        show("silent", 9, 9)
    assert console.file.getvalue() == ""
    with terminal.progress(console, every=3) as show:
        for done in range(8):
            show(f"piece [{done}]", done, 9)
    lines = [line.partition(": ")[2] for line in console.file.getvalue().splitlines()]
    assert lines == ["piece [3]", "piece [6]"]
    assert "3 of 9, 0 s" in console.file.getvalue()


def test_long_work_says_something_each_minute_even_where_the_count_stands(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(terminal.time, "perf_counter", lambda: now[0])
    console = Console(file=io.StringIO(), width=80)
    with terminal.progress(console, every=100) as show:
        for now[0] in (59.0, 61.0, 62.0, 100.0, 121.5):
            show("the same", 3, 9)
    assert console.file.getvalue().splitlines() == ["3 of 9, 61 s: the same", "3 of 9, 122 s: the same"]


def test_progress_on_a_terminal_is_a_bar_that_is_gone_at_the_end(monkeypatch):
    for name in ("CI", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    console = Console(file=io.StringIO(), width=80, force_terminal=True)
    with terminal.progress(console, every=1) as show:
        tick = terminal.counted(show, "the work", 2)
        tick()
    shown = console.file.getvalue()
    assert "1/2" in shown
    assert shown.endswith("\x1b[2K")
    assert "1 of 2" not in shown


@pytest.mark.parametrize(("name", "value"), [("CI", "true"), ("NO_COLOR", "1"), ("NO_COLOR", "")])
def test_nobody_watches_under_ci_or_without_colour(monkeypatch, name, value):
    console = Console(file=io.StringIO(), force_terminal=True)
    for variable in ("CI", "NO_COLOR"):
        monkeypatch.delenv(variable, raising=False)
    assert terminal.watched(console)
    monkeypatch.setenv(name, value)
    assert not terminal.watched(console)


def test_a_table_in_markdown_keeps_a_bar_inside_its_cell():
    lines = markdown.table(("what", "n"), [("a|b", "1")], left=("what",))
    assert lines == ["| what | n |", "|---|--:|", "| a\\|b | 1 |"]


def test_a_page_escapes_what_is_text_and_misses_no_name(tmp_path):
    page = tmp_path / "page.html"
    page.write_text("{{ text }}{{ plot }}", "utf-8")
    plot = html.inline('<?xml version="1.0"?>\n<svg></svg>', "a < b")
    shown = templates.render(page, text="<b>", plot=plot)
    assert shown.startswith('&lt;b&gt;<div class="plot"')
    assert 'role="img" aria-label="a &lt; b"><title>a &lt; b</title></svg>' in shown
    with pytest.raises(jinja2.UndefinedError, match="'plot' is undefined"):
        templates.render(page, text="")


def test_a_plot_in_a_page_has_colours_of_the_page_alone_and_ids_of_its_own():
    """A colour that is none of the palette would be the same in dark and light."""
    with html.styled():
        figure = Figure()
        axes = figure.subplots()
        axes.plot([1, 2], color=html.COLOURS["needle"], marker="o", label="needle")
        axes.set_title("t")
        axes.set_xlabel("x")
        axes.grid()
        axes.legend()
        image = html.svg(figure)
    plot = html.inline(image, "one plot")
    assert "var(--needle)" in plot
    assert "<style" not in plot
    assert re.findall(r"#[0-9a-f]{6}", plot.replace("#ffffff", "")) == []
    ids = re.findall(r'\bid="([^"]*)"', plot)
    assert ids
    assert all(name.startswith("one-plot-") for name in ids)
    assert set(re.findall(r'(?:href="#|url\(#)([^")]*)', plot)) <= set(ids)


def test_the_style_has_every_colour_in_dark_and_in_light():
    light, _, dark = (templates.SHARED / "style.css").read_text("utf-8").partition("prefers-color-scheme: dark")
    for name in html.COLOURS:
        for mode in (light, dark.partition("* {")[0]):
            assert f"--{name}: #" in mode, name


def test_a_chart_draws_what_is_finite_and_says_it():
    chart = charts.lines(
        "Loss <by> step", [0, 1, 2], {"needle": [1.0, math.inf, 3.0], "torch": [1.0, 2.0, 3.0]}, across="step"
    )
    assert "<title>Loss &lt;by&gt; step</title>" in chart
    assert "needle: 1, 3; torch: 1, 2, 3" in chart
    assert chart.count("<circle") == 5
    assert "nan" not in chart
    assert charts.lines("t", [0], {"needle": [math.nan]}, across="step") == ""
    assert "e+30" in charts.lines("t", [1, 2], {"needle": [0.5, 1e30]}, across="step", limit=1.0, logarithmic=True)
    assert "10%, -, 300%" in charts.spark("G loss", [0.1, None, 3.0])
