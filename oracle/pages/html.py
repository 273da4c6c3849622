"""A page from its template, and a plot that goes into it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.figure import Figure


def render(template: Path, **values: Any) -> str:
    """The template with its values; a name that it does not get is an error."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(template.read_text("utf-8")).render(values)


def svg(figure: Figure) -> str:
    """The same text for the same figure, and no date in it."""
    from matplotlib import rc_context

    out = io.StringIO()
    with rc_context({"svg.hashsalt": "oracle", "svg.fonttype": "none", "font.family": "sans-serif"}):
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


def inline(image: str) -> Markup:
    """An svg for the middle of a page: without its head, and safe from escaping."""
    from markupsafe import Markup

    return Markup(image[image.index("<svg") :])
