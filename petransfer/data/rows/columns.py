"""Choose the columns of the user's data for input, target and category, and convert rows to texts."""

from __future__ import annotations

import codecs
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from petransfer.data.bad_rows import BadRow
from petransfer.data.rows.chat_notes import SYSTEM_COLUMNS, TOOL_COLUMNS, ChatNotes, chat_columns_note, without_nulls
from petransfer.data.rows.chat_rows import COLUMNS as CHAT_COLUMNS
from petransfer.data.rows.chat_rows import GEMINI_COLUMN, chat_turns, read_messages, system_text
from petransfer.data.rows.content_check import refuse_other_content
from petransfer.data.rows.delimited import detect, title_advice, unusual
from petransfer.data.rows.folders import files_of, unread_note
from petransfer.data.rows.options import RowOptions
from petransfer.data.rows.reading import column_names, read
from petransfer.data.rows.records import (
    Record,
    Required,
    as_text,
    has_column,
    instruction_template,
    is_messages,
    is_missing,
    missing_column,
    place_in_list,
    value_of,
)
from petransfer.data.rows.source import Source
from petransfer.data.rows.text_lines import first_bytes, is_utf8
from petransfer.data.templates import fields_of, render
from petransfer.errors import UserError
from petransfer.plurals import count

NO_CATEGORY = "(none)"
# The column that groups rows if the user names no other column.
USUAL_CATEGORY = "category"


class UnusableCategories(UserError):
    """The error for unusable values in the column `category`, if the user did not choose this column."""


@dataclass(frozen=True, slots=True)
class RowTexts:
    """The texts of one example.

    Args:
        input: Text that the model reads.
        target: Text that the model should generate.
        category: Category of the example.
        grouped_by: Text by which an example is assigned to a part. Examples with equal texts are in the same part.
    """

    input: str
    target: str
    category: str
    grouped_by: str


