"""Options, shared by several verbs, that choose the base model of an adapter."""

from __future__ import annotations

from typing import Annotated

import typer

Checkpoint = Annotated[
    str | None,
    typer.Option(help="Folder or hub id of the base model. Needed if the base named in the adapter is not found."),
]
Revision = Annotated[
    str | None, typer.Option(help="Commit or branch of the base model on the hub. Default: as in training.")
]
AnyBase = Annotated[
    bool,
    typer.Option(
        "--any-base", help="Accept a base model whose weights, config.json or tokenizer differ from training."
    ),
]
