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
from petransfer.visible_text import visible

# A word of at most this many characters is never broken. Longer words, such as hashes and URLs, may be broken anywhere.
LONGEST_WORD = 24
# A line may be broken here: after white space, and after a hyphen between two letters.
_BREAK = re.compile(r"(?<=\s)(?=\S)|(?<=[^\W\d_]-)(?=[^\W\d_])")
# A word with a slash, such as results/my-data, is never broken at a hyphen.
_PATH = re.compile(r"\S*/\S*")
# The width in characters for files and pipes, which have no width of their own.
UNLIMITED = 200


# What headings in tables of runs mean. The words before the colon are the heading or a part of it.
_MEANINGS = (
    "arm: the pretrained model, or a control with random weights.",
    "dev: the rows for choosing the best step and settings.",
    "test: the rows for the final score.",
    "EM: exact match, the share of generated texts that are equal to the target.",
    "log p/token: mean log-probability of a target token, in nats. Nearer to 0 is better.",
    "paper: the scores of the larger models of Orhan (2021), all weights trained. Compare the order, not the values.",
    "p (Holm): the p value, corrected because several differences are tested together.",
)
# What words in cells of such tables mean, by column. {} is the number in the word.
_WORDS = {
    "method": (
        (r"\br(\d+)\b", "r{0}: the adapter's rank is {0}."),
        (r"\bnew-embeddings\b", "new-embeddings: the embeddings of tokens that are new to the model are trained too."),
        (r"\b(\d+)-bit\b", "{0}-bit: each weight of the base model has {0} bits."),
        (r"-bit but (\S+)", "but {0}: the layers {0} are not quantised."),
        (r"\bfull\b", "full: all weights are trained."),
    ),
    "arm": (
        (r"\bscratch\b", "scratch: all weights are random at first, and all of them are trained."),
        (r"\brandom\b", "random: the weights of the base model are random, and only the adapter is trained."),
        (r"-newemb\b", "-newemb: the embeddings of the pretrained model are replaced by random ones."),
    ),
    "verdict": (
        (r"\binconclusive\b", "inconclusive: the runs cannot tell whether there is a difference."),
        (r"\bequivalent\b", "equivalent: the difference is certainly smaller than the margin."),
        (r"\bsaturated\b", "saturated: both scores are too near 0 or 100 % to show a difference."),
        (r"\bnot learnt\b", "not learnt: a score on dev is so low that test scores cannot be compared."),
    ),
    "split": ((r"\bheld-out\b", "held-out: none of the dev and test rows was used in training."),),
}


def print_meanings(table: Table) -> None:
    """Print the meaning of each abbreviation in a table's headings, methods and splits."""
    heads = [_plain(column.header) for column in table.columns]
    for line in _MEANINGS:
        word = line.partition(":")[0]
        if any(word in (head, *head.split()) for head in heads):
            print_text(line)
    for column in table.columns:
        cells = " ".join(map(_plain, column.cells))
        for pattern, meaning in _WORDS.get(_plain(column.header), ()):
            numbers = {found.groups() for found in re.finditer(pattern, cells)}
            print_text(*(meaning.format(*groups) for groups in sorted(numbers, key=lambda one: [*map(_number, one)])))


def _number(text: str) -> tuple[int, str]:
    """Return a key that sorts numbers by value, and other texts alphabetically."""
    return (int(text), "") if text.isdigit() else (0, text)


def print_table(table: Table) -> None:
    """Print a table that fits the terminal. In a file, a line has up to 200 characters."""
    print_fitting(table, Console(width=None if sys.stdout.isatty() else UNLIMITED))


def print_fitting(table: Table, console: Console) -> None:
    """Print a table that fits a console. Texts are printed as they are: `[bold]` in a text is not markup."""
    table = copy.deepcopy(table)  # its cells are changed below
    _take_literally(table)
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
    elif sum(least) <= room:  # wrap the cells
        for column, width in zip(table.columns, _shared_out(natural, least, room), strict=True):
            column.width, column.no_wrap, column.overflow = width, False, "fold"
            column.header = _wrapped(column.header, width)
            column._cells[:] = [_wrapped(cell, width) for cell in column.cells]
        console.print(table)
    elif shorter := _without_constant_columns(table, heads, cells):
        print_fitting(shorter, console)
    else:  # print each row as several lines
        _print_rows(table, heads, cells, console)


def _without_constant_columns(table: Table, heads: list[str], cells: list[list[str]]) -> Table | None:
    """Return the table without the columns that have one value in all rows; the title names these values.

    None if there are no such columns, or fewer than two rows.
    """
    constant = [at for at, column in enumerate(cells) if len(column) > 1 and len(set(column)) == 1 and column[0]]
    if not constant or len(constant) == len(heads):
        return None
    values = ", ".join(f"{heads[at]} {cells[at][0]}" for at in constant)
    table.columns[:] = [column for at, column in enumerate(table.columns) if at not in constant]
    table.title = f"{table.title or ''} (all rows: {values})".strip()
    return table


def _take_literally(table: Table) -> None:
    """Replace the strings of a table, which rich would read as markup, by texts."""
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


def _shared_out(natural: list[int], least: list[int], room: int) -> list[int]:
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
