"""The examples for evaluating an adapter, and which examples were used in training."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from petransfer.data import Example, SplitData, load_task, task_info
from petransfer.data.rows.records import MissingColumn
from petransfer.data.rows.source import find_source, is_file_name, suffix_of
from petransfer.data.rows.tables import split_names
from petransfer.data.rows.text_lines import first_bytes, is_utf8
from petransfer.data.tasks.lines import ChangedRows
from petransfer.data.templates import render_text
from petransfer.errors import UserError, shortened, unknown
from petransfer.evaluation.metric_checks import LABELS, declared
from petransfer.plurals import count
from petransfer.sharing.bundle import Bundle
from petransfer.sharing.bundle_files import RECIPE
from petransfer.sharing.safe_reading import read_text, read_yaml
from petransfer.user_paths import expanded, without_folder

_log = logging.getLogger(__name__)

Pairs = Sequence[tuple[str, str]]
# The parts of a task's data that an adapter can be evaluated on.
PARTS = ("dev", "test")
# The advice in error messages if the data of an adapter's own task are missing.
OTHER_ROWS = "score other rows with --data FILE"
# Options for the columns of the user's own rows. Other rows are read with the same options as the training data. Scores
# do not depend on categories, so other rows do not need a column of categories.
_COLUMNS = ("input", "target", "input_column", "target_column", "template", "messages", "chat")
# The option of `petransfer eval` for each column that a user can name.
_OPTIONS = {"input": "--input-column", "target": "--target-column", "template": "--template"}
# Options for the form of the user's own files. Another file is read with the options of the training data if its name
# has the same suffix.
_FORM = ("format", "encoding", "delimiter", "quoting")


class UnrecordedData(UserError):
    """Raised for an adapter or model whose files do not name the data of its training."""


@dataclass(frozen=True)
class TestData:
    """Examples to evaluate on.

    name: name of the examples in tables.
    labels: all possible targets of a classification task. Empty for other tasks.
    own: whether the examples are from the adapter's own task.
    """

    name: str
    examples: Sequence[Example]
    labels: tuple[str, ...] = ()
    own: bool = False

    __test__ = False  # pytest would collect a class of this name


def named_columns(input_column: str | None, target_column: str | None, template: str | None) -> dict[str, str]:
    """Return the given names as the argument `columns` of `test_data`."""
    named = {"input": input_column, "target": target_column, "template": template}
    return {name: value for name, value in named.items() if value is not None}


def test_data(
    bundle: Bundle | None,
    label: str,
    data: str | Pairs | None,
    part: str | None,
    data_dir: Path | None,
    columns: Mapping[str, str],
) -> TestData:
    """Return the examples to evaluate on.

    Args:
        bundle: the adapter. None for a base checkpoint.
        label: name of the adapter or model in messages.
        data: a file, a dataset, a benchmark's `task/split`, or pairs of input and target. None means the adapter's own
            task. A file is read with the column names of the adapter's training data, and with their format, encoding,
            delimiter and quoting if its name has the same suffix. A pair's input has the form that `Adapter.predict`
            takes.
        part: `dev` or `test`. Default: all rows of a file, the split `test` of a dataset (or `train`), else `test`. In
            a file, `part` selects rows that are also in this part of the adapter's own data. Pairs have no parts, so
            `part` must be None for them.
        data_dir: folder with data files.
        columns: the options `input`, `target` and `template` for a file or a dataset, in place of the options of the
            adapter's training.

    Raises:
        UserError: the data are not available, there are no such examples, `part` is unknown or given with pairs, or
            `columns` are given without a file or dataset.
    """
    if part not in (None, *PARTS):
        raise unknown("part", str(part), PARTS)
    if columns and (not isinstance(data, str) or _is_benchmark(data)):
        raise UserError(f"{_OPTIONS[next(iter(columns))]} is for the columns of a file; name the file with --data")
    if data is None:
        return _own_data(bundle, label, part or "test", data_dir)
    if not isinstance(data, str):
        if part is not None:
            raise UserError(f"part '{part}' was given with pairs of input and target, which have no parts; remove part")
        return _data_of_pairs(bundle, data)
    if _is_benchmark(data):
        name, _, split_name = data.partition("/")
        split = load_task(name, data_dir).load(split_name)
        return TestData(f"{name} {split_name}, {part or 'test'}", getattr(split, part or "test"), split.labels)
    return _data_of_file(bundle, label, data, part, data_dir, columns)


def _is_benchmark(data: str) -> bool:
    """Return whether `data` is a benchmark's `task/split`, and not a file or a dataset."""
    name, _, split_name = data.partition("/")
    benchmark = task_info(name)
    return bool(split_name and benchmark and benchmark.published)


