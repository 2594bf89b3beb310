"""Fields and columns of chats other than the messages: weights, system prompts, tools, and unknown fields."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from petransfer.data import Example, LinesTask
from petransfer.data.chat import chat_layout, render_chat
from petransfer.data.encoded_examples import encode_split
from petransfer.data.rows.chat_rows import readable_input
from petransfer.errors import UserError
from tests.chat_models import CHATML, byte_level
from tests.data.test_chat import LAYOUT, every, lines

pytestmark = pytest.mark.usefixtures("elsewhere")

TOOL = {"type": "function", "function": {"name": "add", "parameters": {"x": {"type": "int", "default": None}}}}
WITH_TOOLS = "{% if tools %}{{ tools | tojson }}\n{% endif %}" + CHATML


def talk(n: int, **first: Any) -> list[dict[str, Any]]:
    return [
        {"role": "user", "content": f"Hi {n}"},
        {"role": "assistant", "content": "WRONG", **first},
        {"role": "user", "content": "again"},
        {"role": "assistant", "content": "right"},
    ]


def read(rows: list[dict[str, Any]], **options: Any) -> tuple[list[Example], str]:
    task = lines(rows, **options)
    return every(task), "\n".join(task.notes())


@pytest.mark.parametrize(
    "field",
    [
        {"weight": 0}, {"weight": 0.0}, {"train": False}, {"training": False}, {"trainable": False}, {"loss": False},
        {"loss_mask": 0}, {"loss_scale": 0.0}, {"masked": True}, {"mask": 1}, {"train": "false"},
    ],
)  # fmt: skip
def test_an_answer_that_a_field_excludes_from_training_is_context(field: dict[str, Any]) -> None:
    rows, notes = read([{"messages": talk(n, **field)} for n in range(10)])
    assert {row.target for row in rows} == {"right"}
    assert [each["content"] for each in json.loads(rows[0].input)] == ["Hi 0", "WRONG", "again"]
    assert "10 answers are context and not targets" in notes
    assert next(iter(field)) in notes


@pytest.mark.parametrize("field", [{"weight": 1}, {"train": True}, {"loss": True}, {"masked": False}, {"train": None}])
def test_an_answer_that_no_field_excludes_from_training_is_a_target(field: dict[str, Any]) -> None:
    rows, notes = read([{"messages": talk(n, **field)} for n in range(10)])
    assert [row.target for row in rows[:2]] == ["WRONG", "right"]
    assert "warning" not in notes
    assert "context" not in notes


def test_a_chat_without_a_target_is_a_bad_row() -> None:
    rows = [{"messages": talk(n)} for n in range(10)] + [{"messages": talk(10, weight=0)[:2]}]
    with pytest.raises(UserError, match=r"chats.jsonl:11: no answer of the assistant is a target.*weight"):
        every(lines(rows))
    assert len(every(lines(rows, bad_rows="skip"))) == 20
    rows[-1] = {"messages": talk(10, train="perhaps")}
    with pytest.raises(UserError, match=r"the field 'train' of a message is neither 0 nor 1 \('perhaps'\)"):
        every(lines(rows))


def test_notes_list_fields_without_effect_on_training_once() -> None:
    rows, notes = read([{"messages": talk(n, train_detail=[{"begin": 0}], weight=0.5)} for n in range(10)])
    assert len(rows) == 20
    assert notes.count("'train_detail'") == 1
    assert "only 0 and 1 are used; other weights count as 1" in notes
    user = [{"messages": [talk(n)[0] | {"train": True}, *talk(n)[1:]]} for n in range(10)]
    assert "only answers of the assistant are targets" in read(user)[1]


@pytest.mark.parametrize("name", ["system", "system_prompt"])
def test_a_system_column_becomes_the_first_message(name: str) -> None:
    rows, notes = read([{"conversations": talk(n), name: "Be brief."} for n in range(9)] + [{"conversations": talk(9)}])
    assert json.loads(rows[0].input)[0] == {"role": "system", "content": "Be brief."}
    assert [each["content"] for each in json.loads(rows[-2].input)] == ["Hi 9"]
    assert f"'{name}' is the first message" in notes
    own = [{"role": "system", "content": "Be long."}]
    rows, notes = read([{"messages": own + talk(n), name: "Be brief."} for n in range(10)])
    assert json.loads(rows[0].input)[:2] == [*own, talk(0)[0]]
    assert f"in 10 chats, the chat's own system message is used instead of the column '{name}'" in notes


@pytest.mark.parametrize(
    "column",
    [
        {"tools": [TOOL]},
        {"tools": json.dumps([TOOL])},
        {"functions": [TOOL["function"]]},
        {"tools": [TOOL["function"]]},
    ],
)  # fmt: skip
def test_tools_are_given_to_the_chat_template(column: dict[str, Any]) -> None:
    rows, notes = read([{"messages": talk(n), **column} for n in range(10)])
    assert json.loads(rows[1].input) == {"messages": talk(0)[:3], "tools": [TOOL]}
    tokenizer = byte_level(WITH_TOOLS)
    asked = tokenizer.apply_chat_template(talk(0)[:3], tools=[TOOL], tokenize=False, add_generation_prompt=True)
    assert render_chat(rows[1].input, "", tokenizer, "template") == asked
    assert '"add"' in asked
    assert readable_input(rows[1].input, only_last=True) == "again (after 2 earlier messages)"
    assert f"'{next(iter(column))}' is given to the chat template" in notes
    prefixed = render_chat(rows[1].input, "Q: ", tokenizer, "template")
    assert prefixed == asked.replace("user\nagain", "user\nQ: again")


@pytest.mark.parametrize(("template", "chat"), [(CHATML, "template"), (None, "plain")])
def test_tools_that_the_template_does_not_take_are_reported(template: str | None, chat: str) -> None:
    task = lines([{"messages": talk(n), "tools": [TOOL]} for n in range(10)], chat="auto" if template else "plain")
    tokenizer = byte_level(template)
    notes = encode_split(task.load("held-out"), "", tokenizer, chat_layout(tokenizer, LAYOUT, chat)).notes
    (note,) = [note for note in notes if "tools" in note]
    assert note.startswith("warning: ")
    taking = byte_level(WITH_TOOLS)
    if template:
        assert not encode_split(task.load("held-out"), "", taking, chat_layout(taking, LAYOUT, chat)).notes


def test_empty_tools_are_ignored_and_malformed_tools_are_refused() -> None:
    for empty in (None, [], "", "[]"):
        rows, _ = read([{"messages": talk(n), "tools": empty} for n in range(10)])
        assert json.loads(rows[0].input) == talk(0)[:1]
    for wrong, reason in (
        ("add", "the tools are text and not a JSON list"),
        (["add"], "a tool is not an object"),
        (3, "the tools are not a list"),
    ):
        with pytest.raises(UserError, match=reason):
            every(lines([{"messages": talk(n), "tools": wrong} for n in range(10)]))


def test_empty_keys_in_a_parquet_file_are_left_out_of_tools_and_calls(elsewhere: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    other = {"type": "function", "function": {"name": "mul", "parameters": {"y": {"type": "int"}}}}
    calls = [
        {"type": "function", "function": {"name": name, "arguments": {key: 1}}}
        for name, key in (("add", "x"), ("mul", "y"))
    ]
    answers = [{"role": "assistant", "content": None, "tool_calls": calls}, {"role": "tool", "content": "2"}]
    table = [{"messages": [*talk(n)[:1], *answers, *talk(n)[3:]], "tools": [TOOL, other]} for n in range(10)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table), "chats.parquet")
    first, second, *_ = every(LinesTask(train="chats.parquet"))
    plain = {"type": "function", "function": {"name": "add", "parameters": {"x": {"type": "int"}}}}
    assert json.loads(first.input)["tools"] == [plain, other]
    assert json.loads(first.target)["tool_calls"] == calls
    assert json.loads(second.input)["messages"][1]["tool_calls"] == calls


def test_old_function_calls_are_read_as_tool_calls() -> None:
    call = {"name": "add", "arguments": {"x": 1}}
    tail = [{"role": "tool", "content": "2"}, {"role": "assistant", "content": "It is 2"}]
    old = {"role": "assistant", "content": None, "function_call": call}
    shared = {"from": "function_call", "value": json.dumps(call)}
    for turn in (old, shared):
        rows, _ = read([{"messages": [talk(n)[0], turn, *tail]} for n in range(10)])
        assert [row.target for row in rows[1::2]] == ["It is 2"] * 10
        calls = [{"type": "function", "function": call}]
        assert json.loads(rows[0].target)["tool_calls"] == json.loads(rows[1].input)[1]["tool_calls"] == calls


def test_prompts_and_completions_can_be_lists_of_messages() -> None:
    rows, notes = read([{"prompt": talk(n)[:3], "completion": talk(n)[3:]} for n in range(10)])
    assert [row.target for row in rows] == ["right"] * 10
    assert json.loads(rows[0].input) == talk(0)[:3]
    assert rows[0].chat == "template"
    assert "'prompt' and 'completion' are read as chats" in notes


def test_notes_list_the_columns_that_are_not_read() -> None:
    _, notes = read([{"messages": talk(n), "images": [], "id": n, "category": "a"} for n in range(10)])
    assert "not read: 'images', 'id'" in notes


def test_answers_in_a_prompt_without_a_completion_are_no_targets() -> None:
    rows: list[dict[str, Any]] = [{"prompt": talk(n)[:3], "completion": talk(n)[3:]} for n in range(10)]
    rows.append({"prompt": talk(10)[:3], "completion": None})
    with pytest.raises(UserError, match=r"1 of 11 rows .*chats\.jsonl:11: the messages in 'completion' are missing"):
        read(rows)
    assert [row.target for row in read(rows, bad_rows="skip")[0]] == ["right"] * 10


def test_columns_that_only_later_rows_have_are_read() -> None:
    rows: list[dict[str, Any]] = [{"messages": talk(n)} for n in range(110)]
    later = {"system": "Be brief.", "tools": [TOOL], "category": "with tools"}
    examples, notes = read([*rows, {"messages": talk(110)} | later, {"messages": talk(111)}])
    given = json.loads(examples[-3].input)
    assert given["tools"] == [TOOL]
    assert given["messages"][0] == {"role": "system", "content": "Be brief."}
    assert [each.category for each in examples] == ["all"] * 220 + ["with tools"] * 2 + ["all"] * 2
    assert json.loads(examples[-1].input)[0] == talk(111)[0]
    assert "the column 'system' is also read, although the first rows do not have it" in notes
