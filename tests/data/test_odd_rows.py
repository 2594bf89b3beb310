"""Unusual tables and chats: they are read, or refused with advice."""

from __future__ import annotations

import datetime
import decimal
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from petransfer.errors import UserError
from tests.data.test_chat import every
from tests.data.test_chat import lines as chats
from tests.data.test_real_files import lines, pairs

pytestmark = pytest.mark.usefixtures("elsewhere")
ROWS = [{"input": f"text {n}", "target": f"answer {n}"} for n in range(12)]


def refusal(name: str, **options: Any) -> str:
    with pytest.raises(UserError) as error:
        lines(name, **options).load("held-out")
    return str(error.value)


def test_json_lines_with_commas_are_read_and_python_dictionaries_are_refused() -> None:
    Path("a.jsonl").write_text("".join(json.dumps(row) + ",\n" for row in ROWS))
    assert pairs("a.jsonl")[11] == ("text 11", "answer 11")
    Path("b.jsonl").write_text("".join(f"{row}\n" for row in ROWS))
    assert "12 of 12 rows of b.jsonl cannot be used: b.jsonl:1: the text of a Python dictionary" in refusal("b.jsonl")
    messages = str([{"role": "user", "content": "Hi"}])
    Path("c.csv").write_text("messages\n" + f'"{messages}"\n' * 9)
    assert "the messages are the text of a Python list" in refusal("c.csv")
    Path("d.json").write_text(json.dumps({row["input"] + str(n): "x" for row in ROWS for n in range(3)}))
    assert "one object with 36 texts" in refusal("d.json")
    assert "jq -c 'to_entries[] | {input: .key, target: .value}' d.json > pairs.jsonl" in refusal("d.json")


def test_repeated_column_names_in_a_joined_file_are_a_bad_row() -> None:
    table = "input,target\n" + "".join(f"{row['input']},{row['target']}\n" for row in ROWS)
    for name, joined in (("a.csv", table + table), ("b.csv", table + "\ufeff" + table)):
        Path(name).write_text(joined, encoding="utf-8")
        assert f"1 of 25 rows of {name} cannot be used: {name}:14: the column names are repeated" in refusal(name)
        assert len(pairs(name, bad_rows="skip")) == 24


def test_texts_in_quotes_in_a_tsv_file_are_counted() -> None:
    Path("a.tsv").write_text("input\ttarget\n" + "".join(f'"a, {n}"\tb\nc {n}\tb\n' for n in range(9)))
    (note,) = [note for note in lines("a.tsv").notes() if "quotes" in note]
    assert "warning: a.tsv: 9 rows with texts in quotes" in note
    assert "--quoting csv" in note
    assert pairs("a.tsv", quoting="csv")[0] == ("a, 0", "b")
    assert not any("in quotes" in note for note in lines("a.tsv", quoting="none").notes())


def test_dates_decimals_and_bytes_become_texts(elsewhere: Path) -> None:
    values = {
        "day": [datetime.date(2024, 1, 5)] * 9,
        "time": [datetime.datetime(2024, 1, 5, 3, 4)] * 9,
        "price": [decimal.Decimal("2.50")] * 9,
        "bytes": ["größe".encode()] * 9,
    }
    columns = values | {"input": [f"i{n}" for n in range(9)], "image": [b"\xff\xd8"] * 9}
    pyarrow.parquet.write_table(pyarrow.table(columns), "a.parquet")
    found = [pairs("a.parquet", target=name)[0][1] for name in values]
    assert found == ["2024-01-05", "2024-01-05 03:04:00", "2.50", "größe"]
    assert "the target is bytes, not text in UTF-8" in refusal("a.parquet", target="image")


def test_a_saved_dataset_with_numpy_format_is_read(elsewhere: Path) -> None:
    import datasets

    data = datasets.Dataset.from_list([{"input": f"i{n}", "target": n % 3} for n in range(12)])
    data.set_format("numpy")
    data.save_to_disk("saved")
    assert pairs("saved")[4] == ("i4", "1")


