"""CFQ-MCD: tests with invented files in the official format."""

from __future__ import annotations

import json
import lzma
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from petransfer.data import load_task
from petransfer.data.tasks import cfq
from petransfer.errors import UserError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder with a release of CFQ: 30 questions, of which the split mcd1 uses 26."""
    monkeypatch.setattr(cfq, "ROWS", {"train": 20, "dev": 3, "test": 3})
    cfq._read_release.cache_clear()
    rows = []
    for n in range(30):
        start = "SELECT count(*) WHERE {" if n % 2 else "SELECT DISTINCT ?x0 WHERE {"
        names = {
            "questionPatternModEntities": f"Did M{n} edit M0",
            "sparqlPatternModEntities": f"{start}\nM{n} e M0\n}}",
        }
        rows.append(names | {"complexityMeasure": 1})
    (tmp_path / "cfq" / "splits").mkdir(parents=True)
    (tmp_path / "cfq" / "dataset.json").write_text(json.dumps(rows))
    split = {"trainIdxs": list(range(29, 9, -1)), "devIdxs": [0, 1, 2], "testIdxs": [3, 4, 5]}
    (tmp_path / "cfq" / "splits" / "mcd1.json").write_text(json.dumps(split))
    return tmp_path


def test_a_split_has_its_train_dev_and_test_rows(folder: Path) -> None:
    data = load_task("cfq", folder, dev="published").load("mcd1")
    assert [len(part) for part in (data.train, data.dev, data.test)] == [20, 3, 3]
    last = data.train[-1]
    assert (last.input, last.target) == ("Did M29 edit M0", "SELECT count(*) WHERE { M29 e M0 }")
    assert [row.category for row in data.train[:2]] == ["list", "yes-no"]
    assert [row.input for row in data.test] == [f"Did M{n} edit M0" for n in (3, 4, 5)]
    cut = load_task("cfq", folder, dev_size=4).load("mcd1")
    assert [len(part) for part in (cut.train, cut.dev, cut.test)] == [16, 4, 3]
    assert not {row.input for row in cut.train} & {row.input for row in cut.dev}
    assert load_task("cfq", folder).longest("mcd1") == (15, 38)


def test_braces_can_be_square_and_files_compressed(folder: Path) -> None:
    plain = folder / "cfq" / "dataset.json"
    (folder / "cfq" / "dataset.json.xz").write_bytes(lzma.compress(plain.read_bytes()))
    plain.unlink()
    data = load_task("cfq", folder / "cfq", braces="square").load("mcd1")
    assert all(row.target.endswith(" ]") and "{" not in row.target for row in data.train)


def test_the_tables_of_the_hub_give_the_same_examples(folder: Path, tmp_path: Path) -> None:
    release = load_task("cfq", folder, dev_size=4).load("mcd1")
    (tmp_path / "hub" / "mcd1").mkdir(parents=True)
    for part, examples in (("train", (*release.train, *release.dev)), ("test", release.test)):
        rows = [{"question": row.input, "query": row.target.replace("{ ", "{\n")} for row in reversed(examples)]
        path = tmp_path / "hub" / "mcd1" / f"{part}-00000-of-00001.parquet"
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    assert load_task("cfq", tmp_path / "hub", dev_size=4).load("mcd1") == release
    with pytest.raises(UserError, match=r"dataset\.json is missing"):
        load_task("cfq", tmp_path / "hub", dev="published").load("mcd1")


def test_train_size_is_known_without_any_file() -> None:
    assert load_task("cfq").train_size("mcd2") == 95_243
    assert load_task("cfq", None, dev="published").train_size("mcd2") == 95_743


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dev": "test"}, "unknown dev of cfq 'test'"),
        ({"braces": "round"}, "unknown braces"),
        ({"dev_size": 0}, "is 0"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_task("cfq", None, **options)


def test_missing_and_changed_files_are_refused(folder: Path) -> None:
    with pytest.raises(UserError, match=r"cfq/dataset\.json is missing: unpack .* --data-dir DIR"):
        load_task("cfq").load("mcd1")
    with pytest.raises(UserError, match=r"cfq/splits/mcd2\.json is missing"):
        load_task("cfq", folder).load("mcd2")
    with pytest.raises(UserError, match="unknown split of cfq 'mcd4'"):
        load_task("cfq", folder).load("mcd4")
    path = folder / "cfq" / "splits" / "mcd1.json"
    kept = path.read_text()
    path.write_text(kept.replace("[0, 1, 2]", "[0, 1]"))
    with pytest.raises(UserError, match="cfq/mcd1 has 2 dev rows, expected 3"):
        load_task("cfq", folder).load("mcd1")
    path.write_text(kept.replace("[0, 1, 2]", "[0, 1, 99]"))
    cfq._read_release.cache_clear()
    with pytest.raises(UserError, match=r"dataset\.json has no row 99"):
        load_task("cfq", folder).load("mcd1")
    path.write_text("{}")
    cfq._read_release.cache_clear()
    with pytest.raises(UserError, match="is not a split of CFQ"):
        load_task("cfq", folder).load("mcd1")
