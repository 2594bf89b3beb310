"""Count the rows that a training uses. `bad_rows: skip` leaves out rows that the tokenizer or `max_length` rejects."""

from __future__ import annotations

from array import array
from pathlib import Path
from typing import TYPE_CHECKING, Any

from petransfer.data import SplitData
from petransfer.data.task import PARTS
from petransfer.recipe.run_spec import RunSpec
from petransfer.study.grid import data_notes, task_of
from petransfer.study.study import StudyGrid
from petransfer.user_paths import expanded

if TYPE_CHECKING:
    from petransfer.data.encoded_examples import EncodedSplit


def used_data(spec: RunSpec, data_dir: Path | None) -> SplitData:
    """Return the rows that a run uses. All rows are encoded; the result is cached.

    Args:
        data_dir: The `data_dir` of the recipe.

    Raises:
        UserError: The tokenizer cannot be loaded, or a part has no usable row.
    """
    return _encoded(spec, data_dir).data


def refused_by_tokenizer(spec: RunSpec, data_dir: Path | None) -> str:
    """Return the problems of the rows that a run leaves out because of its tokenizer or `max_length`. Can be empty."""
    bad = _encoded(spec, data_dir).bad
    return f"{bad.count:,} cannot be encoded: {bad.summary()}" if bad else ""


def _encoded(spec: RunSpec, data_dir: Path | None) -> EncodedSplit:
    from petransfer.models.hub_access import refuse_unreachable
    from petransfer.study.encoded_data import encoded_task, task_data  # imports torch

    refuse_unreachable([spec.checkpoint])
    place = expanded(data_dir).resolve() if data_dir else None
    data = task_data(spec.task.name, spec.task.split, spec.task.arguments, place)
    scored = tuple(part for part in ("dev", "test") if len(getattr(data, part)))
    return encoded_task(spec, place, scored)[0]


def rows_of_parts(grid: StudyGrid) -> dict[str, int]:
    """Return the number of rows in train, dev and test that the first run of the user's data uses."""
    if found := _used(grid):
        return {part: len(getattr(found, part)) for part in PARTS}
    return _all_rows(grid)


def has_test_rows(grid: StudyGrid) -> bool:
    """Return whether there are test rows. A fold of a cross-validation has none unless the user gave a test file."""
    return grid.recipe.task.name != "lines" or _all_rows(grid)["test"] > 0


def labels_of(grid: StudyGrid) -> list[str]:
    """Return the different targets of the used rows if they are labels. Otherwise an empty list."""
    about = _about(grid)
    if about["closed"] and (found := _used(grid)):
        return sorted({example.target for part in PARTS for example in getattr(found, part)})
    return list(about["labels"]) if about["closed"] else []


def notes_of(grid: StudyGrid) -> list[str]:
    """Return remarks on the user's data (see `grid.notes`).

    The remarks show the first used row, and warn of equal inputs in used rows. Rows that are left out are not counted.
    """
    lines = data_notes(grid.recipe)
    specs = [cell.spec for cell in grid.cells]
    alike = specs[0].task.skips_bad_rows and len({(spec.checkpoint, spec.task) for spec in specs}) == 1
    if not alike or rows_of_parts(grid) == _all_rows(grid):
        return lines
    from petransfer.data.rows.builder import FIRST_ROW, first_row_note
    from petransfer.data.rows.held_out import OVERLAP, SEVERAL

    found = _used(grid)
    assert found
    first = first_row_note(found.train[0].input, found.train[0].target)
    lines = [first if line.startswith(FIRST_ROW) else line for line in lines]
    kept = [line for line in lines if OVERLAP not in line and SEVERAL not in line]
    return [*kept, *_about_equal_inputs(found, bool(_about(grid)["chat"])), *_epochs_note(grid, len(found.train))]


def _about_equal_inputs(data: SplitData, chats: bool) -> list[str]:
    """Return the warnings about inputs that stand in several rows."""
    import numpy as np

    from petransfer.data.rows.held_out import overlaps, several_targets

    rows = [(code, one) for code, part in enumerate(PARTS) for one in getattr(data, part)]
    codes = np.array([code for code, _ in rows])
    inputs, targets = (array("Q", (hash(getattr(one, of)) % 2**64 for _, one in rows)) for of in ("input", "target"))
    return [*overlaps(codes, inputs), *([] if chats else several_targets(codes, inputs, targets))]


def _epochs_note(grid: StudyGrid, used: int) -> list[str]:
    """Return a note if the epochs of a recipe are more passes over the used rows than the recipe says.

    No tokenizer is loaded to find a recipe's run ids, so its epochs count all rows.
    """
    if grid.recipe.train.epochs is None:
        return []
    rows, train = _all_rows(grid)["train"], grid.cells[0].spec.train
    return [
        f"note: train.epochs counts all {rows:,} training rows, and {used:,} of them are used: "
        f"{train.steps:,} steps are {train.steps * train.batch_size / used:.3g} epochs of these. Set train.steps for "
        "another length"
    ]


def _used(grid: StudyGrid) -> SplitData | None:
    """Return the used rows of the first run. None if no rows are left out."""
    spec = grid.cells[0].spec
    return used_data(spec, grid.recipe.data_dir) if spec.task.skips_bad_rows else None


def _all_rows(grid: StudyGrid) -> dict[str, int]:
    return {part: int(_about(grid)["sizes"][part]) for part in PARTS}


def _about(grid: StudyGrid) -> dict[str, Any]:
    about: dict[str, Any] = task_of(grid.recipe).about()  # type: ignore[attr-defined]
    return about
