"""A study's folder: which runs are done, which are claimed, which failed. Imports no torch."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import yaml

from petransfer.errors import UserError
from petransfer.recipe.loading import freeze
from petransfer.recipe.pretraining import PretrainRecipe
from petransfer.recipe.schema import Recipe

Status = Literal["done", "failed", "running", "interrupted", "waiting"]


class RunFolder:
    """`runs/<run-id>/`. A run is done when DONE exists, which is written last."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def done(self) -> bool:
        """Whether the run has ended well."""
        return (self.path / "DONE").exists()

    def result(self) -> dict[str, Any] | None:
        """result.json of a run that is done."""
        return read_json(self.path / "result.json") if self.done else None

    def begun(self) -> dict[str, Any] | None:
        """spec.json of a run that is done or has a state to go on from."""
        under_way = self.done or any((self.path / "state").glob("step-*"))
        return read_json(self.path / "spec.json") if under_way else None

    def failure(self) -> str | None:
        """Why the last try failed."""
        content = read_json(self.path / "failed.json")
        return str(content["error"]) if content else None

    def status(self) -> Status:
        """Where the run stands."""
        if self.done:
            return "done"
        if self._is_claimed():
            return "running"
        if (self.path / "failed.json").exists():
            return "failed"
        return "interrupted" if (self.path / "spec.json").exists() else "waiting"

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Writes a file whole or not at all."""
        partial = self.path / f".{name}.partial"
        partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(self.path / name)

    def finish(self, result: dict[str, Any]) -> None:
        """Marks the run as done, after everything else is on the disk, and removes what only a resume needs."""
        self.write_json("result.json", result)
        self.write_json("DONE", {"run_id": self.path.name})
        shutil.rmtree(self.path / "state", ignore_errors=True)
        (self.path / "failed.json").unlink(missing_ok=True)

    @contextlib.contextmanager
    def claim(self) -> Iterator[bool]:
        """Whether this process may carry the run out. The claim ends with the process, however it ends."""
        self.path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path / ".claim", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{platform.node()} {os.getpid()}".encode(), 0)
            yield True
        finally:
            os.close(descriptor)

    def claimed_by(self, process: int) -> bool:
        """Whether the last claim was of this machine's process `process`."""
        with contextlib.suppress(OSError):
            return (self.path / ".claim").read_text() == f"{platform.node()} {process}"
        return False

    def _is_claimed(self) -> bool:
        if not (self.path / ".claim").exists():
            return False
        descriptor = os.open(self.path / ".claim", os.O_RDWR)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)


class StudyFolder:
    """`results/<study>/`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def open(self, recipe: Recipe | PretrainRecipe) -> None:
        """Makes the folder and keeps the resolved recipe in it.

        Raises:
            UserError: it cannot be written to, or belongs to another recipe.
        """
        kept = self.path / "recipe.yaml"
        if not kept.exists() and self.path.is_dir() and any(path.name not in _EARLY for path in self.path.iterdir()):
            raise UserError(f"{self.path} holds other files and no recipe.yaml; take another --out")
        try:
            self.refuse_other_than(recipe.name)  # before a lock is left in it
            with self.locked():
                self.refuse_other_than(recipe.name)
                partial = self.path / ".recipe.yaml.partial"
                partial.write_text(freeze(recipe), encoding="utf-8")
                partial.replace(kept)
                (self.path / "runs").mkdir(exist_ok=True)
        except OSError as error:
            raise UserError(f"{self.path} cannot be written to ({error.strerror}); take another --out") from None

    def refuse_other_than(self, name: str) -> None:
        """Raises UserError where the folder belongs to a recipe of another name."""
        kept = self.path / "recipe.yaml"
        if kept.exists() and (other := _name(kept)) != name:
            raise UserError(f"{self.path} belongs to the recipe '{other}', not '{name}'; take another --out")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Waits until no other process writes what belongs to the whole study: recipe, table, effects."""
        self.path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def names(self) -> set[str]:
        """The runs that have a folder, by one look at the disk."""
        try:
            return set(os.listdir(self.path / "runs"))
        except OSError:
            return set()

    def run(self, run_id: str) -> RunFolder:
        """The folder of one run."""
        return RunFolder(self.path / "runs" / run_id)


# What a study's folder may hold before its recipe does: a sweep comes first.
_EARLY = (".lock", "sweep", "sweep.json", ".sweep.json.partial")


def _name(path: Path) -> str:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        return str(content["name"])
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError):
        raise UserError(f"{path} cannot be read as a recipe; take another --out") from None


def read_json(path: Path) -> dict[str, Any] | None:
    """What a file of JSON holds, None where there is none that can be read."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content
