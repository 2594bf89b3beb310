"""Read and check requests to OpenAI's endpoints for completions and for chats."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

from petransfer.data.bad_rows import BadRow
from petransfer.data.chat import tools_note
from petransfer.data.rows.chat_notes import read_tools
from petransfer.data.rows.chat_rows import Message, chat_prompt, read_messages
from petransfer.sharing.request_batches import Prompts, ServedModel

# The largest size of a request in bytes, number of prompts in a request, number of generated tokens per prompt, and
# number of stop texts.
BODY, PROMPTS, TOKENS, STOPS = 2**20, 128, 4096, 16
# The default number of generated tokens; enough for most tasks.
DEFAULT_TOKENS = 512
# Options of OpenAI's endpoints and of vLLM, each with its allowed values. Other values would change the prompt or the
# text, or would ask for more than greedy decoding of one text per prompt.
_ONLY: dict[str, tuple[Any, ...]] = {
    "n": (1, None), "best_of": (1, None), "echo": (False, None), "temperature": (0, None),
    "suffix": (None, ""), "logit_bias": (None, {}), "presence_penalty": (0, None),
    "frequency_penalty": (0, None), "tools": (None, []), "functions": (None, []),
    "tool_choice": (None, "none", "auto"), "function_call": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}), "modalities": (None, ["text"]),
    "repetition_penalty": (1, None), "min_tokens": (0, None), "ignore_eos": (False, None),
    "use_beam_search": (False, None), "stop_token_ids": (None, []), "bad_words": (None, []),
    "guided_json": (None,), "guided_regex": (None,), "guided_choice": (None, []), "guided_grammar": (None,),
    "structured_outputs": (None,), "chat_template": (None,), "chat_template_kwargs": (None, {}),
    "continue_final_message": (False, None), "add_generation_prompt": (True, None), "documents": (None, []),
    "truncate_prompt_tokens": (None,), "reasoning_effort": (None,), "verbosity": (None, "medium"),
    "allowed_token_ids": (None, []), "logits_processors": (None, []), "skip_special_tokens": (True, None),
    "include_stop_str_in_output": (False, None), "top_logprobs": (None, 0), "prompt_logprobs": (None,),
}  # fmt: skip


class BadRequest(Exception):
    """Raised for a request that is refused.

    parameter: name of the wrong part of the request. None if the error belongs to no part.
    status: the HTTP status.
    """

    def __init__(self, message: str, parameter: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.parameter, self.status = parameter, status


@dataclass(frozen=True)
class ParsedRequest:
    """A valid request.

    is_chat: whether the answer has the format of a chat.
    stream: whether the answer is sent in parts.
    include_usage: whether the last part of a streamed answer gives the numbers of tokens.
    """

    prompts: Prompts
    is_chat: bool
    stream: bool = False
    include_usage: bool = False


async def read_request(request: Request, models: Mapping[str, ServedModel], is_chat: bool) -> ParsedRequest:
    """Read and check a request to the endpoint for chats (`is_chat`) or for completions.

    Raises:
        BadRequest: a part of the request is wrong.
    """
    content = await _content(request)
    # top_p never excludes the most likely token, so it does not change greedily generated texts. A request with top_p
    # but without a temperature expects sampling, as from OpenAI's server, and is refused.
    only = _ONLY if content.get("temperature") == 0 else _ONLY | {"top_p": (1, None)}
    if is_chat:  # `_messages` reads the tools
        only = {name: allowed for name, allowed in only.items() if name != "tools"}
    for name, allowed in only.items():
        if content.get(name) not in allowed:
            value = json.dumps(allowed[0])
            raise BadRequest(
                f"{name} must be {value} or absent: this server supports no other value; it generates texts greedily, "
                "one for each prompt",
                name,
            )
    if content.get("logprobs") not in ((None, False) if is_chat else (None,)):
        raise BadRequest("logprobs must be absent: this server does not return them", "logprobs")
    name = _model(content, models)
    texts, by_template = _messages(content, models[name]) if is_chat else (_prompts(content), False)
    stream = content.get("stream") or False
    options = content.get("stream_options") or {}
    if not isinstance(stream, bool) or not isinstance(options, dict):
        raise BadRequest("stream must be true or false, and stream_options an object", "stream")
    prompts = Prompts(name, texts, _max_tokens(content), by_template, _stop(content))
    return ParsedRequest(prompts, is_chat, stream, options.get("include_usage") is True)


async def _content(request: Request) -> dict[str, Any]:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > BODY:
            raise BadRequest(f"the request is larger than {BODY:,} bytes; send fewer prompts", status=413)
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        raise BadRequest("the request is not JSON") from None
    if not isinstance(content, dict):
        raise BadRequest("the request is not a JSON object")
    return content


def _stop(content: Mapping[str, Any]) -> tuple[str, ...]:
    value = content.get("stop")
    texts = [value] if isinstance(value, str) else value or []
    if not isinstance(texts, list) or len(texts) > STOPS or not all(isinstance(one, str) and one for one in texts):
        raise BadRequest(f"stop must be a text or a list of at most {STOPS} texts, and none can be empty", "stop")
    return tuple(texts)


def _model(content: Mapping[str, Any], models: Mapping[str, ServedModel]) -> str:
    name = content.get("model")
    if name is None and len(models) == 1:
        return next(iter(models))
    if not isinstance(name, str) or name not in models:
        raise BadRequest(no_model(name, models), "model", 404)
    return name


def no_model(name: Any, models: Iterable[str]) -> str:
    """Return the message on an unknown model."""
    return f"there is no model {name!r:.80}; this server has: {', '.join(models)}"


def _prompts(content: Mapping[str, Any]) -> list[str]:
    prompt = content.get("prompt")
    prompts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(prompts, list) or not prompts or not all(isinstance(one, str) for one in prompts):
        raise BadRequest("prompt must be a text or a list of texts", "prompt")
    if len(prompts) > PROMPTS:
        raise BadRequest(f"prompt has {len(prompts):,} texts; at most {PROMPTS} are allowed in one request", "prompt")
    return prompts


def _messages(content: Mapping[str, Any], model: ServedModel) -> tuple[list[str], bool]:
    """Return the prompt of a chat request, and whether the prompt is a JSON list of messages."""
    value = content.get("messages")
    if isinstance(value, str):
        raise BadRequest("messages must be a list of objects with role and content", "messages")
    try:
        messages = read_messages(value)
    except BadRow as problem:
        raise BadRequest(f"messages: {problem}", "messages") from None
    try:
        tools = read_tools(content.get("tools"))
    except BadRow as problem:
        raise BadRequest(f"tools: {problem}", "tools") from None
    last = messages[-1]["role"]
    if last not in ("user", "tool"):
        raise BadRequest(f"the last message must be of the user or a tool, and it is of the {last}", "messages")
    if model.chat is not None:
        prompt = _prompt_of(messages, tools)
        if tools_note([prompt], model.chat.loaded.tokenizer, "template"):
            raise BadRequest("tools must be absent: the chat template of this model does not support tools", "tools")
        return [prompt], True
    if tools:
        raise BadRequest("tools must be absent: this model was not trained on chats", "tools")
    # A model that was not trained on chats gets the text of the user's only message as a prompt.
    if len(messages) > 1:
        raise BadRequest(
            f"this model was not trained on chats; send one message of the user, not {len(messages)} messages",
            "messages",
        )
    return [messages[0]["content"]], False


def _prompt_of(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> str:
    try:
        return chat_prompt(messages, tools)
    except BadRow as problem:
        raise BadRequest(f"messages: {problem}", "messages") from None


def _max_tokens(content: Mapping[str, Any]) -> int:
    name = "max_tokens" if content.get("max_completion_tokens") is None else "max_completion_tokens"
    limit = content.get(name)
    limit = DEFAULT_TOKENS if limit is None else limit
    if type(limit) is not int or not 0 < limit <= TOKENS:
        raise BadRequest(f"{name} must be a whole number from 1 to {TOKENS:,}", name)
    return limit
