"""Convert chat answers with tool calls, or with a thought in a separate field, to text with the chat template."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from petransfer.data.bad_rows import BadRow
from petransfer.data.chat import by_template, prompt_of
from petransfer.data.layout import Layout, special_tokens
from petransfer.data.rows.chat_notes import THOUGHTS
from petransfer.data.rows.chat_rows import is_whole_message
from petransfer.data.rows.stored_rows import StoredRows
from petransfer.data.task import Example


class UntrainedCall(BadRow):
    """The error for an answer with tool calls that cannot be a target. Its example is left out."""


def text_answers(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, layout: Layout) -> Sequence[Example]:
    """Convert the answers of all examples; see `text_answer`. Answers that cannot be converted are unchanged."""
    if not examples or examples[0].chat != "template":
        return examples

    def change(example: Example) -> Example:
        return text_answer_or_same(example, tokenizer, layout)

    return examples.changed_by(change) if isinstance(examples, StoredRows) else tuple(map(change, examples))


def text_answer(example: Example, tokenizer: PreTrainedTokenizerBase, layout: Layout) -> Example:
    """Return an example with its answer as the text that the chat template writes after the prompt.

    Raises:
        UntrainedCall: The template cannot write the tool calls of the answer as text that ends like other answers.
        BadRow: The template refuses the prompt.
    """
    if example.chat != "template" or not is_whole_message(example.target):
        return example
    message: dict[str, Any] = json.loads(example.target)
    messages, tools = prompt_of(example.input)
    prompt = by_template(messages, tools, tokenizer)
    end = str(tokenizer.convert_ids_to_tokens(layout.eos_id))

    def written(answer: dict[str, Any]) -> str | None:
        whole = by_template([*messages, answer], tools, tokenizer, is_finished=True)
        text, found, _ = whole.removeprefix(prompt).partition(end)
        return text if whole.startswith(prompt) and found else None

    if not message.get("tool_calls"):
        text = written(message)
        if text is None or _special_tokens_in(text, tokenizer):
            text = message["content"]
        return replace(example, target=text)
    try:
        text = written(message)
        without_calls = written({key: value for key, value in message.items() if key != "tool_calls"})
    except BadRow as refused:
        raise UntrainedCall(f"{refused.reason} with tool calls", refused.detail) from None
    if text is None:
        raise UntrainedCall("the chat template does not write tool calls like other answers")
    if text == without_calls:
        raise UntrainedCall("the chat template does not write tool calls")
    if special := _special_tokens_in(text, tokenizer):
        raise UntrainedCall(
            "the chat template writes calls with special tokens, which generated text does not contain", special[0]
        )
    return replace(example, target=text)


def text_answer_or_same(example: Example, tokenizer: PreTrainedTokenizerBase, layout: Layout) -> Example:
    """Return `text_answer`, or the example itself if its answer cannot be written as text."""
    try:
        return text_answer(example, tokenizer, layout)
    except BadRow:
        return example


def without_untrained_calls(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, layout: Layout
) -> Sequence[Example]:
    """Return the examples without those whose answers have tool calls and cannot be targets."""
    if not examples or examples[0].chat != "template":
        return examples
    return without(examples, [at for at, one in enumerate(examples) if _is_untrained_call(one, tokenizer, layout)])


def without(examples: Sequence[Example], positions: Sequence[int]) -> Sequence[Example]:
    """Return the examples without those at these positions."""
    if not positions:
        return examples
    if isinstance(examples, StoredRows):
        return examples.without(positions)
    left_out = set(positions)
    return tuple(example for at, example in enumerate(examples) if at not in left_out)


def ignored_thought(given: Example, written: Example) -> str:
    """Return the name of a field with reasoning text that the chat template leaves out. Empty without such a field.

    Args:
        given: The example as it was read.
        written: The same example after `text_answer`.
    """
    if not is_whole_message(given.target):
        return ""
    message = json.loads(given.target)
    return next((key for key in THOUGHTS if message.get(key) and str(message[key]).strip() not in written.target), "")


def _special_tokens_in(text: str, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    return [token for token in special_tokens(tokenizer).values() if token and token in text]


def _is_untrained_call(example: Example, tokenizer: PreTrainedTokenizerBase, layout: Layout) -> bool:
    try:
        text_answer(example, tokenizer, layout)
    except BadRow as problem:
        return isinstance(problem, UntrainedCall)
    return False
