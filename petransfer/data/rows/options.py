"""The options that say where the user's rows are and how to read them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from petransfer.data.rows.delimited import QUOTING
from petransfer.data.rows.folds import check_fold
from petransfer.data.rows.source import FORMATS
from petransfer.data.templates import fields_of
from petransfer.errors import UserError, unknown

CHAT = ("auto", "template", "plain")
_CHOICES = {"bad_rows": ("refuse", "skip"), "quoting": QUOTING, "chat": CHAT}


@dataclass(frozen=True)
class RowOptions:
    """The options of the task `lines`, which reads the user's own data.

    Args:
        data_dir: Folder in which relative file names are looked for first.
        train: File (tsv, csv, json, jsonl, parquet, arrow; text files can be compressed), or a folder or a hub id
            (`owner/name@revision`) that `datasets` loads.
        dev, test: File, share of the training rows (0.1), number of training rows (500), or split of the dataset.
            Empty: the dataset's own split, or else a tenth of the training rows (at most 200 for dev and 1,000 for
            test).
        input, target, category: Names of columns. `translation.en` is the key `en` inside the column `translation`. A
            tsv file without a header has these columns in this order; the category can be missing. Rows are not grouped
            by the column `category` if it is read as a text, or if its values cannot be categories.
        input_column, target_column: Other names for the options `input` and `target`.
        template: Text with columns in braces that makes the input, such as `"summarize: {document}"`.
        messages: Column with chat messages. Columns named `messages` or `conversations` need no option.
        chat: `auto`: only rows with messages are chats, written with the tokenizer's chat template. `template`: pairs
            of input and target also become chats. `plain`: like `template`, but chats are written as `role: content`
            lines, for models without a chat template.
        fold: `2/5`: the second of five folds of the training rows is the dev set, and there is no test set without a
            test file. `all`: all training rows are trained on, and a sample of them is the dev set. Without a test
            file, this sample is also the test set.
        split_column: Column that contains `train`, `dev` or `test`. Rows with other values are left out.
        seed: Seed of the draw of dev and test rows. Rows with the same input always stay in one part.
        bad_rows: `skip` leaves out unusable rows and counts them. `refuse` raises an error after all rows were read.
        max_length: Rows with more input tokens or more target tokens cannot be used. Nothing is cut. 0: only the
            model's own limit applies.
        sha256: Expected hash of the rows. Empty: not checked.
        config: Name of a configuration of the dataset.
        format, encoding, delimiter, quoting: Format of the files, if it is not detected correctly. `quoting` is
            `csv` (quotes enclose cells), `none` (quotes are ordinary characters) or `auto`.
    """

    data_dir: Path | None = None
    train: str = ""
    dev: str | float = ""
    test: str | float = ""
    input: str = "input"
    target: str = "target"
    category: str = "category"
    template: str = ""
    split_column: str = ""
    fold: str = ""
    seed: int = 0
    bad_rows: str = "refuse"
    max_length: int = 0
    sha256: str = ""
    config: str = ""
    format: str = ""
    input_column: str = ""
    target_column: str = ""
    messages: str = ""
    chat: str = "auto"
    encoding: str = ""
    delimiter: str = ""
    quoting: str = "auto"

    def __post_init__(self) -> None:
        for each in fields(self):
            if isinstance(each.default, str) and each.name not in ("dev", "test"):
                object.__setattr__(self, each.name, _text(getattr(self, each.name), each.name))
        if not self.train:
            raise UserError("the task lines needs options: {train: FILE}, or a folder or hub id that `datasets` loads")
        for key, choices in _CHOICES.items():
            if getattr(self, key) not in choices:
                raise unknown(f"value of {key}", str(getattr(self, key)), choices)
        if self.format and self.format not in FORMATS:
            raise unknown("format of rows", self.format, FORMATS)
        for key in ("seed", "max_length"):
            value = getattr(self, key)
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
                raise UserError(f"{key} is {value!r:.40}: give a whole number of at least 0")
        for part in ("dev", "test"):
            object.__setattr__(self, part, _share(getattr(self, part), part))
        check_fold(self.fold, self.dev, self.split_column)
        self._name_columns()

    def _name_columns(self) -> None:
        for key in ("input", "target"):
            alias = getattr(self, f"{key}_column")
            if alias and getattr(self, key) not in (key, alias):
                raise UserError(f"give either {key} or {key}_column, not both")
            object.__setattr__(self, key, alias or getattr(self, key))
            object.__setattr__(self, f"{key}_column", "")
        if self.template and self.input != "input":
            raise UserError("give either an input column or a template, not both")
        texts = [*fields_of(self.template, self.input), self.target]
        if self.category == "category" and "category" in texts:  # the column is used as input or target
            object.__setattr__(self, "category", "")
        roles = [*texts, *filter(None, [self.category])]
        twice = next((role for role in roles if roles.count(role) > 1), None)
        if twice:
            raise UserError(
                f"the column '{twice}' is named twice; input, target and category must be different columns"
            )

    @property
    def columns_are_named(self) -> bool:
        """Whether the user set any option that names a column."""
        defaults = (self.input, self.target) == ("input", "target") and self.category in ("category", "")
        return bool(self.template or self.messages or self.split_column) or not defaults


def _text(value: Any, key: str) -> str:
    """Return the value of an option as text. In a recipe, a column named 3 is read as a number."""
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise UserError(f"{key} is {value!r:.40}: give a text")


def _share(value: str | float, part: str) -> str | float:
    """Return `dev` or `test` as a share, a number of rows, or a name."""
    number: float = math.nan
    try:
        number = float(value)
    except (TypeError, OverflowError):  # such as None
        pass
    except ValueError:
        if isinstance(value, str) and not re.fullmatch(r"[\d.]+ ?%", value):
            return value
    if isinstance(value, bool) or not (0 < number < 1 or (1 <= number < math.inf and number == int(number))):
        raise UserError(f"{part} is {value!s:.40}: give a share such as 0.1, a number of rows, or a file")
    if number == 1 and not re.fullmatch(r" *\d+ *", str(value)):  # such as 1.0
        raise UserError(
            f"{part} is {value!s:.40}, which can mean one row or all rows: give 1 for one row, a share below "
            "1 such as 0.1, or a file"
        )
    return number if number < 1 else int(number)
