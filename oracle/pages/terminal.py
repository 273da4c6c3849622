"""The terminal: how wide, a bar while somebody watches, a plain table."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

Show = Callable[[str, float, float | None], None]
Tick = Callable[[], None]
QUIET = 60.0  # seconds for which long work says nothing at most


def console(width: int = 120, aside: bool = False) -> Console:
    """A console that wraps no sooner than at ``width`` columns where nobody sees the window's edge.

    ``aside``: on standard error, because standard output is for a program.
    """
    made = Console(highlight=False, stderr=aside)
    return made if made.is_terminal else Console(highlight=False, stderr=aside, width=max(made.width, width))


def watched(console: Console) -> bool:
    """Whether somebody sees a line that moves: on a terminal only, and neither under CI nor with NO_COLOR."""
    return console.is_terminal and not os.environ.get("CI") and "NO_COLOR" not in os.environ


@contextmanager
def progress(console: Console, every: int = 0) -> Iterator[Show]:
    """What shows how far the work is, by ``show(what, done, total)``: a bar that is gone when the work is done.

    Where nobody watches: a line for ``every`` so many, and each minute; or nothing.
    """
    started, last = time.perf_counter(), 0.0
    said = started
    silent = not watched(console)
    columns = (BarColumn(12), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True, disable=silent) as bar:
        task = bar.add_task("starting", total=None)

        def show(what: str, done: float, total: float | None) -> None:
            nonlocal last, said
            bar.update(task, description=what, completed=done, total=total)
            now = time.perf_counter()
            if silent and every and (done // every > last or now - said > QUIET):
                last, said = done // every, now
                console.print(f"{done} of {total}, {now - started:.0f} s: {what}", style="dim", markup=False)

        yield show


def counted(show: Show, what: str, total: int) -> Tick:
    """Show one part of the work; each call of what it returns is one piece more that is done."""
    show(what, 0, total)
    done = itertools.count(1)
    return lambda: show(what, next(done), total)


def table(headings: Sequence[str], left: Collection[str], title: str | None = None, gap: int = 2) -> Table:
    """A table without lines; the columns in ``left`` are words, the others numbers."""
    made = Table(title=title, title_justify="left", box=None, padding=(0, gap, 0, 0), header_style="dim")
    for heading in headings:
        made.add_column(heading, justify="left" if heading in left else "right", no_wrap=True)
    return made
