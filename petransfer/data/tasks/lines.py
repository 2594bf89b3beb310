"""The user's own examples: files or a dataset with an input and a target, or a chat, in every row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from petransfer.data.rows.options import RowOptions
from petransfer.data.task import SplitData
from petransfer.data.task_registry import RegisteredTask
from petransfer.errors import UserError, unknown

SPLITS: tuple[str, ...] = ("held-out",)


@dataclass(frozen=True)
class LinesTask(RowOptions):
    """The user's own data, with one split, `held-out`; see `RowOptions` for its options."""

    name = "lines"
    splits = SPLITS

    def identity(self) -> dict[str, Any]:
        """Return the part of the options that a run's id depends on: the rows themselves, whatever file they are in."""
        content: dict[str, Any] = {"sha256": self.sha256 or self.about()["sha256"]}
        content |= {"template": self.template} if self.template else {}
        content |= {"chat": chat} if (chat := self._chat()) else {}
        # rows that are too long are left out, so that another limit trains on other rows
        content |= {"max_length": self.max_length} if self.max_length and self.bad_rows == "skip" else {}
        return content

    def _chat(self) -> str:
        """How chats are written; empty where the rows are no chats."""
        if self.chat != "auto":
            return self.chat
        try:
            return "template" if self.about()["chat"] else ""
        except UserError:
            if self.sha256:  # a study can be read where its data is no longer; its recipe names `chat`
                return ""
            raise

    def place(self) -> dict[str, Any]:
        """Return the other options that were given: where the rows are on this machine and how they are read."""
        from petransfer.data.rows.store import given_options

        given = {key: value for key, value in given_options(self).items() if key not in ("sha256", "template", "chat")}
        for part in ("train", "dev", "test"):
            if self.data_dir and part in given and (self.data_dir / str(given[part])).exists():
                given[part] = str(self.data_dir / str(given[part]))
        return given

    def about(self) -> dict[str, Any]:
        """Return what is known of the rows: sizes, labels, notes, the longest; see `petransfer.data.rows.builder`.

        Raises:
            UserError: A row cannot be used, or the rows are not those of `sha256`.
        """
        from petransfer.data.rows.store import prepared

        about = prepared(self).about
        if self.sha256 and about["sha256"] != self.sha256:
            raise UserError(
                f"{self.train} holds other rows than when this recipe was first run (sha256 {about['sha256'][:12]}..., "
                f"expected {self.sha256[:12]}...); put them back, or take sha256 out of the recipe and another --out"
            )
        return about

    def train_size(self, split: str) -> int:
        """Return the number of training rows."""
        return int(self.about()["sizes"]["train"])

    def longest(self, split: str) -> tuple[int, int]:
        """Return the characters in the longest training input and target."""
        source, target = self.about()["longest"]
        return source, target

    def suggested_metrics(self) -> tuple[str, ...]:
        """Suggest accuracy and macro F1 for a small closed set of targets, exact match alone for other targets."""
        return ("exact_match", "accuracy", "macro_f1") if self.about()["closed"] else ("exact_match",)

    def notes(self) -> list[str]:
        """Return what the user should know of the data before training."""
        return list(self.about()["notes"])

    def load(self, split: str) -> SplitData:
        """Return the rows, which stay on the disk until they are asked for.

        Raises:
            UserError: A file is missing, broken, or changed while it was read; or the rows are not those of `sha256`.
        """
        from petransfer.data.rows.store import prepared

        if split not in self.splits:
            raise unknown("split of lines", split, self.splits)
        self.about()
        return prepared(self).load()


TASK = RegisteredTask("lines", LinesTask, title="lines", published=False)
