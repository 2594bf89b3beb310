"""`predict`: generate a text for each input, with adapters, whole models or base checkpoints."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from petransfer.cli.evaluate import combination_of
from petransfer.cli.text import input_lines, one_line
from petransfer.errors import UserError

if TYPE_CHECKING:
    from petransfer.evaluation.predictor import Predictor
    from petransfer.sharing.base import Where
    from petransfer.sharing.sources import Source

BATCH = 256


def predict(
    source: Annotated[
        str,
        typer.Argument(
            metavar="ADAPTER", help="A folder of a run, study, adapter or model; a bundle file; nano/ARM; or a hub id."
        ),
    ],
    text: Annotated[
        list[str] | None,
        typer.Argument(help="Inputs. If none is given, --file or standard input is read, one input per line."),
    ] = None,
    file: Annotated[Path | None, typer.Option(help="A file with one input per line.")] = None,
    run: Annotated[str | None, typer.Option(help="The run's id, for a study with several runs.")] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Write each input as a chat, even if the model was not trained on chats.")
    ] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The longest generated text, in tokens.")] = 512,
    checkpoint: Annotated[str | None, typer.Option(help="The base model, if it is not found by its name.")] = None,
    others: Annotated[
        list[str] | None, typer.Option("--with", help="One more adapter. Can be given several times.")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="Also use a weighted sum of the adapters, with one weight per adapter, such as 0.5,0.5."),
    ] = None,
    combination: Annotated[
        str, typer.Option(help="How --weights combines the adapters, in peft's words: linear, cat, svd, ties, ...")
    ] = "linear",
    revision: Annotated[str | None, typer.Option(help="Another commit or branch of the base on the hub.")] = None,
    any_base: Annotated[
        bool, typer.Option("--any-base", help="Accept a base whose weights differ from those in training.")
    ] = False,
    cpu: Annotated[bool, typer.Option("--cpu", help="Use the CPU even if there is a GPU.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines with input and output.")] = False,
) -> None:
    """Generate a text for each input, with adapters that share a base model or with fine-tuned, merged or base models.

    Prints one line for each input line; a blank input gives a blank line.

    For a model trained on chats, each input is the user's message or a JSON list of messages.
    """
    lines = iter(text) if text else input_lines(file)
    at_once = 1 if not text and file is None and sys.stdin.isatty() else BATCH
    with contextlib.ExitStack() as stack:
        sources = _opened(stack, [source, *(others or [])], run)
        from petransfer.sharing.base import Where

        where = Where(checkpoint, revision, None, "cpu" if cpu else None, any_base)
        each = _predictors(sources, where, combination_of(weights, combination))
        for_chats = _for_chats if chat else (lambda label, predictor: predictor)
        for batch in iter(lambda: list(islice(lines, at_once)), []):
            asked = [line for line in batch if line.strip()]
            texts = {label: iter(for_chats(label, one)(asked, max_new_tokens)) for label, one in each()}
            for line in batch:
                for label, generated in texts.items():
                    answer = next(generated) if line.strip() else ""
                    _print(line, label if len(texts) > 1 else None, answer, as_json)


def _opened(stack: contextlib.ExitStack, places: list[str], run: str | None) -> list[Source]:
    """Open every source before torch is imported, so that a wrong name is reported at once."""
    from petransfer.sharing.sources import opened_source

    return [stack.enter_context(opened_source(place, None if at else run)) for at, place in enumerate(places)]


def _predictors(sources: list[Source], where: Where, combination: Any) -> Callable[[], Iterator[tuple[str, Predictor]]]:
    """Return a function that yields each label and predictor; use each before taking the next."""
    from petransfer.models.quiet_libraries import silence_libraries
    from petransfer.sharing.combined_adapters import put_together
    from petransfer.sharing.whole_models import whole_predictor

    silence_libraries()
    if all(source.kind == "adapter" for source in sources):
        together = put_together([source.adapter() for source in sources], where, combination)
        return lambda: ((label, predictor) for _, label, predictor in together.each())
    if combination or any(source.kind == "adapter" for source in sources):
        other = next(source for source in sources if source.kind != "adapter")
        raise UserError(f"{other.label} is a whole model, and --with and --weights take adapters; `eval` takes both")
    ready = [(source.label, whole_predictor(source, where)) for source in sources]
    return lambda: iter(ready)


def _for_chats(label: str, predictor: Predictor) -> Predictor:
    """Return a predictor that writes its inputs as chats.

    Raises:
        UserError: the model has no chat template.
    """
    found = predictor.for_chats(by_default=True)
    if found is None:
        raise UserError(f"--chat: the tokenizer of {label} has no chat template; leave --chat out")
    return found


def _print(line: str, label: str | None, generated: str, as_json: bool) -> None:
    """Print one generated text as one line. With --json, line breaks and backslashes remain distinguishable."""
    if as_json:
        named = {} if label is None else {"adapter": label}
        print(json.dumps({"input": line, **named, "output": generated}, ensure_ascii=False), flush=True)
        return
    print(one_line(generated) if label is None else f"{label}\t{one_line(generated)}", flush=True)