@dataclass(frozen=True)
class ColumnChoice:
    """The columns of the user's data that are read.

    Args:
        inputs: Input column, or the columns in the template.
        template: Template that makes the input from `inputs`. Empty: the input is one column.
        target, category, split: Names of these columns. Empty: no such column.
        messages: Column with chats. Empty: the rows have inputs and targets.
        completion: Column with the messages that follow those in `messages`. Empty: no such column.
        system, tools: Columns beside `messages` with a system prompt and with descriptions of tools. Empty: none.
        others: Columns that are not read.
        chat: Whether an example's input is a JSON list of messages.
        has_all_keys: Whether the format gives every message the keys of all messages.
        is_plain: Whether chats are written as plain text, without the chat template.
        notes: Collects what the user should know about the chats.
        missing: Counts the missing values of each column in a template with several columns.
    """

    inputs: tuple[str, ...]
    template: str = ""
    target: str = "target"
    category: str = ""
    split: str = ""
    messages: str = ""
    completion: str = ""
    system: str = ""
    tools: str = ""
    others: tuple[str, ...] = ()
    chat: bool = False
    has_all_keys: bool = False
    is_plain: bool = False
    notes: ChatNotes = field(default_factory=ChatNotes, compare=False)
    missing: Counter[str] = field(default_factory=Counter, compare=False)

    @property
    def all(self) -> tuple[str, ...]:
        """The names of all columns that are read."""
        chats = (self.messages, self.completion, self.system, self.tools)
        text = chats if self.messages else (*self.inputs, self.target)
        return tuple(name for name in (*text, self.category, self.split) if name)

    def texts(self, values: Mapping[str, Any]) -> Iterator[RowTexts]:
        """Yield the texts of a row's examples. A chat has one example per answer of the assistant."""
        # The category of rows without such a column, as in a tsv file with two columns, must stay `all`: the hash of
        # the rows contains it.
        category = NO_CATEGORY if self.category and has_column(values, self.category) else "all"
        given = value_of(values, self.category) if self.category and has_value(values, self.category) else None
        if not is_missing(given):
            category = self._category(given)
        if self.messages:
            for prompt, answer, first in self._turns(values):
                yield RowTexts(prompt, answer, category, first)
            return
        source = self._source(values)
        target = as_text(_present(values, self.target), "target", self.target)
        for name, text in (("input", source), ("target", target)):
            if not text.strip():
                raise BadRow(f"the {name} is empty")
        prompt = json.dumps([{"role": "user", "content": source}], ensure_ascii=False) if self.chat else source
        yield RowTexts(prompt, target.strip() if self.chat else target, category, source)

    def _source(self, values: Mapping[str, Any]) -> str:
        """Return the input of a row. In a template with several columns, a missing value is the empty text."""
        if not self.template:
            return as_text(_present(values, self.inputs[0]), "input", self.inputs[0])
        given = {name: value_of(values, name) if has_value(values, name) else None for name in self.inputs}
        missing = [name for name, value in given.items() if is_missing(value)]
        if len(missing) == len(given):
            _present(values, missing[0])  # raises an error if the row has no such key
        else:
            self.missing.update(missing)
            given |= dict.fromkeys(missing, "")
        texts = {name: as_text(value, name, name) for name, value in given.items()}
        # otherwise a row without an input would be trained on the fixed words of the template
        return render(self.template, texts) if any(text.strip() for text in texts.values()) else ""

    def missing_notes(self, name: str) -> list[str]:
        """Return a note for each column of the template that lacks values. `name` is the name of the source."""
        return [
            f"warning: {name}: {count(rows, 'row')} without a value in the column '{column}', which is empty in the "
            "template's text"
            for column, rows in self.missing.items()
        ]

    def _category(self, given: Any) -> str:
        try:
            text = as_text(given, "category", self.category)
        except BadRow as problem:
            if self.category == USUAL_CATEGORY:
                raise UnusableCategories(str(problem)) from None
            raise
        return text if text.strip() else NO_CATEGORY

    def _turns(self, values: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
        """Yield (prompt, answer, first message of the user) for each answer in a row's chat."""
        chat, completion = (_present(values, name) if name else None for name in (self.messages, self.completion))
        if self.completion and completion is None:  # without it, the answers in the prompt would become targets
            raise BadRow(f"the messages in '{self.completion}' are missing")
        system = self._beside_chat(values, self.system, SYSTEM_COLUMNS)
        tools = self._beside_chat(values, self.tools, TOOL_COLUMNS)
        if self.has_all_keys:
            chat, completion, system, tools = (without_nulls(each) for each in (chat, completion, system, tools))
        text = system_text(system, self.system or "system prompt")
        yield from chat_turns(chat, self.notes, text, tools, completion, self.is_plain)

    def _beside_chat(self, values: Mapping[str, Any], chosen: str, usual: Sequence[str]) -> Any:
        """Return a row's value in the column `chosen`. If it is empty, use the first column of `usual` in the row.

        The columns of a JSON file are chosen from its first rows, and later rows can have further keys.
        """
        name = chosen or next((each for each in usual if each in values), "")
        if not name or not has_value(values, name):
            return None
        if not chosen:
            self.notes.later_columns.setdefault(name)
        return value_of(values, name)


def has_value(values: Mapping[str, Any], column: str) -> bool:
    """Return whether a row has a column; see `value_of`. The value can be None."""
    try:
        value_of(values, column)
    except KeyError:
        return False
    return True


def has_hidden_label(values: Mapping[str, Any], columns: ColumnChoice) -> bool:
    """Return whether a row's target is -1, the hidden label of some public test sets. In a csv file, it is a text."""
    target = value_of(values, columns.target) if columns.target and has_value(values, columns.target) else None
    if isinstance(target, str):
        return target.strip() in ("-1", "-1.0")
    return not isinstance(target, bool) and target == -1


def choose_columns(options: RowOptions, source: Source) -> ColumnChoice:
    """Choose the columns of a source by the user's options and by the column names in the data."""
    files = files_of(source)
    for file in files:
        refuse_other_content(file)
    required = required_columns(options)
    names = column_names(source, required, options.columns_are_named)
    if names is None:  # a tsv file without a header
        return ColumnChoice(("input",), category=options.category, chat=options.chat != "auto")
    split = options.split_column
    # a later row of a JSON file can have keys that the first rows do not have
    can_have_more = files[0].format == "jsonl"
    category = options.category if can_have_more or has_column(names, options.category) else ""
    # If the user named no columns and the data have neither `input` nor `target`, look for a column with chats first,
    # then for `prompt` and `completion`.
    if not options.columns_are_named and not any(has_column(names, name) for name in ("input", "target")):
        chats = [name for name in CHAT_COLUMNS if name in names]
        if not chats and GEMINI_COLUMN in names:
            first = next(read_records(options, source, ColumnChoice((GEMINI_COLUMN,))), None)
            chats = [GEMINI_COLUMN] * (first is not None and is_messages(first.values.get(GEMINI_COLUMN)))
        if chats:
            return _chat_columns(options, source, names, category, chats[0])
        if "prompt" in names and "completion" in names:
            texts = ColumnChoice(("prompt",), target="completion", category=category, chat=options.chat != "auto")
            first = next(read_records(options, source, texts), None)
            if first and isinstance(first.values.get("prompt"), list):
                return _chat_columns(options, source, names, category, "prompt", completion="completion")
            return replace(texts, others=_others(names, texts))
    if names and any(not has_column(names, name) for name in required):
        values = _first_values(options, source, names)
        advice = title_advice(source, required) or _chat_advice(source, names, values)
        raise missing_column(source.name, required, names, advice, place_in_list(values))
    if options.messages:
        return _chat_columns(options, source, names, category, options.messages, split)
    inputs = fields_of(options.template, options.input)
    found = ColumnChoice(inputs, options.template, options.target, category, split, chat=options.chat != "auto")
    return replace(found, others=_others(names, found))


def _others(names: Sequence[str], columns: ColumnChoice) -> tuple[str, ...]:
    """Return the columns of plain rows that are not read."""
    inside = tuple(f"{name}." for name in columns.all)
    return tuple(
        name
        for name in names
        if not name.startswith(inside) and not any(has_column([name], one) for one in columns.all)
    )


def _first_values(options: RowOptions, source: Source, names: Sequence[str]) -> Mapping[str, Any]:
    """Return the values of the first row. Empty if it cannot be read."""
    try:
        record = next(read_records(options, source, ColumnChoice(tuple(names))), None)
    except Exception:  # a column that is not needed, such as one of images, can raise any error
        return {}
    return record.values if record else {}


def _chat_advice(source: Source, names: Sequence[str], values: Mapping[str, Any]) -> str:
    """Return how to read the columns of a source as chats. Empty if no column holds messages."""
    chats = [name for name in names if has_value(values, name) and is_messages(value_of(values, name))]
    if {"prompt", "chosen"} <= set(chats):
        return "to train the answers in 'chosen', rename this column to 'completion'"
    if chats and not _has_answer(value_of(values, chats[0])):
        return (
            f"the messages in '{chats[0]}' have no answer of the assistant; write it as their last message, or write "
            "the messages before the answer and the answer into the columns prompt and completion, as in "
            '{"prompt": [{"role": "user", "content": "Hi"}], "completion": [{"role": "assistant", "content": "Hello"}]}'
        )
    if chats:
        return f"to train the chats in '{chats[0]}', use --set task.options.messages={chats[0]}"
    if source.format == "csv" and any(" " in name.strip() for name in names[:2]) and 1 < len(names) <= 3:
        return (
            "if the first line is data, add the line `input,target` above it; if it is a title, delete it; otherwise "
            "name the columns with --input-column COLUMN --target-column COLUMN"
        )
    return ""


def _has_answer(value: Any) -> bool:
    try:
        return any(message["role"] == "assistant" for message in read_messages(value))
    except BadRow:  # reading the rows reports the problem
        return True


def _chat_columns(
    options: RowOptions,
    source: Source,
    names: Sequence[str],
    category: str,
    messages: str,
    split: str = "",
    completion: str = "",
) -> ColumnChoice:
    # the system prompt of Gemini is an object with a list `parts`
    system = next((name for name in SYSTEM_COLUMNS if name in names or f"{name}.parts" in names), "")
    tools = next((name for name in TOOL_COLUMNS if name in names), "")
    known = {category, messages, split, completion, system, tools}
    return ColumnChoice(
        (),
        category=category,
        split=split,
        messages=messages,
        completion=completion,
        system=system,
        tools=tools,
        others=tuple(
            name for name in names if not {name, name.partition(".")[0]} & known and not has_column([name], messages)
        ),
        chat=True,
        has_all_keys=source.format in ("parquet", "arrow", "dataset"),
        is_plain=options.chat == "plain",
    )


def required_columns(options: RowOptions) -> Required:
    """Return the columns that the data must have, each with the name of the option for this column."""
    if options.messages:
        required = {options.messages: "messages"}
    else:
        option = "template" if options.template else "input_column"
        required = dict.fromkeys(fields_of(options.template, options.input), option)
        required[options.target] = "target_column"
    required |= {options.category: "category"} if options.category not in (USUAL_CATEGORY, "") else {}
    if options.split_column:
        required.setdefault(options.split_column, "split_column")
    return required


def reading_notes(options: RowOptions, source: Source, columns: ColumnChoice) -> list[str]:
    """Return notes about unusual delimiters or quotes and automatically chosen columns."""
    found = unread_note(source)
    first = files_of(source)[0]
    if first.format in ("csv", "tsv"):
        dialect = detect(first, required_columns(options), options.columns_are_named)
        found += unusual(first, dialect)
    found += _encoding_note(source)
    if columns.messages:
        chats = [name for name in (columns.messages, columns.completion) if name]
        found.append(chat_columns_note(source.name, chats, columns.system, columns.tools, columns.others))
        return found
    read = "inputs are in the column 'prompt', targets in 'completion'"
    notes = [read] if columns.inputs == ("prompt",) and not options.columns_are_named else []
    notes += [f"not read: {', '.join(map(repr, columns.others[:10]))}"] if columns.others else []
    found += [f"{source.name}: {'; '.join(notes)}"] if notes else []
    if advice := unread_instruction(columns):
        found.append(f"warning: {source.name}: {advice}")
    return found


def unread_instruction(columns: ColumnChoice) -> str:
    """Return the advice for data whose column `instruction` is not read beside `input`. '' for other data."""
    if columns.inputs != ("input",) or columns.template or "instruction" not in columns.others:
        return ""
    template = instruction_template(["instruction", "input"])
    return f"the column 'instruction' is not read; --template '{template}' puts both columns into the input"


def _encoding_note(source: Source) -> list[str]:
    """Return a warning if the user named another encoding for a file that is UTF-8."""
    if not source.encoding or source.path is None or codecs.lookup(source.encoding).name in ("utf-8", "utf-8-sig"):
        return []
    return [
        f"warning: {file.name} is UTF-8, but is read as {file.encoding}, the value of the option encoding, which "
        "gives wrong letters; leave the option out. If another file needs it, save that file as UTF-8"
        for file in files_of(source)
        if is_utf8(first_bytes(file))
    ]


def quotes_are_text(options: RowOptions, source: Source) -> bool:
    """Return whether a source contains a tsv file whose quotes were detected as ordinary characters."""
    files = [file for file in files_of(source) if file.format == "tsv" and file.quoting in ("", "auto")]
    return any(not detect(file, required_columns(options), options.columns_are_named).quoted for file in files)


def read_records(options: RowOptions, source: Source, columns: ColumnChoice) -> Iterator[Record]:
    """Iterate over the rows of a source. Values of columns that are not in `columns` can be missing."""
    return read(source, required_columns(options), options.columns_are_named, columns.all)


def _present(values: Mapping[str, Any], column: str) -> Any:
    try:
        return value_of(values, column)
    except KeyError:
        raise BadRow(f"no key '{column}'", f"it has: {', '.join(map(str, list(values)[:10]))}") from None