def test_labels_that_are_the_same_number_get_a_note() -> None:
    Path("a.jsonl").write_text(
        "".join(json.dumps({"input": f"i{n}", "target": (1, 1.0, 0)[n % 3]}) + "\n" for n in range(30))
    )
    (note,) = [note for note in lines("a.jsonl").notes() if "same number" in note]
    assert "'1' (10 rows) and '1.0' (10 rows)" in note


def test_a_test_file_with_other_columns_than_training_is_refused() -> None:
    Path("a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    Path("b.csv").write_text("question,answer\na,b\n")
    message = refusal("a.jsonl", test="b.csv")
    assert "b.csv has no columns 'input' and 'target'" in message
    assert "give it the column names of the training data, a.jsonl" in message
    assert "--input-column" not in message


def test_messages_give_the_option_that_reads_chats_in_other_columns() -> None:
    talk = [[{"role": "user", "content": f"Hi {n}"}, {"role": "assistant", "content": "Hello"}] for n in range(9)]
    Path("a.jsonl").write_text("".join(json.dumps({"conversation": each}) + "\n" for each in talk))
    assert "use --set task.options.messages=conversation" in refusal("a.jsonl")
    assert every(lines("a.jsonl", messages="conversation"))[0].target == "Hello"
    Path("b.jsonl").write_text("".join(json.dumps({"input": "x", "chosen": each}) + "\n" for each in talk))
    assert "is a list of messages; to train chats, use --set task.options.messages=chosen" in refusal(
        "b.jsonl", target="chosen"
    )
    both = [{"prompt": each[:1], "chosen": each[1:], "rejected": each[1:]} for each in talk]
    Path("c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in both))
    assert "rename this column to 'completion'" in refusal("c.jsonl")
    Path("d.jsonl").write_text(Path("c.jsonl").read_text().replace('"chosen"', '"completion"'))
    assert every(lines("d.jsonl"))[8].target == "Hello"


@pytest.mark.parametrize("names", [("User", "Assistant"), ("human", "ai"), ("user", "model")])
def test_roles_of_chats_can_have_other_names(names: tuple[str, str]) -> None:
    user, assistant = names
    turns = [[{"role": user, "content": f"Hi {n}"}, {"role": assistant, "content": "Hello"}] for n in range(9)]
    assert json.loads(every(chats([{"messages": each} for each in turns]))[2].input)[0]["role"] == "user"


@pytest.mark.parametrize("with_user", [True, False])
def test_chats_with_the_same_first_user_message_are_split_by_their_whole_text(with_user: bool) -> None:
    def talk(n: int) -> list[dict[str, str]]:
        middle = [{"role": "user", "content": "Begin"}] * with_user
        answer = {"role": "assistant", "content": f"Answer {n}"}
        again = {"role": "user", "content": "More"}
        return [
            {"role": "system", "content": f"You are {n}"},
            *middle,
            answer,
            again,
            {"role": "assistant", "content": "No"},
        ]

    task = chats([{"messages": talk(n)} for n in range(30)])
    data = task.load("held-out")
    parts = [{json.loads(row.input)[0]["content"] for row in part} for part in (data.train, data.dev, data.test)]
    assert [len(part) for part in parts] == [24, 3, 3]
    assert len(set.union(*parts)) == 30
    folds = chats([{"messages": talk(n)} for n in range(30)], fold="1/3").load("held-out")
    assert len(folds.dev) == 20
    Path("test.jsonl").write_text(json.dumps({"messages": talk(99)}) + "\n")
    given = chats([{"messages": talk(n)} for n in range(30)], test="test.jsonl", dev=3)
    assert not any("input that is trained on" in note for note in given.notes())


def test_tables_with_unclear_first_lines_get_advice() -> None:
    Path("a.tsv").write_text("text\tlabel\n" + "".join(f"i {n}\tt {n}\n" for n in range(12)))
    (note,) = [note for note in lines("a.tsv").notes() if note.startswith("warning")]
    assert "the first line is read as a row; if it has the column names, use --input-column text" in note
    assert pairs("a.tsv", input="text", target="label")[0] == ("i 0", "t 0")
    Path("b.tsv").write_text("text here\tlabel\n" + "".join(f"i {n}\tt {n}\n" for n in range(12)))
    assert not any("first line" in note for note in lines("b.tsv").notes())
    Path("c.csv").write_text("red dog,blue cat\n" * 12)
    assert "if the first line is data, add the line `input,target` above it" in refusal("c.csv")
    Path("d.csv").write_text("# made by a tool\ninput,target\n" + "a,b\n" * 12)
    message = "line 2 has the column names: delete the lines above it, for example with `tail -n +2 d.csv > new.csv`"
    assert message in refusal("d.csv")
    Path("e.csv").write_text("input,target\n" + "a, b,c\n" * 12)
    assert "found 3; put texts with commas in quotes" in refusal("e.csv")


def test_notes_report_a_target_that_all_rows_have() -> None:
    Path("a.jsonl").write_text("".join(json.dumps(row | {"target": "yes"}) + "\n" for row in ROWS))
    assert any("all rows have the same target, 'yes'" in note for note in lines("a.jsonl").notes())


def test_a_test_file_with_chats_is_refused_if_training_has_pairs() -> None:
    talk = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    Path("chats.jsonl").write_text(json.dumps(talk) + "\n")
    message = refusal("pairs.jsonl", test="chats.jsonl")
    assert "chats.jsonl has chats, and pairs.jsonl has inputs and targets" in message
    assert "task.options.chat=template" in message
    data = lines("pairs.jsonl", test="chats.jsonl", chat="template").load("held-out")
    assert data.train[0].input.startswith('[{"role": "user", "content": "text')


def test_a_folder_whose_files_have_different_columns_is_refused() -> None:
    Path("folder").mkdir()
    for name, more in (("a", {}), ("b", {"extra": 1})):
        Path(f"folder/{name}.jsonl").write_text("".join(json.dumps(row | more) + "\n" for row in ROWS))
    message = refusal("folder")
    assert "different columns (folder/a.jsonl has input, target; folder/b.jsonl has input, target, extra)" in message
    assert "write the same column names into every file" in message
    assert "name its files one by one" in message
    assert pairs("folder/a.jsonl", test="folder/b.jsonl")[0] == ("text 0", "answer 0")


@pytest.mark.parametrize("form", ["csv", "csv.gz", "parquet"])
def test_files_without_rows_in_a_folder_are_skipped(form: str) -> None:
    Path("folder").mkdir()
    Path("folder/_SUCCESS").touch()
    kept = [row | {"target": f"part {part}"} for part in (0, 2) for row in ROWS]
    for part in range(3):
        rows = kept[:12] if part == 0 else [] if part == 1 else kept[12:]
        path = Path(f"folder/part-0000{part}-c000.{form}")
        if form == "parquet":
            columns = {name: pyarrow.array([row[name] for row in rows], pyarrow.string()) for name in ROWS[0]}
            pyarrow.parquet.write_table(pyarrow.table(columns), path)
            continue
        text = "".join(f"{row['input']},{row['target']}\n" for row in rows)
        content = f"input,target\n{text}".encode() if rows else b""
        path.write_bytes(gzip.compress(content) if form == "csv.gz" else content)
    assert pairs("folder") == [(row["input"], row["target"]) for row in kept]


def test_a_folder_whose_files_are_all_empty_has_no_rows() -> None:
    Path("folder").mkdir()
    Path("folder/a.csv").touch()
    assert "folder has no rows: all its files are empty" in refusal("folder")


@pytest.mark.parametrize("title", ["Export of 3 May 2026\n\n", "Export, of 3 May\n", "Export,\n", '"Export"\nby A\n'])
@pytest.mark.parametrize("names", ["input,target", "Frage,Antwort"])
def test_lines_above_the_column_names_are_refused_with_advice(title: str, names: str) -> None:
    rows = [(f"i {n}", f"t {n}") for n in range(12)]
    for form, sign in (("csv", ","), ("tsv", "\t")):
        body = "".join(f"{line}\n" for line in (names, *map(",".join, rows)))
        Path(f"a.{form}").write_text((title + body).replace(",", sign))
        if form == "tsv" and names != "input,target":
            continue  # all lines of a tsv file without known column names are rows; a note shows the first row
        message = refusal(f"a.{form}")
        if form == "csv" and names != "input,target" and title.startswith("Export, of"):
            assert "if it is a title, delete it" in message  # a line with two texts can also have the column names
            continue
        assert "delete the lines above" in message
        above = title.count("\n")
        Path(f"new.{form}").write_text("".join(Path(f"a.{form}").read_text().splitlines(True)[above:]))
        assert f"line {above + 1} " in message or form == "tsv"
        options = {} if names == "input,target" else {"input": "Frage", "target": "Antwort"}
        assert pairs(f"new.{form}", **options) == rows
        assert "delete the lines above" in refusal(f"a.{form}", bad_rows="skip")
    Path("b.tsv").write_text("Export\nquestion\tanswer\n" + "a\tb\n" * 12)
    assert "b.tsv:2: this line looks like the column names" in refusal("b.tsv", bad_rows="skip")
    Path("c.tsv").write_text("input\ttarget\nbad\nenglish\tgerman\n" + "".join(f"i {n}\tt {n}\n" for n in range(12)))
    assert pairs("c.tsv", bad_rows="skip")[0] == ("english", "german")


GEMINI = {
    "contents": [
        {"role": "user", "parts": [{"text": "Hi"}]},
        {"role": "model", "parts": [{"text": "Hel"}, {"text": "lo"}]},
    ]
}
BEDROCK = {
    "messages": [{"role": role, "content": [{"text": text}]} for role, text in (("user", "Hi"), ("assistant", "Hello"))]
}


@pytest.mark.parametrize(
    "row",
    [
        GEMINI | {"systemInstruction": {"role": "system", "parts": [{"text": "Be brief"}]}},
        GEMINI | {"system_instruction": {"parts": [{"text": "Be brief"}]}},
        BEDROCK | {"schemaVersion": "1", "system": [{"text": "Be brief"}]},
    ],
)
@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_chats_of_tuning_services_are_read(row: dict[str, Any], form: str) -> None:
    rows = [json.loads(json.dumps(row).replace('"Hi"', f'"Hi {n}"')) for n in range(12)]
    if form == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), "a.parquet")
    else:
        Path("a.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    task = lines(f"a.{form}")
    example = every(task)[0]
    system = {"role": "system", "content": "Be brief"}
    assert json.loads(example.input) == [system, {"role": "user", "content": "Hi 0"}]
    assert example.target == "Hello"
    assert not any("not read: 'system" in note for note in task.notes())


def test_other_files_of_tuning_services_get_advice() -> None:
    def write(*rows: dict[str, Any]) -> None:
        Path("a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    write(*({"input_text": f"i {n}", "output_text": f"t {n}"} for n in range(12)))
    assert "use --input-column input_text --target-column output_text" in refusal("a.jsonl")
    write(*({"custom_id": str(n), "response": {"body": {"choices": []}}, "error": None} for n in range(12)))
    assert "answers of a batch without their requests" in refusal("a.jsonl")
    write(*({"custom_id": str(n), "body": {"model": "a", **BEDROCK}} for n in range(12)))
    assert "--set task.options.messages=body.messages" in refusal("a.jsonl")
    write(*({"prompt": f"\n\nHuman: {n}?\n\nAssistant:", "completion": f" {n}"} for n in range(12)))
    assert any(
        "turns of 'Human:' and 'Assistant:' and are trained as plain text" in n for n in lines("a.jsonl").notes()
    )
    write(*({"system": [{"image": "x"}], **BEDROCK} for n in range(12)))
    assert "the system is neither a text nor a list of texts" in refusal("a.jsonl")
    write(*({"contents": f"a text {n}", "label": "a"} for n in range(12)))
    assert "has no columns 'input' and 'target' (it has: contents, label)" in refusal("a.jsonl")
