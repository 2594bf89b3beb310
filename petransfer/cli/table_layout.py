"""Print tables that fit the width of a terminal."""

from __future__ import annotations

import copy
import itertools
import re
import sys
import textwrap
from typing import Any

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from petransfer.cli.terminal_text import print_text
from petransfer.report.meanings import meanings_of
from petransfer.visible_text import visible

# A word of at most this many characters is never broken. Longer words, such as hashes and URLs, may be broken anywhere.
LONGEST_WORD = 24
# If a table with more rows than this is too wide, columns with the same value in all rows are first moved to the title.
# In a shorter table, they are moved only if wrapping the cells is not enough.
SHORT = 3
# A line may be broken here: after white space, and after a hyphen between two letters.
_BREAK = re.compile(r"(?<=\s)(?=\S)|(?<=[^\W\d_]-)(?=[^\W\d_])")
# A word with a slash, such as results/my-data, is never broken at a hyphen.
_PATH = re.compile(r"\S*/\S*")
# The width in characters for files and pipes, which have no width of their own.
UNLIMITED = 200


def print_meanings(table: Table) -> None:
    """Print what the headings, metrics, methods, arms, verdicts and splits of a table of runs mean."""
    print_text(*meanings_of((_plain(one.header), map(_plain, one.cells)) for one in table.columns))


def print_table(table: Table) -> None:
    """Print a table that fits the terminal. In a file, a line has up to 200 characters."""
    print_fitting(table, Console(width=None if sys.stdout.isatty() else UNLIMITED))


def print_fitting(table: Table, console: Console) -> None:
    """Print a table that fits a console. Texts are printed as they are: `[bold]` in a text is not markup."""
    table = copy.deepcopy(table)  # its cells are changed below
    _disable_markup(table)
    cells = [[_plain(cell) for cell in column.cells] for column in table.columns]
    heads = [_plain(column.header) for column in table.columns]
    natural = [max(map(_width, [head, *column])) for head, column in zip(heads, cells, strict=True)]
    least = [
        min(LONGEST_WORD, max(_longest_word(text) for text in [head, *column]))
        for head, column in zip(heads, cells, strict=True)
    ]
    room = console.width - 3 * len(heads) - 1  # a border and two spaces for each column
    if sum(natural) <= room:
        console.print(table)
    elif len(table.rows) > SHORT and (shorter := _without_constant_columns(table, heads, cells, keep="right")):
        print_fitting(shorter, console)
    elif sum(least) <= room:  # wrap the cells
        for column, width in zip(table.columns, _column_widths(natural, least, room), strict=True):
            column.width, column.no_wrap, column.overflow = width, False, "fold"
            column.header = _wrapped(column.header, width)
            column._cells[:] = [_wrapped(cell, width) for cell in column.cells]
        console.print(table)
    elif shorter := _without_constant_columns(table, heads, cells):
        print_fitting(shorter, console)
    else:  # print each row as several lines
        _print_rows(table, heads, cells, console)


def _without_constant_columns(table: Table, heads: list[str], cells: list[list[str]], keep: str = "") -> Table | None:
    """Return the table without the columns that have one value in all rows; the title names these values.

    None if there are no such columns, if all columns are such columns, or if there are fewer than two rows.

    Args:
        heads: The text of each column's header.
        cells: The texts of each column's cells.
        keep: Columns with this justification stay, such as `right` for columns of numbers. Empty: none.
    """
    constant = [
        at
        for at, column in enumerate(cells)
        if len(column) > 1 and len(set(column)) == 1 and column[0] and table.columns[at].justify != keep
    ]
    if not constant or len(constant) == len(heads):
        return None
    values = ", ".join(f"{heads[at]} {cells[at][0]}" for at in constant)
    table.columns[:] = [column for at, column in enumerate(table.columns) if at not in constant]
    table.title = f"{table.title or ''} (all rows: {values})".strip()
    return table


def _disable_markup(table: Table) -> None:
    """Replace the strings of a table by `Text` objects, because rich would interpret strings as markup."""
    table.title, table.caption = _literal(table.title, "table.title"), _literal(table.caption, "table.caption")
    for column in table.columns:
        column.header = _literal(column.header)
        column._cells[:] = map(_literal, column._cells)


def _literal(text: Any, style: str = "") -> Any:
    return Text(visible(text), style) if isinstance(text, str) else text


def _wrapped(cell: RenderableType, width: int) -> RenderableType:
    """Return a cell's text with line breaks at white space and hyphens."""
    if not isinstance(cell, Text):
        return cell
    lines = [line for each in cell.split("\n") for line in each.divide(_line_ends(each.plain, width))]
    for line in lines:
        line.rstrip()
    return Text("\n").join(lines)


def _line_ends(text: str, width: int) -> list[int]:
    """Return the positions of line breaks for lines of at most `width` characters."""
    starts = [0, *_breaks(text), len(text)]
    ends, begin = [], 0
    for start, end in itertools.pairwise(starts):
        if len(text[begin:end].rstrip()) > width and start > begin:
            ends.append(start)
            begin = start
    return ends


def _column_widths(natural: list[int], least: list[int], room: int) -> list[int]:
    """Return column widths with a sum of at most `room`. The widest columns are reduced."""
    widths = list(natural)
    while sum(widths) > room:
        at = max((at for at in range(len(widths)) if widths[at] > least[at]), key=widths.__getitem__)
        widths[at] -= 1
    return widths


def _print_rows(table: Table, heads: list[str], cells: list[list[str]], console: Console) -> None:
    if table.title:
        console.print(table.title, markup=False, highlight=False, soft_wrap=False)
    for row in zip(*cells, strict=True):
        first, *others = row
        console.print(Text(f"{heads[0]}: {first}", style="bold", overflow="fold"))
        named = [f"{head}: {' '.join(cell.split())}" for head, cell in zip(heads[1:], others, strict=True) if cell]
        text = "; ".join(named)
        for line in textwrap.wrap(text, console.width, initial_indent="  ", subsequent_indent="  "):
            console.print(Text(line))
    if table.caption:
        console.print(table.caption, markup=False, highlight=False)


def _plain(cell: object) -> str:
    return cell.plain if isinstance(cell, Text) else str(cell)


def _width(text: str) -> int:
    return max(map(len, text.split("\n")))


def _longest_word(text: str) -> int:
    ends = [0, *_breaks(text), len(text)]
    return max((len(text[start:end].rstrip()) for start, end in itertools.pairwise(ends)), default=1)


def _breaks(text: str) -> list[int]:
    """Return the positions at which a line may be broken. A path with slashes stays whole."""
    paths = [found.span() for found in _PATH.finditer(text)]
    return [at for at in (found.start() for found in _BREAK.finditer(text)) if not any(a < at < b for a, b in paths)]
