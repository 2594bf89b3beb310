"""Read the user's files in one pass: check every row, write it to disk, and assign it to train, dev or test."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from petransfer.data.bad_rows import BadRow, BadRows, UnusableRows, visible
from petransfer.data.rows.alike_names import alike_names, difference_of, normalised_label, shown_apart
from petransfer.data.rows.chat_rows import is_whole_message, readable_answer, readable_input
from petransfer.data.rows.columns import (
    USUAL_CATEGORY,
    ColumnChoice,
    RowTexts,
    UnusableCategories,
    choose_columns,
    has_hidden_label,
    quotes_are_text,
    read_records,
    reading_notes,
    unread_instruction,
)
from petransfer.data.rows.folds import fold_codes, scored_positions
from petransfer.data.rows.held_out import MOST_DEV, overlaps, partition, several_targets, text_hash
from petransfer.data.rows.options import RowOptions
from petransfer.data.rows.records import MissingColumn, Record, as_text, value_of
from petransfer.data.rows.short_rows import ShortRows
from petransfer.data.rows.source import Source
from petransfer.data.rows.stored_rows import RowWriter
from petransfer.data.rows.tables import HIDDEN_LABEL, unread_splits_note
from petransfer.data.task import PARTS
from petransfer.errors import UserError
from petransfer.plurals import count

_log = logging.getLogger(__name__)
_OTHER = len(PARTS)
# An example with the number of its part and the hash by which it is grouped.
_Coded = tuple[int, int, RowTexts]
# The beginning of the note that shows a row.
FIRST_ROW = "first row:"
_PART_NAMES = {
    **dict.fromkeys(("train", "training"), 0),
    **dict.fromkeys(("dev", "val", "valid", "validation", "eval"), 1),
    **dict.fromkeys(("test", "testing"), 2),
}
# The targets count as a closed set of labels if there are at most LABELS different targets and at least ROWS_PER_LABEL
# training rows per different target.
LABELS, ROWS_PER_LABEL = 50, 5
# Different targets are counted up to COUNTED. More different categories than CATEGORIES are an error.
COUNTED, CATEGORIES = 5000, 1000
# Texts of Python, pandas, R, databases and spreadsheets for missing values and for errors of formulas.
_MISSING = (
    "NaN", "nan", "<NA>", "NaT", "None", "NA", "null", "NULL", "\\N", "#N/A", "#NA", "#VALUE!", "#REF!", "#DIV/0!",
    "#NAME?", "#NUM!", "#NULL!",
)  # fmt: skip
# A chat as text, in the older form of Anthropic.
_TURNS = re.compile(r"\s*Human:.*\n\s*Assistant:\s*", re.DOTALL)
# Column names of many tables, by which a header is recognised in a file that seems to have none.
_USUAL_NAMES = frozenset(
    ("text", "texts", "sentence", "source", "src", "question", "query", "prompt", "instruction", "review", "document",
     "article", "label", "labels", "class", "output", "answer", "response", "completion", "tgt", "translation",
     "sentiment", "summary", "highlights", "en", "de", "fr", "es", "zh", "english", "german", "french")
)  # fmt: skip


class RowBuilder:
    """Reads the rows of all parts, writes them to disk, and summarises them. `note` is a first note for the user."""

    def __init__(self, options: RowOptions, folder: Path, note: str = "") -> None:
        self._options, self._folder, self._note = options, folder, note
        # for each row: the number of its part, and an 8-byte hash of the text by which rows are grouped
        self._parts, self._hashes = array("B"), array("Q")
        # for each row: hashes of the input and the target; for each example of a chat: a hash of the whole chat
        self._inputs, self._answers, self._chats = array("Q"), array("Q"), array("Q")
        self._digest = hashlib.sha256()
        self._targets: Counter[str] = Counter()
        self._categories: Counter[str] = Counter()
        # the numbers of inputs and of targets that are a text for a missing value
        self._missing_inputs: Counter[str] = Counter()
        self._missing_targets: Counter[str] = Counter()
        self._bad = BadRows()
        # the number of rows of each source, by its name; and the names of the sources with unusable rows
        self._rows: Counter[str] = Counter()
        self._with_bad: dict[str, None] = {}
        self._hidden: Counter[str] = Counter()
        # for each name of a split other than train, dev and test: the number of its rows, which are not used
        self._left_out: Counter[str] = Counter()
        # for each part that is read from a folder: the index of each file's first example, and the name of the file
        self._files: dict[str, list[tuple[int, str]]] = {}
        # for each tsv source whose quotes are read as text: the number of its rows with a text in quotes
        self._in_quotes: Counter[str] = Counter()
        # the number of examples with a carriage return (CR) in the target, as in the line breaks of Windows
        self._returns = 0
        self._longest = [0, 0]
        self._first: RowTexts | None = None
        # whether the first row of a tsv file without a header looks like column names
        self._names_first = False
        self._read_as: list[str] = []
        self._unread_instruction = ""
        self._chat = False

    def build(self, sources: Mapping[str, Source], cuts: Mapping[str, float]) -> dict[str, Any]:
        """Write `rows.arrow` and the row positions of each part, and return the summary for `about.json`.

        Args:
            sources: Files or datasets that the user named, by part.
            cuts: Size of each part that is cut from the training rows: share (below 1) or number of rows. 0: default.

        Raises:
            UserError: Rows cannot be used, a part has no rows, or there are too many or too similar
                categories.
        """
        self._read_as += unread_splits_note(sources)
        with RowWriter(self._folder / "rows.arrow") as writer:
            for part in PARTS:
                if part in sources:
                    again = sources[part] in list(sources.values())[: list(sources).index(part)]
                    self._read(part, sources[part], writer, again)
        if self._bad and self._options.bad_rows == "refuse":
            rows = sum(self._rows[name] for name in self._with_bad)
            raise UnusableRows(self._bad.refusal(rows, " and ".join(self._with_bad)) + self._more_advice())
        self._group_by_chats(cuts)
        codes = self._codes(cuts)
        sizes = self._write_positions(codes)
        self._check_parts(sizes, sources)
        self._check_categories()
        are_texts = not any(map(is_whole_message, self._targets))
        few = are_texts and len(self._targets) <= LABELS and sizes["train"] >= ROWS_PER_LABEL * len(self._targets)
        return {
            "sha256": self._digest.hexdigest(),
            "sizes": sizes,
            "longest": self._longest,
            "labels": sorted(self._targets) if len(self._targets) <= COUNTED else [],
            "targets": len(self._targets),
            "closed": few and len(self._targets) > 1,
            "bad": self._bad.count,
            "chat": self._chat,
            "files": self._files,
            "notes": [*self._notes(), *overlaps(codes, self._inputs), *self._several_targets(codes)],
        }

    def _group_by_chats(self, cuts: Mapping[str, float]) -> None:
        """Group chats by their whole text if too few of them begin with different messages of the user."""
        parts = int(self._options.fold.partition("/")[2] or 0) if self._options.fold else len(cuts) + 1
        if self._chat and len(self._chats) == len(self._hashes) and len(set(self._hashes)) < parts:
            self._hashes = self._chats

    def _several_targets(self, codes: Any) -> list[str]:
        return [] if self._chat else several_targets(codes, self._inputs, self._answers)

    def _codes(self, cuts: Mapping[str, float]) -> Any:
        if self._options.fold:
            return fold_codes(self._parts, self._hashes, self._options.fold, self._options.train)
        return partition(self._parts, self._hashes, cuts)

    def _read(self, part: str, source: Source, writer: RowWriter, again: bool) -> None:
        """Read the rows of a part. `again`: an earlier part has the same source, so bad rows are not counted twice."""
        bad = BadRows() if again else self._bad
        columns = self._columns(part, source)
        is_plain = quotes_are_text(self._options, source)
        index, rows, short = 0, 0, ShortRows()
        has_title = False  # whether line 1 was read as a row and cannot be used, so that it may be a title
        for record in read_records(self._options, source, columns):
            rows += 1
            if rows % 1_000_000 == 0:
                _log.info("%s: %s rows read", source.name, f"{rows:,}")
            self._begin_file(part, record.file, index)
            try:
                examples = list(self._examples(part, record, columns))
            except BadRow as problem:
                bad.add(record.place(source.name), problem)
                self._with_bad.setdefault(source.name)
                has_title = has_title or record.line == 1
                index += 1
                continue
            short.add(record, source.name)
            is_first_row = self._first is None
            self._add_examples(writer, record, columns, index, examples)
            index += max(1, len(examples))  # a row that is left out counts, even if it has no examples
            if is_plain and not again:
                self._in_quotes[source.name] += any(_is_in_quotes(texts) for _, _, texts in examples)
            if part == "train" and source.format == "tsv" and (record.line == 1 or (has_title and is_first_row)):
                self._check_names(source, record.line, examples)
            self._hidden[part] += has_hidden_label(record.values, columns)
        self._rows[source.name] += 0 if again else rows
        if not again:
            self._read_as += columns.notes.lines(source.name, columns.system)
            self._read_as += [*short.notes(source.name), *columns.missing_notes(source.name)]
        # if training rows also have the target -1, it is an ordinary number or label
        if part != "train" and rows and self._hidden[part] == rows and not self._hidden["train"]:
            raise UserError(f"{source.name}: {HIDDEN_LABEL} in every {part} row{_name_another(part)}")

    def _add_examples(
        self, writer: RowWriter, record: Record, columns: ColumnChoice, index: int, examples: Sequence[_Coded]
    ) -> None:
        """Write and count the examples of one row. Examples that belong to an unused split are left out.

        Args:
            writer: The writer of the part.
            record: The row.
            columns: The columns of the part.
            index: The index of the row's first example.
            examples: The examples of the row.
        """
        for position, (code, hashed, texts) in enumerate(examples, index):
            if code != _OTHER:
                writer.add(position, record.line, texts.input, texts.target, texts.category)
                self._count(code, hashed, texts)
        if columns.messages and examples:
            _, _, last = examples[-1]
            whole = text_hash(last.input + last.target, self._options.seed)
            self._chats.extend(whole for code, _, _ in examples if code != _OTHER)

    def _begin_file(self, part: str, file: str, index: int) -> None:
        """Keep the index of the first example of each file of a folder. `file` is empty for other sources."""
        files = self._files.setdefault(part, []) if file else []
        if file and (not files or files[-1][1] != file):
            files.append((index, file))

    def _check_names(self, source: Source, line: int, examples: Sequence[_Coded]) -> None:
        """Check whether the first row that can be used looks like column names."""
        cells = {text.strip().lower() for _, _, texts in examples for text in (texts.input, texts.target)}
        self._names_first = cells <= _USUAL_NAMES
        if self._names_first and line > 1:
            raise UserError(
                f"{source.name}:{line}: this line looks like the column names, below lines that are no rows; delete "
                "the lines above it"
            )

    def _columns(self, part: str, source: Source) -> ColumnChoice:
        """Return the columns of a part, and keep the notes about them. Raise UserError for chats beside pairs."""
        try:
            columns = choose_columns(self._options, source)
        except MissingColumn as error:
            if part == "train":
                raise
            like = f"give it the column names of the training data, {self._options.train}"
            raise MissingColumn(error.problem, like) from None
        if part != "train" and columns.chat and not self._chat:
            raise UserError(
                f"{source.name} has chats, and {self._options.train} has inputs and targets; use one format, or "
                "convert the pairs to chats with --set task.options.chat=template"
            )
        self._chat = self._chat or columns.chat
        self._read_as += reading_notes(self._options, source, columns)
        self._unread_instruction = self._unread_instruction or unread_instruction(columns)
        return columns

    def _examples(self, part: str, record: Record, columns: ColumnChoice) -> Iterator[_Coded]:
        if record.problem:
            raise record.problem
        code = PARTS.index(part)
        if columns.split:
            named = as_text(value_of(record.values, columns.split), columns.split).strip()
            code = _PART_NAMES.get(named.lower(), _OTHER)
            if code == _OTHER:
                self._left_out[named if len(self._left_out) < LABELS or named in self._left_out else "others"] += 1
        try:
            for texts in columns.texts(record.values):
                yield code, _group_hash(texts, self._options.seed), texts
        except BadRow:
            if code != _OTHER:  # a row that is left out may be unusable
                raise

    def _count(self, code: int, hashed: int, texts: RowTexts) -> None:
        self._parts.append(code)
        self._hashes.append(hashed)
        self._inputs.append(hash(texts.input) % 2**64)
        self._answers.append(hash(texts.target) % 2**64)
        self._digest.update(json.dumps((texts.input, texts.target, texts.category)).encode())
        if len(self._targets) <= COUNTED:
            self._targets[texts.target] += 1
        if len(self._categories) <= CATEGORIES:
            self._categories[texts.category] += 1
        if texts.input in _MISSING:
            self._missing_inputs[texts.input] += 1
        if texts.target in _MISSING:
            self._missing_targets[texts.target] += 1
        self._returns += "\r" in texts.target
        self._longest = [max(self._longest[0], len(texts.input)), max(self._longest[1], len(texts.target))]
        self._first = self._first or texts

    def _write_positions(self, codes: Any) -> dict[str, int]:
        import numpy as np

        sizes = {}
        for code, part in enumerate(PARTS):
            positions = scored_positions(codes, code, self._options.fold, MOST_DEV).astype(np.uint32)
            self._digest.update(positions.tobytes())
            np.save(self._folder / f"{part}.npy", positions)
            sizes[part] = len(positions)
        return sizes

    def _check_parts(self, sizes: Mapping[str, int], sources: Mapping[str, Source]) -> None:
        for part, size in sizes.items():
            if not size and not (self._options.fold and part == "test"):
                name = sources.get(part, sources["train"]).name
                left_out = f"; {self._bad.note()}" if self._bad else ""
                total = sum(sizes.values())
                if not total and not self._bad:
                    raise UserError(f"{name} has no rows; name a file with rows")
                alike = total > 2 and len(set(self._hashes)) < 3
                why = ", and rows with the same input stay in one part" if alike else ""
                advice = "give more rows, or name files"
                if part == "train" and total > 2 and not alike:
                    advice = "hold out fewer rows, for example with --dev 0.1 --test 0.1"
                raise UserError(
                    f"{name}: no row is left for {part} ({count(total, 'usable row')} in all{why}); {advice}{left_out}"
                    f"{self._more_advice()}"
                )

    def _check_categories(self) -> None:
        is_usual = self._options.category == USUAL_CATEGORY
        if len(self._categories) > CATEGORIES:
            if is_usual:
                raise UnusableCategories(f"it has more than {CATEGORIES:,} different values")
            raise UserError(
                f"the column '{self._options.category}' has more than {CATEGORIES:,} categories; name another with "
                "--set task.options.category=COLUMN"
            )
        for names in alike_names(self._categories):
            found = f"the categories {shown_apart(names, self._categories)} {difference_of(names)}"
            raise UnusableCategories(found) if is_usual else UserError(f"{found}; write them in the same way")

    def _notes(self) -> Iterator[str]:
        yield from filter(None, dict.fromkeys([self._note, *self._read_as]))
        if self._first:
            yield first_row_note(self._first.input, self._first.target)
            if _TURNS.fullmatch(self._first.input):
                yield (
                    "the inputs have turns of 'Human:' and 'Assistant:' and are trained as plain text; to train them "
                    'as chats, write rows as in {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", '
                    '"content": "Hello"}]}'
                )
        if self._bad:
            yield self._bad.note()
        if self._left_out:
            found = ", ".join(f"{visible(name, 30)} ({count(n, 'row')})" for name, n in self._left_out.most_common(5))
            yield (
                f"{count(self._left_out.total(), 'row')} left out, whose value in the column "
                f"'{self._options.split_column}' is not train, dev or test: {found}"
            )
        for name, rows in self._in_quotes.items():
            if rows:
                yield (
                    f"warning: {name}: {count(rows, 'row')} with texts in quotes, and the quotes are read as a part of "
                    "the text; --quoting csv reads them as the ends of a cell, as spreadsheets write them"
                )
        if self._returns:
            yield (
                f"{count(self._returns, 'target')} with carriage returns (CR, shown as ␍), as in the line breaks of "
                "Windows (CRLF); they are trained as a part of the text"
            )
        if len(self._targets) == 1 and len(self._parts) > LABELS // ROWS_PER_LABEL:
            (target,) = self._targets
            yield f"warning: all rows have the same target, {visible(target)}; nothing else is learnt"
        if self._names_first and self._first:
            named = f"--input-column {self._first.input} --target-column {self._first.target}"
            yield f"warning: the first line is read as a row; if it has the column names, use {named}"
        yield from self._missing_values()
        for names in alike_names(self._targets, normalised_label) if len(self._targets) <= 2 * LABELS else ():
            found = shown_apart(names, self._targets)
            yield f"warning: the targets {found} {difference_of(names)}; is one of them misspelled?"

    def _missing_values(self) -> Iterator[str]:
        for kind, counts in (("inputs", self._missing_inputs), ("targets", self._missing_targets)):
            found = {name: counts[name] for name in _MISSING if counts[name]}
            if not found:
                continue
            shown = ", ".join(f"{visible(name)} ({count(number, 'row')})" for name, number in found.items())
            yield (
                f"warning: some {kind} are texts that programs write for a missing value or an error: {shown}; remove "
                "these rows if nothing of that kind should be learnt"
            )

    def _more_advice(self) -> str:
        if self._unread_instruction and self._bad.has("the input is empty"):
            return f"; {self._unread_instruction}"
        return _name_another("test") if self._bad.has(HIDDEN_LABEL) else ""


def first_row_note(source: str, target: str) -> str:
    """Return a note that shows the input and the target of a row."""
    shown = visible(readable_input(source, only_last=True))
    return f"{FIRST_ROW} input {shown}, target {visible(readable_answer(target))}"


def _is_in_quotes(texts: RowTexts) -> bool:
    return any(len(text) > 1 and text[0] == text[-1] == '"' for text in (texts.input, texts.target))


def _name_another(part: str) -> str:
    return f"; it cannot be scored: name another {part} set, for example --{part} 0.1 for a tenth of the training rows"


def _group_hash(texts: RowTexts, seed: int) -> int:
    """Return an 8-byte hash of the text by which rows are grouped, keyed with the seed."""
    try:
        _ = [text.encode() for text in (texts.input, texts.target, texts.category)]
        return text_hash(texts.grouped_by, seed)
    except UnicodeEncodeError:
        raise BadRow("the text contains a lone surrogate (half of a character); correct the text") from None
