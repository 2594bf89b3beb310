"""Tables as spreadsheets and other programs write them: odd column names, headers, quotes, and short or long rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pandas
import pytest

from petransfer.data import LinesTask, load_task
from petransfer.data.rows.builder import COUNTED
from petransfer.errors import UserError
from petransfer.recipe.loading import validate
from petransfer.study.grid import data_notes

pytestmark = pytest.mark.usefixtures("elsewhere")

PAIRS = [(f"say {n}", f"word {n}") for n in range(30)]


def read(train: str, **options: Any) -> tuple[list[tuple[str, str]], str]:
    """Return the rows of a file as (input, target) in order, and the notes for the user as one text."""
    task = load_task("lines", None, train=train, **options)
    assert isinstance(task, LinesTask)
    data = task.load("held-out")
    rows = sorted((*data.train, *data.dev, *data.test), key=lambda row: row.index)
    return [(row.input, row.target) for row in rows], "\n".join(task.notes())


def categories(train: str, **options: Any) -> set[str]:
    data = load_task("lines", None, train=train, **options).load("held-out")
    return {row.category for row in (*data.train, *data.dev, *data.test)}


def write(name: str, text: str) -> str:
    Path(name).write_text(text, encoding="utf-8", newline="")
    return name


@pytest.mark.parametrize(
    ("head", "options"),
    [
        ("text,category", {"input": "text", "target": "category"}),
        ("category,label", {"input": "category", "target": "label"}),
        ("category,label", {"template": "about {category}", "target": "label"}),
    ],
)
def test_a_column_called_category_can_be_the_text(head: str, options: dict[str, str], elsewhere: Path) -> None:
    file = write("a.csv", f"{head}\n" + "".join(f"{a},{b}\n" for a, b in PAIRS))
    rows, _ = read(file, **options)
    assert rows == [(f"about {a}" if "template" in options else a, b) for a, b in PAIRS]
    assert categories(file, **options) == {"all"}
    with pytest.raises(UserError, match="the column 'text' is named twice"):
        read(file, input="text", target="label", category="text")


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([f"c{n}" for n in range(1500)], "more than 1,000 different values"),
        (["Food", "food"] * 15, "'Food' (15 rows) and 'food' (15 rows) differ only in case or blanks"),
    ],
)
def test_a_column_category_that_cannot_group_rows_is_ignored(values: list[str], reason: str, elsewhere: Path) -> None:
    body = "".join(f"say {n},word {n},{value}\n" for n, value in enumerate(values))
    file = write("a.csv", f"input,target,category\n{body}")
    rows, notes = read(file)
    assert rows == [(f"say {n}", f"word {n}") for n in range(len(values))]
    assert categories(file) == {"all"}
    assert "not grouped by the column 'category'" in notes
    assert reason in notes
    named = write("b.csv", f"input,target,kind\n{body}")
    with pytest.raises(UserError, match=r"kind|write them in the same way"):  # the user asked for these categories
        read(named, category="kind")


def test_a_column_category_with_lists_is_ignored(elsewhere: Path) -> None:
    rows = "".join(f'{{"input": "{a}", "target": "{b}", "category": ["x", "y"]}}\n' for a, b in PAIRS)
    found, notes = read(write("a.jsonl", rows))
    assert found == PAIRS
    assert "not grouped by the column 'category': the category is a list" in notes


def test_column_names_can_have_line_breaks(elsewhere: Path) -> None:
    head = '"Zeit\nstempel","Frage\r\n(deutsch)","Ant\nwort"\n'
    body = "".join(f"2020,{a},{b}\n" for a, b in PAIRS)
    for name, tab, text in (("a.csv", ",", head), ("b.tsv", "\t", head)):
        file = write(name, (text + body + text).replace(",", tab))
        rows, notes = read(file, input="Frage (deutsch)", target="Ant wort", bad_rows="skip")
        assert rows == PAIRS
        assert "1 bad row left out" in notes
        assert "the column names are repeated" in notes
        assert "not read: 'Zeit stempel'" in notes
    with pytest.raises(UserError, match=r"it has: Zeit stempel, Frage \(deutsch\), Ant wort"):
        read("a.csv")
    inches = write(
        "inches.tsv", 'input\ttarget in 5"\n' + "".join(f"{a}\t{b}\n" for a, b in PAIRS)
    )  # this quote does not enclose a cell
    assert read(inches, target='target in 5"')[0] == PAIRS


def test_empty_cells_at_the_end_of_rows_are_ignored(elsewhere: Path) -> None:
    body = "".join(f"{a},{b},{',' * (n % 3)}\n" for n, (a, b) in enumerate(PAIRS))
    for name, tab in (("a.csv", ","), ("b.tsv", "\t")):
        assert read(write(name, f"input,target\n{body}".replace(",", tab)))[0] == PAIRS
    with pytest.raises(UserError, match=r"a\.csv:2: expected 2 columns \(input, target\), found 3"):
        read(write("a.csv", "input,target\na,b,c\n"))


def test_cells_that_excel_leaves_out_at_the_end_of_rows_are_empty(elsewhere: Path) -> None:
    body = "".join(f"{a},{b}{',x,y' if n < 15 else ''}\n" for n, (a, b) in enumerate(PAIRS))
    file = write("a.csv", f"input,target,comment,category\n{body}")
    rows, notes = read(file)
    assert rows == PAIRS
    assert categories(file) == {"y", "(none)"}
    assert "warning: a.csv: 15 rows with fewer cells than the header" in notes
    assert "a.csv:17 has no cell for 'comment', 'category'" in notes
    with pytest.raises(UserError, match=r"a\.csv:17: expected 4 columns"):
        read(file, input="comment")  # a row without its input is refused
    with pytest.raises(UserError, match=r"a\.tsv:17: expected 4 columns"):  # a short tsv row can be a part of a row
        read(write("a.tsv", Path(file).read_text().replace(",", "\t")))


def test_rows_that_are_cut_by_a_line_break_are_refused(elsewhere: Path) -> None:
    for broken in ({20}, set(range(30))):
        rows = (f"{a},{b}{chr(10) + 'more' if n in broken else ''},{n}\n" for n, (a, b) in enumerate(PAIRS))
        with pytest.raises(UserError, match=rf"a\.csv:{min(broken) + 2}: expected 3 columns \(.*\), found 2"):
            read(write("a.csv", "input,target,id\n" + "".join(rows)))


def test_lines_that_are_quoted_as_a_whole_are_read(elsewhere: Path) -> None:
    for name, head in (("a.csv", '"input,target"'), ("b.csv", '"input,""target"""')):
        file = write(name, f"{head}\r\n" + "".join(f'"{a},""{b}, twice"""\r\n' for a, b in PAIRS))
        rows, notes = read(file)
        assert rows == [(a, f"{b}, twice") for a, b in PAIRS]
        assert "each line is in quotes as a whole" in notes


