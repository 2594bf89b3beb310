"""The parts that pages are made of: documents, figures, tables, and answers with what is wrong in them marked."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from html import escape
from importlib import resources
from typing import TYPE_CHECKING

from petransfer.report.inline_svg import inline_svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def document(title: str, body: str) -> str:
    """A self-contained HTML file around a body."""
    css = resources.files("petransfer.report").joinpath("page.css").read_text(encoding="utf-8")
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>\n{css}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def picture(drawn: Figure, name: str, alt: str, caption: str) -> str:
    """A figure with its alternative text and caption. name: unique in the page."""
    return f"<figure>\n{inline_svg(drawn, name, alt)}\n<figcaption>{escape(caption)}</figcaption>\n</figure>"


def panels(figures: Sequence[str]) -> str:
    """Figures side by side where there is room."""
    return f'<div class="panels">\n{"".join(figures)}\n</div>' if figures else ""


def table(columns: Sequence[str], lines: Sequence[Sequence[str]], left: int) -> str:
    """An HTML table, whose first `left` columns are names.

    Columns without any entry are left out; a name that all lines share is said once, above them.
    """
    used = [at for at in range(len(columns)) if any(line[at] for line in lines)]
    shared = [at for at in used if at < left and len(lines) > 1 and len({line[at] for line in lines}) == 1]
    kept = [at for at in used if at not in shared or len(shared) == len(used)]
    kind = {at: "" if at < left or columns[at] == "verdict" else ' class="number"' for at in kept}
    above = ", ".join(f"{columns[at]} {lines[0][at]}" for at in shared)
    caption = f"<caption>{escape(above[0].upper() + above[1:])}</caption>\n" if above else ""
    head = "".join(f'<th scope="col"{kind[at]}>{escape(columns[at])}</th>' for at in kept)
    body = "\n".join(
        "<tr>" + "".join(f"<td{kind[at]}>{escape(_minus(line[at]))}</td>" for at in kept) + "</tr>" for line in lines
    )
    return (
        f'<div class="wide"><table>\n{caption}<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'
    )


def _minus(text: str) -> str:
    """A figure's hyphen becomes a minus; names keep theirs."""
    return text.replace("-", "\u2212") if text and text.lstrip("+-[( ")[:1].isdigit() and "bit" not in text else text


def marked(target: str, said: str) -> str:
    """What was said, with the words marked that the target does not have there."""
    wanted, given = target.split(" "), said.split(" ")
    parts = []
    for kind, _, _, start, end in difflib.SequenceMatcher(None, wanted, given, autojunk=False).get_opcodes():
        words = escape(" ".join(given[start:end]))
        if words:
            parts.append(words if kind == "equal" else f"<mark>{words}</mark>")
    return " ".join(parts) or "<mark>nothing</mark>"
