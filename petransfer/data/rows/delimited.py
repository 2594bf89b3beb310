"""Read csv and tsv files: detect the delimiter, the quotes and the column names, and yield the rows."""

from __future__ import annotations

import csv
import io
import itertools
import re
import shlex
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from petransfer.data.bad_rows import BadRow
from petransfer.data.rows.records import Record, Required, has_column
from petransfer.data.rows.source import COMPRESSED, Source
from petransfer.data.rows.text_lines import TextLine, read_lines
from petransfer.errors import UserError

QUOTING = ("auto", "csv", "none")
DELIMITERS = {"comma": ",", "semicolon": ";", "tab": "\t", "pipe": "|", "colon": ":"}
POSITIONAL = ("input", "target", "category")
# The largest number of lines in one csv row. The lines are kept in memory, because they are read again if the row turns
# out to be invalid, for example because a quote is never closed.
LINES_PER_ROW = 10_000
# A first line that names the delimiter. Excel reads such a line, and some programs write it.
_SEPARATOR = re.compile(r'"?sep=([,;|\t:])"?[,;|\t:]*', re.IGNORECASE)
_LINE_BREAKS = re.compile(r"\s*[\r\n]\s*")
_ROWS_OF_EXCEL = 16
# The number of lines at the beginning of a file in which the column names are searched.
_LINES_OF_TITLE = 30
_BY_PLACE = f"expected 2 or {len(POSITIONAL)} tab-separated columns ({', '.join(POSITIONAL)})"


@dataclass(frozen=True)
class Dialect:
    """The delimiter, the quotes and the column names of a csv or tsv file.

    Args:
        delimiter: Character between two columns.
        quoted: Whether quotes enclose cells, as in csv. If False, a quote is an ordinary character.
        columns: Names in the first row. None: no header; the columns are `POSITIONAL`, in this order.
        skips_blanks: Whether blanks between a delimiter and a cell are left out, as in `"input", "target"`.
        lines_quoted: Whether each line as a whole is in quotes, as in `"input,target"`.
    """

    delimiter: str
    quoted: bool
    columns: tuple[str, ...] | None
    skips_blanks: bool = False
    lines_quoted: bool = False


def detect(source: Source, required: Required, named: bool) -> Dialect:
    """Detect the delimiter, the quotes and the column names of a file from its first row.

    Args:
        required: Columns that the file must have. The delimiter that gives these columns is chosen.
        named: Whether the user named any column. If False, a tsv file can lack a header.
    """
    line, whole = _first_row(source)
    csv_like = source.format == "csv"
    named_delimiter = source.delimiter or _named_in_file(source)
    order: Sequence[str] = [_character(named_delimiter)] if named_delimiter else ",;\t|" if csv_like else "\t,;|"
    found: list[tuple[str, bool, list[str]]] = []
    for delimiter in order:
        quoted = _is_quoted(whole, delimiter, csv_like, source.quoting)
        found.append((delimiter, quoted, _names(_split(whole if quoted else line, delimiter, quoted))))
    fitting = [each for each in found if all(has_column(each[2], name) for name in required)]
    several = [each for each in found if len(each[2]) > 1] if csv_like else []
    if not fitting and not several and found[0][1] and len(found[0][2]) == 1:
        for delimiter in order:
            names = _names(_split(found[0][2][0], delimiter, True))
            if all(has_column(names, name) for name in required):
                return Dialect(delimiter, True, tuple(names), lines_quoted=True)
    delimiter, quoted, cells = [*fitting, *several, found[0]][0]
    by_place = not csv_like and not named and not any(name in cells for name in required)
    skips_blanks = quoted and _has_blanks(line, delimiter)
    return Dialect(delimiter, quoted, None if by_place else tuple(cells), skips_blanks)


