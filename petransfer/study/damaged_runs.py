"""Read the JSON files of runs, and find damaged files of finished runs. Imports no torch."""

from __future__ import annotations

import functools
import json
import math
import re
from pathlib import Path
from typing import Any

from petransfer.recipe.run_spec import RunSpec
from petransfer.study.file_forms import ResultForm, wrong_part
from petransfer.unreadable_files import refuse_unreadable

# The largest number of rows that is read from examples.parquet. No test set has so many, but a damaged file of a few
# hundred kilobytes can contain billions of equal rows.
_MOST_EXAMPLES = 5_000_000
_RUN_ID = re.compile(r"[0-9a-f]{12}")


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the object in a JSON file. None if the file contains no readable object.

    Raises:
        UserError: The file is there and cannot be read, or is a pointer of Git LFS.
    """
    refuse_unreadable(path)
    try:
        # only regular files are opened, because reading a named pipe would wait forever
        content = json.loads(path.read_text(encoding="utf-8"), parse_int=_integer) if path.is_file() else None
    except (OSError, ValueError, OverflowError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _integer(text: str) -> int:
    """Parse a whole number. Raise OverflowError if the number is too large for a float."""
    number = int(text)
    float(number)
    return number


def modified(path: Path) -> int:
    """Return the time of a file's last change in nanoseconds. 0 if there is no file."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


# The modification times (0 for a missing file) are part of the cache's key: a changed file is checked again.
@functools.lru_cache(maxsize=65_536)
def damage_of(path: Path, times: tuple[int, ...]) -> str:
    """Describe the damaged file of a finished run. Empty if no file is damaged."""
    result = read_json(path / "result.json")
    if result is None:
        there = (path / "result.json").exists()
        return f"{path / 'result.json'} {'is not a readable JSON object' if there else 'is missing'}"
    by_id = bool(_RUN_ID.fullmatch(path.name))  # false if the user has renamed the folder
    if by_id and str(result.get("run_id", path.name)) != path.name:
        return f"{path / 'result.json'} is of another run, {str(result['run_id'])[:40]!r}"
    for part in ("dev", "test"):
        if part in result and not _is_score(result[part]):
            return f"{path / 'result.json'} has no exact match from 0 to 100 for {part}"
    if "dev" in result and (name := _wrong_figure(result)):
        return f"{path / 'result.json'} has no usable figure {name}"
    if "dev" in result and (wrong := wrong_part(ResultForm, result)):
        return f"{path / 'result.json'} has a wrong value: {wrong}"
    if "test" in result and "dev" in result and (problem := _contradiction(path / "examples.parquet", result["test"])):
        return problem
    if not by_id or ("dev" not in result and not times[1]):
        return ""
    if not times[1]:
        return f"{path / 'spec.json'} is missing"
    described = read_json(path / "spec.json") or {}
    try:
        spec = RunSpec.from_dict(described)
        same = spec.run_id == path.name
    except Exception:  # a damaged file can raise any error
        same = False
    if not same:
        return f"{path / 'spec.json'} does not describe this run"
    return "" if "dev" in result else f"{path / 'result.json'} has no scores on dev"


def _contradiction(path: Path, scores: dict[str, Any]) -> str:
    """Describe how examples.parquet contradicts the test score in result.json. Empty if the two agree."""
    import pyarrow  # imported here because it is slow to import, and many commands do not need it
    import pyarrow.parquet

    if not path.is_file():
        return f"{path} is {'not a file' if path.exists() else 'missing'}"
    refuse_unreadable(path)
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
    """Return the name of a value in result.json that must be a number. Empty if all values are usable."""
    needed = {name: result.get(name) for name in ("steps", "trained_parameters")}
    needed["dev.disagreements"] = result["dev"].get("disagreements")
    optional = {name: result.get(name) for name in ("parameters", "seconds", "out_of_memory", "train_examples")}
    for part in ("dev", "test"):
        scores = result.get(part, {})
        optional |= {f"{part}.{name}": value for name, value in scores.items() if name != "categories"}
        categories = scores.get("categories", {})
        if not isinstance(categories, dict) or not all(map(_is_score, categories.values())):
            return f"{part}.categories"
        needed |= {f"{part}.categories.{name:.40}.examples": one.get("examples") for name, one in categories.items()}
    counted = {name: value for name, value in optional.items() if name.endswith((".examples", ".disagreements"))}
    optional = {name: value for name, value in optional.items() if value is not None} | counted
    return next((name for name, value in (needed | optional).items() if not _is_figure(name, value)), "")


def _is_figure(name: str, value: Any) -> bool:
    """Return whether a value is a number. Only scores can be infinite or NaN."""
    return isinstance(value, int | float) and (math.isfinite(value) or name.startswith(("dev.", "test.")))


def _is_score(content: Any) -> bool:
    value = content.get("exact_match") if isinstance(content, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) and 0 <= value <= 100
