"""Parts of pages: figures with their captions, and answers in which what is wrong is marked."""

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
    """A figure as a page shows it."""

    svg: Markup
    caption: str = ""


def shown(figure: Figure, name: str, alt: str, caption: str = "") -> Shown:
    """Turn a figure into SVG inside the page.

    Args:
        figure: of matplotlib.
        name: unique in the page.
        alt: what the figure shows, in words.
        caption: the line below it.
    """
    return Shown(Markup(inline_svg(figure, name, alt)), caption)


@dataclass(frozen=True)
class Answer:
    """An example with what a model generated for it; `marked` has the words marked that the target lacks there."""

    label: str
    input: str
    target: str
    marked: Markup


def marked(target: str, generated: str) -> Markup:
    """Mark the words of a generated text that the target does not have at their place."""
    wanted, given = target.split(" "), generated.split(" ")
    parts = []
    for kind, _, _, start, end in difflib.SequenceMatcher(None, wanted, given, autojunk=False).get_opcodes():
        words = escape(" ".join(given[start:end]))
        if words:
            parts.append(words if kind == "equal" else Markup("<mark>{}</mark>").format(words))
    return Markup(" ").join(parts) or Markup("<mark>nothing</mark>")