def title_advice(source: Source, required: Required) -> str:
    """Return the advice for a csv or tsv file with a title above the line with the column names. '' for other files."""
    if source.format not in ("csv", "tsv"):
        return ""
    lines = [line for line in itertools.islice(_table_lines(source), _LINES_OF_TITLE) if not _is_blank(line)]
    named = first = 0
    for delimiter in ",;\t|":
        rows = [[cell.strip() for cell in _split(line.text, delimiter, True)] for line in lines]
        found = (at for at, row in enumerate(rows) if all(has_column(row, name) for name in required))
        named = named or next(found, 0)
        # With other names, the header is the first line with several texts, if all lines below it have as many columns.
        # The header of a table with an index column begins with an empty cell.
        start = next((at for at, row in enumerate(rows) if sum(map(bool, row)) > 1 or (not row[0] and any(row))), 0)
        first = first or (start if len(rows) > start + 2 and len({len(row) for row in rows[start:]}) == 1 else 0)
    if not named and not first:
        return ""
    number = lines[named or first].number
    advice = f"line {number} {'has' if named else 'looks like'} the column names: delete the lines above it"
    if source.name.lower().endswith(COMPRESSED):
        return advice
    return f"{advice}, for example with `tail -n +{number} {shlex.quote(source.name)} > new.{source.format}`"


def unusual(source: Source, dialect: Dialect) -> list[str]:
    """Return notes for the user about unusual delimiters or quotes of a file."""
    usual_delimiter, usual_quoting = (",", True) if source.format == "csv" else ("\t", False)
    found = []
    if dialect.delimiter != usual_delimiter:
        named = next((word for word, sign in DELIMITERS.items() if sign == dialect.delimiter), dialect.delimiter)
        found.append(f"{source.name}: columns are separated by {named} characters")
    if dialect.quoted != usual_quoting:
        how = "quotes enclose cells" if dialect.quoted else "quotes are read as text"
        found.append(f"{source.name}: {how}; --quoting {'none' if dialect.quoted else 'csv'} reads them otherwise")
    if dialect.lines_quoted:
        found.append(f"{source.name}: each line is in quotes as a whole; the quotes are removed")
    if dialect.skips_blanks:
        found.append(f"{source.name}: blanks before cells are left out, because the header has them before quotes")
    return found


def read_delimited(
    source: Source, dialect: Dialect, needed: Sequence[str] = (), wanted: Sequence[str] = ()
) -> Iterator[Record]:
    """Yield the rows of a file in order. Blank lines are skipped.

    Args:
        needed: Columns that every row must have. Other columns at the end of a row of a csv file can be missing,
            because Excel leaves out the delimiters of empty last cells.
        wanted: All columns that are used.

    Raises:
        UserError: Two of the used columns have the same name, the column names are below other lines, or a quote is not
            closed within `LINES_PER_ROW` lines.
    """
    columns = dialect.columns
    header_read = columns is None
    fewest = max((columns.index(name) + 1 for name in needed if columns and name in columns), default=0)
    rows = _quoted_rows(source, dialect) if dialect.quoted else _plain_rows(source, dialect)
    most = len(columns) if columns and dialect.quoted else 0
    for (line, cells, problem), is_short in _with_short_blocks(rows, fewest, most):
        if not header_read:
            header_read = True
            _refuse_equal_names(source, line, [name for name in _names(cells or []) if name in wanted])
        elif cells is None:
            yield Record(line, {}, problem)
        elif dialect.columns is None and line <= _LINES_OF_TITLE and tuple(cells) == POSITIONAL[: max(2, len(cells))]:
            raise UserError(
                f"{source.name}: line {line} has the column names: delete the lines above it, or this line if they are "
                "rows"
            )
        else:
            kept = _without_empty_ends(cells, len(columns or POSITIONAL))
            if columns is None and 2 <= len(kept) <= len(POSITIONAL):
                columns = POSITIONAL[: len(kept)]
            yield _record(line, kept, columns, is_short, source, dialect)


def _with_short_blocks(rows: Iterator[_Row], fewest: int, most: int) -> Iterator[tuple[_Row, bool]]:
    """Yield each row, and whether it lacks its last cells because Excel has left them out.

    Excel writes 16 rows at a time, and leaves out the last cells that are empty in all of them. Other short rows are
    parts of rows with line breaks. The first 16 rows include the header, so none of their cells is left out.

    Args:
        fewest: Number of cells that every row must have.
        most: Number of cells in the header.
    """
    can_be_short = None
    while block := list(itertools.islice(rows, _ROWS_OF_EXCEL)):
        counts = {len(cells or ()) for _, cells, _ in block}
        is_short = bool(can_be_short) and len(counts) == 1 and 0 < fewest <= min(counts) < most
        if can_be_short is None:
            can_be_short = min(counts) >= most
        yield from ((row, is_short) for row in block)


