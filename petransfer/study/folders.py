"""The folders of a study and of its runs: which runs are done, claimed, failed or damaged. Imports no torch."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import yaml

from petransfer.atomic_files import partial_name, write_text
from petransfer.errors import UserError
from petransfer.recipe.loading import recipe_yaml
from petransfer.recipe.pretraining import PretrainRecipe
from petransfer.recipe.run_spec import RunSpec
from petransfer.recipe.schema import Recipe

Status = Literal["done", "failed", "running", "interrupted", "waiting", "damaged"]

# Seconds for which a claim is tried. A process that only checks whether a run is claimed holds the lock very briefly.
CLAIM_PATIENCE = 0.3
# More rows than any test set has; a few hundred kilobytes of parquet can announce billions of equal rows.
_MOST_EXAMPLES = 5_000_000


class Named(Protocol):
    """A cell of a grid. Its `run_id` is the name of the run's folder."""

    @property
    def run_id(self) -> str: ...


CellType = TypeVar("CellType", bound=Named)
_RUN_ID = re.compile(r"[0-9a-f]{12}")
_LOCK, _OWNER = ".claim", ".claim-owner"


class RunFolder:
    """The folder `runs/<run-id>/`. A run is done if the file DONE, written last, exists and the result is readable."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def done(self) -> bool:
        """Whether the run is finished and its result is not damaged."""
        return (self.path / "DONE").exists() and not self.damage()

    def damage(self) -> str:
        """Return why the files of a finished run cannot be used, naming the file; empty if they can."""
        if not (self.path / "DONE").exists():
            return ""
        times = tuple(_modified(self.path / name) for name in ("result.json", "spec.json", "examples.parquet"))
        return _damage(self.path, times)

    def result(self) -> dict[str, Any] | None:
        """Return result.json of a finished run."""
        return read_json(self.path / "result.json") if self.done else None

    def begun(self) -> dict[str, Any] | None:
        """Return spec.json of a run that is finished or has a training state to resume from."""
        under_way = self.done or any((self.path / "state").glob("step-*"))
        return read_json(self.path / "spec.json") if under_way else None

    def failure(self) -> str | None:
        """Return why the last attempt failed, or how the run is damaged."""
        content = read_json(self.path / "failed.json")
        return str(content.get("error")) if content else self.damage() or None

    def status(self) -> Status:
        """Return the status of the run."""
        if (self.path / "DONE").exists():
            return "damaged" if self.damage() else "done"
        if self._is_claimed():
            return "running"
        if (self.path / "failed.json").exists():
            return "failed"
        return "interrupted" if (self.path / "spec.json").exists() else "waiting"

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Write a JSON file atomically."""
        write_text(self.path / name, json.dumps(content, indent=1) + "\n")

    def finish(self, result: dict[str, Any]) -> None:
        """Mark the run as done after all other files are on the disk, and remove the files that only a resume needs."""
        self.write_json("result.json", result)
        self.write_json("DONE", {"run_id": self.path.name})
        shutil.rmtree(self.path / "state", ignore_errors=True)
        (self.path / "failed.json").unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove every file that the run has written, so that it starts again."""
        (self.path / "DONE").unlink(missing_ok=True)
        for entry in list(self.path.iterdir()):
            if entry.name not in (_LOCK, _OWNER):
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()

    @contextlib.contextmanager
    def claim(self) -> Iterator[bool]:
        """Yield whether this process may execute the run. The claim ends when the process ends, for whatever reason.

        `.claim-owner` has one line for the process that holds the run, after one for each process that was killed
        while it held the run: its name, and the training state that it started from.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with _lock(self.path / _LOCK, CLAIM_PATIENCE) as held:
            if not held:
                yield False
                return
            self._write_owners([*self._owners(), (_this_process(os.getpid()), self._newest_state())])
            try:
                yield True
            finally:
                with contextlib.suppress(OSError):
                    self._write_owners(self._killed_owners())

    def claimed_by(self, process: int) -> bool:
        """Return whether a process of this machine holds the run, or held it when it was killed."""
        return any(owner == _this_process(process) for owner, _ in self._owners())

    def losses(self) -> int:
        """Return how many workers in sequence were killed at the newest training state. For the holder of the claim."""
        lost = [state for _, state in self._killed_owners()]
        # a worker was killed at the state from which the next one started
        killed_at = [*lost[1:], self._newest_state()] if lost else []
        return next((back for back, state in enumerate(reversed(killed_at)) if state != killed_at[-1]), len(killed_at))

    def killed(self) -> int:
        """Return how many workers were killed while they held the run; one that holds it now is counted too."""
        return len(self._killed_owners())

    def add_loss(self) -> None:
        """Count a worker that was killed before it could claim the run. For the holder of the claim."""
        *killed, holder = self._owners()
        self._write_owners([*killed, ("a worker that had not begun", self._newest_state()), holder])

    def forget_losses(self) -> None:
        """Forget the workers that earlier calls lost, unless another process holds the run."""
        if (self.path / _OWNER).exists():
            with _lock(self.path / _LOCK, CLAIM_PATIENCE) as held:
                if held:
                    self._write_owners([])

    def _newest_state(self) -> str:
        return max((state.name for state in (self.path / "state").glob("step-*")), default="")

    def _owners(self) -> list[tuple[str, str]]:
        """Return the processes in `.claim-owner`, each with the training state that it started from."""
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
    """`results/<study>/`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def unfinished(self, cells: Iterable[CellType]) -> list[CellType]:
        """Return the cells whose run has no usable result: the runs that an executor starts or resumes."""
        return [cell for cell in cells if not self.run(cell.run_id).done]

    def open(self, recipe: Recipe | PretrainRecipe) -> None:
        """Create the folder and write the resolved recipe into it.

        Raises:
            UserError: The folder cannot be written to, holds other files, or belongs to another recipe.
        """
        self._refuse_in_use(recipe.name)  # before a lock is left in it
        try:
            with self.locked():
                self.refuse_other_than(recipe.name)
                write_text(self.path / "recipe.yaml", recipe_yaml(recipe))
                (self.path / "runs").mkdir(exist_ok=True)
        except OSError as error:
            raise cannot_write(self.path, error) from None

    def check(self, name: str) -> None:
        """Refuse what `open` would refuse for the recipe of this name, and leave nothing on the disk.

        Raises:
            UserError: As `open`.
        """
        self._refuse_in_use(name)
        place = next(one for one in (self.path, *self.path.absolute().parents) if os.path.lexists(one))
        try:
            with tempfile.TemporaryFile(dir=place):  # a file without a name
                pass
        except OSError as error:
            raise cannot_write(self.path, error) from None

    def _refuse_in_use(self, name: str) -> None:
        """Raise UserError if the folder holds other files, or a study of another recipe."""
        if not (self.path / "recipe.yaml").exists() and (other := self._foreign()):
            raise UserError(f"{self.path} holds {other} and no recipe.yaml; use --out for another folder")
        self.refuse_other_than(name)

    def _foreign(self) -> str:
        """Return the name of an entry that no study writes before its recipe; empty if there is none."""
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
        """Wait until no other process writes the files of the whole study: recipe, table and effects."""
        self.path.mkdir(parents=True, exist_ok=True)
        with _lock(self.path / ".lock", -1):
            yield

    def names(self) -> set[str]:
        """Return the names of the run folders, read with one directory listing."""
        try:
            return set(os.listdir(self.path / "runs"))
        except OSError:
            return set()

    def run(self, run_id: str) -> RunFolder:
        """Return the folder of one run."""
        return RunFolder(self.path / "runs" / run_id)


# Entries that a study's folder may hold before its recipe: a sweep can run first, and a killed command can leave its
# lock, a partly written recipe, or the folder of its runs.
_EARLY = (".lock", "sweep", "sweep.json", partial_name("sweep.json"), partial_name("recipe.yaml"), "runs", "folds")


def cannot_write(path: Path, error: OSError) -> UserError:
    """Return an error for a study's folder that cannot be written to."""
    return UserError(f"{path} cannot be written to ({error.strerror or error}); use --out for another folder")


