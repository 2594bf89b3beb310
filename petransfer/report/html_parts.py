"""Parts of HTML pages: plots with captions, and generated texts with marked errors."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from markupsafe import Markup, escape

from petransfer.report.inline_svg import inline_svg
from petransfer.visible_text import visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure


# The largest product of the numbers of words in a target and in a generated text. Longer texts are not compared word by
# word, because the time of the comparison grows faster than this product.
MOST_PAIRS = 1_000_000


@dataclass(frozen=True)
class EmbeddedPlot:
    """A plot on an HTML page: inline SVG and its caption."""

    svg: Markup
    caption: str = ""


def embed_plot(figure: Figure, name: str, alt: str, caption: str = "") -> EmbeddedPlot:
    """Convert a matplotlib figure to SVG inside an HTML page.

    Args:
        name: unique prefix for the ids in the SVG.
        alt: alternative text for screen readers.
        caption: text below the plot, or ''.
    """
    return EmbeddedPlot(Markup(inline_svg(figure, name, alt)), caption)


@dataclass(frozen=True)
class MarkedAnswer:
    """A test example with its generated text.

    `label`: a remark, such as the category, or ''. `marked`: the generated text as HTML with marked errors.
    """

    label: str
    input: str
    target: str
    marked: Markup


def marked(target: str, generated: str) -> Markup:
    """Return a generated text as HTML. Words that differ from the target are marked, except in very long texts."""
    wanted, given = target.split(" "), generated.split(" ")
    if len(wanted) * len(given) > MOST_PAIRS:
        return escape(generated)
    parts = []
    for kind, _, _, start, end in difflib.SequenceMatcher(None, wanted, given, autojunk=False).get_opcodes():
        words = escape(visible(" ".join(given[start:end])))
        if words:
            parts.append(words if kind == "equal" else Markup("<mark>{}</mark>").format(words))
    return Markup(" ").join(parts) or Markup("<mark>nothing</mark>")