def _own_data(bundle: Bundle | None, label: str, part: str, data_dir: Path | None) -> TestData:
    """Return one part of the data that an adapter's own task has."""
    if bundle is None or bundle.spec is None:
        raise UserError(f"{label} does not record what it was trained on; name a file with --data")
    task = bundle.spec.task
    split = data_of(bundle, data_dir)
    name = f"{part} rows of the data of {label}" if task.name == "lines" else f"{task.name} {task.split}, {part}"
    return TestData(name, getattr(split, part), split.labels, True)


def _data_of_pairs(bundle: Bundle | None, pairs: Pairs) -> TestData:
    """Return pairs of input and target as examples in the form of an adapter's training data."""
    template, chat = (bundle.template(), bundle.chat()) if bundle else ("", "")
    rows = [
        Example(index, render_text(template, source), target, "all", chat)
        for index, (source, target) in enumerate(pairs)
    ]
    if not rows:
        raise UserError("there are no rows to evaluate on; give at least one pair of input and target")
    return TestData(count(len(rows), "pair"), rows)


def _data_of_file(
    bundle: Bundle | None,
    label: str,
    data: str,
    part: str | None,
    data_dir: Path | None,
    given: Mapping[str, str],
) -> TestData:
    """Return the rows of a file or a dataset. `part` selects the rows that are in this part of the adapter's data."""
    rows, split_name = _rows_of_file(bundle, data, data_dir, given)
    title = Path(data).name + (f", split {split_name}" if split_name else "")
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


def _rows_of_file(
    bundle: Bundle | None, data: str, data_dir: Path | None, given: Mapping[str, str]
) -> tuple[list[Example], str]:
    """Return the rows of a file or of one split of a dataset, and the split's name (empty for a file).

    The split is `test`, or `train` for a dataset without `test`.
    """
    options = _own_options(bundle) if bundle else {}
    columns = _with_given_columns({key: options[key] for key in _COLUMNS if key in options}, given, data)
    form = _form_of(data, options, data_dir)
    try:
        return _rows_read(data, data_dir, columns | form)
    except UserError as problem:
        if form:  # the file may have another form than the training data
            with contextlib.suppress(UserError):
                found = _rows_read(data, data_dir, columns)
                _log.warning(
                    "warning: %s cannot be read with the options of the training data (%s), so they are ignored",
                    data,
                    ", ".join(form),
                )
                return found
        if isinstance(problem, MissingColumn):
            advice = "name the columns of the file with --input-column and --target-column, or with --template"
            raise UserError(f"{problem.problem}; {advice}") from None
        raise


def _with_given_columns(options: Mapping[str, Any], given: Mapping[str, str], data: str) -> dict[str, Any]:
    """Return the options for the columns of a training, with `given` in place of the options for the same columns.

    Raises:
        UserError: an input column is given, but the training made its inputs with a template.
    """
    if "input" in given and "template" not in given and (trained := options.get("template")):
        raise UserError(
            f"the training made its inputs with the template '{shortened(str(trained), 60)}', so an input column is "
            f"not enough; give --template, with the columns of {data}, in place of --input-column"
        )
    replaced = {"messages"} if given else set()
    if "target" in given:
        replaced |= {"target", "target_column"}
    if "input" in given or "template" in given:
        replaced |= {"input", "input_column", "template"}
    return {key: value for key, value in options.items() if key not in replaced} | dict(given)


