"""Answers with tool calls, or with a thought in a separate field, are trained as the chat template writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import petransfer as pt
from petransfer.data.answers import text_answers, without_untrained_calls
from petransfer.data.chat import chat_layout
from petransfer.data.encoded_examples import EncodedSplit, encode_split
from petransfer.errors import UserError
from tests.chat_models import CHATML, byte_level, chat_llama
from tests.data.test_chat import LAYOUT, every, lines

pytestmark = pytest.mark.usefixtures("elsewhere")

# As in Qwen's templates, thoughts and tool calls follow the same opening as other answers.
QWEN = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message.reasoning_content %}<think>\n{{ message.reasoning_content }}\n</think>\n\n{% endif %}"
    "{{ message['content'] }}{% for call in message.tool_calls or [] %}<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n</tool_call>'
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As in DeepSeek's templates, the arguments of a tool call must be text.
JOINED = QWEN.replace("{{ call.function.arguments | tojson }}", "{{ 'ARGS ' + call.function.arguments }}")
CALL = {"function": {"name": "add", "arguments": {"x": 1}}}
WRITTEN = '<tool_call>\n{"name": "add", "arguments": {"x": 1}}\n</tool_call>'


def chats(answer: dict[str, Any], count: int = 10) -> list[dict[str, Any]]:
    tail = [{"role": "tool", "content": "2"}, {"role": "assistant", "content": "It is 2"}]
    calling = {"role": "assistant", **answer}
    return [{"messages": [{"role": "user", "content": f"Add {n}"}, calling, *tail]} for n in range(count)]


def encode(rows: list[dict[str, Any]], template: str, **options: Any) -> EncodedSplit:
    tokenizer = byte_level(template)
    data = lines(rows, dev=1, test=1, **options).load("held-out")
    return encode_split(data, "", tokenizer, chat_layout(tokenizer, LAYOUT, data.train[0].chat))


def targets(found: EncodedSplit) -> set[str]:
    return {row.target for part in (found.data.train, found.data.dev, found.data.test) for row in part}


@pytest.mark.parametrize("arguments", [{"x": 1}, '{"x": 1}'], ids=["an object", "JSON text"])
def test_a_tool_call_is_a_target_as_the_template_writes_it(arguments: Any) -> None:
    calls = [{"id": "a", "type": "function", "function": {"name": "add", "arguments": arguments}}]
    found = encode(chats({"content": "Let me add. ", "tool_calls": calls}), QWEN)
    assert targets(found) == {f"Let me add.{WRITTEN}", "It is 2"}
    assert found.notes == []
    tokenizer = byte_level(QWEN)
    for row, one in zip(found.data.train, found.parts["train"], strict=True):
        read = tokenizer.decode(one.input_ids)
        assert read.endswith("<|im_start|>assistant\n")
        assert tokenizer.decode(one.target_ids) == f"{row.target}<|im_end|>"
        assert (WRITTEN in read) == (row.target == "It is 2")


def test_a_template_that_joins_texts_gets_the_arguments_of_a_call_as_text() -> None:
    found = encode(chats({"content": None, "tool_calls": [CALL]}), JOINED)
    assert targets(found) == {WRITTEN.replace('{"x"', 'ARGS {"x"'), "It is 2"}


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (CHATML, "does not write tool calls"),
        (
            QWEN.replace("</tool_call>", "</tool_call><|end|>"),
            "with special tokens, which generated text does not contain (<|end|>)",
        ),
        (
            QWEN.replace("<|im_start|>{{", "{% if message.tool_calls %}>{% endif %}<|im_start|>{{"),
            "does not write tool calls like other answers",
        ),
    ],
)
def test_a_tool_call_that_cannot_be_a_target_is_context(template: str, reason: str) -> None:
    rows = chats({"content": "Let me add.", "tool_calls": [CALL]})
    found = encode(rows, template)
    assert targets(found) == {"It is 2"}
    (note,) = found.notes
    assert "10 answers that call tools are context and not targets: chats.jsonl:" in note
    assert reason in note
    only = [{"messages": row["messages"][:2]} for row in rows]
    with pytest.raises(UserError, match=r"no train row can be used: .*calls"):
        encode(only, template)


def test_a_tool_call_that_the_template_refuses_is_no_target() -> None:
    template = QWEN.replace("<tool_call>", "{{ raise_exception('one call only') }}")
    rows = [{"messages": row["messages"][:2]} for row in chats({"content": "", "tool_calls": [CALL]}, 3)]
    rows += [{"messages": row["messages"][:2]} for row in chats({"content": "red"})]
    found = encode(rows, template)
    assert targets(found) == {"red"}
    assert "3 answers that call tools are context and not targets" in found.notes[0]
    assert "refuses the messages with tool calls (one call only)" in found.notes[0]


def test_tool_calls_are_no_targets_in_chats_as_plain_text() -> None:
    rows = chats({"content": "Let me add.", "tool_calls": [CALL]})
    task = lines(rows, chat="plain")
    assert {row.target for row in every(task)} == {"It is 2"}
    assert "10 answers that call tools are context and not targets" in "\n".join(task.notes())
    with pytest.raises(UserError, match=r"every answer of the assistant calls tools.*leave chat=plain out"):
        every(lines([{"messages": row["messages"][:2]} for row in rows], chat="plain"))


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning", "thinking"])
def test_a_thought_is_part_of_the_target_if_the_template_writes_it(field: str) -> None:
    template = QWEN.replace("reasoning_content", field)
    rows = chats({"content": "red", field: "let me see"}, 9) + chats({"content": "red", field: ""}, 1)
    assert targets(encode(rows, template)) == {"<think>\nlet me see\n</think>\n\nred", "red", "It is 2"}
    found = encode(rows, CHATML)
    assert targets(found) == {"red", "It is 2"}
    (note,) = found.notes
    assert f"the field '{field}' of 9 answers is not trained" in note
    assert "<think>THOUGHT</think>ANSWER" in note


def test_tool_calls_are_not_counted_as_labels_and_are_shown_as_text() -> None:
    task = lines([{"messages": row["messages"][:2]} for row in chats({"content": "", "tool_calls": [CALL]}, 40)])
    assert task.suggested_metrics() == ("exact_match",)
    (first,) = [note for note in task.notes() if "first row" in note]
    assert '"name": "add"' in first
    assert '"role"' not in first


def test_examples_in_memory_and_on_disk_get_the_same_answers() -> None:
    tokenizer = byte_level(QWEN)
    stored = lines(chats({"content": "", "tool_calls": [CALL]}), dev=1, test=1).load("held-out").train
    layout = chat_layout(tokenizer, LAYOUT, "template")
    assert [*text_answers(stored, tokenizer, layout)] == [*text_answers(tuple(stored), tokenizer, layout)]
    plain = byte_level(CHATML)
    for rows in (stored, tuple(stored)):
        assert {row.target for row in without_untrained_calls(rows, plain, layout)} == {"It is 2"}


def test_a_model_is_trained_and_scored_on_tool_calls(elsewhere: Path) -> None:
    template = (
        "{% for message in messages %}<|im_start|>{{ message.content }}{% for call in message.tool_calls or [] %}"
    )
    template += "!{{ call.function.name }}{% endfor %}<|im_end|>{% endfor %}"
    template += "{% if add_generation_prompt %}<|im_start|>{% endif %}"
    base, rows = chat_llama(elsewhere / "llama", template), chats({"content": "", "tool_calls": [CALL]}, 24)
    Path("calls.jsonl").write_text("".join(json.dumps({"messages": row["messages"][:2]}) + "\n" for row in rows))
    adapter = pt.train(
        base, "calls.jsonl", method="full", bits=32, steps=40, learning_rate=1e-2, batch_size=8, dev=2, test=2,
        out="out",
    )  # fmt: skip
    for data in (None, "calls.jsonl"):
        scores = adapter.evaluate(data)
        assert scores.exact_match == 100
    assert scores.seen_rows is not None
    assert len(scores.seen_rows) == 20
    assert adapter.predict(["Add 3"], max_new_tokens=8) == ["!add"]
