"""Chats as text: by the tokenizer's chat template, or plainly as `role: content` lines."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from petransfer.data.bad_rows import BadRow
from petransfer.data.layout import Layout
from petransfer.data.rows.chat_rows import read_messages
from petransfer.errors import UserError, reason_of


def chat_layout(tokenizer: PreTrainedTokenizerBase, layout: Layout, chat: str) -> Layout:
    """Return the layout for chats: by a template, an answer ends with the template's own token for the end of a turn.

    Args:
        chat: The `chat` of the examples; for texts and plain chats the layout stays as it is.

    Raises:
        UserError: The model is an encoder-decoder, or its tokenizer has no chat template.
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
    return dataclasses.replace(layout, eos_id=_end_of_turn(tokenizer, layout.eos_id))


def render_chat(text: str, prefix: str, tokenizer: PreTrainedTokenizerBase, chat: str) -> str:
    """Return the prompt of a chat as text, up to where the assistant's answer begins.

    Args:
        text: The JSON list of the messages before the answer; any other text is the user's one message.
        prefix: Stands before the last message of the user.
        chat: `template` or `plain`.

    Raises:
        BadRow: The template refuses the messages, as some do where roles do not alternate.
    """
    messages = _with_prefix(messages_of(text), prefix)
    if chat == "plain":
        return "".join(f"{message['role']}: {message['content']}\n" for message in messages) + "assistant:"
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    except Exception as error:  # a template can fail in any way
        raise BadRow("the chat template refuses the messages", reason_of(error, 80)) from None


def messages_of(text: str) -> list[dict[str, Any]]:
    """Read the messages of a prompt: a JSON list of messages, or else the text is one message of the user."""
    if text.lstrip().startswith("["):
        try:
            return read_messages(json.loads(text))
        except ValueError:  # a text that begins with a bracket
            pass
    return [{"role": "user", "content": text}]


def _with_prefix(messages: Sequence[Mapping[str, Any]], prefix: str) -> list[dict[str, Any]]:
    found = [dict(message) for message in messages]
    last = next((message for message in reversed(found) if message["role"] == "user"), None)
    if prefix and last is not None:
        last["content"] = prefix + last["content"]
    return found


def _end_of_turn(tokenizer: PreTrainedTokenizerBase, eos_id: int) -> int:
    """The first special token that the template writes after an answer; the usual end token where there is none."""
    messages = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "ANSWER"}]
    try:
        tail = str(tokenizer.apply_chat_template(messages, tokenize=False)).rpartition("ANSWER")[2]
    except Exception as error:
        reason = reason_of(error, 80)
        raise UserError(f"the chat template of {tokenizer.name_or_path} cannot be used ({reason})") from None
    ids = tokenizer(tail, add_special_tokens=False, verbose=False)["input_ids"]
    special = {
        *tokenizer.all_special_ids,
        *(at for at, token in tokenizer.added_tokens_decoder.items() if token.special),
    }
    return next((int(token) for token in ids if token in special), eos_id)
