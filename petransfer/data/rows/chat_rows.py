"""Rows that contain chats: lists of messages with roles. Every answer of the assistant becomes an example."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from petransfer.data.bad_rows import BadRow
from petransfer.data.rows.chat_notes import THOUGHTS, ChatNotes, is_trained, read_tools
from petransfer.data.rows.records import MESSAGE_KEYS, as_text

ROLES = ("system", "user", "assistant", "tool")
COLUMNS = ("messages", "conversations")
# The column of chats in Gemini's format. It is read as chats only if it has messages, because a column of texts can
# have the same name.
GEMINI_COLUMN = "contents"
# Other names of the roles in chat datasets.
_OTHER_NAMES = {
    "human": "user",
    **dict.fromkeys(("gpt", "chatgpt", "model", "ai", "bot"), "assistant"),
    **dict.fromkeys(("function", "observation"), "tool"),
    "developer": "system",
}
_ONLY_CALLS = (
    "every answer of the assistant calls tools, and plain-text chats cannot represent tool calls; leave chat=plain "
    "out, or write each call as text in the content of its message, without the field for calls"
)
Message = dict[str, Any]
# Fields of an answer that only the chat template can write.
_WRITTEN_WHOLE = ("tool_calls", *THOUGHTS)


def chat_turns(
    value: Any,
    notes: ChatNotes,
    system: str = "",
    tools: Any = None,
    completion: Any = None,
    is_plain: bool = False,
) -> Iterator[tuple[str, str, str]]:
    """Yield (prompt, answer, first message of the user) for each trained answer of the assistant in a chat.

    See `chat_prompt` for the format of a prompt, and `is_whole_message` for answers that call tools.

    Args:
        value: List of messages, or its JSON text.
        notes: Collects what the user should know about the chats.
        system: Content of a system message that is added at the beginning. Empty: none is added.
        tools: Descriptions of the tools that the assistant can call.
        completion: Further messages. If given, only answers in these messages are yielded.
        is_plain: Whether the chats are written as plain text. A message that calls tools is then not an answer.

    Raises:
        BadRow: The value is not a valid chat, or has no trained answer.
    """
    messages = read_messages(value)
    from_here = 0
    if completion is not None:
        from_here, messages = len(messages), messages + read_messages(completion)
    if system.strip():
        if messages[0]["role"] == "system":
            notes.own_system += messages[0]["content"] != system
        else:
            from_here, messages = from_here + 1, [{"role": "system", "content": system}, *messages]
    given = read_tools(tools)
    first = next((message["content"] for message in messages if message["role"] == "user"), "")
    from_assistant = [at for at, message in enumerate(messages) if message["role"] == "assistant"]
    # the text before a tool call does not end the turn, so it cannot be trained as an answer without the call
    answers = [at for at in from_assistant if not (is_plain and messages[at].get("tool_calls"))]
    if not answers:
        raise BadRow(_ONLY_CALLS if from_assistant else "the chat has no answer of the assistant")
    if answers == [0]:
        raise BadRow("the chat begins with the assistant; a message of the user or system must come before")
    notes.greetings += answers[0] == 0
    trained = [is_trained(message, notes) for message in messages]
    notes.calls += len(from_assistant) - len(answers)
    targets = [at for at in answers if trained[at] and at >= max(from_here, 1)]
    if not targets:
        raise BadRow("no answer of the assistant is a target: a field such as weight or train excludes each of them")
    for at in targets:
        if is_plain:
            notes.count_thoughts(messages[at])
        yield chat_prompt(messages[:at], given), _answer(messages[at], is_plain), first


def _answer(message: Message, is_plain: bool) -> str:
    if is_plain or not any(message.get(key) for key in _WRITTEN_WHOLE):
        return str(message["content"])
    return chat_prompt([message])[1:-1]


def is_whole_message(target: str) -> bool:
    """Return whether an answer is a whole message as JSON, because it has tool calls or a thought besides its content.

    `petransfer.data.answers` converts such answers to text with the chat template.
    """
    if not target.startswith('{"role": "assistant", '):
        return False
    try:
        message = json.loads(target)
    except (ValueError, RecursionError):
        return False
    return isinstance(message, dict) and any(message.get(key) for key in _WRITTEN_WHOLE) and "content" in message


def chat_prompt(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> str:
    """Return a prompt as JSON: the list of messages, or an object with `messages` and `tools`.

    Values that JSON does not have, such as times, become text.

    Raises:
        BadRow: A value is nested too deeply.
    """
    content = {"messages": messages, "tools": tools} if tools else messages
    try:
        return json.dumps(content, ensure_ascii=False, default=str)
    except (RecursionError, ValueError, TypeError):  # a value contains itself, or a key is not text
        raise BadRow("a message has a value that JSON cannot hold") from None


def read_prompt(text: str) -> tuple[list[Message], list[dict[str, Any]]]:
    """Return the messages and the tools of a prompt in the format of `chat_prompt`.

    Raises:
        ValueError: The text has another format.
    """
    value = json.loads(text)
    if not isinstance(value, dict):
        return read_messages(value), []
    if not {"messages"} <= value.keys() <= {"messages", "tools"}:
        raise BadRow("not a chat")
    return read_messages(value["messages"]), read_tools(value.get("tools"))


def read_messages(value: Any) -> list[Message]:
    """Return the messages of a chat, with the keys `role` and `content`.

    Raises:
        BadRow: The value is not a list of messages, a message is empty, or a role is unknown.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            if value.lstrip().startswith("[{'"):  # as a table of Python lists is written to csv
                raise BadRow(
                    "the messages are the text of a Python list, not JSON; save the table as JSON lines"
                ) from None
            raise BadRow("the messages are text and not a JSON list") from None
    if not isinstance(value, list):
        raise BadRow("the messages are missing" if value is None else "the messages are not a list")
    if not value:
        raise BadRow("the list of messages is empty")
    return [_message(each) for each in value]


