"""Rows that contain chats: lists of messages with roles. Every answer of the assistant becomes an example."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from petransfer.data.bad_rows import BadRow

ROLES = ("system", "user", "assistant", "tool")
COLUMNS = ("messages", "conversations")
# The keys for role and content, and further names of the roles, that chat datasets use.
_KEYS = (("role", "content"), ("from", "value"))
_OTHER_NAMES = {"human": "user", "gpt": "assistant", "function": "tool", "observation": "tool", "developer": "system"}
Message = dict[str, Any]


def chat_turns(value: Any) -> Iterator[tuple[str, str, str]]:
    """Yield (prompt, answer, first message of the user) for each answer of the assistant in a chat.

    The prompt is the JSON list of all messages before the answer. A message that only calls tools is not an answer.

    Raises:
        BadRow: The value is not a valid chat, begins with the assistant, or has no answer of the assistant.
    """
    messages = read_messages(value)
    first = next((message["content"] for message in messages if message["role"] == "user"), "")
    answers = [at for at, message in enumerate(messages) if message["role"] == "assistant" and message["content"]]
    if not answers:
        raise BadRow("the chat has no answer of the assistant")
    if answers[0] == 0:
        raise BadRow("the chat begins with the assistant; a message of the user or system must come before")
    for at in answers:
        yield chat_prompt(messages[:at]), messages[at]["content"], first


def chat_prompt(messages: Sequence[Message]) -> str:
    """Return messages as a JSON list. Values that JSON does not have, such as times, become text.

    Raises:
        BadRow: A value is nested too deeply.
    """
    try:
        return json.dumps(messages, ensure_ascii=False, default=str)
    except (RecursionError, ValueError, TypeError):  # a value contains itself, or a key is not text
        raise BadRow("a message has a value that JSON cannot hold") from None


def read_messages(value: Any) -> list[Message]:
    """Return the messages of a chat, with the keys `role` and `content`.

    Raises:
        BadRow: The value is not a list of messages, a message is empty, or a role is unknown.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise BadRow("the messages are text and not a JSON list") from None
    if not isinstance(value, list):
        raise BadRow("the messages are missing" if value is None else "the messages are not a list")
    if not value:
        raise BadRow("the list of messages is empty")
    return [_message(each) for each in value]


def readable_input(text: str, only_last: bool = False) -> str:
    """Return an input for display: a chat as `role: content` lines, any other text unchanged.

    `only_last` shows only the last message of a chat, and the number of earlier messages.
    """
    if not text.startswith('[{"role": '):
        return text
    try:
        messages = read_messages(text)
    except BadRow:
        return text
    *before, last = messages
    if not before and last["role"] == "user":
        return str(last["content"])
    if only_last:
        return f"{last['content']} (after {len(before)} message{'' if len(before) == 1 else 's'})"
    return "\n".join(f"{message['role']}: {message['content']}" for message in messages)


def _message(value: Any) -> Message:
    if not isinstance(value, Mapping):
        raise BadRow("a message is no object with role and content")
    # some datasets name the keys `from` and `value`
    role_key, content_key = next((keys for keys in _KEYS if keys[0] in value), _KEYS[0])
    role = str(value.get(role_key))
    role = _OTHER_NAMES.get(role, role)
    if role not in ROLES:
        raise BadRow(f"unknown role '{role[:20]}' in a message (known: {', '.join(ROLES)})")
    content = _content(value.get(content_key))
    # in a parquet or arrow file, every message has the keys of all messages; keys without a value are left out
    others = {k: v for k, v in value.items() if k not in (role_key, content_key) and v is not None}
    calls_tools = role == "assistant" and bool(others.get("tool_calls"))
    if not content.strip() and not calls_tools:
        raise BadRow(f"a message of the {role} is empty")
    return {"role": role, "content": content.strip() if role == "assistant" else content, **others}


def _content(value: Any) -> str:
    """Return the text of a message. The texts of several parts are joined."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(part, Mapping) and part.get("type") == "text" for part in value):
        return "".join(str(part.get("text") or "") for part in value)
    raise BadRow("the content of a message is not text")
