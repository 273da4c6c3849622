"""A text from its template: pages and scripts alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SHARED = Path(__file__).parent  # base.html, which every page extends, and its style


def render(template: Path, *, escaped: bool = True, **values: Any) -> str:
    """The template with its values; a name that it does not get is an error. ``escaped`` is for what a browser reads.

    What it includes or extends lies beside it, or beside this file.
    """
    import jinja2

    environment = jinja2.Environment(
        autoescape=escaped, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=not escaped, loader=jinja2.FileSystemLoader([template.parent, SHARED]),
    )  # fmt: skip
    return environment.get_template(template.name).render(values)