def readable_answer(target: str) -> str:
    """Return an answer for display. A whole message is shown as its thought, its content and its tool calls."""
    if not is_whole_message(target):
        return target
    message = json.loads(target)
    calls = [json.dumps(call.get("function", call), ensure_ascii=False) for call in message.get("tool_calls") or ()]
    return " ".join(filter(None, (*(str(message.get(key) or "") for key in THOUGHTS), message["content"], *calls)))


def readable_input(text: str, only_last: bool = False) -> str:
    """Return an input for display: a chat as `role: content` lines, any other text unchanged.

    `only_last` shows only the last message of a chat, and the number of earlier messages.
    """
    if not text.startswith(('[{"role": ', '{"messages": ')):
        return text
    try:
        messages, _ = read_prompt(text)
    except ValueError:
        return text
    *before, last = messages
    if not before and last["role"] == "user":
        return str(last["content"])
    if only_last:
        return f"{last['content']} (after {len(before)} earlier message{'' if len(before) == 1 else 's'})"
    return "\n".join(f"{message['role']}: {message['content']}" for message in messages)


def _message(value: Any) -> Message:
    if not isinstance(value, Mapping):
        raise BadRow("a message is not an object with role and content")
    named = [keys for keys in MESSAGE_KEYS if keys[0] in value]
    role_key, content_key = next((keys for keys in named if keys[1] in value), [*named, MESSAGE_KEYS[0]][0])
    role = str(value.get(role_key)).strip().lower()
    role = _OTHER_NAMES.get(role, role)
    content = value.get(content_key)
    # in a parquet or arrow file, every message has the keys of all messages; keys without a value are left out
    others = {k: v for k, v in value.items() if k not in (role_key, content_key) and v is not None}
    if role == "function_call":  # a name of LLaMA-Factory for an assistant's message that calls tools
        role, content, others = "assistant", None, others | {"tool_calls": _calls(content)}
    elif role == "assistant" and others.get("function_call") and not others.get("tool_calls"):
        others["tool_calls"] = _calls(others.pop("function_call"))  # the older name of OpenAI
    if role == "assistant" and others.get("tool_calls"):
        others["tool_calls"] = _with_read_arguments(others["tool_calls"])
    if role_key not in value:
        has = ", ".join(map(str, list(value)[:6]))
        raise BadRow(f"a message has no role (it has: {has}); write its keys as role and content")
    if role not in ROLES:
        raise BadRow(f"unknown role '{role[:20]}' in a message (known: {', '.join(ROLES)})")
    text = _content(content)
    calls_tools = role == "assistant" and bool(others.get("tool_calls"))
    if not text.strip() and not calls_tools:
        raise BadRow(f"a message of the {role} is empty")
    return {"role": role, "content": text.strip() if role == "assistant" else text, **others}


def _calls(value: Any) -> list[dict[str, Any]]:
    """Return calls of functions in the form of `tool_calls`. The value can be JSON text."""
    try:
        value = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        value = None
    calls = value if isinstance(value, list) else [value]
    if not calls or not all(isinstance(call, Mapping) and "name" in call for call in calls):
        raise BadRow("a call of a function is not an object with name and arguments")
    return [{"type": "function", "function": dict(call)} for call in calls]


def _with_read_arguments(calls: Any) -> Any:
    """Return tool calls in which arguments that are JSON text are converted to objects, as chat templates expect."""
    if isinstance(calls, str):
        try:
            calls = json.loads(calls)
        except (ValueError, RecursionError):
            raise BadRow("the tool calls are text and not a JSON list") from None
    if not isinstance(calls, list) or not all(isinstance(call, Mapping) for call in calls):
        raise BadRow("the tool calls are not a list of objects")
    return [_with_read_argument(call) for call in calls]


def _with_read_argument(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call.get("function", call)
    given = function.get("arguments") if isinstance(function, Mapping) else None
    if not isinstance(given, str):
        return dict(call)
    try:
        arguments = json.loads(given)
    except (ValueError, RecursionError):
        return dict(call)
    if not isinstance(arguments, dict):
        return dict(call)
    read = {**function, "arguments": arguments}
    return {**call, "function": read} if "function" in call else read


def system_text(value: Any, column: str) -> str:
    """Return the text of a system prompt: a text, a list of texts, or an object with such a list as `parts`.

    Raises:
        BadRow: The value has another form.
    """
    if isinstance(value, Mapping):
        value = value.get("parts", value)
    if not isinstance(value, list | Mapping):
        return "" if value is None else as_text(value, column)
    try:
        return _content(value)
    except BadRow:
        raise BadRow(f"the {column} is neither a text nor a list of texts") from None


def _is_text(part: Any) -> bool:
    """Return whether a part of a message is a text, as in `{"type": "text", "text": "Hi"}` or `{"text": "Hi"}`."""
    return isinstance(part, Mapping) and (part.get("type") == "text" or part.keys() == {"text"})


def _content(value: Any) -> str:
    """Return the text of a message. The texts of several parts are joined."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(map(_is_text, value)):
        return "".join(str(part.get("text") or "") for part in value)
    raise BadRow("the content of a message is not text")
