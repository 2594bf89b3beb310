"""Read and write the folders of a study and of its runs, and claim a run for one process. Imports no torch."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import platform
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from petransfer.atomic_files import partial_name, recover_folders, write_text
from petransfer.errors import UserError
from petransfer.recipe.loading import recipe_yaml
from petransfer.recipe.pretraining import PretrainRecipe
from petransfer.recipe.schema import Recipe
from petransfer.recipe.yaml_text import parse_yaml
from petransfer.study.damaged_runs import damage_of, modified, read_json
from petransfer.unreadable_files import refuse_unreadable, unreadable

_log = logging.getLogger(__name__)

Status = Literal["done", "failed", "running", "interrupted", "waiting", "damaged"]

# Seconds for which a process keeps trying to claim a run. It does not give up at once, because a process that only
# checks whether the run is claimed also holds the lock for a moment.
CLAIM_PATIENCE = 0.3


class HasRunId(Protocol):
    """A run of a grid. `run_id` is the name of the run's folder."""

    @property
    def run_id(self) -> str: ...


CellType = TypeVar("CellType", bound=HasRunId)
_LOCK, _OWNER = ".claim", ".claim-owner"
# The file that every study's folder has once its runs begin.
MARK = "recipe.yaml"


class RunFolder:
    """The folder `runs/<run-id>/` of one run. The file DONE marks a finished run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def done(self) -> bool:
        """Whether the run is finished and its files are not damaged."""
        return (self.path / "DONE").exists() and not self.damage()

    def damage(self) -> str:
        """Describe the damaged file of a finished run.

        The text is empty for an undamaged or unfinished run.

        Raises:
            UserError: A file is there and cannot be read, or is a pointer of Git LFS.
        """
        if not (self.path / "DONE").exists():
            return ""
        times = tuple(modified(self.path / name) for name in ("result.json", "spec.json", "examples.parquet"))
        return damage_of(self.path, times)

    def result(self) -> dict[str, Any] | None:
        """Return the content of result.json. None if the run is not `done`."""
        return read_json(self.path / "result.json") if self.done else None

    @property
    def scored(self) -> bool:
        """Whether the run is finished and was scored on the test set. A run with `dev_only` was not."""
        return "test" in (self.result() or {})

    def has_state(self, identity: str) -> bool:
        """Return whether the run can resume from a saved training state.

        Args:
            identity: The text that the states of the run contain, `RunSpec.canonical_json`.
        """
        files = (self.path / "state").glob("step-*/progress.json")
        return any((read_json(path) or {}).get("identity") == identity for path in files)

    def begun(self) -> dict[str, Any] | None:
        """Return the content of spec.json. None if there is no result and no training state."""
        under_way = self.done or any((self.path / "state").glob("step-*"))
        return read_json(self.path / "spec.json") if under_way else None

    def failure(self) -> str | None:
        """Return the run's error or damage as text. None for a run without problems."""
        content = read_json(self.path / "failed.json")
        return str(content.get("error")) if content else self.damage() or None

    def status(self) -> Status:
        """Return the state of the run. `waiting`: no process has begun the run. `running`: a process has claimed it."""
        if (self.path / "DONE").exists():
            return "damaged" if self.damage() else "done"
        if self._is_claimed():
            return "running"
        if (self.path / "failed.json").exists():
            return "failed"
        return "interrupted" if (self.path / "spec.json").exists() else "waiting"

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Write a JSON file to the run's folder, atomically."""
        write_text(self.path / name, json.dumps(content, indent=1) + "\n")

    def finish(self, result: dict[str, Any]) -> None:
        """Write result.json, mark the run as done, and remove the training states.

        Call this method after all other files of the run are written.
        """
        self.write_json("result.json", result)
        self.write_json("DONE", {"run_id": self.path.name})
        shutil.rmtree(self.path / "state", ignore_errors=True)
        (self.path / "failed.json").unlink(missing_ok=True)

    def reopen(self) -> None:
        """Mark a finished run as unfinished, so that it is trained again. Its files are kept until then."""
        (self.path / "DONE").unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove all files of the run except the files of the claim."""
        self.reopen()
        for entry in list(self.path.iterdir()):
            if entry.name not in (_LOCK, _OWNER):
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()

    @contextlib.contextmanager
    def claim(self) -> Iterator[bool]:
        """Claim the run for this process, and yield whether that succeeded.

        Only the process with the claim executes the run. The claim ends with the context or with the process.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with _lock(self.path / _LOCK, CLAIM_PATIENCE) as held:
            if not held:
                yield False
                return
            recover_folders(self.path / "state")
            # The file `.claim-owner` has one line per process: first the processes that were killed with the claim,
            # then this process. A line also names the training state from which the process started.
            self._write_owners([*self._owners(), (_this_process(os.getpid()), self._newest_state())])
            try:
                yield True
            finally:
                with contextlib.suppress(OSError):
                    self._write_owners(self._killed_owners())

    def claimed_by(self, process: int) -> bool:
        """Return whether a process of this machine is recorded as an owner of the claim.

        The record of a killed process stays. process: the process id.
        """
        return any(owner == _this_process(process) for owner, _ in self._owners())

    def losses(self) -> int:
        """Return the number of workers killed since the newest training state was written.

        Call this method only in the process that holds the claim.
        """
        lost = [state for _, state in self._killed_owners()]
        # the state from which a worker started was the newest one when the worker before it was killed
        killed_at = [*lost[1:], self._newest_state()] if lost else []
        return next((back for back, state in enumerate(reversed(killed_at)) if state != killed_at[-1]), len(killed_at))

    def killed(self) -> int:
        """Return the number of other processes that are recorded as owners of the claim.

        These processes are the killed workers and the present owner.
        """
        return len(self._killed_owners())

    def add_loss(self) -> None:
        """Record that a worker was killed before the worker claimed the run.

        Call this method only in the process that holds the claim.
        """
        *killed, holder = self._owners()
        self._write_owners([*killed, ("a worker that had not begun", self._newest_state()), holder])

    def forget_losses(self) -> None:
        """Delete the record of killed workers. No effect while another process holds the claim."""
        if (self.path / _OWNER).exists():
            with _lock(self.path / _LOCK, CLAIM_PATIENCE) as held:
                if held:
                    self._write_owners([])

    def _newest_state(self) -> str:
        return max((state.name for state in (self.path / "state").glob("step-*")), default="")

    def _owners(self) -> list[tuple[str, str]]:
        """Return the lines of `.claim-owner` as pairs of process and training state."""
        with contextlib.suppress(OSError, UnicodeDecodeError):
            lines = (self.path / _OWNER).read_text(encoding="utf-8").splitlines()
            return [(owner, state) for owner, _, state in (line.partition("\t") for line in lines)]
        return []

    def _killed_owners(self) -> list[tuple[str, str]]:
        return [one for one in self._owners() if one[0] != _this_process(os.getpid())]

    def _write_owners(self, owners: list[tuple[str, str]]) -> None:
        if owners:
            write_text(self.path / _OWNER, "".join(f"{owner}\t{state}\n" for owner, state in owners))
        else:
            (self.path / _OWNER).unlink(missing_ok=True)

    def _is_claimed(self) -> bool:
        if not (self.path / _LOCK).exists():
            return False
        try:
            with _lock(self.path / _LOCK, 0) as held:
                return not held
        except OSError:  # the folder is not writable
            return False


