"""`predict`: what a run's model says to a sentence, a file or stdin."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from petransfer.errors import UserError

BATCH = 256


def predict(
    run: Annotated[Path, typer.Argument(help="A run's folder, or the adapter/ or model/ in it.")],
    text: Annotated[list[str] | None, typer.Argument(help="Inputs; none reads --file or stdin, a line each.")] = None,
    file: Annotated[Path | None, typer.Option(help="A file with one input a line.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The longest answer, in pieces.")] = 512,
    checkpoint: Annotated[str | None, typer.Option(help="The base, where its folder has moved.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines with input and output.")] = False,
) -> None:
    """Answer with an adapter, or with a fully fine-tuned model."""
    from petransfer.evaluate.predict import Predictor

    predictor = Predictor.of(run, checkpoint)
    lines = iter(text) if text else _lines(file)
    for batch in iter(lambda: list(islice(lines, BATCH)), []):
        for source, answer in zip(batch, predictor(batch, max_new_tokens), strict=True):
            # one line an answer, whatever is in it; --json tells line breaks from backslashes
            line = answer.replace("\n", "\\n")
            print(json.dumps({"input": source, "output": answer}, ensure_ascii=False) if as_json else line, flush=True)


def _lines(file: Path | None) -> Iterator[str]:
    if file is None:
        return _stripped(sys.stdin)
    if not file.is_file():
        raise UserError(f"no file {file}; name one with an input a line")
    return _stripped(file.open(encoding="utf-8"))


def _stripped(lines: Iterable[str]) -> Iterator[str]:
    try:
        for line in lines:
            if line.strip():
                yield line.rstrip("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"the inputs are not UTF-8 at byte {error.start}; save them as UTF-8") from None
