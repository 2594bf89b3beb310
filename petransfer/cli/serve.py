"""The verb `serve`: an HTTP server with OpenAI's API for completions and chats."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from petransfer.cli.base_options import AnyBase, Checkpoint, Revision
from petransfer.cli.terminal_text import print_text
from petransfer.errors import UserError

if TYPE_CHECKING:
    from petransfer.sharing.base import LoadOptions
    from petransfer.sharing.request_batches import ServedModel
    from petransfer.sharing.sources import ModelSource

_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


def serve(
    adapters: Annotated[
        list[str],
        typer.Argument(
            help="Adapters or models: folders of runs, studies, adapters or models; bundle files; shipped "
            "checkpoints such as nano/english; hub ids.",
        ),
    ],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on. 0: any free port.")] = 8000,
    host: Annotated[
        str,
        typer.Option(
            help="Address to listen on. By default, only programs on this machine can connect; with 0.0.0.0, other "
            "machines can connect too."
        ),
    ] = ("127.0.0.1"),
    batch_size: Annotated[int, typer.Option(min=1, help="Largest number of prompts in one batch.")] = 64,
    run: Annotated[
        str | None, typer.Option(help="Id of the run to use, if the first of ADAPTERS is a study with several runs.")
    ] = None,
    checkpoint: Checkpoint = None,
    revision: Revision = None,
    any_base: AnyBase = False,
    cpu: Annotated[bool, typer.Option("--cpu", help="Use the CPU even if there is a GPU.")] = False,
) -> None:
    """Serve adapters that share a base model, or whole models, with an HTTP API like OpenAI's.

    POST /v1/completions and POST /v1/chat/completions return the whole answer at once.
    With "stream": true in the request, they return it in parts.
    Texts are generated greedily, as `predict` does: a model that petransfer trained gets each prompt in the form of its
    training, and any other model gets each prompt exactly as it is.

    Ctrl-C stops the server after it has answered the requests in progress.
    """
    if importlib.util.find_spec("uvicorn") is None or importlib.util.find_spec("starlette") is None:
        raise UserError(
            'serve needs uvicorn and starlette, which are not installed; run `pip install "petransfer[serve]"`'
        )
    with contextlib.ExitStack() as stack:
        from petransfer.sharing.sources import opened_source

        sources = [stack.enter_context(opened_source(one, None if at else run)) for at, one in enumerate(adapters)]
        from petransfer.models.quiet_libraries import silence_libraries
        from petransfer.sharing.base import LoadOptions
        from petransfer.sharing.request_batches import RequestBatches
        from petransfer.sharing.server import application, listen, server

        silence_libraries()
        opened = stack.enter_context(contextlib.closing(listen(host, port)))
        models = models_of(sources, LoadOptions(checkpoint, revision, None, "cpu" if cpu else None, any_base))
        hosts = _LOOPBACK if host in ("127.0.0.1", "::1", "localhost") else ("*",)
        place = f"http://{host}:{opened.getsockname()[1]}"
        names = f"the model {next(iter(models))}" if len(models) == 1 else f"the models {', '.join(models)}"
        request = json.dumps({"model": next(iter(models)), "prompt": "an input"})
        print_text(
            f"serving {names} at {place}/v1 with OpenAI's API; Ctrl-C stops the server. For example:",
            f"  curl {place}/v1/completions -H 'Content-Type: application/json' -d {shlex.quote(request)}",
            file=sys.stderr,
        )
        try:
            server(application(RequestBatches(models, batch_size), hosts)).run(sockets=[opened])
        finally:
            print_text("the server has stopped", file=sys.stderr)


def models_of(sources: list[ModelSource], load_options: LoadOptions) -> dict[str, ServedModel]:
    """Load the models to serve, and return the models by name. All adapters share one base model."""
    from petransfer.sharing.combined_adapters import load_adapters
    from petransfer.sharing.request_batches import ServedModel
    from petransfer.sharing.whole_models import whole_predictor

    names = _names([source.label for source in sources])
    bundles = [source.adapter() for source in sources if source.kind == "adapter"]
    together = load_adapters(bundles, load_options) if bundles else None
    adapters = iter(together.labels if together else ())
    found: dict[str, ServedModel] = {}
    for name, source in zip(names, sources, strict=True):
        if source.kind != "adapter" or together is None:
            predictor = whole_predictor(source, load_options)
            found[name] = ServedModel(predictor, chat=predictor.for_chats(by_default=source.kind == "checkpoint"))
            continue
        adapter = next(adapters)
        predictor = together.predictor(adapter)
        activate = functools.partial(together.model.set_adapter, adapter)
        # for an adapter of another program, it is unknown whether it was trained on chats
        by_default = source.adapter().spec is None
        found[name] = ServedModel(predictor, activate, predictor.for_chats(by_default))
    return found


def _names(labels: list[str]) -> list[str]:
    """Return a unique model name for each label, as short as possible."""
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice:
        raise UserError(f"{twice} is named twice; name each adapter once")
    short = [label if label.startswith("nano/") else Path(label).name for label in labels]
    return [one if short.count(one) == 1 else label for one, label in zip(short, labels, strict=True)]