class StudyFolder:
    """The folder `results/<study>/` of a study or a pretraining."""

    def __init__(self, path: Path, *, chosen_with: str | None = None) -> None:
        """Name the folder.

        Args:
            path: The path of the folder.
            chosen_with: The text of the recipe that the folder held when it was chosen, '' for none. If another
                recipe is there when the folder is opened, opening it fails. None: not compared.
        """
        self.path = path
        self._chosen_with = chosen_with

    def unfinished(self, cells: Iterable[CellType]) -> list[CellType]:
        """Return the runs that are not done."""
        return [cell for cell in cells if not self.run(cell.run_id).done]

    def open(self, recipe: Recipe | PretrainRecipe) -> None:
        """Create the folder and write the resolved recipe into it.

        Raises:
            UserError: The folder cannot be written to, holds other files, belongs to a recipe of another name, or got
                another recipe after it was chosen.
        """
        self._refuse_in_use(recipe.name)  # checked before the lock, because locking creates a file in the folder
        try:
            with self.locked():
                self.refuse_other_than(recipe.name)
                if self._chosen_with is not None and self.recipe_text() not in (self._chosen_with, recipe_yaml(recipe)):
                    raise UserError(
                        f"a training run with other settings has just started in {self.path}; run the same command "
                        "again, which then uses another folder, or name a folder with --out"
                    )
                write_text(self.path / "recipe.yaml", recipe_yaml(recipe))
                (self.path / "runs").mkdir(exist_ok=True)
        except OSError as error:
            raise cannot_write(self.path, error) from None

    def recipe_text(self) -> str:
        """Return the text of `recipe.yaml` in this folder. If there is no such file, the text is empty.

        Bytes that are not valid UTF-8 are replaced by the character U+FFFD.
        """
        kept = self.path / "recipe.yaml"
        return kept.read_text(encoding="utf-8", errors="replace") if kept.is_file() else ""

    def check(self, name: str, to_write: bool = True) -> None:
        """Check that a recipe of this name can use the folder. Nothing is left on the disk.

        Args:
            to_write: Whether to refuse an existing study on a read-only disk, instead of a warning.

        Raises:
            UserError: The folder cannot be written to, holds other files, or belongs to a recipe of another name.
        """
        self._refuse_in_use(name)
        place = next(one for one in (self.path, *self.path.absolute().parents) if os.path.lexists(one))
        try:
            with tempfile.TemporaryFile(dir=place):  # this file is deleted at once
                pass
        except OSError as error:
            if to_write or not (self.path / "recipe.yaml").is_file():
                raise cannot_write(self.path, error) from None
            _log.warning("%s", cannot_write(self.path, error))

    def _refuse_in_use(self, name: str) -> None:
        """Raise UserError if the folder holds other files or a study of another name."""
        if not (self.path / "recipe.yaml").exists() and (other := self._foreign()):
            raise UserError(f"{self.path} holds {other} and no recipe.yaml; use --out for another folder")
        self.refuse_other_than(name)

    def _foreign(self) -> str:
        """Return the name of a file that is not petransfer's. Empty if there is none."""
        try:
            names = sorted(path.name for path in self.path.iterdir())
        except FileNotFoundError:
            return ""
        except OSError as error:
            raise cannot_write(self.path, error) from None
        return next((name for name in names if name not in _EARLY and not name.startswith(".stop-")), "")

    def refuse_other_than(self, name: str) -> None:
        """Raise UserError if the folder belongs to a recipe of another name."""
        kept = self.path / "recipe.yaml"
        if kept.exists() and (other := _name(kept)) != name:
            raise UserError(f"{self.path} belongs to the recipe '{other}', not '{name}'; use --out for another folder")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the study's recipe, table and effects. Waits for other processes."""
        self.path.mkdir(parents=True, exist_ok=True)
        with _lock(self.path / ".lock", -1) as lock:
            if type(lock).__name__ == "SoftFileLock":
                _note_soft_locks(self.path)
            yield

    def names(self) -> set[str]:
        """Return the names of the run folders."""
        try:
            return set(os.listdir(self.path / "runs"))
        except (FileNotFoundError, NotADirectoryError):
            return set()
        except OSError as error:
            raise unreadable(self.path / "runs", error) from None

    def run(self, run_id: str) -> RunFolder:
        return RunFolder(self.path / "runs" / run_id)