def _record(
    line: int, cells: list[str], columns: tuple[str, ...] | None, is_short: bool, source: Source, dialect: Dialect
) -> Record:
    """Return one row. `is_short`: whether missing last cells count as empty cells."""
    if columns is None:
        return Record(line, {}, BadRow(f"{_BY_PLACE}, found {len(cells)}{_quoting_advice(cells, source, dialect)}"))
    if dialect.columns is not None and all(map(_is_name, cells, columns)) and len(cells) == len(columns):
        return Record(line, {}, BadRow("the column names are repeated, as in a file joined from several files"))
    if is_short:
        missing = columns[len(cells) :]
        return Record(line, dict(zip(columns, [*cells, *("" for _ in missing)], strict=True)), left_out=missing)
    if len(cells) != len(columns):
        has_commas = len(cells) > len(columns) and dialect.delimiter == ","
        more = "; put texts with commas in quotes" if has_commas else _quoting_advice(cells, source, dialect)
        shown = ", ".join(columns[:10])
        return Record(line, {}, BadRow(f"expected {len(columns)} columns ({shown}), found {len(cells)}{more}"))
    return Record(line, dict(zip(columns, cells, strict=True)))


def _without_empty_ends(cells: list[str], most: int) -> list[str]:
    """Remove empty cells at the end of a row with more than `most` cells, until `most` cells are left."""
    count = len(cells)
    while count > most and not cells[count - 1].strip():
        count -= 1
    return cells[:count]


def _quoting_advice(cells: Sequence[str], source: Source, dialect: Dialect) -> str:
    """Return advice for a line of a tsv file that seems to be a part of a cell in quotes. '' for other lines."""
    is_part = not dialect.quoted and not source.quoting and sum(cell.count('"') for cell in cells) % 2
    return "; if quotes enclose cells with line breaks, use --quoting csv" if is_part else ""


_Row = tuple[int, list[str] | None, BadRow | None]


def _plain_rows(source: Source, dialect: Dialect) -> Iterator[_Row]:
    for line in _table_lines(source):
        if not _is_blank(line):
            yield line.number, None if line.problem else line.text.split(dialect.delimiter), line.problem


