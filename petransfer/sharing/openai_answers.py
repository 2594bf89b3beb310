"""Build answers in the JSON format of OpenAI's endpoints: complete answers, streamed parts, and errors."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from petransfer.evaluation.generation import Generation
from petransfer.sharing.openai_requests import ParsedRequest


@dataclass(frozen=True)
class Answer:
    """Builds the answer to one request, complete or in parts. All parts have the same `id`.

    created: Unix time in seconds.
    """

    parsed: ParsedRequest
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, found: Sequence[Generation]) -> dict[str, Any]:
        """Return the complete answer: all generated texts and the numbers of tokens."""
        choices = [self._choice(at, one) for at, one in enumerate(found)]
        return self._frame("chat.completion", choices) | {"usage": usage(found)}

    def first_part(self) -> dict[str, Any] | None:
        """Return the first part of a streamed chat answer. None for a completion."""
        delta = {"role": "assistant", "content": ""}
        return self._frame("chat.completion.chunk", [_part(0, delta=delta)]) if self.parsed.is_chat else None

    def part(self, at: int, text: str) -> dict[str, Any]:
        """Return the next part of the text for prompt number `at` (from 0)."""
        content = {"delta": {"content": text}} if self.parsed.is_chat else {"text": text}
        return self._frame("chat.completion.chunk", [_part(at, **content)])

    def last_part(self, at: int, found: Generation) -> dict[str, Any]:
        """Return the last part of the text for prompt number `at` (from 0), with the reason for its end."""
        content: dict[str, Any] = {"delta": {}} if self.parsed.is_chat else {"text": ""}
        return self._frame("chat.completion.chunk", [_part(at, **content) | {"finish_reason": _reason(found)}])

    def usage_part(self, found: Sequence[Generation]) -> dict[str, Any]:
        """Return the part of a streamed answer that gives the numbers of tokens."""
        return self._frame("chat.completion.chunk", []) | {"usage": usage(found)}

    def _choice(self, at: int, found: Generation) -> dict[str, Any]:
        text = found.text
        content = {"message": {"role": "assistant", "content": text}} if self.parsed.is_chat else {"text": text}
        return _part(at, **content) | {"finish_reason": _reason(found)}

    def _frame(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        is_chat = self.parsed.is_chat
        return {
            "id": f"{'chatcmpl' if is_chat else 'cmpl'}-{self.id}",
            "object": kind if is_chat else "text_completion",
            "created": self.created,
            "model": self.parsed.prompts.model,
            "choices": choices,
        }


def usage(found: Sequence[Generation]) -> dict[str, int]:
    """Return the numbers of input tokens and of generated tokens of a request."""
    read, written = sum(one.input_tokens for one in found), sum(one.tokens for one in found)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def error_content(message: str, status: int, parameter: str | None) -> dict[str, Any]:
    """Return an error in OpenAI's JSON format. `parameter` is the name of the wrong part of the request."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    message = message.encode("utf-8", "backslashreplace").decode()  # a request can contain unpaired surrogates
    return {"error": {"message": message, "type": kind, "param": parameter, "code": None}}


def _part(at: int, **content: Any) -> dict[str, Any]:
    return {"index": at, **content, "logprobs": None, "finish_reason": None}


def _reason(found: Generation) -> str:
    return "stop" if found.ended else "length"