def test_quotes_that_are_not_csv_get_advice_that_works(elsewhere: Path) -> None:
    file = write("a.csv", "input,target\n" + "".join(f'"{a} \\"now\\", or",{b}\n' for a, b in PAIRS))
    with pytest.raises(UserError, match=r"a\.csv:2: not csv \(a quote in a cell is written as \\\".*pandas") as error:
        read(file)
    command = str(error.value).partition("in Python: ")[2].partition("), and")[0]
    exec(f"import pandas\n{command}")
    assert read("new.csv")[0] == [(f'{a} "now", or', b) for a, b in PAIRS]
    parts = write("b.tsv", "input\ttarget\n" + "".join(f'{a}\t"{b}\nand more"\n' for a, b in PAIRS))
    with pytest.raises(UserError, match=r"b\.tsv:3: expected 2 columns .*--quoting csv"):
        read(parts)
    assert read(parts, quoting="csv")[0] == [(a, f"{b}\nand more") for a, b in PAIRS]


def test_byte_order_marks_at_the_beginning_of_lines_are_removed(elsewhere: Path) -> None:
    marks = ["\ufeff" if n in (0, 15) else "" for n in range(30)]
    body = "".join(f"{mark}{a}\t{b}\n" for mark, (a, b) in zip(marks, PAIRS, strict=True))
    assert read(write("a.tsv", body))[0] == PAIRS
    assert read(write("b.csv", "\ufeff\ufeffinput,target\n" + body.replace("\t", ",")))[0] == PAIRS
    objects = "".join(f'\ufeff{{"input": "{a}", "target": "{b}"}}\n' for a, b in PAIRS)
    assert read(write("c.jsonl", objects))[0] == PAIRS


