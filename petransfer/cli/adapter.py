"""The verbs `adapter info`, `card`, `pack`, `push`, `pull`, `verify`, `merge` and `compare`."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from petransfer.atomic_files import creating
from petransfer.cli.base_options import AnyBase, Checkpoint, Revision
from petransfer.cli.column_options import InputColumn, TargetColumn, Template
from petransfer.cli.lazy_verbs import path_or_dash
from petransfer.cli.terminal_text import print_text
from petransfer.errors import UserError, unknown
from petransfer.json_lines import with_finite_numbers
from petransfer.sharing.bundle import Bundle, checked_bundle, open_bundle, without_records
from petransfer.sharing.bundle_files import CARD
from petransfer.sharing.bundle_zip import SUFFIX
from petransfer.sharing.card_metadata import CardOptions, checked_card_options, licence_note
from petransfer.visible_text import visible

# Titles that `info` prints for the entries of its JSON output.
_TITLES = {
    "base": "base model",
    "base revision": "revision of the base",
    "targets": "adapted layers",
    "rows of embeddings": "trained token embeddings",
    "tensors": "tensors in the file",
    "parameters": "trained parameters",
    "stored parameters": "parameters in the file",
    "dtypes": "dtypes of the tensors",
    "megabytes": "size in MB",
    "sound": "checks",
    "bits": "bits per base weight",
    "claimed dev EM %": "exact match on dev, %",
    "claimed test EM %": "exact match on test, %",
}
# Texts that `info` prints instead of these values. Keys: entry and value.
_TEXTS = {
    ("task", "lines held-out"): "rows from files, not a benchmark",
    ("licence", "other"): "other: no licence was named",
}

app = typer.Typer(no_args_is_help=True, help="Describe, pack, upload, download, verify and merge adapters.")

Source = Annotated[
    str,
    typer.Argument(
        help="A folder of a run, an adapter or a study with one finished run; a bundle file; or a hub id (owner/name)."
    ),
]
Licence = Annotated[
    str | None,
    typer.Option(
        "--licence",
        "--license",
        help="Licence of the adapter, such as mit. Needed if the licences of the base model and of the data do not "
        "determine it, for example with your own data.",
    ),
]
Language = Annotated[str | None, typer.Option(help="Language or languages of the data, such as en or en,de.")]
Tag = Annotated[list[str] | None, typer.Option("--tag", help="One more tag for the card. Can be given several times.")]
DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir", help="Folder with the benchmark's original files, or with the data files of the adapter's task."
    ),
]
Bits = Annotated[
    int | None,
    typer.Option(help="Load the base model with this number of bits: 32, 16, 8 or 4. Default: as in training."),
]
Cpu = Annotated[bool, typer.Option("--cpu", help="Use the CPU even if there is a GPU.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


@app.command("info")
def info(source: Source, as_json: Json = False) -> None:
    """Describe an adapter from its files, without loading a model. Any peft adapter works."""
    from petransfer.sharing.info import describe

    with open_bundle(source) as bundle:
        found = describe(bundle)
    if as_json:
        print(json.dumps(found, indent=1))
        return
    titles = {name: _TITLES.get(name, name) for name in found}
    width = max(map(len, titles.values()))
    for name, value in found.items():
        shown = f"{value:,}" if isinstance(value, int) else str(value)
        text = _TEXTS.get((name, shown)) or visible(shown, keep="")
        print_text(f"{titles[name]:<{width}}  {text}")


@app.command("card")
def card(
    source: Source,
    licence: Licence = None,
    language: Language = None,
    tags: Tag = None,
    out: Annotated[
        Path | None,
        typer.Option(
            callback=path_or_dash,
            help="Output file; '-' prints the card. Default: README.md in the adapter's folder. If SOURCE is not a "
            "folder, the default is to print the card.",
        ),
    ] = None,
) -> None:
    """Write the model card that the hub shows: how to use the adapter, its scores, its origin and its limits."""
    from petransfer.sharing.card import card as make
    from petransfer.sharing.pack import without_card, write_card

    card_options = _card_options(licence, language, tags)
    with open_bundle(source) as bundle:
        checked_bundle(without_card(bundle))
        text = make(bundle, card_options)
        _print_licence_note(bundle, card_options)
        target = out or bundle.weights.parent / CARD
        if str(out) == "-" or (out is None and not Path(source).is_dir()):
            print(text, end="")
            return
    write_card(bundle, text, target)
    print(target)


@app.command("pack")
def pack(
    source: Source,
    out: Annotated[
        Path | None, typer.Option(help=f"Output file; its name ends in {SUFFIX}. Default: a name made from the run.")
    ] = None,
    licence: Licence = None,
    language: Language = None,
    tags: Tag = None,
) -> None:
    """Pack an adapter with its model card, provenance, recipe and results into one bundle file.

    Packing the same run again gives a file with the same bytes.
    """
    from petransfer.sharing.pack import pack as write

    with open_bundle(source) as bundle:
        target = out or Path(_name(bundle) + SUFFIX)
        card_options = _card_options(licence, language, tags)
        sha256 = write(bundle, target, card_options)
        _print_licence_note(bundle, card_options)
    print(f"written: {target} ({target.stat().st_size:,} bytes)\nsha256: {sha256}")


@app.command("push")
def push(
    source: Source,
    name: Annotated[str, typer.Argument(help="Repository on the hub, as user/name.")],
    public: Annotated[bool, typer.Option("--public", help="Make a public repository, which everyone can see.")] = False,
    licence: Licence = None,
    language: Language = None,
    tags: Tag = None,
    message: Annotated[str, typer.Option(help="Message of the commit.")] = "Add an adapter by petransfer",
    as_json: Json = False,
) -> None:
    """Upload an adapter to the Hugging Face Hub in one commit. The repository is private unless --public is given."""
    from petransfer.sharing import hub
    from petransfer.sharing.pack import contents

    hub.quiet()
    card_options = _card_options(licence, language, tags)
    with open_bundle(source) as bundle:
        done = hub.push(name, contents(bundle, card_options), public, message)
        _print_licence_note(bundle, card_options)
    for note in done.notes:
        print_text(visible(note, keep=""), file=sys.stderr)
    who = "private; to share it, make it public on the hub" if done.private else "public"
    if as_json:
        print(json.dumps(hub.as_json(done), indent=1))
    else:
        print_text(f"pushed to {done.url} ({who})")


@app.command("pull")
def pull(
    source: Source,
    out: Annotated[Path | None, typer.Option(help="Output folder. Default: a folder with the source's name.")] = None,
) -> None:
    """Check an adapter from the hub or from a bundle file, and copy it into a folder that plain peft can load."""
    from petransfer.sharing import hub

    hub.quiet()
    target = out or Path(source.split("@")[0].rstrip("/").split("/")[-1].removesuffix(SUFFIX))
    if target.exists():
        raise UserError(f"{target} exists; delete it or use another --out")
    with open_bundle(source) as bundle:
        checked_bundle(bundle)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with creating(target) as partial:
                partial.mkdir()
                for name, path in {**bundle.files, **bundle.own_tokenizer()}.items():
                    shutil.copyfile(path, partial / name)
        except OSError as error:
            raise UserError(f"{target} cannot be written ({error.strerror}); use another --out") from None
    print(target)


@app.command("verify")
def verify(
    source: Source,
    checkpoint: Checkpoint = None,
    revision: Revision = None,
    bits: Bits = None,
    data_dir: DataDir = None,
    evaluate: Annotated[
        bool,
        typer.Option("--evaluate/--no-evaluate", help="Whether to evaluate the adapter again and compare the scores."),
    ] = True,
    plain: Annotated[
        bool,
        typer.Option(
            "--plain",
            help="Also generate texts with plain transformers and peft, and compare them with petransfer's texts.",
        ),
    ] = False,
    cpu: Cpu = False,
    as_json: Json = False,
) -> None:
    """Check an adapter's files, base model, tokenizer, bits and scores against the records that come with it.

    The scores are checked by evaluating the adapter again.
    """
    found = []
    with open_bundle(source) as bundle:  # report a wrong path before torch is loaded
        from petransfer.models.quiet_libraries import silence_libraries
        from petransfer.sharing.base import LoadOptions
        from petransfer.sharing.verify import verify as check

        silence_libraries()
        for one in check(
            bundle, LoadOptions(checkpoint, revision, data_dir, _device(cpu)), _bits(bits), evaluate, plain
        ):
            found.append(one)
            if not as_json:
                print(f"{'ok  ' if one.passed else 'FAIL'} {one.what:<10} {visible(one.line, keep='')}", flush=True)
    failed = sum(not one.passed for one in found)
    if as_json:
        print(json.dumps([vars(one) for one in found], indent=1))
    if failed:
        print_text(f"{failed} of {len(found)} checks of {source} failed", file=sys.stderr)
        raise typer.Exit(1)
    print_text(
        f"all checks of {source} passed{'' if evaluate else '; its results were not measured again'}",
        file=sys.stderr,
    )


@app.command("merge")
def merge(
    source: Source,
    out: Annotated[Path, typer.Argument(help="Folder to create for the merged model.")],
    checkpoint: Checkpoint = None,
    revision: Revision = None,
    bits: Annotated[
        int | None,
        typer.Option(help="Bits of the merged model's weights: 32 or 16. Default: 32 after training with 32, else 16."),
    ] = None,
    separate_head: Annotated[
        bool,
        typer.Option(
            "--separate-head",
            help="Save T5's output head as a separate tensor, which llama.cpp needs. No effect on other models.",
        ),
    ] = False,
    any_base: AnyBase = False,
    cpu: Cpu = False,
    as_json: Json = False,
) -> None:
    """Merge an adapter into its base model, save the merged model, and compare its logits with those before merging.

    The merged model has 16 bits, or 32 bits if the adapter was trained with 32.
    """
    with open_bundle(source) as bundle:  # report a wrong path before torch is loaded
        from petransfer.models.quiet_libraries import silence_libraries
        from petransfer.sharing.base import LoadOptions
        from petransfer.sharing.merge import merge as write

        silence_libraries()
        load_options = LoadOptions(checkpoint, revision, None, _device(cpu), any_base)
        done = write(bundle, out, load_options, _bits(bits), separate_head)
    if as_json:
        print(json.dumps(with_finite_numbers(vars(done)), indent=1))
        return
    print_text(f"{out}: {done.bits} bits")
    print_text(f"compared with the adapter on the 32-bit base model: {_change(done.moved, done.agree)}")
    if done.moved_from_trained is not None and done.agree_with_trained is not None:
        change = _change(done.moved_from_trained, done.agree_with_trained)
        print_text(f"compared with the adapter on the {done.trained_bits}-bit base model, as in training: {change}")
    if done.dev is not None:
        claimed = "" if done.dev_claimed is None else f"; recorded at training: {done.dev_claimed:.1f} %"
        print_text(f"exact match on dev: {done.dev:.1f} %{claimed}")


@app.command("compare")
def compare(
    merged: Annotated[str, typer.Argument(help="Folder that `adapter merge` wrote.")],
    file: Annotated[Path, typer.Argument(help="GGUF file that was converted from this folder.")],
    data: Annotated[
        str, typer.Option(help="Data to compare on: a file of rows, or a benchmark such as scan/add_jump.")
    ],
    input_column: InputColumn = None,
    target_column: TargetColumn = None,
    template: Template = None,
    rows: Annotated[int, typer.Option(min=1, help="Largest number of rows to use.")] = 50,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Compare the loss of a merged model with the loss of its GGUF file in llama.cpp, on the CPU."""
    from petransfer.sharing.sources import opened_source

    with opened_source(merged) as source:
        from petransfer.models.quiet_libraries import silence_libraries
        from petransfer.sharing.base import LoadOptions
        from petransfer.sharing.gguf_comparison import compare_gguf
        from petransfer.sharing.task_data import named_columns, test_data
        from petransfer.sharing.whole_models import whole_predictor

        silence_libraries()
        if source.kind == "adapter":
            raise UserError(f"{merged} is an adapter; merge it first with `petransfer adapter merge {merged} FOLDER`")
        columns = named_columns(input_column, target_column, template)
        examples = test_data(source.bundle, source.label, data, None, data_dir, columns).examples
        found = compare_gguf(whole_predictor(source, LoadOptions(device="cpu")), list(examples)[:rows], file)
    if as_json:
        print(json.dumps(with_finite_numbers(vars(found)), indent=1))
        return
    print_text(
        f"loss per target token on {found.rows:,} rows: {found.loss:.4f} in {merged}, {found.gguf_loss:.4f} in {file}"
    )
    print_text(f"the most likely token is the same at {found.agree:.1f} % of the target tokens")
    print_text(f"the input has the same tokens in {found.same_tokens:.1f} % of the rows")


def _change(moved: float, agree: float) -> str:
    return (
        f"the logits changed by {100 * moved:.3f} % (root mean square of the change, relative to that of the logits); "
        f"the most likely token is the same at {agree:.1f} % of the positions"
    )


def _print_licence_note(bundle: Bundle, card_options: CardOptions) -> None:
    note = licence_note(bundle, card_options)
    if note:
        print_text(note, file=sys.stderr)


def _card_options(licence: str | None, language: str | None, tags: list[str] | None) -> CardOptions:
    languages = tuple(part.strip() for part in language.split(",")) if language else ()
    return checked_card_options(licence, languages, tuple(tags or ()))


def _name(bundle: Bundle) -> str:
    if bundle.spec is None:
        raise without_records(bundle.label, "pack or push")
    arm = bundle.spec.checkpoint.name.split("/")[-1]
    return f"{bundle.spec.task.name}-{arm}-{bundle.spec.run_id}"


def _bits(bits: int | None) -> Any:
    if bits not in (None, 4, 8, 16, 32):
        raise unknown("number of bits", str(bits), ("4", "8", "16", "32"))
    return bits


def _device(cpu: bool) -> str | None:
    return "cpu" if cpu else None
