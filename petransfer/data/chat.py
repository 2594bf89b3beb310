"""Convert chats to text: with the tokenizer's chat template, or as plain `role: content` lines."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from petransfer.data.bad_rows import BadRow
from petransfer.data.layout import Layout, special_tokens
from petransfer.data.rows.chat_rows import read_prompt
from petransfer.errors import UserError, reason_of
from petransfer.plurals import count

_log = logging.getLogger(__name__)


def chat_layout(tokenizer: PreTrainedTokenizerBase, layout: Layout, chat: str) -> Layout:
    """Return the layout for examples that are chats.

    Args:
        chat: Field `chat` of the examples. With `template`, targets end with the end-of-turn token of the chat
            template, and generation also stops at the tokenizer's end token. Otherwise `layout` is returned unchanged.

    Raises:
        UserError: The tokenizer has no usable chat template, or the model is an encoder-decoder.
    """
    if chat != "template":
        return layout
    plain = "or write the messages as plain text with --set task.options.chat=plain"
    if layout.encoder_decoder:
        raise UserError(
            "the data are chats, and an encoder-decoder model has no chat template; use a decoder-only checkpoint that "
            f"was tuned on chats (often named -instruct or -chat), {plain}"
        )
    if not tokenizer.chat_template:
        raise UserError(
            f"the data are chats and the tokenizer ({tokenizer.name_or_path}) has no chat template; use a checkpoint "
            f"that was tuned on chats (often named -instruct or -chat), {plain}"
        )
    if "strftime_now" in str(tokenizer.chat_template):
        _warn_of_date(str(tokenizer.name_or_path))
    special = special_tokens(tokenizer)
    end = _end_of_turn(tokenizer, layout.eos_id, special)
    # A model that has learnt little from chats can still end a text with the tokenizer's own end token.
    others = [token for token in layout.end_ids if token != end and (token in special or token != layout.eos_id)]
    return dataclasses.replace(layout, eos_id=end, other_end_ids=tuple(others))


@functools.cache
def _warn_of_date(name: str) -> None:
    """Warn that a chat template writes today's date. Logged once per tokenizer, not for every layout."""
    _log.warning(
        "warning: the chat template of %s writes today's date into each prompt (strftime_now). On another day, the "
        "adapter therefore gets other prompts than in training. To avoid this, write a fixed date into the template",
        name,
    )


def render_chat(text: str, prefix: str, tokenizer: PreTrainedTokenizerBase, chat: str) -> str:
    """Return the prompt of a chat as text, up to the beginning of the assistant's answer.

    Args:
        text: JSON list of the messages before the answer, or a JSON object with `messages` and `tools`. Any other text
            is one message of the user.
        prefix: Text that is inserted at the beginning of the user's last message.
        chat: `template` for the chat template, `plain` for `role: content` lines.
    """
    messages, tools = prompt_of(text)
    messages = _with_prefix(messages, prefix)
    if chat == "plain":
        return "".join(f"{message['role']}: {message['content']}\n" for message in messages) + "assistant:"
    return by_template(messages, tools, tokenizer)


def tools_note(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, chat: str) -> str | None:
    """Return a warning if the prompts do not contain the tools of their chats. None if they do, or without tools.

    Args:
        texts: Inputs in the format of `render_chat`. Only the first one with tools is examined.
        chat: `template` or `plain`, as for `render_chat`.
    """
    found = (prompt_of(text) for text in texts if text.startswith('{"messages": '))
    messages, tools = next((prompt for prompt in found if prompt[1]), ([], []))
    if not tools:
        return None
    if chat == "plain":
        return "warning: the tools of the chats are left out, because the chats are written as plain text"
    try:
        if by_template(messages, tools, tokenizer) != by_template(messages, [], tokenizer):
            return None
    except BadRow:  # `encode_split` reports it
        return None
    template = f"the chat template of {tokenizer.name_or_path}"
    return f"warning: {template} does not support tools; the tools of the chats are left out"


