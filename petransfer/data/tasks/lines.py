"""The user's own examples, from files or a dataset. A row has an input and a target, or a chat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from petransfer.data.rows.options import RowOptions
from petransfer.data.task import SplitData
from petransfer.data.task_registry import RegisteredTask
from petransfer.errors import UserError, unknown
from petransfer.user_paths import expanded

SPLITS: tuple[str, ...] = ("held-out",)


class ChangedRows(UserError):
    """Raised if the rows differ from the rows whose hash was recorded."""

    def __init__(self, name: str, found: str, expected: str) -> None:
        self.name, self.hashes = name, f"sha256 {found[:12]}..., expected {expected[:12]}..."
        super().__init__(
            f"the rows of {name} have changed since this recipe was first run ({self.hashes}); restore them, or "
            "remove sha256 from the recipe and use another --out"
        )


@dataclass(frozen=True)
class LinesTask(RowOptions):
    """The user's own data, with one split, `held-out`; see `RowOptions` for its options."""

    name = "lines"
    splits = SPLITS

    def identity(self) -> dict[str, Any]:
        """Return the values that a run's id depends on: the hash of the rows and some options, but no file names."""
        content: dict[str, Any] = {"sha256": self.sha256 or self.about()["sha256"]}
        content |= {"template": self.template} if self.template else {}
        content |= {"chat": chat} if (chat := self._chat()) else {}
        # with `skip`, too long rows are left out, so another limit gives other training rows
        content |= {"max_length": self.max_length} if self.max_length and self.bad_rows == "skip" else {}
        return content

    def _chat(self) -> str:
        """Return how chats are converted to text (`template` or `plain`). Empty without chats."""
        if self.chat != "auto":
            return self.chat
        try:
            return "template" if self.about()["chat"] else ""
        except UserError:
            # The data of a saved study may be missing. Its recipe has `sha256`, and also `chat` if the rows are chats.
            if self.sha256:
                return ""
            raise

    def local_options(self) -> dict[str, Any]:
        """Return the options that say where the rows are on this machine and how they are read."""
        from petransfer.data.rows.store import given_options

        given = {key: value for key, value in given_options(self).items() if key not in ("sha256", "template", "chat")}
        for part in ("train", "dev", "test"):
            if not isinstance(given.get(part), str):
                continue
            places = [self.data_dir / given[part]] if self.data_dir else []
            found = next((place for place in (*places, expanded(given[part])) if place.exists()), None)
            if found:
                given[part] = str(found.resolve())
        return given

    def about(self) -> dict[str, Any]:
        """Return the summary of the rows, such as sizes, labels and notes.

        Raises:
            UserError: A row cannot be used, or the hash of the rows is not `sha256`.
        """
        from petransfer.data.rows.store import open_store

        about = open_store(self).about
        if self.sha256 and about["sha256"] != self.sha256:
            raise ChangedRows(self.train, about["sha256"], self.sha256)
        return about

    def train_size(self, split: str) -> int:
        return int(self.about()["sizes"]["train"])

    def longest(self, split: str) -> tuple[int, int]:
        """Return the lengths in characters of the longest input and the longest target."""
        source, target = self.about()["longest"]
        return source, target

    def suggested_metrics(self) -> tuple[str, ...]:
        """Return the metrics that suit the data."""
        # `closed` means that the targets are a few labels
        return ("exact_match", "accuracy", "macro_f1") if self.about()["closed"] else ("exact_match",)

    def notes(self) -> list[str]:
        """Return messages for the user about the data, to be shown before training."""
        return list(self.about()["notes"])

    def load(self, split: str) -> SplitData:
        """Return the examples. They stay on disk until they are accessed."""
        from petransfer.data.rows.store import open_store

        if split not in self.splits:
            raise unknown("split of lines", split, self.splits)
        self.about()
        return open_store(self).load()


TASK = RegisteredTask("lines", LinesTask, title="lines", published=False)
