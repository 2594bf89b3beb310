"""`serve` answers concurrent requests with the texts of `predict`, and refuses bad requests in one line."""

from __future__ import annotations

import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn

import petransfer
from petransfer.cli.serve import models_of
from petransfer.sharing.base import LoadOptions
from petransfer.sharing.openai_requests import BODY
from petransfer.sharing.request_batches import RequestBatches
from petransfer.sharing.server import application, listen, server
from petransfer.sharing.sources import opened_source
from tests.sharing.conftest import ROWS, refused

TOKENS = 8


@contextmanager
def serving(*places: str, waiting: int = 4096) -> Iterator[str]:
    """Run a server in a thread, and yield its address."""
    with started(*places, waiting=waiting) as (place, _):
        yield place


@contextmanager
def started(*places: str, waiting: int = 4096) -> Iterator[tuple[str, uvicorn.Server]]:
    """Run a server in a thread, and yield its address and the server object."""
    sources = [opened_source(place) for place in places]
    models = models_of([source.__enter__() for source in sources], LoadOptions(device="cpu"))
    opened = listen("127.0.0.1", 0)
    running = server(application(RequestBatches(models, waiting=waiting), ("127.0.0.1",)))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [opened]}, daemon=True)
    thread.start()
    while not running.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{opened.getsockname()[1]}", running
    finally:
        running.should_exit = True
        thread.join(timeout=300)
        assert not thread.is_alive()


def post(place: str, content: Any, path: str = "/v1/completions", **headers: str) -> tuple[int, dict[str, Any]]:
    """Send a POST request, and return the status and the JSON of the response."""
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    request = urllib.request.Request(place + path, body, {"Content-Type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request, timeout=600) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        text = error.read()
        return error.code, json.loads(text) if text.startswith(b"{") else {"text": text.decode()}


def test_200_concurrent_requests_get_the_same_texts_as_from_predict(run: Path, trained: Callable[..., Path]) -> None:
    places = [str(run), str(trained("nano/english", "--seeds", "1"))]
    texts = [f"{source} {at}" for at in range(3) for source, _ in ROWS][:100]
    expected = {
        (Path(place).name, text): answer
        for place in places
        for text, answer in zip(texts, petransfer.Adapter.load(place, device="cpu").predict(texts, TOKENS), strict=True)
    }
    assert len(set(expected.values())) > 2
    with serving(*places) as place, ThreadPoolExecutor(200) as pool:
        listed = json.loads(urllib.request.urlopen(f"{place}/v1/models", timeout=60).read())
        assert [one["id"] for one in listed["data"]] == [Path(one).name for one in places]
        asked = [{"model": model, "prompt": text, "max_tokens": TOKENS} for model, text in expected]
        answers = list(pool.map(lambda content: post(place, content), asked))
    assert [status for status, _ in answers] == [200] * 200
    found = [answer["choices"][0]["text"] for _, answer in answers]
    assert found == list(expected.values())
    assert {answer["choices"][0]["finish_reason"] for _, answer in answers} <= {"stop", "length"}


def test_requests_in_progress_are_answered_before_the_server_stops() -> None:
    with ThreadPoolExecutor(8) as pool:
        with started("nano/english") as (place, running):
            asked = {"prompt": [f"to walk {at}" for at in range(16)], "max_tokens": 32}
            waiting = [pool.submit(post, place, asked) for _ in range(8)]
            while len(running.server_state.tasks) < 8 and not any(one.done() for one in waiting):
                time.sleep(0.01)
        answers = [one.result() for one in waiting]
    assert [status for status, _ in answers] == [200] * 8
    assert all(len(answer["choices"]) == 16 for _, answer in answers)
    assert all(answer["usage"]["completion_tokens"] > 0 for _, answer in answers)


def test_a_client_that_disconnects_while_sending_causes_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    head = b'POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 10000\r\n\r\n{"a'
    with started("nano/english") as (place, running):
        address = ("127.0.0.1", int(place.rpartition(":")[2]))
        with socket.create_connection(address) as client:
            client.sendall(head)
            while not running.server_state.tasks:
                time.sleep(0.01)
        while running.server_state.tasks:
            time.sleep(0.01)
        assert post(place, {"prompt": "to walk", "max_tokens": 1})[0] == 200
    assert "Traceback" not in capsys.readouterr().err


def test_bad_requests_are_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    cases: list[tuple[Any, int, str]] = [
        (b"{", 400, "not JSON"),
        (b"[" * 100_000, 400, "not JSON"),
        ([1], 400, "not a JSON object"),
        ({"prompt": 3}, 400, "prompt must be a text or a list of texts"),
        ({"prompt": []}, 400, "prompt must be a text"),
        ({"prompt": ["a"] * 129}, 400, "at most 128"),
        ({"prompt": "a", "model": "gpt"}, 404, "there is no model 'gpt'; this server has: nano/english"),
        ({"prompt": "a", "max_tokens": 0}, 400, "max_tokens must be a whole number"),
        ({"prompt": "a", "max_tokens": 10**9}, 400, "max_tokens must be a whole number"),
        ({"prompt": "a", "temperature": 0.7}, 400, "temperature must be 0 or absent"),
        ({"prompt": "a", "stream": 1}, 400, "stream must be true or false"),
        ({"prompt": "\ud800", "stream": True}, 400, "is not UTF-8"),
        ({"prompt": "\ud800"}, 400, "is not UTF-8"),
        (b"x" * (BODY + 1), 413, "larger than"),
    ]
    with serving("nano/english", waiting=4) as place:
        for content, status, output in cases:
            code, answer = post(place, content)
            assert (code, output in answer["error"]["message"]) == (status, True), (content, answer)
            assert "\n" not in answer["error"]["message"]
        code, answer = post(place, {"prompt": "a"}, "/v1/embeddings")
        assert (code, "POST /v1/chat/completions" in answer["error"]["message"]) == (404, True)
        code, answer = post(place, {"prompt": ["a"] * 5, "max_tokens": 1})
        assert (code, answer["error"]["type"]) == (503, "server_error")
        assert post(place, {"prompt": "a", "max_tokens": 1}, Host="evil.example")[0] == 400
        code, answer = post(place, {"prompt": ["to walk", ""], "max_tokens": 2})
        assert (code, len(answer["choices"])) == (200, 2)
        taken = place.rsplit(":", 1)[1]
        output = refused(capsys, "serve", "nano/english", "--port", taken, "--cpu")
        assert f"port {taken} on 127.0.0.1 cannot be used" in output
        assert "--port" in output
    for host in ("192.0.2.1", "no such host"):
        output = refused(capsys, "serve", "nano/english", "--port", "0", "--cpu", "--host", host)
        assert "name an address of this machine with --host" in output
    assert "named twice" in refused(capsys, "serve", "nano/english", "nano/english", "--port", "0", "--cpu")
