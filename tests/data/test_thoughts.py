"""Chat templates of reasoning models, which begin a thought at the end of the prompt."""

from __future__ import annotations

from typing import Any

import pytest

from petransfer.data import LinesTask
from petransfer.data.chat import chat_layout, render_chat
from petransfer.data.encoded_examples import encode_split
from petransfer.data.encoding import encode_examples
from tests.chat_models import CHATML, byte_level
from tests.data.test_chat import LAYOUT, every, lines

pytestmark = pytest.mark.usefixtures("elsewhere")


def notes_and_texts(tag: str, *answers: str) -> tuple[list[str], list[str]]:
    """Return the notes of `encode_split`, and the whole trained text of each answer."""
    rows: list[dict[str, Any]] = [
        {"messages": [{"role": "user", "content": f"Hi {n}"}, {"role": "assistant", "content": answer}]}
        for n, answer in enumerate(answers)
    ]
    tokenizer = byte_level(CHATML.replace("assistant\n", f"assistant\n{tag}"))
    task, layout = lines(rows, dev=1, test=1), chat_layout(tokenizer, LAYOUT, "template")
    notes = encode_split(task.load("held-out"), "", tokenizer, layout).notes
    encoded = encode_examples(every(task), "", tokenizer, layout)
    assert [row.target for row in every(task)] == list(answers)
    return notes, [tokenizer.decode(row.input_ids + row.target_ids) for row in encoded]


@pytest.mark.parametrize(("tag", "end"), [("<think>\n", "</think>"), ("[THINK]", "[/THINK]")])
def test_an_opening_tag_is_not_repeated_and_answers_without_closing_tag_are_counted(tag: str, end: str) -> None:
    thought = f"{tag}let me see\n{end}\n\nred"
    notes, texts = notes_and_texts(tag, thought, thought, f"let me see\n{end}\n\nred", "red")
    start = "<|im_start|>user\nHi {}<|im_end|>\n<|im_start|>assistant\n" + tag
    assert texts[:3] == [f"{start.format(n)}let me see\n{end}\n\nred<|im_end|>" for n in range(3)]
    assert texts[3] == f"{start.format(3)}red<|im_end|>"
    once, unclosed = notes
    assert f"2 of 4 answers begin with {tag.strip()}" in once
    assert "only once" in once
    assert f"warning: 1 of 4 answers have no {end}" in unclosed


def test_templates_without_an_opening_tag_do_not_change_answers() -> None:
    notes, texts = notes_and_texts("", "<think>\nhm\n</think>\n\nred", "red", "blue")
    assert notes == []
    assert texts[0].endswith("assistant\n<think>\nhm\n</think>\n\nred<|im_end|>")
    opening = byte_level(CHATML.replace("assistant\n", "assistant\n<think>\n"))
    assert render_chat("Hi", "", opening, "template").endswith("<think>\n")  # the prompt for a new answer


@pytest.mark.parametrize("heading", ["<think>\n\n</think>\n\n", "<|channel|>final<|message|>"])
def test_text_that_the_template_writes_before_an_answer_is_reported(heading: str) -> None:
    """Qwen3 and gpt-oss have such templates."""
    content = "{{ message['content'] }}"
    assert CHATML.count(content) == 1
    own = f"{{% if message['role'] == 'assistant' %}}{{{{ {heading!r} }}}}{{% endif %}}"
    tokenizer = byte_level(CHATML.replace(content, own + content))
    tokenizer.name_or_path = "tiny"

    def task_of(answer: str) -> LinesTask:
        return lines(
            [
                {"messages": [{"role": "user", "content": f"Hi {n}"}, {"role": "assistant", "content": answer}]}
                for n in range(3)
            ],
            dev=1,
            test=1,
        )

    task, layout = task_of("red"), chat_layout(tokenizer, LAYOUT, "template")
    (note,) = encode_split(task.load("held-out"), "", tokenizer, layout).notes
    assert note.startswith(f"warning: the chat template of tiny writes {heading!r} between the prompt and an answer")
    (encoded, *_) = encode_examples(every(task), "", tokenizer, layout)
    assert tokenizer.decode(encoded.target_ids) == "red<|im_end|>"
    with_thoughts = task_of("<think>\nhm\n</think>\n\nred")
    notes = encode_split(with_thoughts.load("held-out"), "", tokenizer, layout).notes
    assert len(notes) == (0 if "think" in heading else 1)
