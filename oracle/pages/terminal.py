"""The terminal: how wide, a bar while somebody watches, a plain table."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

Tick = Callable[[], None]


def console(width: int = 120) -> Console:
    """A console that wraps no sooner than at ``width`` columns where nobody sees the window's edge."""
    made = Console(highlight=False)
    return made if made.is_terminal else Console(highlight=False, width=max(made.width, width))


def watched(console: Console) -> bool:
    """Whether somebody sees a line that moves: on a terminal only, and neither under CI nor with NO_COLOR."""
    return console.is_terminal and not os.environ.get("CI") and "NO_COLOR" not in os.environ


def bar(console: Console) -> Progress:
    """A bar that is gone when its work is done; silent where nobody watches."""
    columns = (TextColumn("{task.description:38}"), BarColumn(30), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True, disable=not watched(console))


@contextmanager
def tracked(progress: Progress, what: str, total: int) -> Iterator[Tick]:
    """A line of a bar for one part of the work; calling what it gives moves it on by one."""
    task = progress.add_task(what, total=total)
    try:
        yield lambda: progress.advance(task)
    finally:
        progress.remove_task(task)


def table(headings: Sequence[str], left: Collection[str], title: str | None = None, gap: int = 2) -> Table:
    """A table without lines; the columns in ``left`` are words, the others numbers."""
    made = Table(title=title, title_justify="left", box=None, padding=(0, gap, 0, 0), header_style="dim")
    for heading in headings:
        made.add_column(heading, justify="left" if heading in left else "right", no_wrap=True)
    return made
