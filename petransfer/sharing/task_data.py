"""The examples that an adapter is evaluated on, and which of them were used in its training."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from petransfer.data import Example, SplitData, load_task, task_info
from petransfer.errors import UserError
from petransfer.plurals import count
from petransfer.recipe.run_spec import RunSpec
from petransfer.sharing.bundle import Bundle
from petransfer.sharing.bundle_files import RECIPE
from petransfer.sharing.safe_reading import read_json, read_text, read_yaml

Pairs = Sequence[tuple[str, str]]
# Options for reading the user's own files. Another file is read with the same options as the adapter's training data.
_COLUMNS = ("input", "target", "category", "template", "messages", "chat")


@dataclass(frozen=True)
class TestData:
    """Examples to evaluate on.

    name: what the examples are called in tables.
    labels: all possible targets, if the task has a closed set of labels; otherwise empty.
    own: whether the examples are from the adapter's own task. The adapter's recorded scores then belong to them.
    """

    name: str
    examples: Sequence[Example]
    labels: tuple[str, ...] = ()
    own: bool = False

    __test__ = False  # pytest would collect a class of this name


def test_data(
    bundle: Bundle | None, label: str, data: str | Pairs | None, part: str | None, data_dir: Path | None
) -> TestData:
    """Return the examples to evaluate on.

    Args:
        bundle: the adapter; None for a base checkpoint. If `data` is None, the adapter's own task is used. If `data` is
            a file, it is read with the same column names as the adapter's training data.
        label: the name of the adapter or model in messages.
        data: a file, a benchmark's `task/split`, pairs of input and target, or None for the adapter's own task.
        part: `dev` or `test`. None means all rows of a file, and `test` for a benchmark or the adapter's own task. With
            a file, `dev` or `test` selects the rows that are also in this part of the adapter's own data. If `data` are
            pairs, `part` is ignored.
        data_dir: a folder with data files, of a benchmark or the user's own.

    Raises:
        UserError: the data are not available, or there are no such examples.
    """
    if data is None:
        if bundle is None or bundle.spec is None:
            raise UserError(f"{label} does not record what it was trained on; name a file with --data")
        task = bundle.spec.task
        split = data_of(bundle, data_dir)
        name = "rows held out of its own data" if task.name == "lines" else f"{task.name} {task.split}"
        return TestData(f"{name}, {part or 'test'}", getattr(split, part or "test"), split.labels, True)
    if not isinstance(data, str):
        chat = bundle.chat() if bundle else ""
        rows = [Example(at, source, target, "all", chat) for at, (source, target) in enumerate(data)]
        if not rows:
            raise UserError("there are no rows to evaluate on; give at least one pair of input and target")
        return TestData(count(len(rows), "pair"), rows)
    name, _, split_name = data.partition("/")
    benchmark = task_info(name)
    if split_name and benchmark and benchmark.published:
        split = load_task(name, data_dir).load(split_name)
        return TestData(f"{name} {split_name}, {part or 'test'}", getattr(split, part or "test"), split.labels)
    rows = _rows_of_file(bundle, data, data_dir)
    title = Path(data).name
    if part is None:
        return TestData(title, rows)
    if bundle is None or bundle.spec is None:
        raise UserError(
            f"--part {part}: {label} does not record its own data; leave --part out to score all of {title}"
        )
    own = row_hashes(getattr(data_of(bundle, data_dir), part))
    chosen = [row for row in rows if row_hash(row) in own]
    if not chosen:
        raise UserError(f"no row of {title} is in the {part} part of {label}; leave --part out to score all rows")
    return TestData(f"{title}, {part}", chosen)


def _rows_of_file(bundle: Bundle | None, data: str, data_dir: Path | None) -> list[Example]:
    columns = columns_of(bundle) if bundle else {}
    split = load_task("lines", data_dir, train=data, dev=data, test=data, **columns).load("held-out")
    return sorted(split.test, key=lambda row: row.index)


def columns_of(bundle: Bundle) -> dict[str, Any]:
    """Return the options for reading a file in the same way as the adapter's own data; empty if it has no such options.

    Raises:
        UserError: the adapter was trained on a user's own files, and has no recipe with these options.
    """
    if bundle.spec is None or bundle.spec.task.name != "lines":
        return {}
    merged = (bundle.provenance or {}).get("merged")
    stated = merged.get("columns") if isinstance(merged, dict) else None
    options = dict(bundle.spec.task.options) if merged else options_of(bundle)
    if isinstance(stated, dict):
        options |= stated
    return {key: options[key] for key in _COLUMNS if key in options}


def options_of(bundle: Bundle) -> dict[str, Any]:
    """Return the options of an adapter's own task, with the paths of its data on this machine.

    Raises:
        UserError: the adapter was trained on a user's own files, and has no recipe that names the files.
    """
    assert bundle.spec is not None
    task = bundle.spec.task
    options: dict[str, Any] = dict(task.options)
    kept = bundle.here / "spec.json" if bundle.here else None
    if kept:
        return options | dict(RunSpec.from_dict(read_json(kept)).task.source)
    if task.name != "lines":
        return options
    if RECIPE not in bundle.files:
        raise UserError(f"{bundle.label} has no {RECIPE}, which names the rows that it was trained on")
    stated = (read_yaml(read_text(bundle.files[RECIPE]), RECIPE).get("task") or {}).get("options")
    return dict(stated) if isinstance(stated, dict) else options


def data_of(bundle: Bundle, data_dir: Path | None) -> SplitData:
    """Return the train, dev and test examples of an adapter's own task.

    Raises:
        UserError: the data are a user's own files, and these files are not on this machine.
    """
    assert bundle.spec is not None
    task = bundle.spec.task
    return load_task(task.name, data_dir, **options_of(bundle)).load(task.split)


def row_hash(row: Example) -> bytes:
    """Return a hash of an example's input and target: the first 16 bytes of their sha256."""
    return hashlib.sha256(json.dumps([row.input, row.target]).encode()).digest()[:16]


def row_hashes(rows: Iterable[Example]) -> frozenset[bytes]:
    """Return the set of the examples' hashes, as `row_hash` computes them."""
    return frozenset(map(row_hash, rows))


def trained_on(bundle: Bundle | None, rows: Sequence[Example], data_dir: Path | None) -> tuple[int, ...] | None:
    """Return the positions, from 0, of those rows that were used in an adapter's training.

    None if the adapter's training data are not known or not on this machine.
    """
    if bundle is None or bundle.spec is None:
        return None
    try:
        known = row_hashes(data_of(bundle, data_dir).train)
    except UserError:  # the training data are not on this machine, or have changed
        return None
    return tuple(at for at, row in enumerate(rows) if row_hash(row) in known)
