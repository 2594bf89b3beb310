"""The task `lines`: formats give the same rows, broken rows are refused, and parts cut from one file share no input."""

from __future__ import annotations

import csv
import gzip
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from petransfer.data import LinesTask, load_task
from petransfer.data.rows import builder, delimited
from petransfer.data.rows import store as prepare
from petransfer.data.rows.tables import open_dataset
from petransfer.data.task import Example, SplitData
from petransfer.data.templates import fields_of, render
from petransfer.errors import UserError

pytestmark = pytest.mark.usefixtures("elsewhere")

ROWS = [(f"say word {n}", f"word number {n}", "odd" if n % 2 else "even") for n in range(1, 31)]
NAMES = ("input", "target", "category")


def lines(train: str, **options: Any) -> LinesTask:
    task = load_task("lines", None, train=train, **options)
    assert isinstance(task, LinesTask)
    return task


def load(train: str, **options: Any) -> SplitData:
    return lines(train, **options).load("held-out")


def write_tsv(path: Path, rows: Any = ROWS, header: bool = True) -> None:
    message = [NAMES, *rows] if header else rows
    path.write_text("".join("\t".join(row) + "\n" for row in message), encoding="utf-8")


def write_csv(path: Path, rows: Any = ROWS) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([NAMES, *rows])


def write_jsonl(path: Path, rows: Any = ROWS) -> None:
    text = "".join(json.dumps(dict(zip(NAMES, row, strict=False))) + "\n" for row in rows)
    path.write_text(text)


def write_parquet(path: Path, rows: Any = ROWS) -> None:
    columns = dict(zip(NAMES, map(list, zip(*rows, strict=True)), strict=True))
    pyarrow.parquet.write_table(pyarrow.table(columns), path)


def write_dataset(path: Path, rows: Any = ROWS) -> None:
    import datasets

    columns = dict(zip(NAMES, map(list, zip(*rows, strict=True)), strict=True))
    datasets.Dataset.from_dict(columns).save_to_disk(str(path))


WRITERS: dict[str, Callable[[Path], None]] = {
    "a.tsv": write_tsv,
    "bare.tsv": lambda path: write_tsv(path, header=False),
    "b.csv": write_csv,
    "c.jsonl": write_jsonl,
    "e.parquet": write_parquet,
    "saved": write_dataset,
}


def test_every_format_gives_the_same_rows_and_the_same_hash(elsewhere: Path) -> None:
    found = {}
    for name, write in WRITERS.items():
        write(elsewhere / name)
        found[name] = (lines(name).identity(), [list(part) for part in parts(load(name))])
    assert len({json.dumps(identity) for identity, _ in found.values()}) == 1
    first = found["a.tsv"][1]
    assert all(each == first for _, each in found.values())
    rows = sorted((row for part in first for row in part), key=lambda row: row.index)
    assert rows == [Example(at, *row) for at, row in enumerate(ROWS)]


def test_a_compressed_file_is_read_like_a_plain_file(elsewhere: Path) -> None:
    write_jsonl(elsewhere / "c.jsonl")
    (elsewhere / "c.jsonl.gz").write_bytes(gzip.compress((elsewhere / "c.jsonl").read_bytes()))
    assert lines("c.jsonl.gz").identity() == lines("c.jsonl").identity()


def parts(data: SplitData) -> tuple[Any, Any, Any]:
    return data.train, data.dev, data.test


def test_dev_and_test_are_a_tenth_each_and_depend_on_the_seed(elsewhere: Path) -> None:
    write_tsv(elsewhere / "a.tsv")
    one, again, other = load("a.tsv"), load("a.tsv"), load("a.tsv", seed=1)
    assert [len(part) for part in parts(one)] == [24, 3, 3]
    assert list(one.test) == list(again.test)
    assert list(one.test) != list(other.test)
    assert lines("a.tsv").identity() != lines("a.tsv", seed=1).identity()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 12), min_size=12, max_size=60), st.integers(0, 3), st.sampled_from([0.1, 0.4, 1, 3]))
