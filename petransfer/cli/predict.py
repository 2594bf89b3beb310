"""The verb `predict`: generate a text for each input."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from petransfer.cli.base_options import AnyBase, Checkpoint, Revision
from petransfer.cli.evaluate import combination_of
from petransfer.cli.input_files import is_existing_file, is_folder, refuse_other_files, without_rows
from petransfer.cli.lazy_verbs import path_or_dash
from petransfer.cli.terminal_text import for_output, print_text
from petransfer.cli.text import arriving_batches, input_lines, is_pipe, one_line
from petransfer.errors import UserError
from petransfer.json_lines import json_line
from petransfer.plurals import count
from petransfer.recipe.values import MOST_NEW_TOKENS

if TYPE_CHECKING:
    from petransfer.evaluation.generation import Generation
    from petransfer.evaluation.predictor import Predictor
    from petransfer.sharing.base import LoadOptions
    from petransfer.sharing.sources import ModelSource

BATCH = 256
# The place of an input, such as `line 2 of inputs.txt`, and the input.
_Line = tuple[str, str]
# A function that yields the label and the predictor of each model.
_Each: TypeAlias = "Callable[[], Iterator[tuple[str, Predictor]]]"


def predict(
    source: Annotated[
        str,
        typer.Argument(
            metavar="ADAPTER",
            help="A folder of a run, study, adapter or model; a bundle file; a shipped checkpoint such as "
            "nano/english; a hub id.",
        ),
    ],
    text: Annotated[
        list[str] | None,
        typer.Argument(help="Inputs. If none or - is given, the inputs are the lines of --file or of standard input."),
    ] = None,
    file: Annotated[Path | None, typer.Option(callback=path_or_dash, help="A file with one input per line.")] = None,
    run: Annotated[
        str | None, typer.Option(help="Id of the run to use, if ADAPTER is a study with several runs.")
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Treat each input as a chat, even if the model was not trained on chats.")
    ] = False,
    max_new_tokens: Annotated[
        int,
        typer.Option(
            min=1,
            max=MOST_NEW_TOKENS,
            help="Largest number of tokens in a generated text. The model's number of positions is a second limit.",
        ),
    ] = 512,
    checkpoint: Checkpoint = None,
    others: Annotated[
        list[str] | None,
        typer.Option("--with", help="One more adapter to generate texts with. Can be given several times."),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="Also generate with a weighted sum of the adapters. Give one weight per adapter, such as 0.5,0.5."
        ),
    ] = None,
    combination: Annotated[
        str | None,
        typer.Option(
            help="How --weights combines the adapters: linear, cat, svd, ties or another combination type of peft. "
            "Default: linear."
        ),
    ] = None,
    revision: Revision = None,
    any_base: AnyBase = False,
    cpu: Annotated[bool, typer.Option("--cpu", help="Use the CPU even if there is a GPU.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON per text, with its input.")] = False,
) -> None:
    """Generate a text for each input, with adapters that share a base model, or with fine-tuned, merged or base models.

    One line is printed for each input and model; for a blank input the line is blank. A line from a pipe is answered as
    soon as it arrives.

    For a model trained on chats, each input is the user's message or a JSON list of messages.

    If petransfer trained the model, each input gets the prefix of its training, and a line break after it if the model
    is decoder-only. Other adapters and models get each input exactly as it is given.
    """
    if text and len(text) > 1 and "-" in text:  # the usual name of standard input
        raise UserError("- stands for standard input; give the inputs as arguments or on standard input, not both")
    if text == ["-"] and file is None:
        text = None
    if text and file is not None:
        raise UserError(f"--file {file} and {count(len(text), 'input')} as arguments; leave one of them out")
    file = None if file == Path("-") else file  # the usual name of standard input
    combined = combination_of(weights, combination)
    at_once = 1 if not text and file is None and sys.stdin and sys.stdin.isatty() else BATCH
    with contextlib.ExitStack() as stack:
        sources = _opened(stack, [source, *(others or [])], run)
        specs = [one.bundle.spec if one.bundle else None for one in sources]
        if file is not None:
            refuse_other_files(file, specs)
        name = "" if text else str(file) if file is not None else "standard input"
        read = input_lines(file) if file is not None else without_rows(input_lines(None), specs)
        lines = _with_places(text or read, name)
        # a pipe is read while the model is loaded
        arrived = arriving_batches(lines, BATCH) if not text and is_pipe(file) else None
        from petransfer.sharing.base import LoadOptions

        load_options = LoadOptions(checkpoint, revision, None, "cpu" if cpu else None, any_base)
        each = _predictors(sources, load_options, combined, chat)
        if chat:
            each = _for_chats(each)
        if file is not None and file.is_file():  # report all unusable lines before the first text is printed
            lines = _checked(lines, each)
        _generate(arrived or iter(lambda: list(islice(lines, at_once)), []), each, max_new_tokens, as_json)
    for one in text or ():
        if len(text or ()) == 1 and is_existing_file(one):
            hint = f"{one} was taken as the text of an input; to read inputs from this file, write --file {one}"
            print_text(hint, file=sys.stderr)
        elif "/" in one and is_folder(one):
            hint = f"{one} was taken as the text of an input; to predict with this adapter too, write --with {one}"
            print_text(hint, file=sys.stderr)


def _with_places(texts: Iterable[str], name: str) -> Iterator[_Line]:
    """Yield each input with its place, such as `line 2 of inputs.txt`. `name` is empty for arguments."""
    return ((f"line {at} of {name}" if name else f"input {at}", text) for at, text in enumerate(texts, start=1))


def _checked(lines: Iterable[_Line], each: _Each) -> Iterator[_Line]:
    """Return the inputs of a file after all models have accepted them."""
    kept = list(lines)
    inputs = [one for one in kept if one[1].strip()]
    for _, predictor in each():
        predictor.token_ids([text for _, text in inputs], [place for place, _ in inputs])
    return iter(kept)


def _generate(
    batches: Iterable[list[_Line]],
    each: _Each,
    max_new_tokens: int,
    as_json: bool,
) -> None:
    """Print a text for each input and model, and at the end the number of texts that were cut.

    Args:
        batches: The inputs with their places, in batches.
        each: Yields the label and the predictor of each model.
    """
    from petransfer.data.chat import quoted_note
    from petransfer.evaluation.cut_texts import CutTexts

    number = 0
    quoted: list[list[str]] = []  # special tokens in the messages of each chat that has some, for the first model
    cut: list[tuple[str, CutTexts]] = []  # for each model; two models can have the same label
    has_line_breaks = has_lines = False
    for batch in batches:
        has_lines = True
        inputs = [text for _, text in batch if text.strip()]
        places = [place for place, text in batch if text.strip()]
        texts: list[tuple[str, Iterator[Generation]]] = []
        number += len(inputs)
        for at, (label, one) in enumerate(each()):
            found = one.generations(inputs, max_new_tokens, places=places)
            quoted += [] if texts else filter(None, one.quoted_special_tokens(inputs))
            cut += [(label, CutTexts(max_new_tokens))] if at == len(cut) else []
            cut[at][1].add(found)
            texts.append((label, iter(found)))
        for _, line in batch:
            for label, generated in texts:
                answer = next(generated).text if line.strip() else ""
                has_line_breaks = has_line_breaks or "\n" in answer
                _print(line, label if len(texts) > 1 else None, answer, as_json)
    if not has_lines:
        print_text(
            "no inputs: give them as arguments, or one per line in a file (--file) or on standard input",
            file=sys.stderr,
        )
    print_text(*quoted_note(len(quoted), number, chain(*quoted)), file=sys.stderr)
    for label, numbers in cut:
        head = f"{label}: " if len(cut) > 1 else ""
        print_text(*(f"{head}{note}" for note in numbers.notes("--max-new-tokens ")), file=sys.stderr)
    if has_line_breaks and not as_json:
        print_text("\\n in a text stands for a line break", file=sys.stderr)


def _opened(stack: contextlib.ExitStack, places: list[str], run: str | None) -> list[ModelSource]:
    """Open the sources before torch is imported."""
    from petransfer.sharing.sources import opened_source

    # importing torch takes seconds; a wrong name is reported before the import
    return [stack.enter_context(opened_source(place, None if at else run)) for at, place in enumerate(places)]


def _predictors(sources: list[ModelSource], load_options: LoadOptions, combination: Any, chat: bool) -> _Each:
    """Return a function that yields the label and the predictor of each source."""
    from petransfer.models.quiet_libraries import silence_libraries
    from petransfer.sharing.combined_adapters import load_adapters
    from petransfer.sharing.whole_models import whole_predictor

    silence_libraries()
    if all(source.kind == "adapter" for source in sources):
        together = load_adapters([source.adapter() for source in sources], load_options, combination)
        # the adapters share one base model, so each predictor must be used before the next one is requested
        _name_chat_templates(sources, chat)
        return lambda: ((label, predictor) for _, label, predictor in together.each())
    if combination or any(source.kind == "adapter" for source in sources):
        other = next(source for source in sources if source.kind != "adapter")
        raise UserError(f"{other.label} is a whole model, but --with and --weights need adapters; `eval` accepts both")
    ready = [(source.label, whole_predictor(source, load_options)) for source in sources]
    return lambda: iter(ready)


def _name_chat_templates(sources: list[ModelSource], chat: bool) -> None:
    """Print a note about `--chat` if an adapter's folder has a chat template and `--chat` was not given."""
    from petransfer.sharing.own_tokenizer import has_own_chat_template

    for source in sources:
        if not chat and has_own_chat_template(source.adapter()):
            print_text(f"{source.label} has a chat template; --chat writes each input with it", file=sys.stderr)


def _for_chats(each: _Each) -> _Each:
    """Return a function like `each`, whose predictors write each input as a chat with the model's chat template."""

    def chats() -> Iterator[tuple[str, Predictor]]:
        for label, predictor in each():
            found = predictor.for_chats(by_default=True)
            if found is None:
                raise UserError(f"--chat: the tokenizer of {label} has no chat template; leave --chat out")
            yield label, found

    return chats


def _print(line: str, label: str | None, generated: str, as_json: bool) -> None:
    """Print one generated text as one line of text or JSON."""
    if as_json:
        named = {} if label is None else {"adapter": label}
        has_all_letters = "utf" in (sys.stdout.encoding or "utf-8").lower()
        content = {"input": line, **named, "output": generated}
        print(json_line(content, ascii_only=not has_all_letters), flush=True)
        return
    shown = one_line(generated) if label is None else f"{label}\t{one_line(generated)}"
    print(for_output(shown, sys.stdout), flush=True)
