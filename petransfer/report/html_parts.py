"""Parts of pages: figures with their captions, and answers with marked errors."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from markupsafe import Markup, escape

from petransfer.report.inline_svg import inline_svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Shown:
    """A figure of a page: inline SVG and its caption."""

    svg: Markup
    caption: str = ""


def shown(figure: Figure, name: str, alt: str, caption: str = "") -> Shown:
    """Convert a figure to SVG inside the page.

    Args:
        name: unique in the page.
        alt: the alternative text.
    """
    return Shown(Markup(inline_svg(figure, name, alt)), caption)


@dataclass(frozen=True)
class Answer:
    """An example with the generated text. In `marked` the words that differ from the target are marked.

    label: a remark on the example, such as its category; '' for none.
    """

    label: str
    input: str
    target: str
    marked: Markup


def marked(target: str, generated: str) -> Markup:
    """Return a generated text as HTML, with all words marked that differ from the target."""
    wanted, given = target.split(" "), generated.split(" ")
    parts = []
    for kind, _, _, start, end in difflib.SequenceMatcher(None, wanted, given, autojunk=False).get_opcodes():
        words = escape(" ".join(given[start:end]))
        if words:
            parts.append(words if kind == "equal" else Markup("<mark>{}</mark>").format(words))
    return Markup(" ").join(parts) or Markup("<mark>nothing</mark>")