def test_parts_cut_from_one_file_share_no_input(numbers: list[int], seed: int, cut: float) -> None:
    rows = [(f"input {number}", f"target {at}", "all") for at, number in enumerate(numbers)]
    write_tsv(Path("same.tsv"), rows)
    task = lines("same.tsv", seed=seed, dev=cut, test=cut)
    try:
        data = task.load("held-out")
    except UserError:  # a part is empty, because there are too few different inputs
        assume(False)
    inputs = [{row.input for row in part} for part in parts(data)]
    assert sum(map(len, inputs)) == len(set.union(*inputs))
    assert sum(map(len, parts(data))) == len(rows)
    assert len(data.test) >= (cut if cut >= 1 else round(cut * len(rows)))


def test_parts_can_be_given_by_files_or_by_a_column(elsewhere: Path) -> None:
    write_tsv(elsewhere / "train.tsv", ROWS[:20])
    write_tsv(elsewhere / "test.tsv", ROWS[20:25])
    write_tsv(elsewhere / "dev.tsv", ROWS[25:])
    data = load("train.tsv", dev="dev.tsv", test="test.tsv")
    assert [[row.input for row in part] for part in parts(data)] == [
        [row[0] for row in rows] for rows in (ROWS[:20], ROWS[25:], ROWS[20:25])
    ]
    assert [row.index for row in data.test] == list(range(5))
    named = ["train"] * 20 + ["test"] * 5 + ["validation"] * 4 + ["unused"]
    with (elsewhere / "all.csv").open("w", newline="") as file:
        csv.writer(file).writerows([[*NAMES, "part"], *([*row, part] for row, part in zip(ROWS, named, strict=True))])
    data = load("all.csv", split_column="part")
    assert [len(part) for part in parts(data)] == [20, 4, 5]
    assert [row.input for row in data.test] == [row[0] for row in ROWS[20:25]]


