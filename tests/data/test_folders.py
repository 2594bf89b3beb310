"""Folders of tables: each file is read like a single file, and no row is lost silently or read twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from petransfer.data.task import PARTS
from petransfer.errors import UserError
from tests.data.test_real_files import lines, pairs

pytestmark = pytest.mark.usefixtures("elsewhere")

# Texts that table libraries convert to numbers, booleans, missing values and dates.
TEXTS = [("007", "1.10", "1e5"), ("True", "False"), ("NA", "yes"), ("2024-01-05", "2024-02-03")]


@pytest.mark.parametrize("texts", TEXTS, ids=["numbers", "booleans", "missing", "dates"])
@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl"])
def test_files_of_a_folder_are_read_like_single_files(form: str, texts: tuple[str, ...]) -> None:
    Path("folder").mkdir()
    wanted = []
    for name in ("a", "b"):
        rows = [(f"{name} {n} {m}", text) for n, text in enumerate(texts) for m in range(5)]
        path, sign = Path(f"folder/{name}.{form}"), "," if form == "csv" else "\t"
        table = "".join(f"{sign.join(row)}\n" for row in [("input", "target"), *rows])
        objects = "".join(json.dumps({"input": one, "target": two}) + "\n" for one, two in rows)
        path.write_text(objects if form == "jsonl" else table)
        assert pairs(str(path)) == rows
        wanted += rows
    assert pairs("folder") == wanted


def test_no_row_of_a_folder_is_lost_silently_or_read_twice() -> None:
    def write(name: str, text: str) -> None:
        Path(name).parent.mkdir(exist_ok=True)
        rows = [{"input": f"{text} {n}", "target": "x"} for n in range(12)]
        table = "input,target\n" + "".join(f"{row['input']},x\n" for row in rows)
        Path(name).write_text(table if name.endswith("csv") else "".join(json.dumps(row) + "\n" for row in rows))

    def warnings(name: str) -> list[str]:
        return [note for note in lines(name).notes() if "not read" in note]

    for name in ("a.csv", "b.csv", "c.jsonl"):
        write(f"formats/{name}", name)
    (message,) = warnings("formats")
    assert "warning: formats: 1 file not read (c.jsonl)" in message
    for name in ("train.csv", "more.csv"):
        write(f"names/{name}", name)
    (message,) = warnings("names")
    assert "1 file not read (more.csv)" in message
    assert "train-2.csv" in message
    for name in ("train-train.csv", "dev-valid.csv"):
        write(f"twice/{name}", name)
    data = lines("twice", test=1).load("held-out")
    assert len(data.train) + len(data.test) == len(data.dev) == 12
    assert not warnings("twice")


def test_notes_count_rows_with_quotes_in_tsv_files_of_a_folder() -> None:
    Path("folder").mkdir()
    Path("folder/a.tsv").write_text("input\ttarget\n" + "".join(f'"a, {n}"\tb\n' for n in range(9)))
    assert any("9 rows with texts in quotes" in note for note in lines("folder").notes())
    data = lines("folder", quoting="csv").load("held-out")
    assert sorted(row.input for part in (data.train, data.dev, data.test) for row in part) == [
        f"a, {n}" for n in range(9)
    ]


def test_the_encoding_and_the_delimiter_of_a_folder_can_be_set() -> None:
    Path("folder").mkdir()
    text = "input:target\n" + "".join(f"caf\xe9 {n}:b\n" for n in range(9))
    Path("folder/a.csv").write_text(text, encoding="latin-1")
    assert lines("folder", encoding="latin-1", delimiter="colon").load("held-out").train[0].input[:4] == "caf\xe9"
    Path("folder/b.csv").write_text(text, encoding="utf-8")
    notes = lines("folder", encoding="latin-1", delimiter="colon").notes()
    assert any("warning: folder/b.csv is UTF-8, but is read as latin-1" in note for note in notes)
    Path("table").mkdir()
    Path("table/a.jsonl").write_text('{"input": "a", "target": "b"}\n' * 9)
    with pytest.raises(UserError, match="only csv and tsv data use it, and table is read as jsonl"):
        lines("table", delimiter="colon").load("held-out")


def test_broken_links_in_a_folder_are_ignored() -> None:
    Path("folder").mkdir()
    Path("folder/a.csv").write_text("input,target\n" + "".join(f"a {n},b\n" for n in range(9)))
    Path("folder/.#a.csv").symlink_to("nobody@nowhere")
    data = lines("folder").load("held-out")
    assert len(data.train) + len(data.dev) + len(data.test) == 9


def test_splits_of_a_folder_come_from_the_names_of_its_files() -> None:
    for name in ("train", "validation", "test"):
        Path("folder").mkdir(exist_ok=True)
        rows = [{"input": f"{name} {n}", "target": "x"} for n in range(4)]
        Path(f"folder/{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = lines("folder").load("held-out")
    assert [part[0].input for part in (data.train, data.dev, data.test)] == ["train 0", "validation 0", "test 0"]
    Path("folder/train.jsonl").unlink()
    with pytest.raises(UserError, match=r"folder has no split 'train' \(it has: validation, test\)"):
        lines("folder").load("held-out")


@pytest.mark.parametrize("name", [".", "folder"])
def test_a_folder_with_tables_and_other_files_is_refused_with_the_name_of_a_table(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("folder").mkdir()
    for file in ("notes.txt", "README.md", "script.py"):
        Path("folder", file).write_text("text\n")
    Path("folder/pairs.tsv").write_text("a\tb\n" * 9)
    if name == ".":
        monkeypatch.chdir("folder")
    with pytest.raises(UserError) as error:
        lines(name).load("held-out")
    message = f"{name} contains tables and other files; name the file with your rows, such as {name}/pairs.tsv"
    assert str(error.value) == message


def test_a_folder_without_tables_is_refused_with_the_supported_formats(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        UserError, match=r"`datasets` cannot load \. \(.*\); name a file with rows; supported are tsv, "
    ):
        lines(".").load("held-out")


def test_messages_name_the_file_and_the_line_of_a_row_of_a_folder() -> None:
    Path("folder").mkdir()
    good = "".join(f"a {n},b\n" for n in range(9))
    Path("folder/a.csv").write_text(f"input,target\n{good}")
    Path("folder/b.csv").write_text("input,target\nc,d\n\ne,\nf,g\n")
    with pytest.raises(UserError, match=r"1 of 12 rows of folder cannot be used: folder/b\.csv:4: the target is empty"):
        lines("folder").load("held-out")
    data = lines("folder", bad_rows="skip").load("held-out")
    places = {row.input: data.row_name(part, row.index) for part in PARTS for row in getattr(data, part)}
    assert places["a 0"] == "folder/a.csv:2"
    assert places["a 8"] == "folder/a.csv:10"
    assert places["c"] == "folder/b.csv:2"
    assert places["f"] == "folder/b.csv:5"


def test_messages_name_the_file_of_a_row_in_each_part_of_a_folder() -> None:
    Path("folder").mkdir()
    for part in ("train", "test"):
        Path(f"folder/{part}.csv").write_text("input,target\n" + "".join(f"{part} {n},b\n" for n in range(9)))
    data = lines("folder").load("held-out")
    for part, file in (("train", "train"), ("dev", "train"), ("test", "test")):
        row = getattr(data, part)[0]
        assert data.row_name(part, row.index) == f"folder/{file}.csv:{int(row.input.split()[1]) + 2}"
