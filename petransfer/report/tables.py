"""Tables of text, written as HTML, Markdown, LaTeX and CSV. Special characters are escaped."""

from __future__ import annotations

import functools
import html
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from petransfer.visible_text import visible

if TYPE_CHECKING:
    from jinja2 import Environment
    from pandas import DataFrame


@dataclass(frozen=True)
class Column:
    """A column of a table.

    `number`: whether the column has numbers. `more`: whether an HTML page hides the column at first.
    """

    name: str
    number: bool = False
    more: bool = False

    @property
    def classes(self) -> Markup:
        names = ["number"] * self.number + ["more"] * self.more
        return Markup(' class="{}"').format(" ".join(names)) if names else Markup("")


@dataclass(frozen=True)
class Table:
    """Rows of text under named columns.

    Attributes:
        label: name of the table for screen readers.
        caption: text above the table.
        heading: heading above the table on an HTML page.
    """

    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    label: str = "table"
    caption: str = ""
    heading: str = ""

    @property
    def has_more(self) -> bool:
        """Whether an HTML page hides a column at first."""
        return any(column.more for column in self.columns)

    @property
    def frame(self) -> DataFrame:
        from pandas import DataFrame

        return DataFrame(list(self.rows), columns=[column.name for column in self.columns], dtype=object)

    @property
    def named_cells(self) -> list[tuple[str, list[str]]]:
        """The name and the cells of each column."""
        return [(column.name, [row[at] for row in self.rows]) for at, column in enumerate(self.columns)]

    def without_empty_columns(self) -> Table:
        used = [at for at in range(len(self.columns)) if any(row[at] for row in self.rows)]
        columns, rows = [self.columns[at] for at in used], [[row[at] for at in used] for row in self.rows]
        return replace(self, columns=tuple(columns), rows=tuple(map(tuple, rows)))

    def condensed(self, *, first: str = "") -> Table:
        """Return the table without empty columns, and without text columns whose cells are all equal.

        The caption names the removed text. `first`: name of the column to move to the front.
        """
        used = [at for at in range(len(self.columns)) if any(row[at] for row in self.rows)]
        shared = [at for at in used if self._is_shared(at)]
        kept = [at for at in used if at not in shared or len(shared) == len(used)]
        kept.sort(key=lambda at: self.columns[at].name != first)
        above = ", ".join(f"{self.columns[at].name} {self.rows[0][at]}" for at in used if at not in kept)
        return replace(
            self,
            columns=tuple(self.columns[at] for at in kept),
            rows=tuple(tuple(row[at] for at in kept) for row in self.rows),
            caption=above[:1].upper() + above[1:],
        )

    def _is_shared(self, at: int) -> bool:
        column = self.columns[at]
        # The columns `verdict`, `arm` and `effect` are kept even if all rows have one value.
        same = len(self.rows) > 1 and len({row[at] for row in self.rows}) == 1
        return same and not column.number and column.name not in ("verdict", "arm", "effect")


def table_of_text(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    names: int,
    more: Sequence[str] = (),
    label: str = "table",
    heading: str = "",
) -> Table:
    """Make a table from text cells.

    Args:
        names: number of text columns at the left. Other columns have numbers, except `verdict`.
        more: columns that an HTML page hides at first.
        label: name of the table for screen readers.
        heading: heading above the table on an HTML page.
    """
    made = tuple(Column(name, at >= names and name != "verdict", name in more) for at, name in enumerate(columns))
    return Table(made, tuple(tuple(row) for row in rows), label, heading=heading)


def markdown(table: Table) -> str:
    """Return a table as Markdown. Special characters are escaped."""
    return templates().get_template("table.md.jinja").render(columns=table.columns, rows=table.rows).strip()


def markdown_text(text: str) -> str:
    """Escape HTML, `|` and control characters for a line of Markdown."""
    one_line = " ".join(visible(text).split())
    # without this, a name with `](` would become a link or an image
    return html.escape(one_line, quote=False).replace("|", "\\|").replace("](", "]\\(")


def without_emphasis(text: str) -> str:
    """Escape a text like `markdown_text`, and also the characters for emphasis, code, strike-through and formulas."""
    # an underscore between letters, as in add_jump, is no emphasis
    return re.sub(r"[`*~$]|(?<!\w)_|_(?!\w)", r"\\\g<0>", markdown_text(text))


def latex(table: Table) -> str:
    """Return a table as LaTeX with booktabs rules. Special characters are escaped."""
    kinds = "".join("r" if column.number else "l" for column in table.columns)
    style = (
        table.frame.map(visible).style.hide(axis="index").format(escape="latex").format_index(escape="latex", axis=1)
    )
    return style.to_latex(hrules=True, column_format=kinds).strip().replace("\u2212", "$-$")


# First characters of a cell that a spreadsheet reads as a formula.
_FORMULA = re.compile(r"^[=+\-@\t\r]")


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return rows as CSV. Text that a spreadsheet would execute gets an apostrophe in front."""
    from pandas import DataFrame

    frame = DataFrame([[_inert(cell) for cell in row] for row in rows], columns=list(columns), dtype=object)
    buffer = io.StringIO()
    frame.to_csv(buffer, index=False, lineterminator="\n")
    return buffer.getvalue()


def _inert(cell: Any) -> Any:
    return f"'{cell}" if isinstance(cell, str) and _FORMULA.match(cell) else cell


@functools.cache
def templates() -> Environment:
    """Return the jinja environment with the templates of pages and tables."""
    from jinja2 import Environment, PackageLoader, select_autoescape

    made = Environment(
        loader=PackageLoader("petransfer.report", "templates"),
        # HTML templates escape all values except `Markup`.
        autoescape=select_autoescape(["html.jinja"]),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_visible_value,
    )
    made.filters["cell"] = markdown_text
    made.filters["breakable"] = breakable
    return made


def _visible_value(value: Any) -> Any:
    """Return a value for a template. Invisible characters of texts are escaped; HTML is not changed."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def breakable(text: Any) -> Markup:
    """Return a text as HTML with possible line breaks after underscores."""
    return Markup("_<wbr>").join(visible(str(text)).split("_"))


def write_page(template: str, title: str, **content: Any) -> str:
    """Return a filled template as one self-contained HTML page."""
    folder = resources.files("petransfer.report") / "templates"
    parts = {name: Markup((folder / file).read_text(encoding="utf-8"))
             for name, file in (("css", "page.css"), ("script", "sort.js"))}  # fmt: skip
    text = templates().get_template(template).render(title=title, **parts, **content)
    return "\n".join(line.rstrip() for line in text.splitlines() if line.strip()) + "\n"