def _rows_read(data: str, data_dir: Path | None, options: Mapping[str, Any]) -> tuple[list[Example], str]:
    """Return `_rows_of_file`, read with options of the task `lines`."""
    source = find_source(data, data_dir, str(options.get("format", "")), "train")
    splits = split_names(source)
    tested = "test" if "test" in splits else data
    split = load_task("lines", data_dir, train=data, dev=tested, test=tested, **options).load("held-out")
    name = "" if not splits else "test" if "test" in splits else source.split
    return sorted(split.test, key=lambda row: row.index), name


def _form_of(data: str, options: Mapping[str, Any], data_dir: Path | None) -> dict[str, Any]:
    """Return the options of the training data that say how the file `data` is read. Empty for another suffix."""
    suffix = suffix_of(Path(data))
    trained = [options[part] for part in ("train", *PARTS) if isinstance(options.get(part), str)]
    form = {key: options[key] for key in _FORM if key in options}
    if not form or suffix not in [suffix_of(Path(name)) for name in trained]:
        return {}
    if "encoding" in form:
        source = find_source(data, data_dir, str(form.get("format", "")), "train")
        if source.path is not None and source.path.is_file() and is_utf8(first_bytes(source)):
            del form["encoding"]  # UTF-8 can be read in most other encodings, with wrong letters
    return form


def _own_options(bundle: Bundle) -> dict[str, Any]:
    """Return the options of the user's own data that an adapter was trained on. Empty for a benchmark.

    Raises:
        UnrecordedData: the adapter was trained on a user's own files, and has no recipe.
    """
    if bundle.spec is None or bundle.spec.task.name != "lines":
        return {}
    return options_of(bundle)


def options_to_record(bundle: Bundle) -> dict[str, Any]:
    """Return the options of the user's own data without the folders of files. Empty for a benchmark.

    Raises:
        UnrecordedData: the adapter was trained on a user's own files, and has no recipe.
    """
    options = _own_options(bundle)
    named = {part: options[part] for part in ("train", *PARTS) if isinstance(options.get(part), str)}
    return options | {part: without_folder(name) for part, name in named.items()}


def options_of(bundle: Bundle) -> dict[str, Any]:
    """Return the options of an adapter's own task, with the paths of its data on this machine.

    Raises:
        UnrecordedData: the adapter was trained on a user's own files, and has no recipe.
    """
    assert bundle.spec is not None
    task = bundle.spec.task
    options: dict[str, Any] = dict(task.options)
    local = bundle.local_spec()
    if local:
        return options | dict(local.task.source)
    merged = (bundle.provenance or {}).get("merged")
    if isinstance(merged, dict):
        recorded = merged.get("data") or merged.get("columns")  # older versions recorded only the columns
        return options | (recorded if isinstance(recorded, dict) else {})
    if task.name != "lines":
        return options
    if RECIPE not in bundle.files:
        raise UnrecordedData(f"{bundle.label} has no {RECIPE}, which names the rows that it was trained on")
    stated = (read_yaml(read_text(bundle.files[RECIPE]), RECIPE).get("task") or {}).get("options")
    return dict(stated) if isinstance(stated, dict) else options


def data_of(bundle: Bundle, data_dir: Path | None, otherwise: str = OTHER_ROWS) -> SplitData:
    """Return the train, dev and test examples of an adapter's own task.

    Args:
        otherwise: advice for a user who does not have these data, for error messages.

    Raises:
        UserError: the data are a user's own files, and are not on this machine or have changed.
    """
    assert bundle.spec is not None
    task = bundle.spec.task
    options = options_of(bundle)
    if task.name == "lines":
        if "train" not in options:
            raise UnrecordedData(f"{bundle.label} does not record which files it was trained on; {otherwise}")
        named = {part: options[part] for part in ("train", *PARTS) if isinstance(options.get(part), str)}
        options |= {part: _present(name, data_dir, bundle.label, otherwise) for part, name in named.items()}
    try:
        return load_task(task.name, data_dir, **options).load(task.split)
    except ChangedRows as changed:
        raise UserError(
            f"the rows of {changed.name} have changed since {bundle.label} was trained ({changed.hashes}); restore "
            f"them, name a folder that holds them with --data-dir, or {otherwise}"
        ) from None


