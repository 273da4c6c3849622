"""What commands print and pages have in common."""

import io

import jinja2
import pytest
from rich.console import Console

from oracle.pages import html, markdown, templates, terminal


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
    plot = html.inline('<?xml version="1.0"?>\n<svg></svg>')
    assert templates.render(page, text="<b>", plot=plot) == "&lt;b&gt;<svg></svg>"
    with pytest.raises(jinja2.UndefinedError, match="'plot' is undefined"):
        templates.render(page, text="")
