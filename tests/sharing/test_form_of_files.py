"""Other files are read like the training data: columns, quotes, delimiter, encoding and format."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import petransfer
from petransfer.errors import UserError
from petransfer.sharing import task_data
from petransfer.sharing.bundle import Bundle, bundle_of_folder, open_bundle
from tests.sharing.conftest import call, contents, sealed, write

PAIRS = [("a, b", "yes"), ("ä", "no")]
Read = Callable[..., list[tuple[str, str]]]


def pairs_of(bundle: Bundle | None, name: str, **columns: str) -> list[tuple[str, str]]:
    return [(row.input, row.target) for row in task_data.test_data(bundle, "mine", name, None, None, columns).examples]


@pytest.fixture
def read_like(run: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Read]:
    """A function that returns a reader of files for an adapter whose data have the given options."""
    bundle = bundle_of_folder(run)

    def make(**options: Any) -> Read:
        monkeypatch.setattr(task_data, "options_of", lambda _: options)
        return lambda name, **columns: pairs_of(bundle, name, **columns)

    return make


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("q.tsv", {"quoting": "csv"}, '"a, b"\tyes\nä\tno\n'),
        ("q.csv", {"quoting": "none", "delimiter": "pipe"}, "input|target\na, b|yes\nä|no\n"),
        ("q.tsv", {"delimiter": "colon"}, "a, b:yes\nä:no\n"),
        ("q.tsv", {"encoding": "cp1252"}, "a, b\tyes\nä\tno\n"),
        ("q.dat", {"format": "tsv"}, "a, b\tyes\nä\tno\n"),
        ("q.dat", {"format": "tsv", "encoding": "cp1252"}, "a, b\tyes\nä\tno\n"),
    ],
)
def test_a_file_with_the_suffix_of_the_training_data_is_read_with_the_same_options(
    name: str, options: dict[str, str], text: str, read_like: Callable[..., Read]
) -> None:
    Path(name).write_text(text, encoding=options.get("encoding", "utf-8"))
    assert read_like(train=f"/gone/train{Path(name).suffix}", **options)(name) == PAIRS


def test_a_file_of_another_form_is_read_without_the_options_of_the_training_data(
    read_like: Callable[..., Read], caplog: pytest.LogCaptureFixture
) -> None:
    Path("q.csv").write_text('input,target\n"a, b",yes\nä,no\n', encoding="utf-8")
    Path("q.jsonl").write_text("".join(json.dumps({"input": a, "target": b}) + "\n" for a, b in PAIRS))
    assert read_like(train="train.tsv", quoting="none", delimiter="tab", encoding="cp1252")("q.csv") == PAIRS
    assert read_like(train="train.csv", encoding="cp1252")("q.csv") == PAIRS  # UTF-8
    assert read_like(train="train.tsv", quoting="csv", format="tsv")("q.jsonl") == PAIRS
    assert caplog.text == ""
    with caplog.at_level(logging.WARNING):
        assert read_like(train="train.csv", delimiter="semicolon")("q.csv") == PAIRS
    assert "q.csv cannot be read with the options of the training data (delimiter), so they are ignored" in caplog.text
    with pytest.raises(
        UserError,
        match=r"q\.csv has no columns 'text' and 'target' .*; name the columns of the file with --input",
    ):
        read_like(train="train.csv", input="text", delimiter="semicolon")("q.csv")


def test_the_other_names_of_column_options_in_a_bundled_recipe_are_used(packed: Path, here: Path) -> None:
    Path("qa.csv").write_text('question,answer\n"a, b",yes\nä,no\n', encoding="utf-8")
    recipe = b"name: qa\ntask: {options: {train: qa.csv, input_column: question, target_column: answer}}\n"
    write(Path("qa.petransfer.zip"), sealed(contents(packed) | {"recipe.yaml": recipe}))
    with open_bundle("qa.petransfer.zip") as bundle:
        assert pairs_of(bundle, "qa.csv") == PAIRS


def test_a_merged_model_knows_the_rows_of_its_training(run: Path, here: Path, caplog: pytest.LogCaptureFixture) -> None:
    adapter = petransfer.Adapter.load(run, device="cpu")
    adapter.merge("merged")
    record = Path("merged/petransfer.json")
    assert str(run.parents[2]) not in record.read_text()
    expected, merged = adapter.evaluate("pairs.tsv"), petransfer.Adapter.load("merged", device="cpu", data_dir=".")
    assert expected.seen_rows
    assert merged.evaluate("pairs.tsv").seen_rows == expected.seen_rows
    assert merged.evaluate().exact_match == adapter.evaluate().exact_match

    content = json.loads(record.read_text())
    del content["merged"]["data"]
    content["merged"]["columns"] = {}  # as in older versions
    record.write_text(json.dumps(content))
    older = petransfer.Adapter.load("merged", device="cpu", data_dir=".")
    caplog.clear()
    assert older.evaluate("pairs.tsv").seen_rows is None
    assert "merged does not record which files it was trained on, so it is not known which" in caplog.text
    assert "--data-dir" not in caplog.text
    with pytest.raises(UserError, match="merged does not record which files it was trained on; score other rows with"):
        older.evaluate()


def test_the_columns_of_a_file_can_be_named(read_like: Callable[..., Read]) -> None:
    Path("q.csv").write_text('question,hint,answer\n"a, b",x,yes\nä,y,no\n', encoding="utf-8")
    by_column = {"input": "question", "target": "answer"}
    by_template = {"template": "{hint}: {question}", "target": "answer"}
    prefixed = [("x: a, b", "yes"), ("y: ä", "no")]
    for trained in ({}, {"input": "text", "target": "label"}, {"input_column": "text", "target_column": "label"}):
        assert read_like(train="train.csv", **trained)("q.csv", **by_column) == PAIRS
        assert read_like(train="train.csv", **trained)("q.csv", **by_template) == prefixed
    assert read_like(train="train.csv", input="question", target="label")("q.csv", target="answer") == PAIRS
    assert read_like(train="train.csv", template="{a}", target="label")("q.csv", **by_template) == prefixed
    assert pairs_of(None, "q.csv", **by_column) == PAIRS  # a base model
    message = "the training made its inputs with the template 'say {a}', so an input column is not enough"
    with pytest.raises(UserError, match=re.escape(message)):
        read_like(train="train.csv", template="say {a}")("q.csv", **by_column)


def test_the_columns_are_options_of_eval_and_arguments_of_evaluate(
    run: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = Path("pairs.tsv").read_text().splitlines()[:4]
    Path("q.tsv").write_text("\n".join(["question\tanswer", *lines]) + "\n")
    names = {"input_column": "question", "target_column": "answer"}
    scores = petransfer.Adapter.load(run, device="cpu").evaluate("q.tsv", **names)
    assert (scores.task, scores.examples) == ("q.tsv", 4)
    columns = ("--input-column", "question", "--target-column", "answer")
    assert call("eval", str(run), "--data", "q.tsv", "--cpu", "--json", *columns) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["log_prob_per_token"] == pytest.approx(scores.log_prob_per_token)
    template = ("--template", "{question}", *columns[2:])
    assert call("eval", str(run), "--data", "q.tsv", "--cpu", "--json", *template) == 0
    assert json.loads(capsys.readouterr().out) == [found]


@pytest.mark.parametrize("data", [None, "scan/add_jump", [("a", "b")]])
def test_columns_need_a_file(data: Any, run: Path) -> None:
    with pytest.raises(UserError, match="--target-column is for the columns of a file; name the file with --data"):
        task_data.test_data(bundle_of_folder(run), "mine", data, None, None, {"target": "answer"})


def test_a_named_column_replaces_the_chats_of_the_training(read_like: Callable[..., Read]) -> None:
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    rows = [{"input": source, "answer": target, "chat": chat} for source, target in PAIRS]
    Path("q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    read = read_like(train="train.jsonl", messages="chat")
    assert [target for _, target in read("q.jsonl")] == ["hello", "hello"]
    assert read("q.jsonl", target="answer") == PAIRS
    assert read("q.jsonl", input="input", target="answer") == PAIRS


def test_other_files_need_no_column_of_categories(read_like: Callable[..., Read]) -> None:
    Path("q.csv").write_text('input,target,topic\n"a, b",yes,x\nä,no,y\n', encoding="utf-8")
    read = read_like(train="train.csv", category="topic")
    assert read("q.csv") == PAIRS
    assert read("q.csv", target="topic") == [("a, b", "x"), ("ä", "y")]
    Path("p.csv").write_text('input,target\n"a, b",yes\nä,no\n', encoding="utf-8")
    assert read("p.csv") == PAIRS
