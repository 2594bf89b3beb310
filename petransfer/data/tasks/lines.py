"""The user's own examples: files or a dataset with an input and a target in every row."""

from __future__ import annotations

import functools
import string
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from petransfer.data.rows.reading import FORMATS
from petransfer.data.task import SplitData
from petransfer.data.task_registry import RegisteredTask
from petransfer.errors import UserError, unknown

SPLITS: tuple[str, ...] = ("held-out",)
# The share of the training rows that is held out where no file is named, and the most rows of it.
SHARE, MOST_DEV, MOST_TEST = 0.1, 200, 1000


@dataclass(frozen=True)
class LinesTask:
    """The user's own data, with one split, `held-out`.

    train: a tsv, csv, jsonl or parquet file (the text formats also as `.gz` or `.xz`), a folder or a hub id
        (`owner/name@revision`) that `datasets` loads. Relative names are looked for in data_dir, then here.
    dev, test: another file; a share of the training rows (0.1); how many of them (500); or a split of the dataset.
        Where they are left out: the dataset's own splits, or a tenth of the training rows.
    input, target, category: columns. A tsv without a header has them in this order; the category may be lacking.
    template: makes the input of several columns, `"summarize: {document}"`.
    split_column: a column that says `train`, `dev` or `test`; other rows are left out.
    seed: of the draw of the rows that are held out. Rows with one input are always drawn together.
    bad_rows: `skip` leaves broken rows out, counts and lists them, where `refuse` stops at the first.
    max_length: inputs and targets of more pieces are refused; 0 leaves that to the model. Nothing is ever cut.
    sha256: what the rows' own must be. config: a dataset's configuration. format: where the suffix does not say.
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
    seed: int = 0
    bad_rows: str = "refuse"
    max_length: int = 0
    sha256: str = ""
    config: str = ""
    format: str = ""
    name = "lines"
    splits = SPLITS

    def __post_init__(self) -> None:
        if not self.train:
            raise UserError("the task lines needs options: {train: FILE}, or a folder or hub id that `datasets` loads")
        if self.bad_rows not in ("refuse", "skip"):
            raise unknown("value of bad_rows of lines", str(self.bad_rows), ("refuse", "skip"))
        if self.format and self.format not in FORMATS:
            raise unknown("format of lines", self.format, FORMATS)
        for key in ("seed", "max_length"):
            value = getattr(self, key)
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise UserError(f"{key} of lines is {value!r}: give a whole number from 0 up")
        for part in ("dev", "test"):
            object.__setattr__(self, part, _share(getattr(self, part), part))
        if self.template and self.input != "input":
            raise UserError("lines has both input and template; leave one of them out")
        roles = [*fields_of(self.template, self.input), self.target, self.category]
        twice = next((role for role in roles if roles.count(role) > 1), None)
        if twice:
            raise UserError(f"lines takes the column '{twice}' for two things; input, target and category must differ")

    def identity(self) -> dict[str, Any]:
        """What of the options counts for a run's id: the rows themselves, whatever file they came from."""
        content = self.sha256 or self.about()["sha256"]
        return {"sha256": content} | ({"template": self.template} if self.template else {})

    def place(self) -> dict[str, Any]:
        """The other options, as far as they were given: where the rows are found on this machine."""
        said = {key: getattr(self, key) for key in _OPTIONS if key not in ("sha256", "template")}
        for part in ("train", "dev", "test"):
            if self.data_dir and said[part] and (self.data_dir / str(said[part])).exists():
                said[part] = str(self.data_dir / str(said[part]))
        return {key: value for key, value in said.items() if value != _OPTIONS[key]}

    def about(self) -> dict[str, Any]:
        """What the store says of the rows: sizes, labels, notes, the longest; see `petransfer.data.rows.store`."""
        from petransfer.data.rows.store import prepared

        found = prepared(self)
        if self.sha256 and found.about["sha256"] != self.sha256:
            raise UserError(
                f"{self.train} holds other rows than when this recipe was first run (sha256 "
                f"{found.about['sha256'][:12]}..., expected {self.sha256[:12]}...); put them back, or take sha256 out "
                "of the recipe and another --out"
            )
        return found.about

    def train_size(self, split: str) -> int:
        """The training rows."""
        return int(self.about()["sizes"]["train"])

    def longest(self, split: str) -> tuple[int, int]:
        """The characters of the longest training input and target."""
        source, target = self.about()["longest"]
        return source, target

    def suggested_metrics(self) -> tuple[str, ...]:
        """A small closed set of targets is scored as labels, anything else by exact match."""
        return ("exact_match", "accuracy", "macro_f1") if self.about()["closed"] else ("exact_match",)

    def notes(self) -> list[str]:
        """What the user should know of the data before training."""
        return list(self.about()["notes"])

    def load(self, split: str) -> SplitData:
        """The rows, which stay on the disk until they are asked for.

        Raises:
            UserError: a file is missing, broken, or changed while it was read; or the rows are not those of `sha256`.
        """
        from petransfer.data.rows.store import prepared

        if split not in self.splits:
            raise unknown("split of lines", split, self.splits)
        self.about()
        return replace(prepared(self).load(), row_name=self.row_name)

    def row_name(self, part: str, index: int) -> str:
        """The file and line of a part's row, for which the file is read again up to it."""
        from petransfer.data.rows.store import line_of

        return line_of(self, part, index)


_OPTIONS = {key: field.default for key, field in LinesTask.__dataclass_fields__.items() if key != "data_dir"}


def _share(value: str | float, part: str) -> str | float:
    """A share of the rows, a count of them, or the name of a file or split."""
    if isinstance(value, str):
        try:
            value = float(value) if "." in value else int(value)
        except ValueError:
            return value
    if isinstance(value, bool) or not (0 < value < 1 or (value >= 1 and value == int(value))):
        raise UserError(f"{part} of lines is {value}: give a share such as 0.1, a number of rows, or a file")
    return value if value < 1 else int(value)


@functools.lru_cache(maxsize=64)
def fields_of(template: str, column: str = "input") -> tuple[str, ...]:
    """The columns that make an input.

    Raises:
        UserError: the template names none, or its braces do not match.
    """
    if not template:
        return (column,)
    try:
        found = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise UserError(
            f"the template {template!r} is broken ({error}); write columns in braces: {{document}}"
        ) from None
    if not found or not all(found):
        raise UserError(f"the template {template!r} names no column; write columns in braces: {{document}}")
    return tuple(dict.fromkeys(found))


def render(template: str, values: dict[str, str]) -> str:
    """The template with every `{column}` put in; braces in the values stay as they are."""
    pieces = string.Formatter().parse(template)
    return "".join(text + (values[name] if name is not None else "") for text, name, _, _ in pieces)


TASK = RegisteredTask("lines", LinesTask, title="lines", published=False)
