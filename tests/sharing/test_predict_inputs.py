"""`predict` prints one line for each input line, and refuses unreadable inputs with a one-line error."""

from __future__ import annotations

import dataclasses
import gzip
import io
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from petransfer.cli import predict, text
from petransfer.cli.input_files import refuse_other_files, without_rows
from petransfer.data.rows.source import find_source
from petransfer.errors import UserError
from petransfer.evaluation import predictor
from petransfer.recipe.run_spec import Options, RunSpec
from tests.sharing.conftest import call, refused

ASK = ("predict", "nano/english", "--cpu", "--max-new-tokens", "8")


def lines_of(capsys: pytest.CaptureFixture[str], *more: str) -> list[str]:
    """Run `predict` with the arguments ASK and `more`, and return the printed lines."""
    capsys.readouterr()
    assert call(*ASK, *more) == 0
    return capsys.readouterr().out.split("\n")[:-1]


def test_blank_lines_are_kept_and_a_byte_order_mark_is_ignored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = lines_of(capsys, "to walk", "Where is the old man and his dog?")
    assert first != second
    (tmp_path / "inputs.txt").write_bytes(
        b"\xef\xbb\xbfto walk\r\n\n  \nWhere is the old man and his dog?\n\nWhere is the old man and his dog?"
    )
    file = str(tmp_path / "inputs.txt")
    assert lines_of(capsys, "--file", file) == [first, "", "", second, "", second]
    rows = [json.loads(line) for line in lines_of(capsys, "--file", file, "--json")]
    assert [row["input"] for row in rows] == [
        "to walk",
        "",
        "  ",
        "Where is the old man and his dog?",
        "",
        "Where is the old man and his dog?",
    ]
    assert [row["output"].replace("\n", "\\n") for row in rows] == [first, "", "", second, "", second]
    (tmp_path / "empty.txt").write_bytes(b"")
    assert call(*ASK, "--file", str(tmp_path / "empty.txt")) == 0
    out, note = capsys.readouterr()
    assert out == ""
    assert note.startswith("no inputs: give them as arguments, or one per line in a file (--file)")
    assert refused(capsys, *ASK, "--file", str(tmp_path)).count("cannot be read") == 1


@pytest.mark.parametrize("content", [b"to walk\nto \xff run\n", b"to walk\nto \xff run"])
def test_inputs_that_are_not_utf8_are_refused_with_their_position(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "inputs.txt").write_bytes(content)
    message = refused(capsys, *ASK, "--file", str(tmp_path / "inputs.txt"))
    assert "inputs.txt is not UTF-8 at line 2, byte 4; save it as UTF-8" in message
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert "standard input is not UTF-8 at line 2, byte 4" in refused(capsys, *ASK)
    argument = b"to \xff run".decode("utf-8", "surrogateescape")
    assert "argument 7 (to ? run) is not UTF-8 at character 4" in refused(capsys, *ASK, "to walk", argument)


def test_a_dash_means_standard_input_and_is_refused_in_other_places(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = lines_of(capsys, "to walk", "to run")
    for arguments in (["-"], ["--file", "-"], []):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"to walk\nto run\n")))
        assert lines_of(capsys, *arguments) == expected
    assert "- stands for standard input; give the inputs as arguments or on" in refused(capsys, *ASK, "to walk", "-")
    assert "leave one of them out" in refused(capsys, *ASK, "-", "--file", "inputs.txt")
    assert "- stands for standard input or output" in refused(capsys, "predict", "-", "to walk")
    with pytest.raises(UserError, match=r"- stands for standard input, .*save them to a file first"):
        find_source("-", None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            gzip.compress(b"to walk\n", mtime=0),
            "standard input is not a text file: it is compressed (gzip); unpack it first",
        ),
        (b"PK\x03\x04\n\x00", "standard input is not a text file: it is compressed (zip"),
        (b"PAR1\x15\x04\n", "standard input is not a text file; write the inputs to a text file"),
        (b"to\x00\x01\x00walk\n", "standard input is not a text file; write the inputs to a text file"),
    ],
)
def test_binary_data_on_standard_input_is_refused(
    content: bytes, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert message in refused(capsys, *ASK)


def test_an_argument_that_a_locale_without_utf8_escaped_is_read_as_utf8(capsys: pytest.CaptureFixture[str]) -> None:
    escaped = "é größe".encode().decode("ascii", "surrogateescape")  # the form in which Python reads it with LC_ALL=C
    assert lines_of(capsys, escaped) == lines_of(capsys, "é größe")


def test_a_closed_standard_input_is_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert "standard input is closed; give the texts as arguments, or name a file with --file" in refused(capsys, *ASK)


def test_a_line_from_a_pipe_is_answered_before_the_next_line_is_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)  # some programs give a non-blocking pipe to the programs that they start
    pipe, end = open(writing, "wb", buffering=0), open(reading)  # noqa: SIM115 - the test closes them
    stop = threading.Timer(20, pipe.close)
    stop.start()
    answered, write = [], predict._print

    def answer(line: str, *more: Any) -> None:
        write(line, *more)
        answered.append(line)
        if len(answered) == 1:
            pipe.write(b"to run\nto see\n\xff\n")

    monkeypatch.setattr(predict, "_print", answer)
    monkeypatch.setattr(sys, "stdin", end)
    threading.Timer(0.3, pipe.write, [b"to walk\n"]).start()
    capsys.readouterr()
    assert call(*ASK) == 2
    assert stop.is_alive()
    stop.cancel()
    assert answered == ["to walk", "to run", "to see"]
    message = capsys.readouterr()
    assert message.out.count("\n") == 3
    assert "standard input is not UTF-8 at line 4" in message.err
    pipe.close()
    end.close()