def test_a_missing_value_is_empty_in_a_template_with_several_columns(elsewhere: Path) -> None:
    rows = [
        {"ask": a, "more": None if n % 3 == 0 else "now", "target": b} if n % 3 < 2 else {"ask": a, "target": b}
        for n, (a, b) in enumerate(PAIRS)
    ]
    write("a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    pandas.DataFrame(rows).to_parquet("a.parquet")
    pandas.DataFrame(rows).to_csv("a.csv", index=False)
    expected = [(f"{a}: {'now' if n % 3 == 1 else ''}", b) for n, (a, b) in enumerate(PAIRS)]
    for name in ("a.jsonl", "a.parquet", "a.csv"):
        found, notes = read(name, template="{ask}: {more}")
        assert found == expected
        assert ("20 rows without a value in the column 'more'" in notes) == (name != "a.csv")
    for row in ('{"ask": null, "more": null, "target": "b"}', '{"target": "b"}'):
        write("b.jsonl", f"{json.dumps(rows[1])}\n{row}\n")
        with pytest.raises(UserError, match=r"1 of 2 rows .*b\.jsonl:2: (the ask is missing|no key 'ask')"):
            read("b.jsonl", template="{ask}: {more}")
        with pytest.raises(UserError, match=r"b\.jsonl:2: (the ask is missing|no key 'ask')"):
            read("b.jsonl", template="{ask}")  # a single column must have a value
    write("c.csv", "ask,more,target\n" + "".join(f"{'' if n == 3 else n},,b\n" for n in range(9)))
    for template in ("Q: {ask}", "{ask}: {more}"):
        with pytest.raises(UserError, match=r"1 of 9 rows of c\.csv cannot be used: c\.csv:5: the input is empty"):
            read("c.csv", template=template)


def test_notes_count_texts_that_stand_for_missing_values(elsewhere: Path) -> None:
    words = ["None", "NA", "null", "\\N"]
    body = "".join(f"{a},{words[n] if n < 4 else b}\n" for n, (a, b) in enumerate(PAIRS)) + "nan,x\nnan,y\n"
    notes = read(write("a.csv", f"input,target\n{body}"))[1]
    for word in words:
        assert f"'{word}' (1 row)" in notes
    assert "some inputs are texts that programs write for a missing value or an error: 'nan' (2 rows)" in notes
    many = "".join(f"in {n},out {n}\n" for n in range(COUNTED + 10)) + "x,NaN\ny,NaN\n"
    assert "'NaN' (2 rows)" in read(write("b.csv", f"input,target\n{many}"))[1]


def test_messages_name_wrong_sizes_encodings_and_colons_in_templates(elsewhere: Path) -> None:
    file = write("a.csv", "input,target\n" + "".join(f"{a},{b}\n" for a, b in PAIRS))
    with pytest.raises(UserError, match=r"no row is left for train \(.* in all\); hold out fewer"):
        read(file, dev=0.5, test=0.5)
    Path("b.csv").write_bytes(("input,target\n" + "".join(f"犬{a},{b}猫\n" for a, b in PAIRS)).encode("shift_jis"))
    with pytest.raises(UserError, match=r"not UTF-8.*encoding=cp1252 for western Europe \(others: .*shift_jis"):
        read("b.csv")
    assert read("b.csv", encoding="shift_jis")[0] == [(f"犬{a}", f"{b}猫") for a, b in PAIRS]
    with pytest.raises(UserError, match="rename a column whose name has a colon"):
        read(file, template="{Frage: 1}")


def test_messages_show_how_to_name_texts_inside_lists(elsewhere: Path) -> None:
    rows = [{"id": n, "data": {"text": a}, "notes": [{"result": [{"value": [b]}]}]} for n, (a, b) in enumerate(PAIRS)]
    write("a.json", json.dumps(rows))
    with pytest.raises(UserError, match=r"by its place, such as notes\.0\.result\.0\.value\.0$"):
        read("a.json")
    assert read("a.json", input="data.text", target="notes.0.result.0.value.0")[0] == PAIRS
    questions = [{"question": a, "id": b, "answers": [{"text": b}]} for a, b in PAIRS]
    write("b c.json", json.dumps({"data": [{"title": "x", "paragraphs": [{"context": "c", "qas": questions}]}]}))
    with pytest.raises(UserError, match=r"write one row per question with `jq -c .* 'b c\.json' > rows\.jsonl`"):
        read("b c.json")


def test_messages_give_advice_for_objects_lists_and_chats(elsewhere: Path) -> None:
    for value, advice in (
        (
            {"color": "red"},
            "--target-column target.color.*; to use the whole object, write it as text, such as json.dumps",
        ),
        (["x", "y"], "'target.0' names its first item; to use all, join them"),
    ):
        write("a.jsonl", "".join(json.dumps({"input": a, "target": value}) + "\n" for a, _ in PAIRS))
        with pytest.raises(UserError, match=advice):
            read("a.jsonl")
    asked, answered = ([{"role": role, "content": "x"}] for role in ("user", "assistant"))
    write(
        "b.jsonl", "".join(json.dumps({"in": {"messages": asked}, "out": {"messages": answered}}) + "\n" for _ in PAIRS)
    )
    with pytest.raises(
        UserError, match=r"the messages in 'in\.messages' have no answer .*columns prompt and completion"
    ):
        read("b.jsonl")
    write("c.jsonl", json.dumps({"messages": [{"type": "human", "data": {"content": "x"}}]}) + "\n")
    with pytest.raises(UserError, match=r"a message has no role \(it has: type, data\)"):
        read("c.jsonl")
    write("d.jsonl", json.dumps({"chosen": "Human: x Assistant: y", "rejected": "z"}) + "\n")
    with pytest.raises(UserError, match=r"split each text in 'chosen' before its last answer"):
        read("d.jsonl")


def test_class_labels_in_lists_and_objects_become_names(elsewhere: Path) -> None:
    label = datasets.ClassLabel(names=["no", "yes"])
    text, number = (datasets.Value(kind) for kind in ("string", "int64"))
    kinds = {"input": text, "labels": datasets.List(label), "meta": {"kind": label, "n": number}}
    columns = {
        "input": [a for a, _ in PAIRS],
        "labels": [[n % 2, 0] for n in range(30)],
        "meta": [{"kind": n % 2, "n": n} for n in range(30)],
    }
    data = datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))
    data.save_to_disk("saved")
    data.to_parquet("a.parquet")
    for name in ("saved", "a.parquet"):
        for target in ("labels.0", "meta.kind"):
            assert read(name, target=target)[0] == [(a, ("no", "yes")[n % 2]) for n, (a, _) in enumerate(PAIRS)]
        assert read(name, target="meta.n")[0][7] == ("say 7", "7")


