"""An HTTP server with OpenAI's completions endpoint, for adapters on one base and for whole models."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from petransfer.errors import RunError, UserError
from petransfer.evaluation.generation import Generation
from petransfer.sharing.request_batches import Busy, Model, RequestBatches

# The largest request in bytes, number of prompts in it, and number of generated tokens for one prompt.
BODY, PROMPTS, TOKENS = 2**20, 128, 4096
# The default number of generated tokens, as in OpenAI's endpoint for chat models; enough for most tasks.
DEFAULT_TOKENS = 512
# Options of OpenAI's endpoint, with the only values that agree with greedy decoding of one text.
_ONLY: dict[str, tuple[Any, ...]] = {
    "n": (1, None), "best_of": (1, None), "stream": (False, None), "echo": (False, None), "logprobs": (None,),
    "temperature": (0, None), "suffix": (None, ""), "stop": (None, []), "logit_bias": (None, {}),
}  # fmt: skip


class BadRequest(Exception):
    """Raised for a request that is refused. parameter: the wrong part of the request."""

    def __init__(self, message: str, parameter: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.parameter, self.status = parameter, status


def application(batches: RequestBatches, hosts: Sequence[str] = ("*",)) -> Starlette:
    """Return the ASGI application.

    Args:
        batches: generates the texts.
        hosts: the accepted values of the Host header. They keep web pages that a user visits from sending requests
            to a server on the same machine.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        worker = asyncio.create_task(batches.run())
        try:
            yield
        finally:
            worker.cancel()
            batches.close()

    async def models(request: Request) -> JSONResponse:
        listed = [{"id": name, "object": "model", "created": 0, "owned_by": "petransfer"} for name in batches.models]
        return JSONResponse({"object": "list", "data": listed})

    async def health(request: Request) -> JSONResponse:
        return JSONResponse({"status": "ok"})

    async def completions(request: Request) -> JSONResponse:
        try:
            asked = await _asked(request, batches.models)
            found = await batches.generate(*asked)
            return JSONResponse(_completion(batches.models[asked[0]], asked[0], asked[1], found))
        except BadRequest as error:
            return _error(str(error), error.status, error.parameter)
        except UserError as error:
            return _error(str(error), 400, "prompt")
        except Busy:
            return _error("too many prompts are waiting; try again later", 503, None, {"Retry-After": "1"})
        except RunError as error:
            return _error(str(error), 500, None)

    return Starlette(
        routes=[
            Route("/v1/completions", completions, methods=["POST"]),
            Route("/v1/models", models),
            Route("/health", health),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))],
        lifespan=lifespan,
    )


async def _asked(request: Request, models: Mapping[str, Model]) -> tuple[str, list[str], int]:
    """Return the model, the prompts and the token limit of a request.

    Raises:
        BadRequest: a part of the request is wrong.
    """
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
    for name, allowed in _ONLY.items():
        if content.get(name) not in allowed:
            only = json.dumps(allowed[0])
            raise BadRequest(f"{name} must be {only} or absent: texts are generated greedily, one for a prompt", name)
    return _model(content, models), _prompts(content), _max_tokens(content)


def _model(content: Mapping[str, Any], models: Mapping[str, Model]) -> str:
    name = content.get("model")
    if name is None and len(models) == 1:
        return next(iter(models))
    if not isinstance(name, str) or name not in models:
        known = ", ".join(models)
        raise BadRequest(f"there is no model {name!r:.80}; this server has: {known}", "model", 404)
    return name


def _prompts(content: Mapping[str, Any]) -> list[str]:
    prompt = content.get("prompt")
    prompts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(prompts, list) or not prompts or not all(isinstance(one, str) for one in prompts):
        raise BadRequest("prompt must be a text or a list of texts", "prompt")
    if len(prompts) > PROMPTS:
        raise BadRequest(f"prompt has {len(prompts):,} texts; at most {PROMPTS} are allowed in one request", "prompt")
    return prompts


def _max_tokens(content: Mapping[str, Any]) -> int:
    limit = content.get("max_tokens")
    limit = DEFAULT_TOKENS if limit is None else limit
    if type(limit) is not int or not 0 < limit <= TOKENS:
        raise BadRequest(f"max_tokens must be a whole number from 1 to {TOKENS:,}", "max_tokens")
    return limit


def _completion(model: Model, name: str, prompts: Sequence[str], found: Sequence[Generation]) -> dict[str, Any]:
    tokenizer = model.predictor.loaded.tokenizer
    read = sum(map(len, tokenizer(list(prompts), verbose=False)["input_ids"]))
    written = sum(map(len, tokenizer([one.text for one in found], add_special_tokens=False)["input_ids"]))
    return {
        "id": f"cmpl-{uuid.uuid4().hex}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": name,
        "choices": [
            {"index": at, "text": one.text, "logprobs": None, "finish_reason": "stop" if one.ended else "length"}
            for at, one in enumerate(found)
        ],
        "usage": {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written},
    }


def _error(message: str, status: int, parameter: str | None, headers: Mapping[str, str] | None = None) -> JSONResponse:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    content = {"error": {"message": message, "type": kind, "param": parameter, "code": None}}
    return JSONResponse(content, status, headers=headers)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket bound to an address; port 0 selects a free one.

    Raises:
        UserError: the port is in use, or the address does not belong to this machine.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        opened = socket.socket(family, socket.SOCK_STREAM)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind((host, port))
        # Bound sockets of two processes share a port without an error until one of them listens.
        opened.listen(1024)
    except (OSError, OverflowError) as error:
        raise UserError(f"port {port} on {host} cannot be used ({error}); choose another one with --port") from None
    return opened


def server(app: Starlette) -> uvicorn.Server:
    """Return the server of an application. It answers all requests in progress before it stops."""
    config = uvicorn.Config(app, log_level="warning", access_log=False, lifespan="on", server_header=False)
    return uvicorn.Server(config)