def _present(name: str, data_dir: Path | None, label: str, otherwise: str) -> str:
    """Return the name of a data file. The file in `data_dir` with the same last name comes first.

    Raises:
        UserError: the file is not on this machine.
    """
    kept = expanded(name)
    if not (is_file_name(name) or kept.is_absolute()):  # a hub id
        return name
    # `data_dir / name` is the original file if `name` is an absolute path
    for place in (data_dir / name, data_dir / kept.name)[kept.is_absolute() :] if data_dir else ():
        if place.exists():
            return str(place.absolute())
    if kept.exists():
        return name
    where = f"{data_dir} has no {kept.name}" if data_dir else f"there is no file {name}"
    raise UserError(
        f"the data of {label} are gone: {where}; name the folder that holds {kept.name} with --data-dir, or {otherwise}"
    )


def training_labels(bundle: Bundle, data_dir: Path | None) -> tuple[str, ...]:
    """Return the labels of an adapter's training, from petransfer.json or from the training data.

    Empty if the labels are not known, or if the training data have too many different targets to be labels.
    """
    if bundle.spec is None:
        return ()
    recorded = (bundle.provenance or {}).get("labels")
    if recorded:
        return tuple(recorded)
    try:
        found = data_of(bundle, data_dir).labels
    except UserError:  # the training data are not on this machine, or have changed
        return ()
    return found if len(found) <= LABELS else ()


def warn_of_untrained_labels(bundle: Bundle, labels: Sequence[str], name: str, data_dir: Path | None) -> None:
    """Log a warning if data has other labels than the data of an adapter that was trained to choose a label.

    Args:
        labels: the different targets of the data.
        name: name of the data, for the message.
    """
    if bundle.spec is None or not any(metric.of_labels for metric in declared(bundle.spec.task.metrics)):
        return
    known = training_labels(bundle, data_dir)
    others = [label for label in labels if label not in known]
    if known and others:
        _log.warning(
            "warning: %s has %s that %s was not trained on: %s (trained on: %s). If they mean the same, write them as "
            "in the training data",
            name,
            count(len(others), "label"),
            bundle.label,
            *(", ".join(shortened(label, 40) for label in some[:5]) for some in (others, sorted(known))),
        )


def row_hash(row: Example) -> bytes:
    """Return the first 16 bytes of the sha256 of an example's input and target."""
    return hashlib.sha256(json.dumps([row.input, row.target]).encode()).digest()[:16]


def row_hashes(rows: Iterable[Example]) -> frozenset[bytes]:
    return frozenset(map(row_hash, rows))


def trained_on(bundles: Sequence[Bundle], rows: Sequence[Example], data_dir: Path | None) -> tuple[int, ...] | None:
    """Return the positions, from 0, of the examples that were used in the training of any of these adapters.

    None if unknown (a warning is logged), or without adapters.
    """
    known: frozenset[bytes] = frozenset()
    for bundle in bundles:
        if bundle.spec is None:
            return None
        try:
            known |= row_hashes(data_of(bundle, data_dir).train)
        except UnrecordedData:
            _log.warning(
                "%s does not record which files it was trained on, so it is not known which of these rows it was "
                "trained on",
                bundle.label,
            )
            return None
        except UserError:
            _log.warning(
                "%s: its training data are not here, or have changed, so it is not known which of these rows it was "
                "trained on; --data-dir names the folder that holds them",
                bundle.label,
            )
            return None
    return tuple(at for at, row in enumerate(rows) if row_hash(row) in known) if bundles else None


def has_same_rows(bundle: Bundle, first: Bundle, part: str, data: TestData, data_dir: Path | None) -> bool:
    """Return whether the tasks of two adapters certainly have the same rows in `part` (train, dev or test).

    Args:
        data: the `part` rows of the first adapter's task.
    """
    if bundle.spec is None or first.spec is None:
        return False
    task, other = bundle.spec.task, first.spec.task
    if (task.name, task.split, task.options) == (other.name, other.split, other.options):
        return True
    try:
        if "skip" in (options_of(one).get("bad_rows") for one in (bundle, first)):  # each run leaves out other rows
            return False
        mine = getattr(data_of(bundle, data_dir), part)
    except UserError:  # the data are not on this machine, or have changed
        return False
    return sorted(map(row_hash, mine)) == sorted(map(row_hash, data.examples))