def _quoted_rows(source: Source, dialect: Dialect) -> Iterator[_Row]:
    """Yield the rows of a file in which quotes enclose cells."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # a larger number is an error on Windows
    rest, again = _table_lines(source), deque[TextLine]()
    taken: list[TextLine] = []
    broken: list[TextLine] = []

    def texts() -> Iterator[str]:
        while line := again.popleft() if again else next(rest, None):
            if len(taken) == LINES_PER_ROW:
                raise _unclosed_quote(source, taken[0])
            taken.append(line)
            if line.problem:
                broken.append(line)
            yield line.text + line.end  # a line end inside of quotes is a part of the cell

    def rows_of_cells() -> Iterator[list[str]]:
        return csv.reader(texts(), strict=True, delimiter=dialect.delimiter, skipinitialspace=dialect.skips_blanks)

    reader = rows_of_cells()
    while True:
        taken.clear()
        broken.clear()
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield taken[0].number, None, BadRow("not csv", _csv_fault(str(error), taken, source))
            # An unclosed quote makes the csv module read all following lines as one row. So reading continues with the
            # second line of the invalid row.
            again.extendleft(reversed(taken[1:]))
            reader = rows_of_cells()
            continue
        if broken:
            yield broken[0].number, None, broken[0].problem
        elif len(taken) > 1 or not _is_blank(taken[0]):
            if dialect.lines_quoted and len(cells) == 1:
                yield taken[0].number, *_cells_of_line(cells[0], dialect.delimiter)
            else:
                yield taken[0].number, cells, None


def _unclosed_quote(source: Source, first: TextLine) -> UserError:
    """Return the error for a row that begins at the line `first` and has more than LINES_PER_ROW lines."""
    return UserError(
        f"{source.name}:{first.number}: a quote that opens in this row is not closed within {LINES_PER_ROW:,} lines; "
        "close it, write it twice if it is part of the text, or use --set task.options.quoting=none"
    )


def _cells_of_line(text: str, delimiter: str) -> tuple[list[str] | None, BadRow | None]:
    """Return the cells of a line that was in quotes as a whole, or why they cannot be read."""
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter))
    except csv.Error as error:
        return None, BadRow("not csv", str(error))
    if len(rows) > 1:
        return None, BadRow("a line break inside of a line that is in quotes as a whole, and in no cell's own quotes")
    return rows[0] if rows else [], None


def _csv_fault(error: str, lines: Sequence[TextLine], source: Source) -> str:
    """Return why lines are not csv, and what to do. `error`: the message of the csv module."""
    if "new-line character" in error:
        return "a carriage return (CR) inside a line; save the file with one kind of line end"
    if any('\\"' in line.text for line in lines[:1]):
        return (
            f'a quote in a cell is written as \\", and csv has "" there; convert the file in Python: '
            f"pandas.read_csv({source.name!r}, escapechar='\\\\').to_csv('new.csv', index=False)"
        )
    return error


def _first_row(source: Source) -> tuple[str, str]:
    """Return the first line with text, and the whole row if a cell in quotes has line breaks."""
    lines = (line for line in _table_lines(source) if not _is_blank(line))
    first = next(lines, TextLine(1, ""))
    text = first.text
    for end, line in itertools.pairwise(itertools.chain([first], itertools.islice(lines, _LINES_OF_TITLE))):
        if text.count('"') % 2 == 0:
            break
        text += end.end + line.text
    return first.text, text if text.count('"') % 2 == 0 else first.text


def _names(cells: Sequence[str]) -> list[str]:
    """Return column names without line breaks, which the cells of a header in a spreadsheet can have."""
    return [_LINE_BREAKS.sub(" ", cell) for cell in cells]


def _is_name(cell: str, name: str) -> bool:
    return cell == name or _LINE_BREAKS.sub(" ", cell) == name


def _named_in_file(source: Source) -> str:
    """Return the delimiter that the first line names, as in `sep=;`, which Excel reads. Empty without such a line."""
    found = _SEPARATOR.fullmatch(next(read_lines(source), TextLine(1, "")).text)
    return found[1] if found else ""


def _is_blank(line: TextLine) -> bool:
    """Return whether a line has neither text nor tabs. A line of tabs is a row of empty cells."""
    return not line.text or (line.text.isspace() and "\t" not in line.text)


def _table_lines(source: Source) -> Iterator[TextLine]:
    """Yield the lines of a file, without a first line such as `sep=;`."""
    lines = read_lines(source)
    first = next(lines, None)
    if first is not None and not _SEPARATOR.fullmatch(first.text):
        yield first
    yield from lines


def _character(name: str) -> str:
    """Return the delimiter's character for a word (`comma`) or a character."""
    found = DELIMITERS.get(name, name)
    if len(found) != 1:
        raise UserError(f"delimiter is {name!r}; give one character, or {', '.join(DELIMITERS)}")
    return found


def _is_quoted(first: str, delimiter: str, csv_like: bool, quoting: str) -> bool:
    """Return whether quotes enclose cells in a file."""
    if quoting in ("csv", "none"):
        return quoting == "csv"
    cells = first.split(delimiter)
    # the default: quotes enclose cells in csv files, and in tsv files whose first row has all cells in quotes
    return csv_like or all(len(cell) > 1 and cell[0] == cell[-1] == '"' for cell in cells)


def _has_blanks(first: str, delimiter: str) -> bool:
    """Return whether a header has blanks between a delimiter and a quote, as in `"input", "target"`."""
    # the blanks would make the quotes a part of the name
    return delimiter != " " and re.search(rf'{re.escape(delimiter)} +"', first) is not None


def _split(first: str, delimiter: str, quoted: bool) -> list[str]:
    if not quoted:
        return first.split(delimiter)
    try:
        skips_blanks = _has_blanks(first, delimiter)
        lines = io.StringIO(first, newline="")  # a cell can have line breaks
        return next(csv.reader(lines, delimiter=delimiter, skipinitialspace=skips_blanks), [])
    except csv.Error:
        return first.split(delimiter)


def _refuse_equal_names(source: Source, line: int, names: list[str]) -> None:
    twice = sorted({name for name in names if name.strip() and names.count(name) > 1})
    if twice:
        raise UserError(f"{source.name}:{line}: two columns are named '{twice[0]}'; rename one of them")
