"""An HTTP server with OpenAI's endpoints for completions and chats."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import AsyncIterator, Sequence
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from petransfer.errors import RunError, UserError
from petransfer.json_lines import json_line
from petransfer.sharing.openai_answers import Answer, error_content
from petransfer.sharing.openai_requests import BadRequest, ParsedRequest, no_model, read_request
from petransfer.sharing.request_batches import Busy, RequestBatches
from petransfer.sharing.text_parts import generated_parts


def application(batches: RequestBatches, hosts: Sequence[str] = ("*",)) -> Starlette:
    """Return the server as an ASGI application. `hosts` are accepted values of the Host header; `*` accepts all."""

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        worker = asyncio.create_task(batches.run())
        try:
            yield
        finally:
            worker.cancel()
            batches.close()

    async def models(request: Request) -> Response:
        listed = [_described(name) for name in batches.models]
        return JSONResponse({"object": "list", "data": listed})

    async def model(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in batches.models:
            return JSONResponse(error_content(no_model(name, batches.models), 404, "model"), 404)
        return JSONResponse(_described(name))

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def completions(request: Request) -> Response:
        return await _answer(request, batches, is_chat=False)

    async def chat_completions(request: Request) -> Response:
        return await _answer(request, batches, is_chat=True)

    return Starlette(
        routes=[
            Route("/v1/completions", completions, methods=["POST"]),
            Route("/v1/chat/completions", chat_completions, methods=["POST"]),
            Route("/v1/models", models),
            Route("/v1/models/{name:path}", model),
            Route("/health", health),
        ],
        exception_handlers={HTTPException: _http_error, ClientDisconnect: _disconnected},
        # Without this check, a web page in the user's browser could send requests to a server on the same machine.
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))],
        lifespan=lifespan,
    )


def _described(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "petransfer"}


async def _answer(request: Request, batches: RequestBatches, is_chat: bool) -> Response:
    try:
        parsed = await read_request(request, batches.models, is_chat)
        if not parsed.stream:
            return JSONResponse(Answer(parsed).whole(await batches.generate(parsed.prompts)))
        lines = _event_lines(batches, parsed)
        first = await anext(lines)  # an error up to here is answered with an HTTP error status
        return StreamingResponse(_joined(first, lines), media_type="text/event-stream")
    except (BadRequest, UserError, RunError, Busy) as error:
        return _error(error, "messages" if is_chat else "prompt")


async def _event_lines(batches: RequestBatches, parsed: ParsedRequest) -> AsyncIterator[str]:
    """Yield the server-sent events of a streamed answer, as text."""
    answer = Answer(parsed)
    # Nothing is sent before some text is generated: an earlier error can still be answered with an HTTP error status.
    waiting = answer.first_part()
    async with contextlib.aclosing(generated_parts(batches, parsed.prompts)) as parts:
        async for at, text, found in parts:
            if waiting is not None:
                yield _event(waiting)
                waiting = None
            if text:
                yield _event(answer.part(at, text))
            if isinstance(found, list):
                for index, one in enumerate(found):
                    yield _event(answer.last_part(index, one))
                if parsed.include_usage:
                    yield _event(answer.usage_part(found))
    yield "data: [DONE]\n\n"


async def _joined(first: str, lines: AsyncIterator[str]) -> AsyncIterator[str]:
    """Yield all events. After a failure, the last event is an error message."""
    yield first
    try:
        async for line in lines:
            yield line
    except (UserError, RunError) as error:
        yield _event(error_content(str(error), 500, None))


def _event(content: dict[str, Any]) -> str:
    return f"data: {json_line(content)}\n\n"


def _error(error: BadRequest | UserError | RunError | Busy, prompt: str) -> JSONResponse:
    headers = None
    message, status, parameter = str(error), 500, None
    if isinstance(error, BadRequest):
        status, parameter = error.status, error.parameter
    elif isinstance(error, UserError):
        status, parameter = 400, prompt
    elif isinstance(error, Busy):
        message, status, headers = "too many prompts are waiting; try again later", 503, {"Retry-After": "1"}
    return JSONResponse(error_content(message, status, parameter), status, headers=headers)


async def _disconnected(request: Request, error: Exception) -> Response:
    """Return a response for a client that left while it sent its request. Nobody receives the response."""
    return Response(status_code=400)


async def _http_error(request: Request, error: Exception) -> Response:
    """Return the JSON error for an unknown address or a wrong HTTP method."""
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}; this server has POST /v1/completions, "
    message += "POST /v1/chat/completions, GET /v1/models and GET /health"
    return JSONResponse(error_content(message, error.status_code, None), error.status_code, headers=error.headers)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on an address. Port 0 selects a free port.

    Raises:
        UserError: the port is in use, or the address does not belong to this machine.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        opened = socket.socket(family, socket.SOCK_STREAM)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind((host, port))
        # Two processes can bind the same port without an error as long as neither of them listens. So listen here.
        opened.listen(1024)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        # an address that is unknown, or that belongs to another machine
        wrong_host = isinstance(error, socket.gaierror) or getattr(error, "errno", None) == errno.EADDRNOTAVAIL
        advice = "name an address of this machine with --host" if wrong_host else "choose another one with --port"
        raise UserError(f"port {port} on {host} cannot be used ({reason}); {advice}") from None
    return opened


def server(app: Starlette) -> uvicorn.Server:
    """Return the server of an application. The server answers all requests in progress before it stops."""
    config = uvicorn.Config(app, log_level="warning", access_log=False, lifespan="on", server_header=False)
    return uvicorn.Server(config)