def heading_note(targets: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return a warning if the chat template writes text between the prompt and an answer. None if it does not.

    There is no warning either if all targets begin like this text, as thoughts do.

    For example, the template of Qwen3 writes an empty thought before an answer without a thought, and the template of
    gpt-oss names the channel of the answer. Neither is in the prompt, so petransfer neither trains nor generates it.
    """
    question, answer = {"role": "user", "content": "question"}, {"role": "assistant", "content": "ANSWER"}
    try:
        prompt = by_template([question], [], tokenizer)
        whole = by_template([question, answer], [], tokenizer, is_finished=True)
    except BadRow:  # `encode_split` reports it
        return None
    heading, found, _ = whole.removeprefix(prompt).partition("ANSWER")
    if not whole.startswith(prompt) or not found or not heading.strip():
        return None
    opening = heading.split()[0]
    if all(target.startswith(opening) for target in targets):
        return None
    return (
        f"warning: the chat template of {tokenizer.name_or_path} writes {heading!r} between the prompt and an answer; "
        "petransfer leaves it out, in training and in predictions. Other programs may write it"
    )


def quoted_special_tokens(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[str]]:
    """Return, for each prompt, the tokenizer's special tokens that its messages contain as text.

    The tokenizer encodes them as special tokens. The model then reads them as the end or the beginning of a message.
    """
    tokens = sorted({token for token in special_tokens(tokenizer).values() if token.strip()})
    found = []
    for text in texts:
        contents = [str(message.get("content", "")) for message in prompt_of(text)[0]]
        found.append([token for token in tokens if any(token in content for content in contents)])
    return found


def quoted_note(rows: int, total: int, tokens: Iterable[str]) -> list[str]:
    """Return a warning about chats that contain special tokens as text. Empty without such a chat.

    Args:
        rows: Number of chats with special tokens in their messages.
        total: Number of all chats.
        tokens: These special tokens.
    """
    if not rows:
        return []
    shown = ", ".join(sorted(set(tokens))[:3])
    return [
        f"warning: the messages of {rows:,} of {count(total, 'chat')} contain special tokens as text ({shown}), which "
        "the model reads as the end or the beginning of a message; write them differently, such as with a blank inside"
    ]


def by_template(
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    is_finished: bool = False,
) -> str:
    """Return messages as text, written by the tokenizer's chat template.

    Args:
        is_finished: Whether the last message is the answer. False: the text is a prompt, up to the beginning of the
            answer.

    Raises:
        BadRow: The template refuses the messages.
    """
    given: dict[str, Any] = {"tools": list(tools)} if tools else {}

    def write(chat: Sequence[Mapping[str, Any]]) -> str:
        return str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=not is_finished, **given))

    try:
        return write(messages)
    except Exception as error:  # a template can raise any error
        reason = reason_of(error, 80)
    try:
        return write([_with_arguments_as_text(message) for message in messages])
    except Exception:
        raise BadRow("the chat template refuses the messages", reason) from None


def _with_arguments_as_text(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a message in which the arguments of tool calls are JSON text, as some templates expect."""
    calls = [dict(call) for call in message.get("tool_calls") or ()]
    for call in calls:
        function = call.get("function")
        if isinstance(function, Mapping) and not isinstance(function.get("arguments"), str):
            call["function"] = {**function, "arguments": json.dumps(function.get("arguments"), ensure_ascii=False)}
    return {**message, "tool_calls": calls} if calls else message


def prompt_of(text: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the messages and tools of a prompt. Plain text becomes one message of the user."""
    if text.lstrip().startswith(("[", "{")):
        try:
            return read_prompt(text)
        except (ValueError, RecursionError):  # not a chat, but a text that begins with a bracket
            pass
    return [{"role": "user", "content": text}], []


def _with_prefix(messages: Sequence[Mapping[str, Any]], prefix: str) -> list[dict[str, Any]]:
    found = [dict(message) for message in messages]
    last = next((message for message in reversed(found) if message["role"] == "user"), None)
    if prefix and last is not None:
        last["content"] = prefix + last["content"]
    return found


def _end_of_turn(tokenizer: PreTrainedTokenizerBase, eos_id: int, special: Mapping[int, str]) -> int:
    """Return the chat template's first special token after an answer. Default: `eos_id`."""
    messages = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "ANSWER"}]
    try:
        tail = str(tokenizer.apply_chat_template(messages, tokenize=False)).rpartition("ANSWER")[2]
    except Exception as error:
        reason = reason_of(error, 80)
        raise UserError(f"the chat template of {tokenizer.name_or_path} cannot be used ({reason})") from None
    ids = tokenizer(tail, add_special_tokens=False, verbose=False)["input_ids"]
    return next((int(token) for token in ids if token in special), eos_id)