def test_a_backslash_and_a_letter_in_a_template_or_prefix_get_a_note(elsewhere: Path) -> None:
    file = write("a.csv", "ask,target\n" + "".join(f"{a},{b}\n" for a, b in PAIRS))
    for options, part, expected in (
        ({"template": "{ask}\\nA:"}, None, "the template has \\n as two characters"),
        ({"template": "{ask}\nA:"}, None, ""),
        ({"input": "ask"}, "say:\\t", "the prefix has \\t as two characters"),
    ):
        content = {
            "name": "x",
            "task": {"name": "lines", "options": {"train": file, **options}, **({"prefix": part} if part else {})},
            "family": "nano",
            "arms": ["english"],
            "methods": [{"name": "lora"}],
            "seeds": [0],
            "train": {"steps": 1, "batch_size": 1, "learning_rate": 0.1},
        }
        found = "\n".join(data_notes(validate(content, "x")))
        assert (expected in found) if expected else ("two characters" not in found)


def test_columns_that_are_not_read_can_have_the_same_name(elsewhere: Path) -> None:
    file = write("a.csv", "input,note,target,note\n" + "".join(f"{a},x,{b},y\n" for a, b in PAIRS))
    assert read(file)[0] == PAIRS
    for options in ({"input": "note"}, {"template": "{input} {note}"}, {"category": "note"}):
        with pytest.raises(UserError, match=r"a\.csv:1: two columns are named 'note'"):
            read(file, **options)


def test_column_names_of_a_table_with_an_index_are_not_taken_for_a_title(elsewhere: Path) -> None:
    file = write("a.csv", ",0\n" + "".join(f"{a},{b}\n" for a, b in PAIRS))
    with pytest.raises(UserError, match=r"has no columns 'input' and 'target' \(it has: , 0\); name yours"):
        read(file)


def test_a_quoted_cell_in_a_quoted_line_can_have_a_line_break(elsewhere: Path) -> None:
    rows = "".join(f'"in {n},out"\n' for n in range(9))
    write("a.csv", '"input,target"\n' + rows + '"in 9,""first\nsecond"""\n')
    assert read("a.csv")[0][-1] == ("in 9", "first\nsecond")
    write("b.csv", '"input,target"\n' + rows + '"in 9,first\nsecond"\n')
    with pytest.raises(UserError, match=r"1 of 10 rows .*b\.csv:11: a line break inside of a line that is in quotes"):
        read("b.csv")


@pytest.mark.parametrize(("name", "sign"), [("a.csv", ","), ("a.tsv", "\t")])
def test_lines_with_only_blanks_are_skipped(name: str, sign: str, elsewhere: Path) -> None:
    rows = [f"in {n}{sign}out\n" for n in range(9)]
    write(name, f"  \ninput{sign}target\n" + "   \n".join(rows) + " \n")
    assert len(read(name)[0]) == 9
    write(name, f"{sign} {sign}\ninput{sign}target\n" + "".join(rows))
    with pytest.raises(UserError, match="line 2 has the column names: delete the line"):
        read(name)


def test_rows_of_unknown_splits_can_have_empty_texts(elsewhere: Path) -> None:
    rows = "".join(f"in {n},out,{('train', 'dev', 'test')[n % 3]}\n" for n in range(12))
    write("a.csv", "input,target,split\nin,,unlabelled\n" + rows)
    found, notes = read("a.csv", split_column="split")
    assert len(found) == 12
    assert "1 row left out" in notes
    write("a.csv", "input,target,split\nin,,train\n" + rows)
    with pytest.raises(UserError, match=r"a\.csv:2: the target is empty"):
        read("a.csv", split_column="split")