def test_batches_from_a_pipe_are_full_if_enough_lines_have_arrived(capsys: pytest.CaptureFixture[str]) -> None:
    fast = text.arriving_batches(range(10), 4)
    time.sleep(0.1)
    assert list(fast) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "PATIENCE", 0.01)
        assert list(text.arriving_batches((str(time.sleep(0.1)) for _ in range(1)), 4)) == [["None"]]
    assert capsys.readouterr().err == "Waiting for inputs, one per line.\n"


def test_a_line_of_a_megabyte_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "inputs.txt").write_text("to walk\n" + "walk " * 200_000 + "\n", encoding="utf-8")
    message = refused(capsys, *ASK, "--file", str(tmp_path / "inputs.txt"))
    assert f"line 2 of {tmp_path / 'inputs.txt'} ('walk" in message
    assert "attention over" in message
    assert "shorten it" in message
    monkeypatch.setattr(predictor, "SHORT", 2)
    assert len(lines_of(capsys, "to walk to walk")) == 1


def test_control_characters_in_an_error_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, "predict", "no\x1b[31mwhere", "to walk")
    assert "no\\x1b[31mwhere holds no finished adapter" in message


@pytest.mark.parametrize(
    ("place", "advice"),
    [
        ("https://huggingface.co/me/adapter/tree/main", "give its hub id, me/adapter"),
        ("https://example.org/adapter.zip", "download the adapter first"),
        ("base/config.json", "name the folder base"),
        ("base/model.safetensors", "name the folder base"),
        ("m.gguf", "a GGUF file"),
        ("rows.csv", "--data"),
        ("study/recipe.yaml", "one file of a training run; name the folder of the run, study"),
        ("study/runs", "name the folder of a training run, here study"),
    ],
)
def test_the_error_for_a_wrong_kind_of_name_gives_advice(
    place: str, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").mkdir()
    (tmp_path / "study" / "runs").mkdir(parents=True)
    for name in ("base/config.json", "base/model.safetensors", "m.gguf", "rows.csv", "study/recipe.yaml"):
        (tmp_path / name).write_text("{}")
    message = refused(capsys, "predict", place, "to walk", "--cpu")
    assert advice in message
    assert "damaged" not in message


CHAT = {"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"input,target\nto walk,gehen\n", "a table with the columns 'input', 'target'"),
        ("a.txt", b'"target"\tinput\ngehen\tto walk\n', "a table with the columns 'input', 'target'"),
        ("a.tsv", b"input\nto walk\n", "a table with the column 'input'"),
        ("a.jsonl", b'{"input": "to walk", "target": "gehen"}\n', "JSON rows with the keys 'input', 'target'"),
        ("a.json", b'[\n {\n  "input": "to walk"\n }\n]\n', "JSON rows with the key 'input'"),
        ("a.csv", b"review;stars\nto walk, or not;5\nto run;3\n", "a table with the columns 'review', 'stars'"),
        ("a.csv", b'id,text\n1,"to walk, or not"\n', "a table with the columns 'id', 'text'"),
        ("a.jsonl", b'{"review": "to walk"}\n{"review": "to run"}\n', "JSON rows with the key 'review'"),
        ("a.json", b'[{"question": "to walk", "id": 5}]', "JSON rows with the keys 'question', 'id'"),
        ("chats", json.dumps(CHAT).encode(), "JSON rows with the key 'messages'"),
        ("a.parquet", b"PAR1\x15\x04\x15\x00", "a.parquet is not a text file"),
        ("a.csv.gz", b"\x1f\x8b\x08\x00", "a.csv.gz is not a text file: it is compressed (gzip); unpack it"),
        ("a.bin", b"to\x00\x01\x00walk", "a.bin is not a text file"),
    ],
)
def test_tables_json_rows_and_binary_files_are_refused_as_inputs(
    name: str, content: bytes, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_bytes(content)
    line = refused(capsys, *ASK, "--file", str(tmp_path / name))
    assert message in line
    assert "write the inputs to a text file, one input per line" in line


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "input, or output?\n"),
        ("a.csv", "the input, the target\n"),
        ("a.csv", "to walk, or not\nto run\n"),
        ("a.csv", "to walk\nto run\n"),
        ("a.txt", '{"input": "a JSON object that is an input"}\n'),
        ("chats.jsonl", json.dumps([{"role": "user", "content": "hello"}]) + "\n"),
        ("a.txt", "größe\n"),
    ],
)
def test_lines_that_only_resemble_a_table_are_accepted_as_inputs(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    refuse_other_files(tmp_path / name, [None])


def test_a_git_lfs_pointer_is_refused_as_inputs(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(UserError, match="is a Git LFS pointer"):
        refuse_other_files(tmp_path / "a.txt", [None])


def test_a_table_with_the_columns_of_the_training_is_refused_as_inputs(run: Path, tmp_path: Path) -> None:
    spec = RunSpec.from_dict(json.loads((run / "spec.json").read_text(encoding="utf-8")))
    options = Options({"train": "pairs.csv", "input": "question", "target": "answer"})
    spec = dataclasses.replace(spec, task=dataclasses.replace(spec.task, source=options))
    (tmp_path / "a").write_text("id;question;answer\n1;to walk;gehen\n", encoding="utf-8")
    refuse_other_files(tmp_path / "a", [None])
    with pytest.raises(UserError, match="columns 'question', 'answer'"):
        refuse_other_files(tmp_path / "a", [spec])


def test_json_objects_are_accepted_as_inputs_of_a_template_with_several_columns(run: Path, tmp_path: Path) -> None:
    spec = RunSpec.from_dict(json.loads((run / "spec.json").read_text(encoding="utf-8")))
    options = Options({**spec.task.options, "template": "Q: {question} C: {context.text}"})
    spec = dataclasses.replace(spec, task=dataclasses.replace(spec.task, options=options))
    row = json.dumps({"question": "who?", "context": {"text": "me"}, "input": "a", "target": "b"}) + "\n"
    for name in ("a.jsonl", "a.txt"):
        (tmp_path / name).write_text(row, encoding="utf-8")
        refuse_other_files(tmp_path / name, [spec])
        with pytest.raises(UserError, match="JSON rows with the keys 'input', 'target'"):
            refuse_other_files(tmp_path / name, [None])
    assert list(without_rows([row, row], [spec])) == [row, row]


@pytest.mark.parametrize("content", [b"input,target\nto walk,gehen\n", b'{"input": "to walk", "target": "gehen"}\n'])
def test_rows_on_standard_input_are_refused_as_inputs(
    content: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    message = refused(capsys, *ASK)
    assert "standard input holds" in message
    assert "`petransfer eval ADAPTER --data FILE`" in message


def test_a_dash_as_the_value_of_the_option_file_means_standard_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"to walk\n")))
    assert lines_of(capsys, "--file", "-") == lines_of(capsys, "to walk")


def test_a_file_name_that_is_given_as_the_only_input_gets_a_hint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "inputs.txt").write_text("to walk\n", encoding="utf-8")
    assert call(*ASK, "inputs.txt") == 0
    assert "to read inputs from this file, write --file inputs.txt" in capsys.readouterr().err
    assert call(*ASK, "inputs.txt", "to walk") == 0
    assert "--file" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("predict", "nano/english", "to walk", "--file", "inputs.txt"), "--file inputs.txt and 1 input as arguments"),
        (("predict", "nano/english", "to walk", "--combination", "cat"), "--combination cat needs --weights"),
        (("eval", "nano/english", "--combination", "linear"), "--combination linear needs --weights"),
    ],
)
def test_options_that_would_be_ignored_are_refused(
    options: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(capsys, *options, "--cpu")