def test_the_splits_of_a_saved_dataset_are_used(elsewhere: Path) -> None:
    import datasets

    def part(rows: Any) -> Any:
        return datasets.Dataset.from_dict({"text": [row[0] for row in rows], "label": [0, 1] * (len(rows) // 2)})

    saved = datasets.DatasetDict({"train": part(ROWS[:20]), "validation": part(ROWS[20:24]), "test": part(ROWS[24:])})
    saved = saved.cast_column("label", datasets.ClassLabel(names=["no", "yes"]))
    saved.save_to_disk(str(elsewhere / "saved"))
    data = load("saved", template="Is it? {text}", target="label")
    assert [len(each) for each in parts(data)] == [20, 4, 6]
    assert data.train[1] == Example(1, "Is it? say word 2", "yes", "all")
    assert data.labels == ("no", "yes")
    assert not any("not read" in note for note in lines("saved", template="{text}", target="label").notes())


def test_splits_that_are_not_read_are_named(elsewhere: Path) -> None:
    import datasets

    def part(rows: Any) -> Any:
        return datasets.Dataset.from_dict({"input": [row[0] for row in rows], "target": [row[1] for row in rows]})

    saved = {"train": part(ROWS[:20]), "eval": part(ROWS[20:24]), "test_matched": part(ROWS[24:])}
    datasets.DatasetDict(saved).save_to_disk(str(elsewhere / "saved"))
    task = lines("saved")
    expected = "saved: 2 splits not read (eval, test_matched); --dev or --test with the name of a split reads it"
    assert any(note.startswith(expected) for note in task.notes())
    assert [len(each) for each in parts(task.load("held-out"))] == [16, 2, 2]
    task = lines("saved", dev="eval", test="test_matched")
    assert not any("not read" in note for note in task.notes())
    assert [len(each) for each in parts(task.load("held-out"))] == [20, 4, 6]


def test_templates_columns_and_categories_can_be_set(elsewhere: Path) -> None:
    rows = [{"title": f"t{{{n}}}", "document": f"d {n}", "n": n, "kind": "x"} for n in range(10)]
    (elsewhere / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = load("a.jsonl", template="{{summarize}} {title}: {document}", target="n", category="kind")
    found = {row.input: (row.target, row.category) for part in parts(data) for row in part}
    assert found == {f"{{summarize}} t{{{n}}}: d {n}": (str(n), "x") for n in range(10)}
    assert fields_of("{a} {b} {a}") == ("a", "b")
    assert render("{a}!", {"a": "{b}"}) == "{b}!"


def test_targets_from_a_closed_set_count_as_labels(elsewhere: Path) -> None:
    write_tsv(elsewhere / "few.tsv", [(f"input {n}", ("yes", "no")[n % 2], "all") for n in range(30)])
    write_tsv(elsewhere / "many.tsv")
    assert lines("few.tsv").suggested_metrics() == ("exact_match", "accuracy", "macro_f1")
    assert lines("many.tsv").suggested_metrics() == ("exact_match",)
    assert load("few.tsv").labels == ("no", "yes")


GOOD = {
    ".tsv": "".join(f"{n}\tb\n" for n in range(10)),
    ".csv": "input,target\n" + "".join(f"{n},b\n" for n in range(9)),
    ".jsonl": "".join(f'{{"input": "{n}", "target": "b"}}\n' for n in range(10)),
}
BAD = {
    "few.tsv": (b"c\n", "expected 2 columns (input, target), found 1"),
    "many.tsv": (b"c\td\te\n", "expected 2 columns (input, target), found 3"),
    "empty.tsv": (b"c\t \n", "the target is empty"),
    "noinput.tsv": (b"\td\n", "the input is empty"),
    "latin.tsv": (b"c\t\xe9\n", "not UTF-8 (at byte 2;"),
    "cut.jsonl": (b'{"input": "c", "tar\n', "not valid JSON"),
    "list.jsonl": (b'["c", "d"]\n', "not a JSON object"),
    "key.jsonl": (b'{"input": "c"}\n', "no key 'target'"),
    "null.jsonl": (b'{"input": "c", "target": null}\n', "the target is missing"),
    "deep.jsonl": (b'{"input": ["c"], "target": "d"}\n', "the input is a list, not text"),
    "pair.jsonl": (b'{"input": "\\ud800", "target": "d"}\n', "lone surrogate"),
    "twice.jsonl": (
        b'{"input": "c", "target": "d", "category": "e", "category": "f"}\n',
        "not valid JSON (the key 'category' occurs twice)",
    ),
    "quote.csv": (b'c,"d\n', "not csv"),
    "latin.csv": (b"c,\xe9\n", "not UTF-8"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_broken_row_is_refused_with_its_line_number_or_left_out_with_a_note(name: str, elsewhere: Path) -> None:
    row, message = BAD[name]
    (elsewhere / name).write_bytes(GOOD[Path(name).suffix].encode() + row)
    with pytest.raises(UserError) as error:
        load(name)
    assert f"{name}:11: " in str(error.value)
    assert message in str(error.value)
    assert "--skip-bad-rows" in str(error.value)
    assert not list((elsewhere / "cache").glob("lines/*"))
    task = lines(name, bad_rows="skip")
    (note,) = (note for note in task.notes() if "left out" in note)
    assert note.startswith(f"1 bad row left out: {name}:11: ")
    assert message in note
    assert sum(task.about()["sizes"].values()) == (9 if name.endswith("csv") else 10)


def csv_of(count: int, **changed: bytes) -> bytes:
    """Return a csv file with quoted cells. `r5=b'...'` replaces row 5."""
    rows = [changed.get(f"r{n}", b'"in %d","out %d"' % (n, n)) for n in range(count)]
    return b"input,target\n" + b"".join(row + b"\n" for row in rows)


@pytest.mark.parametrize(
    ("content", "left", "bad"),
    [
        (csv_of(20, r4=b'"in 4,out 4'), 19, [6]),  # the open quote ends at the next quote
        (
            b"input,target\n" + b"".join(b"%sin %d,out\n" % (b'"' * (n == 4), n) for n in range(20)),
            19,
            [6],
        ),  # the open quote never ends
        (csv_of(20, r4=b'"in 4,out 4', r5=b'"in 5,out 5'), 18, [6, 7]),
        (csv_of(20, r4=b'"one\n\xe9\nthree","out"'), 19, [7]),
        (csv_of(20, r4=b'"one\n\xe9 end","out"'), 19, [7]),
        (csv_of(20, r4=b'"one\n\ntwo","out"'), 20, []),
    ],
)
def test_a_bad_csv_row_does_not_spoil_other_rows(content: bytes, left: int, bad: list[int], elsewhere: Path) -> None:
    (elsewhere / "a.csv").write_bytes(content)
    task = lines("a.csv", bad_rows="skip")
    data = task.load("held-out")
    inputs = {row.input for part in parts(data) for row in part}
    assert len(inputs) == left
    assert {f"in {n}" for n in range(20) if n not in (4, 5)} <= inputs
    assert ("one\n\ntwo" in inputs) == (not bad)
    message = " ".join(note for note in task.notes() if "left out" in note)
    assert message.startswith(f"{len(bad)} bad row" if bad else "")
    assert all(f"a.csv:{line}: " in message for line in bad[:1])


def test_a_quote_that_is_never_closed_in_a_long_file_is_refused(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delimited, "LINES_PER_ROW", 8)
    for end in (b"", b'",g\n'):  # the rest of the file is not read, so a later quote does not matter
        (elsewhere / "a.csv").write_bytes(b'input,target\na,b\n"c,d\n' + b"e,f\n" * 20 + end)
        with pytest.raises(UserError, match=r"a\.csv:3: a quote that opens in this row is not closed within 8 lines"):
            load("a.csv", bad_rows="skip")


@pytest.mark.parametrize(
    ("name", "first", "message"),
    [
        ("a.tsv", "one\n", "a.tsv:1: expected 2 or 3 tab-separated columns (input, target, category), found 1"),
        ("a.jsonl", '{"input": "c"}\n', "a.jsonl:1: no key 'target' (it has: input)"),
    ],
)
def test_a_bad_first_row_is_left_out_like_any_other(name: str, first: str, message: str, elsewhere: Path) -> None:
    (elsewhere / name).write_text(first + GOOD[Path(name).suffix])
    with pytest.raises(UserError, match="--skip-bad-rows"):
        load(name)
    task = lines(name, bad_rows="skip")
    assert sum(task.about()["sizes"].values()) == 10
    assert any(note.startswith("1 bad row left out: ") and message in note for note in task.notes())
    (elsewhere / name).write_text(first * 3)
    with pytest.raises(UserError, match=r"no row is left for train .* 3 bad rows left out: a\.|no column 'target'"):
        load(name, bad_rows="skip")


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"input": "query"}, "task.options.input_column=COLUMN"),
        ({"input": "title", "target": "sumary"}, "task.options.target_column=COLUMN"),
        ({"template": "{title} {txt}", "target": "text"}, "task.options.template='{COLUMN}'"),
        ({"input": "title", "target": "text", "category": "kind"}, "task.options.category=COLUMN"),
        ({"input": "title", "target": "text", "split_column": "part"}, "task.options.split_column=COLUMN"),
    ],
)
def test_messages_about_a_missing_column_name_its_option(options: dict[str, str], hint: str, elsewhere: Path) -> None:
    (elsewhere / "a.csv").write_text("title,text\na,b\n")
    with pytest.raises(UserError) as error:
        load("a.csv", **options)
    assert f"--set {hint}" in str(error.value)


def test_all_missing_columns_are_reported_at_once(elsewhere: Path) -> None:
    (elsewhere / "a.csv").write_text("review,label\na,b\n")
    with pytest.raises(UserError) as error:
        load("a.csv")
    message = str(error.value)
    assert "a.csv has no columns 'input' and 'target' (it has: review, label)" in message
    assert "--input-column COLUMN --target-column COLUMN, or --set" in message


def test_unusable_files_and_options_are_refused_with_the_cause(elsewhere: Path) -> None:
    cases = {
        "a.tsv": ("question\tanswer\tkind\tmore\nx\ty\tz\tw\n", {}, "expected 2 or 3 tab-separated columns"),
        "b.csv": ("question,answer\nx,y\n", {}, "no columns 'input' and 'target' (it has: question, answer)"),
        "c.csv": (
            "question,answer\nx,y\n",
            {"input": "query"},
            "no columns 'query' and 'target' (it has: question, answer)",
        ),
        "d.jsonl": ('{"question": "x"}\n', {}, "no columns 'input' and 'target' (it has: question)"),
        "e.tsv": ("input\tanswer\nx\ty\n", {}, "no column 'target' (it has: input, answer)"),
        "f.csv": ("input,target,category,category\na,b,c,d\n", {}, "two columns are named 'category'"),
        "g.csv": ("input,target\na,b\n", {"category": "kind"}, "no column 'kind'"),
        "h.csv": ("input,target\na,b\n", {"category": "input"}, "the column 'input' is named twice"),
        "i.csv": ("input,target\na,b\n", {"split_column": "part"}, "no column 'part'"),
        "j.csv": ("input,target\na,b\n", {"template": "{text"}, "the template '{text' is broken"),
        "k.csv": ("input,target\na,b\n", {"template": "{text}"}, "no column 'text'"),
        "l.csv": ("input,target\n", {}, "l.csv has no rows; name a file with rows"),
        "m.tsv": ("a\tb\n", {}, "no row is left for"),
        "same.csv": (
            "input,target\n" + "a,b\n" * 40,
            {},
            "(40 usable rows in all, and rows with the same input stay in one part",
        ),
        "blanks.csv": (" input , target \na,b\n", {}, "(it has: ' input ', ' target ')"),
        "lfs.csv": ("version https://git-lfs.github.com/spec/v1\noid sha256:0\n", {}, "Git LFS pointer"),
        "inf.jsonl": ('{"input": "a", "target": -Infinity}\n' * 40, {}, "the target is infinite"),
        "n.doc": ("a\tb\n", {}, "n.doc is a document"),
        "o.parquet": ("no parquet\n", {}, "cannot be read as parquet"),
        "p.tsv": ("a\tb\n" * 9, {"dev": "none.tsv"}, "no file none.tsv"),
        "q.tsv": ("a\tb\n" * 9, {"dev": -1}, "dev is -1"),
        "r.tsv": ("a\tb\n" * 9, {"seed": -1}, "seed is -1"),
        "s.tsv": ("a\tb\n" * 9, {"bad_rows": "drop"}, "unknown value of bad_rows 'drop'"),
    }
    for name, (text, options, message) in cases.items():
        (elsewhere / name).write_text(text)
        with pytest.raises(UserError) as error:
            load(name, **options)
        assert message in str(error.value), name
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="`datasets` cannot load"):
        load(str(elsewhere / "cache"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("page.csv", b"\n<!DOCTYPE html>\n<html><body>sign in, please</body></html>", "a web page (HTML)"),
        ("db.tsv", b"SQLite format 3\0" + bytes(200), "an SQLite database; export the table as CSV"),
        ("table.jsonl", b"PAR1" + bytes(range(99)), "rename it so that the name ends in .parquet"),
        ("other.csv", bytes(range(256)) * 4, "a binary file"),
        ("json.csv", b'\xef\xbb\xbf{"input": "a", "target": "b"}\n' * 9, "rename it so that the name ends in .jsonl"),
        ("json.txt", b'{"input": "a", "target": "b"}\n' * 9, "rename it so that the name ends in .jsonl"),
        ("list.csv", b'[\n {"input": "a",\n "target": "b"}]\n' * 9, "rename it so that the name ends in .json"),
        ("table.json", b"input,target\na,b\n" * 9, "rename it so that the name ends in .csv"),
        ("tabs.jsonl", b"input\ttarget\na\tb\n" * 9, "rename it so that the name ends in .tsv"),
    ],
)
def test_a_file_with_a_wrong_ending_is_refused_with_its_real_format(
    name: str, content: bytes, message: str, elsewhere: Path
) -> None:
    (elsewhere / name).write_bytes(content)
    with pytest.raises(UserError, match=f"^{name} looks like ") as error:
        load(name)
    assert message in str(error.value)


def test_tables_with_json_and_html_in_cells_are_not_refused_as_misnamed(elsewhere: Path) -> None:
    rows = [(f'{{"n": {n}}}', f"<html> слово {n}") for n in range(40)]
    text = "".join(f"{source}\t{target}\n" for source, target in rows)
    for encoding in ("utf-8", "utf-16", "utf-16-le"):
        (elsewhere / "a.tsv").write_bytes(text.encode(encoding))
        assert len(load("a.tsv").train) + len(load("a.tsv").dev) + len(load("a.tsv").test) == 40, encoding


def test_labels_that_look_alike_get_a_warning(elsewhere: Path) -> None:
    labels = ("caf\u00e9", "cafe\u0301", "nein", "\u200bnein")
    write_tsv(elsewhere / "a.tsv", [(f"w{n}", labels[n % 4], "all") for n in range(80)])
    notes = " ".join(LinesTask(train="a.tsv").notes())
    assert r"the targets 'cafe\u0301' (20 rows) and 'caf\xe9' (20 rows) look alike" in notes
    assert r"the targets 'nein' (20 rows) and '\u200bnein' (20 rows) look alike" in notes


def test_test_rows_with_an_input_of_a_train_row_are_counted(elsewhere: Path) -> None:
    write_tsv(elsewhere / "train.tsv", ROWS[:20])
    write_tsv(elsewhere / "test.tsv", ROWS[17:27])
    notes = lines("train.tsv", test="test.tsv", dev=2).notes()
    held_out = {row.input for row in load("train.tsv", test="test.tsv", dev=2).dev}
    shared = sum(row[0] not in held_out for row in ROWS[17:20])
    assert f"warning: {shared} of 10 test rows have an input that is trained on" in notes


def test_a_file_that_changes_while_it_is_read_is_refused(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = elsewhere / "a.tsv"
    write_tsv(path)
    was = builder.read_records

    def growing(*arguments: Any) -> Any:
        for number, record in enumerate(was(*arguments)):
            if number == 3:
                path.open("a").write("one\tmore\tall\n")
            yield record

    monkeypatch.setattr(builder, "read_records", growing)
    with pytest.raises(UserError, match=r"a\.tsv changed while it was read"):
        load("a.tsv")
    assert not [*(elsewhere / "cache" / "lines").iterdir()]


def test_a_changed_file_is_read_again_and_refused_if_its_hash_is_pinned(elsewhere: Path) -> None:
    path = elsewhere / "a.tsv"
    write_tsv(path)
    before = lines("a.tsv").identity()
    write_tsv(path, [*ROWS[:-1], ("say word 30", "thirty", "even")])
    after = lines("a.tsv").identity()
    assert before != after
    assert len([*(elsewhere / "cache" / "lines").iterdir()]) == 1
    with pytest.raises(UserError, match="have changed since this recipe was first run"):
        lines("a.tsv", **before).load("held-out")
    os.remove(path)
    assert lines("a.tsv", **before).identity() == before  # a study can be inspected after its data was deleted


def test_prepared_rows_are_not_read_again(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tsv(elsewhere / "a.tsv")
    first = list(load("a.tsv").train)
    prepare._store.cache_clear()
    monkeypatch.setattr(prepare, "_make", lambda *_: pytest.fail("read again"))
    assert list(load("a.tsv").train) == first


def test_rows_of_an_unknown_part_are_left_out_and_counted(elsewhere: Path) -> None:
    names = ["train"] * 10 + ["trian"] * 4 + ["Dev "] * 3 + ["test"] * 2 + ["extra"]
    rows = "".join(f"i{n},t{n},{name}\n" for n, name in enumerate(names))
    (elsewhere / "a.csv").write_text("input,target,part\n" + rows)
    task = lines("a.csv", split_column="part")
    assert task.about()["sizes"] == {"train": 10, "dev": 3, "test": 2}
    (note,) = (note for note in task.notes() if "left out" in note)
    assert note.startswith("5 rows left out, whose value in the column 'part' is not train, dev or test")
    assert note.endswith("'trian' (4 rows), 'extra' (1 row)")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dev": None}, "dev is None"),
        ({"test": [1]}, r"test is \[1\]"),
        ({"template": ["{a}"]}, "template is .*: give a text"),
        ({"category": None}, "category is None: give a text"),
        ({"bad_rows": True}, "bad_rows is True: give a text"),
        ({"seed": 10**70}, "seed is 1000.*: give a whole number"),
    ],
)
def test_options_with_invalid_values_are_refused(options: dict[str, Any], message: str, elsewhere: Path) -> None:
    write_tsv(elsewhere / "a.tsv")
    with pytest.raises(UserError, match=message):
        load("a.tsv", **options)


def test_a_column_name_can_be_a_number(elsewhere: Path) -> None:
    (elsewhere / "a.csv").write_text("1,2\n" + "".join(f"i{n},t{n}\n" for n in range(10)))
    assert load("a.csv", input=1, target=2).train[0].target.startswith("t")


def test_a_bad_row_is_counted_once_if_its_file_is_used_for_several_parts(elsewhere: Path) -> None:
    (elsewhere / "a.jsonl").write_text('{"input": "a", "target": "b"}\n{"input": "a"}\n')
    with pytest.raises(
        UserError, match=r"^1 of 2 rows of a\.jsonl cannot be used: a\.jsonl:2: no key 'target'"
    ) as error:
        load("a.jsonl", dev="a.jsonl", test="a.jsonl")
    assert "more such row" not in str(error.value)


def test_a_dataset_with_several_configurations_is_refused_with_advice(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def missing(*_: object, **__: object) -> None:
        raise ValueError("Config name is missing. Please pick one among the available configs: ['en', 'de']")

    monkeypatch.setattr("datasets.load_dataset", missing)
    with pytest.raises(UserError, match=r"'en', 'de'.*--set task.options.config=NAME"):
        open_dataset(SimpleNamespace(path=tmp_path, name="copy", config=""))  # type: ignore[arg-type]


def test_a_template_with_json_braces_is_refused_with_advice() -> None:
    with pytest.raises(UserError, match=r"braces that are text as \{\{ and \}\}"):
        fields_of('{"q": "{question}"}')


def test_a_note_gives_the_highest_exact_match_if_inputs_have_several_targets(tmp_path: Path) -> None:
    rows = [(f"input {n}", f"target {n} {k}", "x") for n in range(20) for k in range(5)]
    write_csv(tmp_path / "several.csv", rows)
    (note,) = [note for note in lines(str(tmp_path / "several.csv")).notes() if "more than one target" in note]
    assert "20 of 20 different inputs have more than one target (up to 5)" in note
    assert "exact match can reach at most 20.0 % on dev and 20.0 % on test" in note
    assert "--metric chrf" in note
    # of the three dev rows with input a, two have the more frequent target; equal rows are no contradiction
    rows = [("a", "x", "c"), ("a", "x", "c"), ("a", "y", "c"), ("b", "x", "c")]
    write_csv(tmp_path / "dev.csv", rows)
    write_csv(tmp_path / "plain.csv", [*ROWS, *ROWS])
    named = {"dev": str(tmp_path / "dev.csv"), "test": str(tmp_path / "plain.csv")}
    notes = " ".join(lines(str(tmp_path / "plain.csv"), **named).notes())
    assert "1 of 32 different inputs have more than one target (up to 2)" in notes
    assert "at most 75.0 % on dev and 100.0 % on test" in notes
    assert "more than one target" not in " ".join(lines(str(tmp_path / "plain.csv")).notes())


def test_a_note_about_several_targets_gives_no_limit_of_100_percent(tmp_path: Path) -> None:
    """If only training rows have an input with several targets, all dev and test rows can be predicted."""
    write_csv(tmp_path / "train.csv", [("a", "x", "c"), ("a", "y", "c"), ("b", "x", "c")])
    for part in ("dev", "test"):
        write_csv(tmp_path / f"{part}.csv", [(f"{part} input", "x", "c")])
    named = {part: str(tmp_path / f"{part}.csv") for part in ("dev", "test")}
    (note,) = [note for note in lines(str(tmp_path / "train.csv"), **named).notes() if "more than one target" in note]
    assert "1 of 4 different inputs have more than one target (up to 2). A model generates one text" in note
    assert "generates one text for an input. Keep one target for each input" in note
    assert "100" not in note


def test_stores_that_are_no_longer_used_are_removed_from_the_cache(
    elsewhere: Path,
) -> None:
    stores = elsewhere / "cache" / "lines"

    def read(name: str) -> None:
        prepare._store.cache_clear()  # as in a new process
        if not Path(f"{name}.tsv").exists():
            Path(f"{name}.tsv").write_text("".join(f"{name} {row}\t{row}\n" for row in range(30)))
        assert len(load(f"{name}.tsv").train) > 0

    def days_old(entry: Path, days: float) -> None:
        then = time.time() - days * 24 * 3600
        os.utime(entry, (then, then))

    read("first")
    (first,) = stores.iterdir()
    hashes = "0123456789abcdef"
    parts = [stores / name for name in (f".{hashes}.{hashes}.part", f".{hashes}.{hashes[::-1]}.part", "own.part")]
    for part, days in zip(parts, (1, 3, 300), strict=True):
        part.mkdir()
        days_old(part, days)
    days_old(first, 89)
    read("second")
    assert [first.exists(), *(part.exists() for part in parts)] == [True, True, False, True]
    days_old(first, 91)
    read("first")  # a use counts from now on
    assert time.time() - first.stat().st_mtime < 60
    days_old(first, 91)
    read("third")
    assert not first.exists()
