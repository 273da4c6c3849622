"""A table in Markdown."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], left: Collection[str]) -> list[str]:
    """Its lines; the columns in ``left`` are words, the others numbers."""
    rule = "".join("---|" if heading in left else "--:|" for heading in headings)
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |" for cells in (headings, *rows)]
    return [lines[0], f"|{rule}", *lines[1:]]
