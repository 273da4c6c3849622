"""A plot that goes into a page: the same colour for the same system everywhere, in the page's dark and light."""

from __future__ import annotations

import io
import re
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.figure import Figure

# The colours of a plot by their names in style.css, which has them for dark and light; these are the light ones.
COLOURS = {
    "ink": "#1f2933",
    "axis": "#9aa7b2",
    "line": "#dde3e8",
    "bad": "#b3261e",
    "needle": "#2563a8",
    "torch": "#c8701a",
    "torch-light": "#eab985",
    "hand": "#7b8a97",
    "truth": "#2c8a5b",
    "other-1": "#7d55a6",
    "other-2": "#8c564b",
    "other-3": "#3d8f96",
}
STROKE = 'stroke-linejoin="round" stroke-linecap="butt"'
STYLE: Any = {
    "font.size": 9,
    "axes.edgecolor": COLOURS["axis"],
    "axes.labelcolor": COLOURS["ink"],
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": COLOURS["ink"],
    "axes.titlelocation": "left",
    "axes.titlesize": 9,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "grid.color": COLOURS["line"],
    "legend.frameon": False,
    "text.color": COLOURS["ink"],
    "xtick.color": COLOURS["ink"],
    "ytick.color": COLOURS["ink"],
}


def styled() -> AbstractContextManager[None]:
    """What every plot is drawn within."""
    from matplotlib import rc_context

    return rc_context(STYLE)


def svg(figure: Figure, *, alone: bool = False) -> str:
    """The same text for the same figure, and no date in it. ``alone``: a file of its own, on white."""
    from matplotlib import rc_context

    out = io.StringIO()
    ground: Any = {"facecolor": "white"} if alone else {}
    with rc_context({"svg.hashsalt": "oracle", "svg.fonttype": "none", "font.family": "sans-serif"}):
        figure.savefig(out, format="svg", metadata={"Date": None}, **ground)
    return out.getvalue()


def inline(image: str, title: str, says: str = "") -> Markup:
    """An svg for the middle of a page: without its head, in the page's colours, with a title for whoever does not see it.

    ``says`` is longer than the title: what the plot shows. Ids are made the plot's own: a page has several.
    """
    from markupsafe import Markup, escape

    # its style is meant for all that is around it: as attributes, it ends with the plot
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", image[image.index("<svg") :], flags=re.DOTALL)
    for name, colour in COLOURS.items():
        text = re.sub(re.escape(colour), f"var(--{name})", text, flags=re.IGNORECASE)
    own = re.sub(r"\W+", "-", title.lower()).strip("-")
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{own}-", text)
    about = f"<title>{escape(title)}</title>" + (f"<desc>{escape(says)}</desc>" if says else "")
    text = re.sub(r"<svg([^>]*)>", rf'<svg {STROKE} role="img" aria-label="{escape(title)}"\1>', text, count=1)
    start = text.index(">", text.index("<svg")) + 1
    text = text[:start] + about + text[start:]
    return Markup(f'<div class="plot" tabindex="0" role="group" aria-label="{escape(title)}">{text}</div>')
