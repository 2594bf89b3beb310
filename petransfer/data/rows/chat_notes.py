"""Read the fields and columns beside the messages of a chat, such as weights and tools, and report them to the user."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from petransfer.data.bad_rows import BadRow
from petransfer.plurals import count

SYSTEM_COLUMNS = ("system", "system_prompt", "systemInstruction", "system_instruction")
TOOL_COLUMNS = ("tools", "functions")
# Fields that determine whether an answer is a target, and the value that excludes it. Chat datasets use all of them.
_NOT_TRAINED = {
    **dict.fromkeys(("weight", "train", "training", "trainable", "loss", "loss_weight", "loss_scale", "loss_mask"), 0),
    **dict.fromkeys(("mask", "masked"), 1),
}
_WORDS = {"true": 1, "false": 0, "1": 1, "0": 0}
# Other fields of messages that are given to the chat template and need no note.
THOUGHTS = ("reasoning_content", "reasoning", "thinking")
_USUAL = {"role", "content", "name", "tool_calls", "tool_call_id", *THOUGHTS}


@dataclass
class ChatNotes:
    """What the user should know about the chats of a source, collected over all rows.

    Args:
        untrained: For each field such as `weight`, the number of answers that it excludes from training.
        calls: Number of answers that call tools.
        greetings: Number of chats that begin with a message of the assistant.
        thoughts: For each field such as `reasoning_content`, the number of trained answers that lose it.
        own_system: Number of chats with a system message that differs from the column's text.
        later_columns: Columns with a system prompt or tools that the first rows of a JSON file do not have.
        without_effect: Fields of messages that do not change which answers are trained.
        other_weights: Whether a weight is neither 0 nor 1.
        asked_of_others: Whether a field requests training on a message of another role than the assistant.
    """

    untrained: dict[str, int] = field(default_factory=dict)
    calls: int = 0
    greetings: int = 0
    thoughts: dict[str, int] = field(default_factory=dict)
    own_system: int = 0
    later_columns: dict[str, None] = field(default_factory=dict)
    without_effect: dict[str, None] = field(default_factory=dict)
    other_weights: bool = False
    asked_of_others: bool = False

    def count_thoughts(self, message: Mapping[str, Any]) -> None:
        """Count the fields with a thought in a trained answer."""
        for key in THOUGHTS:
            if message.get(key):
                self.thoughts[key] = self.thoughts.get(key, 0) + 1

    def lines(self, name: str, system_column: str) -> Iterator[str]:
        """Yield the notes. `name` is the name of the source."""
        for key, number in self.untrained.items():
            yield f"{name}: {_are(number, 'answer')} context and not targets, because of the field '{key}'"
        if self.calls:
            answers = count(self.calls, "answer")
            yield f"{name}: {answers} that call tools are context and not targets"
        if self.greetings:
            chats = count(self.greetings, "chat")
            yield f"{name}: {chats} that begin with the assistant: this first message is context and not a target"
        for note in thoughts_notes(self.thoughts):
            yield f"warning: {name}: {note}"
        for column in self.later_columns:
            yield f"{name}: the column '{column}' is also read, although the first rows do not have it"
        if self.own_system:
            chats = count(self.own_system, "chat")
            column = system_column or next((each for each in self.later_columns if each in SYSTEM_COLUMNS), "")
            yield f"warning: {name}: in {chats}, the chat's own system message is used instead of the column '{column}'"
        if self.other_weights:
            yield f"warning: {name}: of the weights of messages, only 0 and 1 are used; other weights count as 1"
        if self.asked_of_others:
            yield (
                f"warning: {name}: fields request training on messages of other roles; only answers of the "
                "assistant are targets"
            )
        if self.without_effect:
            shown = ", ".join(repr(key) for key in list(self.without_effect)[:10])
            yield (
                f"warning: {name}: these fields of messages do not change which answers are trained; only the chat "
                f"template gets them: {shown}"
            )


def thoughts_notes(thoughts: Mapping[str, int]) -> Iterator[str]:
    """Yield a note for each field with thoughts, such as `reasoning_content`, that is not trained.

    Args:
        thoughts: For each field, the number of answers with it.
    """
    for key, number in thoughts.items():
        yield (
            f"the field '{key}' of {count(number, 'answer')} is not trained, because the chats are written without it; "
            "to train it, write it into the content, for example as <think>THOUGHT</think>ANSWER"
        )


def is_trained(message: Mapping[str, Any], notes: ChatNotes) -> bool:
    """Return whether the fields of a message allow training on it. Only used for answers of the assistant.

    Args:
        notes: Collects what the user should know about the fields.

    Raises:
        BadRow: A field such as `weight` is neither a number nor true or false.
    """
    trained = True
    for key, value in message.items():
        if key not in _NOT_TRAINED:
            if key not in _USUAL:
                notes.without_effect.setdefault(key)
            continue
        number = _WORDS.get(value.strip().lower()) if isinstance(value, str) else value
        if not isinstance(number, bool | int | float):
            raise BadRow(f"the field '{key}' of a message is neither 0 nor 1", repr(value)[:40])
        notes.other_weights |= number not in (0, 1)
        asks = number != _NOT_TRAINED[key]
        if message["role"] != "assistant":
            notes.asked_of_others |= asks and _NOT_TRAINED[key] == 0
        elif not asks and trained and (message["content"] or message.get("tool_calls")):
            trained = False
            notes.untrained[key] = notes.untrained.get(key, 0) + 1
    return trained


def read_tools(value: Any) -> list[dict[str, Any]]:
    """Return descriptions of tools in the form that chat templates expect. The value can be JSON text.

    Raises:
        BadRow: The value is not a list of objects.
    """
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise BadRow("the tools are text and not a JSON list") from None
    if not value and not isinstance(value, int | float):
        return []
    if not isinstance(value, list):
        raise BadRow("the tools are not a list")
    if not all(isinstance(tool, Mapping) for tool in value):
        raise BadRow("a tool is not an object with name and parameters")
    bare = [tool for tool in value if "name" in tool and "function" not in tool]
    return [{"type": "function", "function": dict(tool)} if tool in bare else dict(tool) for tool in value]


def without_nulls(value: Any) -> Any:
    """Return a value without the keys that have no value, at any depth.

    In parquet and arrow files, every tool and every call has the keys of all tools and calls, many without a value.
    """
    if isinstance(value, Mapping):
        return {key: without_nulls(each) for key, each in value.items() if each is not None}
    return [without_nulls(each) for each in value] if isinstance(value, list) else value


def chat_columns_note(name: str, chats: Sequence[str], system: str, tools: str, others: Sequence[str]) -> str:
    """Return the note that says which columns are read as chats, and which are not read."""
    are = f"the column '{chats[0]}' is" if len(chats) == 1 else f"the columns {_quoted(chats, ' and ')} are"
    parts = [f"{name}: {are} read as chats"]
    parts += [f"'{system}' is the first message"] if system else []
    parts += [f"'{tools}' is given to the chat template"] if tools else []
    return ", ".join(parts) + (f"; not read: {_quoted(others[:10], ', ')}" if others else "")


def _quoted(names: Sequence[str], between: str) -> str:
    return between.join(f"'{name}'" for name in names)


def _are(number: int, thing: str) -> str:
    return f"{count(number, thing)} {'is' if number == 1 else 'are'}"
