"""`predict`: what one or several adapters, or a whole model, say to a sentence, a file or stdin."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from petransfer.cli.evaluate import combination_of
from petransfer.errors import UserError
from petransfer.sharing.bundle import opened

if TYPE_CHECKING:
    from petransfer.evaluation.predictor import Predictor
    from petransfer.sharing.combined_adapters import Where

BATCH = 256


def predict(
    run: Annotated[
        str, typer.Argument(help="A run's folder, the adapter/ or model/ in it, a bundle, or owner/name on the hub.")
    ],
    text: Annotated[list[str] | None, typer.Argument(help="Inputs; none reads --file or stdin, a line each.")] = None,
    file: Annotated[Path | None, typer.Option(help="A file with one input a line.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The longest answer, in pieces.")] = 512,
    checkpoint: Annotated[str | None, typer.Option(help="The base, where its folder has moved.")] = None,
    others: Annotated[list[str] | None, typer.Option("--with", help="One more adapter. Repeatable.")] = None,
    weights: Annotated[str | None, typer.Option(help="Also the adapters' weighted sum, as 0.5,0.5.")] = None,
    combination: Annotated[str, typer.Option(help="How peft combines: linear, cat, svd, ties, ...")] = "linear",
    revision: Annotated[
        str | None, typer.Option(help="The base's commit or branch, where it is to be another.")
    ] = None,
    cpu: Annotated[bool, typer.Option("--cpu", help="Use the CPU even where there is a GPU.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines with input and output.")] = False,
) -> None:
    """Answer with an adapter, with several on one base, or with a fully fine-tuned model."""
    lines = iter(text) if text else _lines(file)
    with contextlib.ExitStack() as stack:
        from petransfer.sharing.combined_adapters import Where

        where = Where(checkpoint, revision, device="cpu" if cpu else None)
        asked = _asked(stack, [run, *(others or [])], where, combination_of(weights, combination))
        for batch in iter(lambda: list(islice(lines, BATCH)), []):
            answers = {label: predictor(batch, max_new_tokens) for label, predictor in asked()}
            for at, source in enumerate(batch):
                for label, found in answers.items():
                    _say(source, label if len(answers) > 1 else None, found[at], as_json)


def _asked(
    stack: contextlib.ExitStack, sources: list[str], where: Where, combination: Any
) -> Callable[[], Iterator[tuple[str, Predictor]]]:
    """What gives every label with its predictor, each of which is to be used before the next is taken."""
    from petransfer.evaluation.predictor import Predictor, is_whole_model
    from petransfer.models.library_output import silence_libraries
    from petransfer.sharing.combined_adapters import put_together

    silence_libraries()
    first = Path(sources[0])
    if len(sources) == 1 and combination is None and is_whole_model(first):
        whole = Predictor.of(first, where.checkpoint, where.device)
        return lambda: iter([(sources[0], whole)])
    bundles = [stack.enter_context(opened(source)) for source in sources]
    together = put_together(bundles, where, combination)
    return lambda: ((label, predictor) for _, label, predictor in together.each())


def _say(source: str, label: str | None, answer: str, as_json: bool) -> None:
    """One line an answer, whatever is in it; --json tells line breaks from backslashes."""
    if as_json:
        named = {} if label is None else {"adapter": label}
        print(json.dumps({"input": source, **named, "output": answer}, ensure_ascii=False), flush=True)
        return
    line = answer.replace("\n", "\\n")
    print(line if label is None else f"{label}\t{line}", flush=True)


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
