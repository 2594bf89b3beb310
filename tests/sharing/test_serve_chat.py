"""`serve` answers chats and streamed requests with the texts of `predict`, and refuses bad chats in one line."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import petransfer
from petransfer.evaluation.predictor import Predictor
from petransfer.sharing.openai_requests import BadRequest, _messages
from petransfer.sharing.request_batches import ServedModel
from tests.chat_models import CHATML, chat_llama
from tests.sharing.conftest import call, refused
from tests.sharing.test_serve import post, serving

CHAT = "/v1/chat/completions"
TOKENS = 12
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]


WITH_TOOLS = "{% if tools %}{{ tools | tojson }}\n{% endif %}" + CHATML
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {}}}]


def events(place: str, content: Any, path: str) -> list[dict[str, Any]]:
    """Return the parts of a streamed response. The last event must be [DONE]."""
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(place + path, json.dumps(content | {"stream": True}).encode(), headers)
    with urllib.request.urlopen(request, timeout=120) as answer:
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        lines = [line for line in answer.read().decode().split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_llama(tmp_path_factory.mktemp("chat") / "tiny-chat", WITH_TOOLS)


@pytest.fixture(scope="module")
def chat_server(chat_model: Path) -> Iterator[str]:
    with serving(str(chat_model)) as place:
        yield place


@pytest.fixture(scope="module")
def chat_predictor(chat_model: Path) -> Predictor:
    return replace(petransfer.Adapter.load(chat_model, device="cpu").predictor, chat="template")


def test_a_chat_gets_the_same_text_as_from_predict(chat_server: str, chat_predictor: Predictor) -> None:
    (expected,) = chat_predictor.generations([json.dumps(MESSAGES)], TOKENS)
    code, answer = post(chat_server, {"messages": MESSAGES, "max_completion_tokens": TOKENS}, CHAT)
    assert (code, answer["object"]) == (200, "chat.completion")
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": expected.text}
    prompt = chat_predictor.loaded.tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    read = len(chat_predictor.loaded.tokenizer(prompt, add_special_tokens=False)["input_ids"])
    assert answer["usage"]["prompt_tokens"] == read
    assert answer["usage"]["total_tokens"] == read + answer["usage"]["completion_tokens"]


def test_tools_are_given_to_the_chat_template(chat_server: str, chat_predictor: Predictor, tmp_path: Path) -> None:
    (expected,) = chat_predictor.generations([json.dumps({"messages": MESSAGES, "tools": TOOLS})], TOKENS)
    asked = {"messages": MESSAGES, "max_tokens": TOKENS}
    plain, answer = (post(chat_server, asked | tools, CHAT)[1] for tools in ({}, {"tools": TOOLS}))
    assert answer["choices"][0]["message"]["content"] == expected.text
    assert answer["usage"]["prompt_tokens"] == expected.input_tokens > plain["usage"]["prompt_tokens"]
    without = petransfer.Adapter.load(chat_llama(tmp_path / "plain"), device="cpu").predictor
    model = ServedModel(without, chat=replace(without, chat="template"))
    with pytest.raises(BadRequest, match="the chat template of this model does not support tools"):
        _messages(asked | {"tools": TOOLS}, model)
    with pytest.raises(BadRequest, match="was not trained on chats"):
        _messages({"messages": MESSAGES[1:], "tools": TOOLS}, ServedModel(without, chat=None))


def test_a_streamed_chat_has_the_same_text_in_parts(chat_server: str) -> None:
    asked = {"messages": MESSAGES, "max_tokens": TOKENS}
    whole = post(chat_server, asked, CHAT)[1]
    parts = events(chat_server, asked | {"stream_options": {"include_usage": True}}, CHAT)
    assert {part["object"] for part in parts} == {"chat.completion.chunk"}
    assert len({part["id"] for part in parts}) == 1
    *texts, counts = parts
    assert texts[0]["choices"][0]["delta"]["role"] == "assistant"
    assert len(texts) > 3  # the text comes in several parts
    joined = "".join(part["choices"][0]["delta"].get("content", "") for part in texts)
    assert joined == whole["choices"][0]["message"]["content"]
    assert texts[-1]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert (counts["choices"], counts["usage"]) == ([], whole["usage"])


def test_200_concurrent_requests_of_four_kinds_get_the_same_texts_as_single_requests(chat_server: str) -> None:
    plain = {"prompt": ["to walk", "to run"], "max_tokens": TOKENS}
    chat = {"messages": MESSAGES, "max_tokens": TOKENS}

    def ask(at: int) -> list[str]:
        if at % 4 == 0:
            return [one["text"] for one in post(chat_server, plain)[1]["choices"]]
        if at % 4 == 1:
            return [one["message"]["content"] for one in post(chat_server, chat, CHAT)[1]["choices"]]
        found = ["", ""]
        for part in events(chat_server, plain if at % 4 == 2 else chat, "/v1/completions" if at % 4 == 2 else CHAT):
            for choice in part["choices"]:
                found[choice["index"]] += choice["text"] if at % 4 == 2 else choice["delta"].get("content", "")
        return found if at % 4 == 2 else found[:1]

    alone = [ask(at) for at in range(4)]
    assert alone[:2] == alone[2:]
    with ThreadPoolExecutor(200) as pool:
        found = list(pool.map(ask, range(200)))
    assert found == alone * 50


def test_a_generated_text_ends_before_a_stop_text(chat_server: str) -> None:
    asked = {"messages": MESSAGES, "max_tokens": 3 * TOKENS, "temperature": 0, "top_p": 0.9}
    whole = post(chat_server, asked, CHAT)[1]["choices"][0]["message"]["content"]
    plain = re.sub("\ufffd+", " ", whole).split()
    stop = next(part for part in plain if len(part) > 1 and whole.index(part) > 3)
    expected = whole[: whole.index(stop)]
    # `stop + "..."` does not occur in the text, although it begins like `stop`
    for given in (stop, [stop], ["not there", stop, stop + "..."]):
        choice = post(chat_server, asked | {"stop": given}, CHAT)[1]["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == (expected, "stop")
        parts = events(chat_server, asked | {"stop": given}, CHAT)
        assert "".join(part["choices"][0]["delta"].get("content", "") for part in parts) == expected
        assert parts[-1]["choices"][0]["finish_reason"] == "stop"
    parts = events(chat_server, asked | {"stop": [whole + "!", "not there"]}, CHAT)
    assert "".join(part["choices"][0]["delta"].get("content", "") for part in parts) == whole
    text = post(chat_server, {"prompt": "Hi", "max_tokens": TOKENS})[1]["choices"][0]["text"]
    cut = post(chat_server, {"prompt": ["Hi"], "max_tokens": TOKENS, "stop": text[:1]})[1]
    assert cut["choices"][0] == {"index": 0, "text": "", "logprobs": None, "finish_reason": "stop"}


def test_bad_chats_are_refused_in_one_line(chat_server: str) -> None:
    cases: list[tuple[Any, str]] = [
        ({}, "the messages are missing"),
        ({"messages": []}, "the list of messages is empty"),
        ({"messages": "Hi"}, "messages must be a list"),
        ({"messages": [{"role": "wizard", "content": "Hi"}]}, "unknown role 'wizard'"),
        ({"messages": [{"role": "\ud800", "content": "Hi"}]}, "unknown role '\\ud800'"),
        ({"messages": [{"role": "user", "content": ""}]}, "a message of the user is empty"),
        ({"messages": [*MESSAGES, {"role": "assistant", "content": "Hello"}]}, "the last message must be of the user"),
        ({"messages": MESSAGES, "tools": "add"}, "tools: the tools are text and not a JSON list"),
        ({"messages": MESSAGES, "tools": TOOLS, "tool_choice": "required"}, "tool_choice must be null or absent"),
        ({"messages": MESSAGES, "logprobs": True}, "logprobs must be absent"),
        ({"messages": MESSAGES, "stop": [""]}, "stop must be a text or a list"),
        ({"messages": MESSAGES, "top_p": 0.9}, "top_p must be 1 or absent"),
        ({"messages": MESSAGES, "repetition_penalty": 1.2}, "repetition_penalty must be 1 or absent"),
        ({"messages": MESSAGES, "guided_choice": ["a", "b"]}, "guided_choice must be null or absent"),
        ({"messages": MESSAGES, "chat_template_kwargs": {"enable_thinking": False}}, "chat_template_kwargs must be"),
        ({"messages": MESSAGES, "stream": True, "n": 2}, "n must be 1 or absent"),
        ({"messages": MESSAGES, "stop": ["a"], "include_stop_str_in_output": True}, "must be false or absent"),
        ({"messages": MESSAGES, "truncate_prompt_tokens": 3}, "truncate_prompt_tokens must be null or absent"),
        ({"messages": MESSAGES, "add_generation_prompt": False}, "add_generation_prompt must be true or absent"),
        ({"messages": MESSAGES, "skip_special_tokens": False}, "skip_special_tokens must be true or absent"),
        ({"messages": MESSAGES, "allowed_token_ids": [7]}, "allowed_token_ids must be null or absent"),
        ({"messages": MESSAGES, "prompt_logprobs": 1}, "prompt_logprobs must be null or absent"),
        ({"messages": [{"role": "user", "content": "a" * 600}], "stream": True}, "the model has 512 positions"),
    ]
    for content, expected in cases:
        code, answer = post(chat_server, content, CHAT)
        assert (code, answer["error"]["type"]) == (400, "invalid_request_error"), content
        assert expected in answer["error"]["message"]
        assert "\n" not in answer["error"]["message"]


def test_a_model_without_chats_takes_a_single_user_message_as_its_input(run: Path) -> None:
    text = "to walk 1"
    expected = petransfer.Adapter.load(run, device="cpu").predict([text], TOKENS)
    with serving(str(run)) as place:
        code, answer = post(place, {"messages": [{"role": "user", "content": text}], "max_tokens": TOKENS}, CHAT)
        assert (code, answer["choices"][0]["message"]["content"]) == (200, expected[0])
        code, answer = post(place, {"messages": MESSAGES}, CHAT)
        assert (code, "was not trained on chats" in answer["error"]["message"]) == (400, True)
        parts = events(place, {"prompt": [text, "must run 2"], "max_tokens": TOKENS}, "/v1/completions")
        whole = post(place, {"prompt": [text, "must run 2"], "max_tokens": TOKENS})[1]
    for at, choice in enumerate(whole["choices"]):
        own = [part["choices"][0] for part in parts if part["choices"][0]["index"] == at]
        assert "".join(one["text"] for one in own) == choice["text"]
        assert own[-1]["finish_reason"] == choice["finish_reason"]


def test_the_openai_client_works(chat_server: str) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{chat_server}/v1", api_key="none")
    name = client.models.list().data[0].id
    assert client.models.retrieve(name).id == name
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt/4'; this server has"):
        client.models.retrieve("gpt/4")
    chat = client.chat.completions.create(model=name, messages=MESSAGES, max_tokens=TOKENS)
    parts = client.chat.completions.create(model=name, messages=MESSAGES, max_tokens=TOKENS, stream=True)
    joined = "".join(part.choices[0].delta.content or "" for part in parts)
    assert joined == chat.choices[0].message.content
    text = client.completions.create(model=name, prompt="to walk", max_tokens=TOKENS)
    assert text.usage.completion_tokens <= TOKENS
    with pytest.raises(openai.BadRequestError, match="n must be 1"):
        client.chat.completions.create(model=name, messages=MESSAGES, n=2)
    with pytest.raises(openai.NotFoundError, match="there is no model"):
        client.chat.completions.create(model="gpt", messages=MESSAGES)


def test_predict_with_the_option_chat_applies_the_chat_template(
    chat_model: Path, chat_predictor: Predictor, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("predict", str(chat_model), "Hi", "--chat", "--cpu", "--json", "--max-new-tokens", "8") == 0
    (expected,) = chat_predictor(["Hi"], 8)
    assert json.loads(capsys.readouterr().out)["output"] == expected
    assert "has no chat template; leave --chat out" in refused(
        capsys, "predict", "nano/english", "Hi", "--chat", "--cpu"
    )


def test_adapter_predict_and_serve_warn_about_special_tokens_in_a_message(
    chat_server: str, chat_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    adapter = petransfer.Adapter.load(chat_model, device="cpu")
    quoted = f"What is {adapter.predictor.loaded.tokenizer.eos_token}?"
    adapter.predict([quoted, "Hi"], 2, chat=True)
    assert "the messages of 1 of 2 chats contain special tokens as text" in caplog.text
    caplog.clear()
    asked = {"messages": [{"role": "user", "content": quoted}], "max_tokens": 2}
    assert post(chat_server, asked, CHAT)[0] == 200
    assert "the messages of 1 of 1 chat contain special tokens as text" in caplog.text
    caplog.clear()
    adapter.predict(["Hi"], 2, chat=True)
    assert "special tokens" not in caplog.text