# Entries that a study's folder may contain before recipe.yaml exists: a sweep can run before the study, and a command
# that was killed can leave its lock, a partly written recipe, or the folder of the runs.
_EARLY = (".lock", "sweep", "sweep.json", partial_name("sweep.json"), partial_name("recipe.yaml"), "runs", "folds")


def cannot_write(path: Path, error: OSError) -> UserError:
    """Return the UserError for a study's folder that cannot be written to."""
    return UserError(f"{path} cannot be written to ({error.strerror or error}); use --out for another folder")


@contextlib.contextmanager
def _lock(path: Path, timeout: float) -> Iterator[Any]:
    """Lock a file and yield the lock, or None if that failed. timeout: seconds; -1: no limit."""
    import filelock  # imported here because it takes 40 ms, and `plan` and `--help` do not need it

    warnings.filterwarnings("ignore", message="flock not supported")  # `locked` logs a note about it once
    lock = filelock.FileLock(path, timeout=timeout, thread_local=False, poll_interval=0.05)
    try:
        lock.acquire()
    except filelock.Timeout:
        yield None
        return
    try:
        yield lock
    finally:
        lock.release()


@functools.cache
def _note_soft_locks(folder: Path) -> None:
    _log.warning(
        "the file system of %s has no locks, so a lock is a file that exists; after a crash of the machine, delete the "
        "files .lock and .claim of a study that seems to be in use",
        folder,
    )


def _this_process(number: int) -> str:
    return f"{platform.node()} {number}"


def _name(path: Path) -> str:
    refuse_unreadable(path)
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
        return str(content["name"])
    except (OSError, UnicodeDecodeError, UserError, KeyError, TypeError):
        raise UserError(f"{path} cannot be read as a recipe; use --out for another folder") from None
