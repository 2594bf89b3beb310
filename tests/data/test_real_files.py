"""Data files in many forms: encodings, delimiters, quotes, compression, nested columns, missing values, odd names."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import re
import subprocess
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from petransfer.data import LinesTask, load_task
from petransfer.data.bad_rows import visible
from petransfer.data.rows.json_rows import read_json
from petransfer.data.rows.source import Source
from petransfer.errors import UserError

pytestmark = pytest.mark.usefixtures("elsewhere")

PAIRS = [(f"walk, run number {n}", f'say "cours"; {n}') for n in range(30)]


def lines(train: str, **options: Any) -> LinesTask:
    task = load_task("lines", None, train=train, **options)
    assert isinstance(task, LinesTask)
    return task


def pairs(train: str, **options: Any) -> list[tuple[str, str]]:
    """Return the inputs and targets of all parts, in the order of the file."""
    data = lines(train, **options).load("held-out")
    rows = sorted((row for part in (data.train, data.dev, data.test) for row in part), key=lambda row: row.index)
    return [(row.input, row.target) for row in rows]


def table(delimiter: str = ",", quoting: int = csv.QUOTE_MINIMAL, end: str = "\n") -> str:
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, quoting=quoting, lineterminator=end)  # type: ignore[arg-type]
    writer.writerows([("input", "target"), *PAIRS])
    return text.getvalue()


def json_lines() -> str:
    return "".join(json.dumps({"input": source, "target": target}) + "\n" for source, target in PAIRS)


def json_list() -> str:
    return json.dumps([{"input": source, "target": target} for source, target in PAIRS], indent=1)


def zipped(name: str, content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(f"folder/{name}", content)
        archive.writestr("__MACOSX/._x", b"")
    return file.getvalue()


FILES: dict[str, Callable[[], bytes]] = {
    "plain.csv": lambda: table().encode(),
    "mark.csv": lambda: b"\xef\xbb\xbf" + table().encode(),
    "semicolon.csv": lambda: b"\xef\xbb\xbf" + table(";").encode(),
    "blanks.csv": lambda: table(quoting=csv.QUOTE_ALL).replace('","', '", "').encode(),
    "tab.csv": lambda: table("\t").encode(),
    "pipe.csv": lambda: table("|").encode(),
    "return.csv": lambda: table(end="\r").encode(),
    "windows.csv": lambda: table(end="\r\n").encode(),
    "utf16.csv": lambda: table().encode("utf-16"),
    "utf16be.csv": lambda: table().encode("utf-16-be"),
    "utf16le.csv": lambda: table(end="\r\n").encode("utf-16-le"),
    "quoted.tsv": lambda: table("\t", csv.QUOTE_ALL).encode(),
    "utf16.tsv": lambda: table("\t", csv.QUOTE_ALL, "\r\n").encode("utf-16"),
    "UPPER.CSV": lambda: table().encode(),
    "lines.json": lambda: json_lines().encode(),
    "list.json": lambda: json_list().encode(),
    "list.jsonl": lambda: json_list().encode("utf-16"),
    "a.csv.gz": lambda: gzip.compress(table().encode()),
    "a.jsonl.bz2": lambda: bz2.compress(json_lines().encode()),
    "a.json.xz": lambda: lzma.compress(json_list().encode()),
    "a.csv.zip": lambda: zipped("a.csv", table().encode()),
    "data.zip": lambda: zipped("rows.jsonl", json_lines().encode()),
    "a.csv.zst": lambda: pyarrow.compress(table().encode(), "zstd", asbytes=True),
    "not-named-gz.csv": lambda: gzip.compress(table().encode()),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_in_any_form_gives_the_same_rows(name: str, elsewhere: Path) -> None:
    (elsewhere / name).write_bytes(FILES[name]())
    assert pairs(name) == PAIRS


@pytest.mark.parametrize(
    ("name", "shown_text"),
    [
        ("blanks.csv", "blanks.csv: blanks before cells are left out, because the header has them before quotes"),
        ("semicolon.csv", "semicolon.csv: columns are separated by semicolon characters"),
        ("quoted.tsv", "quoted.tsv: quotes enclose cells; --quoting none reads them otherwise"),
        ("plain.csv", ""),
    ],
)
def test_an_unusual_form_is_reported(name: str, shown_text: str, elsewhere: Path) -> None:
    (elsewhere / name).write_bytes(FILES[name]())
    notes = [note for note in lines(name).notes() if not note.startswith("first row: ")]
    assert notes == ([shown_text] if shown_text else [])


def test_arrow_files_and_saved_datasets_give_the_same_rows(elsewhere: Path) -> None:
    import datasets

    columns = {"input": [pair[0] for pair in PAIRS], "target": [pair[1] for pair in PAIRS]}
    content = pyarrow.table(columns)
    pyarrow.feather.write_feather(content, elsewhere / "a.feather")
    with pyarrow.OSFile("b.arrow", "wb") as file, pyarrow.ipc.new_stream(file, content.schema) as writer:
        writer.write_table(content)
    datasets.Dataset.from_dict(columns).save_to_disk("saved")
    (elsewhere / "folder").mkdir()
    (elsewhere / "folder" / "train.jsonl").write_text(json_lines())
    for name in ("a.feather", "b.arrow", "saved", "folder"):
        assert pairs(name) == PAIRS, name


@pytest.mark.parametrize("split", ["val", "validation", "valid", "dev"])
def test_a_dev_split_can_have_any_usual_name(split: str, elsewhere: Path) -> None:
    import datasets

    part = datasets.Dataset.from_dict({"input": list("abcdefghij"), "target": ["x"] * 10})
    datasets.DatasetDict({"train": part, split: part.select([0, 1]), "test": part.select([2])}).save_to_disk("saved")
    data = lines("saved").load("held-out")
    assert [len(each) for each in (data.train, data.dev, data.test)] == [10, 2, 1]


def test_quotes_in_tsv_are_text_unless_all_cells_of_the_first_row_have_them(elsewhere: Path) -> None:
    (elsewhere / "a.tsv").write_text("".join(f'"so" {n}\t"yes"\n' for n in range(10)))
    assert pairs("a.tsv")[3] == ('"so" 3', '"yes"')
    (elsewhere / "b.tsv").write_text('"so"\t"yes"\n' * 3 + "".join(f'"s{n}"\t"y"\n' for n in range(10)))
    assert pairs("b.tsv")[0] == ("so", "yes")
    assert pairs("b.tsv", quoting="none")[0] == ('"so"', '"yes"')
    (elsewhere / "c.csv").write_text("input,target\n" + "".join(f'5" disk {n},yes\n' for n in range(10)))
    assert pairs("c.csv", quoting="none")[0] == ('5" disk 0', "yes")


def test_the_encoding_of_a_file_can_be_set(elsewhere: Path) -> None:
    (elsewhere / "a.csv").write_bytes(("input,target\n" + "".join(f"é{n},ü\n" for n in range(10))).encode("cp1252"))
    assert pairs("a.csv", encoding="cp1252")[1] == ("é1", "ü")
    with pytest.raises(
        UserError, match=r"10 of 10 rows of a\.csv cannot be used: a\.csv:2: not UTF-8.*encoding=cp1252"
    ):
        lines("a.csv").load("held-out")
    (elsewhere / "train.csv").write_text("input,target\n" + "".join(f"é{n},ü\n" for n in range(20)), encoding="utf-8")
    (elsewhere / "test.csv").write_bytes("input,target\né,ü\nplain,text\n".encode("cp1252"))
    with pytest.raises(UserError, match=r"^1 of 2 rows of test\.csv cannot be used: test\.csv:2") as error:
        lines("train.csv", test="test.csv").load("held-out")
    assert "skip-bad-rows" not in str(error.value)
    (note,) = [note for note in lines("train.csv", encoding="cp1252").notes() if "encoding" in note]
    assert "warning: train.csv is UTF-8, but is read as cp1252" in note
    assert not any("encoding" in note for note in lines("a.csv", encoding="cp1252").notes())
    (elsewhere / "train.csv").write_text("input,target\n" + "à,ü\n" * 20, encoding="utf-8")
    with pytest.raises(UserError, match=r"^train\.csv is UTF-8 and not ascii; leave the option encoding out"):
        lines("train.csv", encoding="ascii").load("held-out")
    with pytest.raises(UserError, match="Python knows no 'klingon'"):
        lines("a.csv", encoding="klingon").load("held-out")
    (elsewhere / "b.csv").write_bytes("input,target\nx,y\n".encode("utf-16") + b"\x00")
    with pytest.raises(UserError, match=r"b\.csv is not utf-16.*encoding=NAME"):
        lines("b.csv").load("held-out")


def test_messages_give_advice_for_list_columns_and_for_a_single_text_column(elsewhere: Path) -> None:
    rows = [{"id": n, "answers": {"text": [f"a{n}"], "start": [n]}, "none": []} for n in range(10)]
    (elsewhere / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for column, named in (("answers.text", "'answers.text.0' names its first item"), ("none", "is a list, not text")):
        with pytest.raises(UserError, match=re.escape(named)):
            lines("a.jsonl", input="id", target=column).load("held-out")
    with pytest.raises(UserError, match=r"no column 'answers'.*--target-column answers\.text"):
        lines("a.jsonl", input="id", target="answers").load("held-out")
    assert pairs("a.jsonl", input="id", target="answers.text.0")[3] == ("3", "a3")
    (elsewhere / "b.jsonl").write_text('{"text": "### Human: Hi ### Assistant: Hello"}\n' * 10)
    with pytest.raises(UserError, match="split the texts into two columns, or into the messages of chats") as error:
        lines("b.jsonl").load("held-out")
    assert "--input-column" not in str(error.value)


def test_dotted_names_select_nested_columns(elsewhere: Path) -> None:
    import datasets

    rows = [{"translation": {"en": f"run {n}", "fr": f"cours {n}"}, "tags": {"kind": ["a", "b"]}} for n in range(20)]
    (elsewhere / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), "b.parquet")
    datasets.Dataset.from_list(rows).save_to_disk("c")
    for name in ("a.jsonl", "b.parquet", "c"):
        task = lines(name, input_column="translation.en", target_column="translation.fr", category="tags.kind.1")
        row = task.load("held-out").train[0]
        assert (row.input[:3], row.target[:5], row.category) == ("run", "cours", "b"), name
        with pytest.raises(UserError, match=r"no column 'translation\.de' \(it has: translation\.en, translation\.fr"):
            lines(name, input="translation.de", target="translation.fr").load("held-out")
        assert pairs(name, template="say {translation.en}", target="translation.fr")[0] == ("say run 0", "cours 0")
        with pytest.raises(UserError, match=r"20 of 20 rows .* no key 'tags\.kind\.²'"):  # a digit that `int` refuses
            lines(name, input="tags.kind.²", target="translation.fr").load("held-out")


def test_missing_texts_are_bad_rows_and_missing_categories_form_a_category(elsewhere: Path) -> None:
    rows: list[dict[str, Any]] = [{"input": f"i{n}", "target": "t", "category": ("a", None)[n % 2]} for n in range(20)]
    rows[3]["target"], rows[4]["target"], rows[5]["input"] = float("nan"), None, "  "
    (elsewhere / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows[3]["target"] = None
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), "b.parquet")
    for name, reasons in (("a.jsonl", ["a.jsonl:4: the target is missing (NaN)"]), ("b.parquet", ["1 more row has"])):
        with pytest.raises(UserError) as error:
            lines(name).load("held-out")
        for shown_text in (f"3 of 20 rows of {name} cannot be used", "the input is empty", "--skip-bad-rows", *reasons):
            assert shown_text in str(error.value)
        data = lines(name, bad_rows="skip").load("held-out")
        found = [row for part in (data.train, data.dev, data.test) for row in part]
        assert len(found) == 17
        assert {row.category for row in found} == {"a", "(none)"}


def test_all_bad_rows_of_all_files_are_reported_at_once(elsewhere: Path) -> None:
    (elsewhere / "a.jsonl").write_text(json_lines() + "{\n" * 3 + '{"input": "x"}\n')
    (elsewhere / "b.jsonl").write_text(json_lines() + '{"input": "x", "target": []}\n')
    with pytest.raises(UserError) as error:
        lines("a.jsonl", test="b.jsonl").load("held-out")
    assert "5 of 65 rows of a.jsonl and b.jsonl cannot be used: a.jsonl:31: not valid JSON" in str(error.value)
    assert "and 2 more rows have this problem; a.jsonl:34: no key 'target'" in str(error.value)
    assert "b.jsonl:31: the target is a list, not text" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_test_split_with_hidden_labels_is_refused(elsewhere: Path) -> None:
    import datasets

    def part(labels: list[int]) -> Any:
        return datasets.Dataset.from_dict({"sentence": [f"s{n}" for n in range(len(labels))], "label": labels})

    named = datasets.Features({"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    content = datasets.DatasetDict({"train": part([0, 1] * 10), "validation": part([0, 1]), "test": part([-1] * 4)})
    content.save_to_disk("numbers")
    content.cast(named).save_to_disk("names")
    for name in ("numbers", "names"):
        with pytest.raises(UserError, match=r"hidden \(-1\).*name another test set, for example --test 0\.1"):
            lines(name, input="sentence", target="label").load("held-out")
        data = lines(name, input="sentence", target="label", test=0.1).load("held-out")
        assert len(data.test) == 2
    (elsewhere / "sums.jsonl").write_text(
        "".join(json.dumps({"input": f"{n} - {n + n % 3}", "target": -(n % 3)}) + "\n" for n in range(30))
    )
    assert pairs("sums.jsonl")[1] == ("1 - 2", "-1")
    (elsewhere / "one.jsonl").write_text('{"input": "7 - 8", "target": -1}\n')
    assert [row.target for row in lines("sums.jsonl", test="one.jsonl").load("held-out").test] == ["-1"]


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
@pytest.mark.parametrize("hidden", ["-1", "-1.0"])
def test_hidden_labels_of_a_text_file_are_refused(suffix: str, hidden: str, elsewhere: Path) -> None:
    mark = {"csv": ",", "tsv": "\t"}[suffix]
    for name, labels in (("train", ["0", "1"] * 10), ("test", [hidden] * 4)):
        rows = [f"{name} sentence {n}{mark}{label}" for n, label in enumerate(labels)]
        (elsewhere / f"{name}.{suffix}").write_text("\n".join([f"sentence{mark}label", *rows]))
    columns = {"input": "sentence", "target": "label"}
    with pytest.raises(UserError, match=r"test\.\w+: the label is hidden \(-1\) in every test row"):
        lines(f"train.{suffix}", test=f"test.{suffix}", **columns).load("held-out")


def test_labels_that_differ_in_case_or_blanks_get_a_warning(elsewhere: Path) -> None:
    labels = ("Yes", "yes", "no", "no ")
    (elsewhere / "a.jsonl").write_text(
        "".join(json.dumps({"input": f"w{n}", "target": labels[n % 4]}) + "\n" for n in range(40))
    )
    notes = " ".join(lines("a.jsonl").notes())
    assert "warning: the targets 'Yes' (10 rows) and 'yes' (10 rows)" in notes
    assert "'no' (10 rows) and 'no␣' (10 rows) differ only in case or blanks" in notes


@pytest.mark.parametrize("name", ["a.xlsx", "a.pdf", "a.pkl", "a.tar", "a.sqlite", "a.xlsx.zip"])
def test_files_of_unsupported_formats_are_refused(name: str, elsewhere: Path) -> None:
    with pytest.raises(UserError, match=f"no file {name} in .*; supported are tsv, csv"):
        lines(name).load("held-out")
    (elsewhere / name).write_bytes(b"PK\x03\x04")
    with pytest.raises(UserError, match=f"{name} is (an? |not )|cannot be read as a zip|not a known format"):
        lines(name).load("held-out")


def test_a_spreadsheet_with_the_name_of_a_csv_file_is_recognised(elsewhere: Path) -> None:
    with zipfile.ZipFile("a.csv", "w") as archive:
        archive.writestr("[Content_Types].xml", "<x/>")
    with pytest.raises(UserError, match=r"a\.csv is an Office file"):
        lines("a.csv").load("held-out")


def test_a_zip_with_a_password_is_refused(elsewhere: Path) -> None:
    with zipfile.ZipFile("a.csv.zip", "w") as archive:
        archive.writestr("a.csv", table())
    content = bytearray((elsewhere / "a.csv.zip").read_bytes())
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # set "encrypted" in both headers
        content[content.index(signature) + flags] |= 1
    (elsewhere / "a.csv.zip").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.csv\.zip has a password; unpack it"):
        lines("a.csv.zip").load("held-out")


@pytest.mark.parametrize("form", ["feather", "parquet", "csv"])
def test_two_columns_with_the_same_name_are_refused(form: str, elsewhere: Path) -> None:
    table = pyarrow.Table.from_arrays([pyarrow.array(["a", "b"])] * 3, names=["input", "target", "input"])
    if form == "csv":
        (elsewhere / "a.csv").write_text("input,target,input\na,b,c\n")
    else:
        write = pyarrow.feather.write_feather if form == "feather" else pyarrow.parquet.write_table
        write(table, elsewhere / f"a.{form}")
    with pytest.raises(UserError, match=rf"a\.{form}.*two columns are named 'input'"):
        lines(f"a.{form}").load("held-out")


def test_columns_without_a_name_are_ignored(elsewhere: Path) -> None:
    rows = "".join(f'{one},"{other}",,\n' for one, other in enumerate(["a", "b"] * 15))
    (elsewhere / "a.csv").write_text("input,target,,\n" + rows)
    assert lines("a.csv").load("held-out").train[0].target in ("a", "b")


def test_a_pipe_is_refused_because_it_can_be_read_once_only(elsewhere: Path) -> None:
    os.mkfifo(elsewhere / "a.csv")
    with pytest.raises(UserError, match=r"a\.csv is a pipe or a device.*save its rows in a file"):
        lines("a.csv").load("held-out")


def test_mixed_line_ends_are_refused(elsewhere: Path) -> None:
    (elsewhere / "a.csv").write_bytes(b"input,target\n" + b"a,b\n" * 30 + b"c,d\r" * 3)
    with pytest.raises(UserError, match=r"carriage return.*one kind of line end"):
        lines("a.csv").load("held-out")


def test_a_broken_json_list_is_refused_with_the_number_of_the_item(elsewhere: Path) -> None:
    (elsewhere / "a.json").write_text(json_list()[:-40])
    with pytest.raises(UserError, match=r"a\.json: item 30 of the list is not valid JSON"):
        lines("a.json").load("held-out")
    (elsewhere / "b.json").write_text('[{"input": "a", "target": "b"} {"input": "a", "target": "b"}]')
    with pytest.raises(UserError, match=r"b\.json: a comma is missing after item 1"):
        lines("b.json").load("held-out")


@pytest.mark.parametrize("shape", ["list", "object", "indented objects", "lines"])
def test_json_that_is_not_utf8_is_refused_in_every_form(shape: str, elsewhere: Path) -> None:
    rows = [{"input": f"caf\xe9 {n}", "target": "x"} for n in range(6)]
    texts = {
        "list": json.dumps(rows, ensure_ascii=False),
        "object": json.dumps({"data": rows}, ensure_ascii=False),
        "indented objects": "\n".join(json.dumps(row, ensure_ascii=False, indent=1) for row in rows),
        "lines": "\n".join(json.dumps(row, ensure_ascii=False) for row in rows),
    }
    (elsewhere / "a.json").write_text(texts[shape], encoding="latin-1")
    with pytest.raises(UserError, match=r"rows of a\.json cannot be used: a\.json:1: not UTF-8.*encoding=cp1252"):
        lines("a.json").load("held-out")
    assert pairs("a.json", encoding="cp1252")[1] == ("caf\xe9 1", "x")


def test_text_after_the_end_of_a_json_list_is_refused(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from petransfer.data.rows import json_rows

    (elsewhere / "a.json").write_text(json_list() + "\n" + json_list())
    with pytest.raises(UserError, match=r"a\.json continues after the end of its JSON list"):
        lines("a.json").load("held-out")
    for chunk in (7, len(json_list())):  # the second chunk size ends exactly at the end of the first list
        monkeypatch.setattr(json_rows, "_CHUNK_CHARACTERS", chunk)
        with pytest.raises(UserError, match=r"a\.json continues after the end of its JSON list"):
            lines("a.json").load("held-out")
    (elsewhere / "b.json").write_text(" \n" + json_list() + "\n \n")
    assert pairs("b.json") == PAIRS


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_a_long_json_value_is_decoded_only_a_few_times(
    name: str, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from petransfer.data.rows import json_rows

    rows = [{"input": [f"{n}" for n in range(2000)]}, {"input": "x"}]
    text = json.dumps(rows) if name == "a.json" else "\n".join(json.dumps(row, indent=1) for row in rows)
    (elsewhere / name).write_text(text)
    starts: list[int] = []

    class Decoder(json.JSONDecoder):
        def raw_decode(self, s: str, idx: int = 0) -> tuple[Any, int]:
            starts.append(idx)
            return super().raw_decode(s, idx)

    monkeypatch.setattr(json_rows, "_CHUNK_CHARACTERS", 50)
    monkeypatch.setattr(json_rows, "_DECODER", Decoder(object_pairs_hook=json_rows._object))
    assert [record.values for record in read_json(Source(name, "jsonl", elsewhere / name))] == rows
    assert len(starts) < 50


@pytest.mark.parametrize(
    ("text", "shown_text"),
    [
        ('[{"input": 1},\n {"input": "a" "b"}, ', "item 2 .*Expecting ',' delimiter at character 15 of the item"),
        ('[{"input": 1},\n {"input": 1, "input": 2}, ', "item 2 .*the key 'input' occurs twice"),
        ('{\n"input": 1}\n{"input": "a" "b"}\n', "object 2 .*Expecting ',' delimiter at character 15 of the object"),
    ],
)
def test_the_rest_of_a_json_file_is_not_read_into_memory_after_an_error(
    text: str, shown_text: str, elsewhere: Path
) -> None:
    (elsewhere / "a.json").write_text(text + '{"input": "x"}, ' * 400_000)
    tracemalloc.start()
    with pytest.raises(UserError, match=shown_text):
        list(read_json(Source("a.json", "jsonl", elsewhere / "a.json")))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000  # the file has 6,400,000 bytes


def test_the_time_to_read_a_json_list_is_not_quadratic_in_its_length(elsewhere: Path) -> None:
    def seconds(rows: int) -> float:
        text = json.dumps([{"input": f"{n}", "target": "x"} for n in range(rows)])
        (elsewhere / "a.json").write_text(text)
        start = time.process_time()
        assert sum(1 for _ in read_json(Source("a.json", "jsonl", elsewhere / "a.json"))) == rows
        return time.process_time() - start

    assert seconds(24_000) < 40 * max(seconds(2_000), 0.005)


def test_float16_and_float32_values_become_short_decimal_texts(elsewhere: Path) -> None:
    import datasets

    numbers = [n / 10 for n in range(30)]
    inputs = [f"i{n}" for n in range(30)]
    narrow = pyarrow.array(numbers, pyarrow.float32())
    nested = pyarrow.array([{"x": [n]} for n in numbers], pyarrow.struct([("x", pyarrow.list_(pyarrow.float16()))]))
    table = pyarrow.table({"input": inputs, "target": narrow, "in": nested})
    pyarrow.parquet.write_table(table, "a.parquet")
    pyarrow.feather.write_feather(table, "a.feather")
    kinds = datasets.Features({"input": datasets.Value("string"), "target": datasets.Value("float32")})
    datasets.Dataset.from_dict({"input": inputs, "target": numbers}, features=kinds).save_to_disk("saved")
    for name in ("a.parquet", "a.feather", "saved"):
        assert pairs(name) == [(source, str(number)) for source, number in zip(inputs, numbers, strict=True)]
    assert [target for _, target in pairs("a.parquet", target="in.x.0")] == list(map(str, numbers))


@pytest.mark.parametrize("name", ["base64", "rot13", "idna", "undefined", "a\0b", "punycode"])
def test_encodings_that_cannot_be_used_for_files_are_refused(name: str, elsewhere: Path) -> None:
    (elsewhere / "a.csv").write_bytes(table().encode())
    with pytest.raises(UserError, match="encoding"):
        lines("a.csv", encoding=name).load("held-out")


@pytest.mark.parametrize("encoding", ["utf-16-be", "utf-32-be"])
def test_utf16_and_utf32_follow_the_byte_order_mark(encoding: str, elsewhere: Path) -> None:
    (elsewhere / "a.csv").write_bytes(("\ufeff" + table()).encode(encoding))
    assert pairs("a.csv", encoding=encoding[:6]) == PAIRS


def test_a_json_list_longer_than_a_chunk_is_read(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from petransfer.data.rows import json_rows

    monkeypatch.setattr(json_rows, "_CHUNK_CHARACTERS", 7)
    (elsewhere / "a.json").write_text(json_list())
    assert pairs("a.json") == PAIRS


def test_columns_prompt_and_completion_are_used_by_default(elsewhere: Path) -> None:
    (elsewhere / "a.csv").write_text("id,prompt,completion\n" + "".join(f"{n},p{n},c\n" for n in range(10)))
    assert pairs("a.csv")[2] == ("p2", "c")
    shown_text = "a.csv: inputs are in the column 'prompt', targets in 'completion'; not read: 'id'"
    assert shown_text in lines("a.csv").notes()


def test_input_and_input_column_are_the_same_option(elsewhere: Path) -> None:
    (elsewhere / "a.csv").write_text("q,a\n" + "".join(f"q{n},b{n}\n" for n in range(10)))
    one, other = lines("a.csv", input="q", target="a"), lines("a.csv", input_column="q", target_column="a")
    assert one == other
    assert one.local_options() == {"train": str(elsewhere / "a.csv"), "input": "q", "target": "a"}
    with pytest.raises(UserError, match="give either input or input_column, not both"):
        lines("a.csv", input="q", input_column="a")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300), st.sampled_from(["csv", "tsv", "jsonl", "json", "csv.gz", "parquet", "arrow", "zip"]))
def test_random_bytes_raise_no_other_error_than_a_user_error(content: bytes, form: str) -> None:
    Path(f"any.{form}").write_bytes(content)
    try:
        lines(f"any.{form}", bad_rows="skip").load("held-out")
    except UserError as error:
        assert "\n" not in str(error)  # noqa: PT017 - random bytes do not always raise an error


def test_blanks_at_the_ends_of_texts_are_made_visible() -> None:
    assert visible("a b ") == "'a b␣'"
    assert visible("\ta\n") == "'⇥a⏎'"
    assert visible("  ") == "'␣␣'"
    assert visible("x" * 100 + " ").endswith("xxx␣'")
    assert len(visible("x" * 100)) == 62


@pytest.mark.parametrize(
    ("column", "asked"),
    [
        ("e\u0301te\u0301", "été"),
        ("input\u00a0", "input"),
        ("\u200binput", "input"),
        ("Input", "input"),
        ("in'put ", "In'put"),
    ],
)
def test_advice_names_a_column_that_looks_the_same_in_shell_syntax(column: str, asked: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(f"{column},target\n" + "".join(f"say {n},{n}\n" for n in range(20)), encoding="utf-8")
    with pytest.raises(UserError) as error:
        lines(str(path), input=asked, target="target").load("held-out")
    named = re.search(r"name yours with --input-column (.*), or --set", str(error.value))
    assert named is not None
    printed = subprocess.run(["bash", "-c", f"printf %s {named[1]}"], capture_output=True, check=True)
    assert lines(str(path), input=printed.stdout.decode(), target="target").load("held-out").train


@pytest.mark.parametrize("form", ["parquet", "feather"])
def test_class_labels_in_parquet_and_feather_files_become_names(form: str, tmp_path: Path) -> None:
    import datasets
    from pyarrow import feather, parquet

    features = datasets.Features(
        {"input": datasets.Value("string"), "target": datasets.ClassLabel(names=["neg", "pos"])}
    )
    rows = datasets.Dataset.from_dict({"input": ["a", "b", "c", "d"], "target": [0, 1, 1, -1]}, features=features)
    path = tmp_path / f"rows.{form}"
    write = parquet.write_table if form == "parquet" else feather.write_feather
    write(rows.data.table, path)
    task = load_task("lines", train=str(path), dev=1, test=1, bad_rows="skip")
    data = task.load("held-out")
    found = {row.input: row.target for part in (data.train, data.dev, data.test) for row in part}
    assert found == {"a": "neg", "b": "pos", "c": "pos"}


def test_texts_for_missing_values_get_a_warning_and_hidden_zip_members_are_skipped(elsewhere: Path) -> None:
    body = "input,target\n" + "".join(f"in {n},{('NaN', '#N/A', 'a', 'b')[n % 4]}\n" for n in range(12))
    with zipfile.ZipFile("x.csv.zip", "w") as archive:
        for name, text in (("x.csv", body), (".DS_Store", "x"), ("__MACOSX/._x.csv", "x")):
            archive.writestr(name, text)
    task = load_task("lines", None, train="x.csv.zip")
    assert isinstance(task, LinesTask)
    (note,) = [note for note in task.notes() if "missing value" in note]
    assert "'NaN' (3 rows), '#N/A' (3 rows)" in note


def test_notes_list_the_columns_that_are_not_read(elsewhere: Path) -> None:
    rows = [
        {"instruction": f"do {n}", "input": f"text {n}", "output": "c", "meta": {"a": 1, "b": 2}} for n in range(10)
    ]
    (elsewhere / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=r"--template '{instruction} {input}' --target-column output"):
        pairs("a.jsonl")
    # without the instruction, the input is incomplete
    notes = lines("a.jsonl", target_column="output").notes()
    assert "a.jsonl: not read: 'instruction', 'meta.a', 'meta.b'" in notes
    (warned,) = (note for note in notes if "warning" in note)
    assert "the column 'instruction' is not read; --template '{instruction} {input}'" in warned
    template = {"template": "{instruction} {input} {meta.a}", "target_column": "output"}
    assert lines("a.jsonl", **template).notes()[0] == "a.jsonl: not read: 'meta.b'"
    (elsewhere / "b.jsonl").write_text("".join(json.dumps(row | {"input": ""}) + "\n" for row in rows))
    with pytest.raises(UserError, match=r"the input is empty.*; the column 'instruction' is not read; --template"):
        pairs("b.jsonl", target_column="output")
    (elsewhere / "c.csv").write_text("input,target\n" + "".join(f"p{n},c\n" for n in range(10)))
    assert not [note for note in lines("c.csv").notes() if "not read" in note]


@pytest.mark.parametrize(
    ("columns", "advice"),
    [
        ("prompt,chosen,rejected", "--input-column prompt --target-column chosen"),
        ("chosen,rejected", "--set task.options.messages=chosen"),
        ("conversation_id,role,content", "each row is one message, and a row must be a whole chat"),
        ("instruction,context,response", "--template '{instruction} {context}' --target-column response"),
    ],
)
def test_usual_columns_of_other_programs_get_advice(columns: str, advice: str, elsewhere: Path) -> None:
    (elsewhere / "a.csv").write_text(f"{columns}\n" + "".join(f"p{n}," * columns.count(",") + "c\n" for n in range(10)))
    with pytest.raises(UserError, match=re.escape(advice)):
        pairs("a.csv")


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends_inside_quoted_cells_are_read_as_in_json(end: str, elsewhere: Path) -> None:
    texts = ["blue\r\ntwo", "two\rone", "a\r\n\r\nb", "one\ntwo\r\n", "the\tcat"] * 6
    rows = [("input", "target"), *((f"red {n}", text) for n, text in enumerate(texts))]
    if end == "\r":  # an LF in such a file would be taken for the line end
        rows = [(one, other.replace("\n", "")) for one, other in rows]
    quoted = "".join(f'"{one}","{other}"{end}' for one, other in rows)
    (elsewhere / "a.csv").write_bytes(quoted.encode())
    (elsewhere / "a.tsv").write_bytes(quoted.replace('","', '"\t"').encode())
    (elsewhere / "a.jsonl").write_text("".join(json.dumps({"input": i, "target": t}) + "\n" for i, t in rows[1:]))
    assert pairs("a.csv") == pairs("a.tsv") == pairs("a.jsonl") == rows[1:]
    assert lines("a.csv").identity() == lines("a.jsonl").identity()
    assert any("24 targets with carriage returns (CR, shown as ␍)" in note for note in lines("a.csv").notes())


@pytest.mark.parametrize("form", ["parquet", "arrow"])
def test_table_values_that_python_cannot_represent_are_bad_rows(form: str, elsewhere: Path) -> None:
    texts = pyarrow.array([f"text {n}".encode() for n in range(9)] + [b"caf\xe9"])
    texts = pyarrow.StringArray.from_buffers(10, texts.buffers()[1], texts.buffers()[2])
    times = pyarrow.array([0] * 8 + [10**13, 0], pyarrow.timestamp("s"))
    columns = pyarrow.table({"input": texts, "target": times})
    if form == "parquet":
        pyarrow.parquet.write_table(columns, "a.parquet")
    else:
        with pyarrow.OSFile("a.arrow", "wb") as file, pyarrow.ipc.new_file(file, columns.schema) as writer:
            writer.write_table(columns)
    with pytest.raises(UserError, match=f"2 of 10 rows of a.{form} cannot be used: a.{form}:9: .*'target' has a value"):
        pairs(f"a.{form}")
    assert [source for source, _ in pairs(f"a.{form}", bad_rows="skip")] == [f"text {n}" for n in range(8)]
