"""A plot that goes into a page."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.figure import Figure


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
