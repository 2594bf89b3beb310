"""Options, shared by several verbs, that name the columns of a file to score."""

from __future__ import annotations

from typing import Annotated

import typer

InputColumn = Annotated[
    str | None, typer.Option(help="Column with the inputs, if --data is a file. Default: as in the training.")
]
TargetColumn = Annotated[
    str | None, typer.Option(help="Column with the targets, if --data is a file. Default: as in the training.")
]
Template = Annotated[
    str | None,
    typer.Option(
        help="Build each input from columns of the file, as in 'summarize: {document}'. Default: as in the training."
    ),
]