@contextlib.contextmanager
def _lock(path: Path, timeout: float) -> Iterator[bool]:
    """Lock a file and yield whether that succeeded. timeout: in seconds; -1 waits without limit."""
    import filelock  # takes 40 ms to import, which `plan` and `--help` need not spend

    lock = filelock.FileLock(path, timeout=timeout, thread_local=False, poll_interval=0.05)
    try:
        lock.acquire()
    except filelock.Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _this_process(number: int) -> str:
    return f"{platform.node()} {number}"


def _name(path: Path) -> str:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        return str(content["name"])
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError):
        raise UserError(f"{path} cannot be read as a recipe; use --out for another folder") from None


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the object in a JSON file; None if the file does not exist or cannot be read.

    Only regular files are opened: reading a named pipe would wait forever.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_int=_integer) if path.is_file() else None
    except (OSError, ValueError, OverflowError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _integer(text: str) -> int:
    """Return a whole number that a float can hold; larger ones raise OverflowError."""
    number = int(text)
    float(number)
    return number


def _modified(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


@functools.lru_cache(maxsize=65_536)
def _damage(path: Path, times: tuple[int, ...]) -> str:
    """Return why the files of a finished run cannot be used. times: their modification times, to notice changes."""
    result = read_json(path / "result.json")
    if result is None:
        there = (path / "result.json").exists()
        return f"{path / 'result.json'} {'is not a readable JSON object' if there else 'is missing'}"
    by_id = bool(_RUN_ID.fullmatch(path.name))  # a run folder named by its id; the folder may also have been renamed
    if by_id and str(result.get("run_id", path.name)) != path.name:
        return f"{path / 'result.json'} is of another run, {str(result['run_id'])[:40]!r}"
    for part in ("dev", "test"):
        if part in result and not _is_score(result[part]):
            return f"{path / 'result.json'} has no exact match from 0 to 100 for {part}"
    if "dev" in result and (name := _wrong_figure(result)):
        return f"{path / 'result.json'} has no usable figure {name}"
    if "test" in result and "dev" in result and (problem := _contradiction(path / "examples.parquet", result["test"])):
        return problem
    if not by_id or ("dev" not in result and not times[1]):
        return ""
    if not times[1]:
        return f"{path / 'spec.json'} is missing"
    try:
        spec = RunSpec.from_dict(read_json(path / "spec.json") or {})
        same = spec.run_id == path.name
    except Exception:  # a damaged file can raise any error
        same = False
    return "" if same else f"{path / 'spec.json'} does not describe this run"


def _contradiction(path: Path, scores: dict[str, Any]) -> str:
    """Return why the outcomes of the test examples do not agree with their exact match; empty if they do."""
    import pyarrow  # imported here to keep the start of commands that read no run fast
    import pyarrow.parquet

    if not path.is_file():
        return f"{path} is {'not a file' if path.exists() else 'missing'}"
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            if file.metadata.num_rows > _MOST_EXAMPLES:
                return f"{path} has {file.metadata.num_rows:,} rows; at most {_MOST_EXAMPLES:,} are read"
            correct = file.read(columns=["correct"])["correct"].to_numpy().astype(bool)
    except (pyarrow.ArrowException, OSError, ValueError, KeyError) as error:
        return f"{path} cannot be read ({type(error).__name__})"
    share = 100 * float(correct.sum()) / max(1, len(correct))
    if abs(share - scores["exact_match"]) < 0.01:
        return ""
    return f"{path} has an exact match of {share:.2f} %, and result.json has {scores['exact_match']:.2f} %"


def _wrong_figure(result: dict[str, Any]) -> str:
    """Return the name of a figure that tables and pages of a study read and that is not a number; empty if none is."""
    needed = {name: result.get(name) for name in ("steps", "trained_parameters")}
    needed["dev.disagreements"] = result["dev"].get("disagreements")
    optional = {name: result.get(name) for name in ("parameters", "seconds", "out_of_memory", "train_examples")}
    for part in ("dev", "test"):
        scores = result.get(part, {})
        optional |= {f"{part}.{name}": value for name, value in scores.items() if name != "categories"}
        categories = scores.get("categories") or {}
        if not isinstance(categories, dict) or not all(map(_is_score, categories.values())):
            return f"{part}.categories"
        needed |= {f"{part}.categories.{name:.40}.examples": one.get("examples") for name, one in categories.items()}
    optional = {name: value for name, value in optional.items() if value is not None}
    return next((name for name, value in (needed | optional).items() if not _is_figure(name, value)), "")


def _is_figure(name: str, value: Any) -> bool:
    """Return whether a value is a number; scores may be infinite or not a number, counts and durations may not."""
    return isinstance(value, int | float) and (math.isfinite(value) or name.startswith(("dev.", "test.")))


def _is_score(content: Any) -> bool:
    value = content.get("exact_match") if isinstance(content, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) and 0 <= value <= 100
