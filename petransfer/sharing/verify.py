"""Check an adapter against its own records: files, base, tokenizer, bits, data and scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from shlex import quote
from typing import Any

from petransfer.data import SplitData
from petransfer.data.chat import chat_layout
from petransfer.errors import UserError
from petransfer.evaluation.exact_match import Evaluation
from petransfer.evaluation.one_pass import ScoredExample
from petransfer.models.hashes import tokenizer_sha256, weight_hashes
from petransfer.models.loading import Loaded
from petransfer.models.quantization import inventory
from petransfer.plurals import count
from petransfer.recipe.run_spec import Bits
from petransfer.sharing import file_checks as checks
from petransfer.sharing.attach import attach
from petransfer.sharing.base import (
    AdapterBase,
    LoadOptions,
    base_of,
    changed_configuration,
    differing_weights,
    other_tokenizer_parts,
)
from petransfer.sharing.bundle import Bundle, differences, other_base
from petransfer.sharing.bundle_files import CARD, EXAMPLES, PROVENANCE, RESULT, WEIGHTS, has_unix_line_ends
from petransfer.sharing.card import OF_ADAPTER
from petransfer.sharing.card_metadata import SPLITS
from petransfer.sharing.examples_file import rows_of
from petransfer.sharing.plain_check import differing_texts
from petransfer.sharing.safe_reading import card_data
from petransfer.sharing.scoring import evaluation
from petransfer.sharing.task_data import data_of
from petransfer.sharing.usable_rows import usable_rows
from petransfer.study.provenance import examples_sha256

# The parts of the data, each with its name in the card's metadata.


@dataclass(frozen=True)
class Check:
    """The outcome of one check.

    what: subject of the check, such as `files`.
    passed: whether the check passed.
    line: the result in one line.
    """

    what: str
    passed: bool
    line: str


def verify(
    bundle: Bundle, load_options: LoadOptions, bits: Bits | None = None, evaluated: bool = True, plain: bool = False
) -> Iterator[Check]:
    """Check an adapter, and yield the outcome of each check.

    Args:
        bundle: the adapter.
        load_options: where to find the base and the data.
        bits: bits of the loaded base. Default: as in training.
        evaluated: evaluate again to check the scores. This needs the data and takes most of the time.
        plain: also compare the generated texts with those of plain transformers and peft.

    Raises:
        UserError: the adapter has no records to check against, or the base or the data are not available.
    """
    if bundle.provenance is None or bundle.spec is None:
        raise UserError(
            f"{bundle.label} was not made by petransfer, so there are no records to verify; `petransfer adapter info` "
            "shows what it contains"
        )
    if not bundle.provenance.get("base") or not bundle.provenance.get("claims"):
        raise UserError(
            f"{bundle.label} was made by an older petransfer, which did not save the records for verification"
        )
    checks.check(bundle.config, bundle.tensors, bundle.spec.method.name)
    of_files = [*_files(bundle), *_card(bundle), *_saved_figures(bundle)]
    sound = all(check.passed for check in of_files)
    if not sound:  # a changed file is reported even if the base or the data are missing
        yield from of_files
    base = base_of(bundle, load_options, bits)
    data = _data(bundle, load_options, evaluated, plain)
    if sound:
        yield from of_files
    loaded = base.load(load_options.device)
    of_base = list(_base(bundle, base, loaded))
    yield from of_base
    # With a wrong base, the remaining checks would be meaningless.
    if not all(check.passed for check in of_base):
        return
    model = _attached(loaded, bundle, base.bits)
    yield Check("tensors", True, _tensors_line(len(bundle.tensors)))
    if evaluated and data:
        yield from _figures(bundle, data, model, loaded)
    if plain and data:
        yield _plain(bundle, data, base, model, loaded)


def _tensors_line(tensors: int) -> str:
    fit = "tensor fits a layer" if tensors == 1 else "tensors fit the layers"
    return f"{f'all {tensors:,}' if tensors > 1 else 'the only'} {fit} of the base model"


def _data(bundle: Bundle, load_options: LoadOptions, evaluated: bool, plain: bool) -> SplitData | None:
    """Return the data of the adapter's own task. None if no check needs them."""
    if not evaluated and not plain:
        return None
    otherwise = "skip the evaluation with --no-evaluate" if evaluated else "remove --plain"
    return data_of(bundle, load_options.data_dir, otherwise)


def _attached(loaded: Loaded, bundle: Bundle, bits: Bits) -> Any:
    """Return the base with the adapter attached."""
    # Without provenance and manifest, `attach` accepts files whose sha256 differs. An earlier check has reported the
    # difference, and evaluating shows whether the difference changes the scores.
    return attach(loaded, [replace(bundle, provenance=None, manifest=None)], bits)


def _files(bundle: Bundle) -> Iterator[Check]:
    wrong = differences(bundle)
    for name, line in wrong.items():
        yield Check("card" if name == CARD else "files", False, line)
    other = other_base(bundle)
    if other:
        yield Check("config", False, other)
    if not wrong:
        listed = bundle.manifest or (bundle.provenance or {}).get("files") or {}
        line = f"{_files_have(len(listed), 'file')} the recorded SHA-256"
        other_ends = [name for name, path in bundle.files.items() if not has_unix_line_ends(path)]
        if other_ends:
            line += f"; line ends are not compared ({', '.join(other_ends)}: CRLF, as git writes it; this is harmless)"
        yield Check("files", True, line)


def _files_have(number: int, noun: str, where: str = "") -> str:
    """Return the beginning of a sentence, such as `1 weight file of nano/english has`."""
    return f"{count(number, noun)}{where} {'has' if number == 1 else 'have'}"


def _claims(bundle: Bundle) -> dict[str, float]:
    """Return the exact match in petransfer.json for each part of the data, in %."""
    claims = (bundle.provenance or {})["claims"]
    return {part: float(claims[part]["exact_match"]) for part in SPLITS if part in claims}


def _card(bundle: Bundle) -> Iterator[Check]:
    """Compare the sha256 and scores in the card with petransfer.json.

    Yields:
        The differences, and a passed check if README.md is not a card of petransfer.
    """
    if bundle.card is None:
        return
    sha = ((bundle.provenance or {}).get("files") or {}).get(WEIGHTS, "")
    data = card_data(bundle.card)
    advice = f"`petransfer adapter card {quote(bundle.label)}` writes a new card"
    if OF_ADAPTER not in bundle.card and "model-index" not in data:
        yield Check("card", True, f"{CARD} is not a card of petransfer, so its content was not checked; {advice}")
    elif sha and sha not in bundle.card:
        line = f"{CARD} does not contain the SHA-256 of these weights ({sha[:12]}...), so it is of another adapter"
        yield Check("card", False, f"{line}; {advice}")
    figures = dict(_figures_of_card(data))
    for part, claim in _claims(bundle).items():
        stated = figures.get(SPLITS[part], claim)
        if abs(stated - claim) > 1e-6:
            yield Check("card", False, _unequal(part, CARD, stated, claim))


def _unequal(part: str, file: str, score: float, recorded: float) -> str:
    return f"exact match on {part} is {score:.2f} % in {file}, but {recorded:.2f} % in {PROVENANCE}"


def _figures_of_card(metadata: dict[str, Any]) -> Iterator[tuple[str, float]]:
    try:
        for one in metadata["model-index"][0]["results"]:
            for metric in one["metrics"]:
                if metric["type"] == "exact_match":
                    yield str(one["dataset"]["split"]), float(metric["value"])
    except (KeyError, IndexError, TypeError, ValueError):
        return


def _saved_figures(bundle: Bundle) -> Iterator[Check]:
    """Compare the scores in result.json and examples.parquet with petransfer.json. Yield only differences."""
    claims, result = _claims(bundle), bundle.result() or {}
    for part, claim in claims.items():
        measured = result.get(part, {}).get("exact_match", claim)
        if abs(measured - claim) > 1e-6:
            yield Check("score", False, _unequal(part, RESULT, measured, claim))
    if EXAMPLES in bundle.files and "test" in claims:
        rows = rows_of(bundle.files[EXAMPLES])
        share = 100 * sum(row["correct"] for row in rows) / len(rows) if rows else 0.0
        if abs(share - claims["test"]) > 1e-6:
            yield Check("examples", False, _unequal("test", EXAMPLES, share, claims["test"]))


def _base(bundle: Bundle, base: AdapterBase, loaded: Loaded) -> Iterator[Check]:
    kept, spec = base.trained_on, bundle.spec
    assert spec is not None
    name, made = base.checkpoint.name, spec.checkpoint.name
    if kept.get("commit") and loaded.commit != kept["commit"]:
        at = str(loaded.commit)[:12]
        yield Check("revision", False, f"{name} is at commit {at}; the adapter was trained at {kept['commit'][:12]}")
    other, expected = differing_weights(base, loaded), kept.get("weights_sha256") or {}
    if other:
        yield Check("base", False, f"{name} is not the base model of the training, {made}: {other}")
    elif expected and weight_hashes(base.checkpoint, loaded.commit) != expected:
        yield Check("base", True, f"the tensors of {name} have the recorded values; they are saved in other files")
    elif expected:
        yield Check("base", True, f"{_files_have(len(expected), 'weight file', f' of {name}')} the recorded SHA-256")
    else:
        line = f"neither the SHA-256 of the weights of {name} nor its commit was recorded"
        if kept.get("commit"):
            line = f"the SHA-256 of the weights of {name} was not recorded, only its commit"
        yield Check("base", bool(kept.get("commit")), line)
    if changed := changed_configuration(base, loaded):
        yield Check("configuration", False, f"config.json of {name} changed since training: {changed}")
    elif kept.get("configuration"):
        yield Check("configuration", True, f"config.json of {name} has not changed since training")
    changed_parts, now = other_tokenizer_parts(kept, loaded), tokenizer_sha256(loaded.tokenizer)
    same = "tokenizer" not in changed_parts
    how = "has not changed" if same else f"has changed: its SHA-256 is now {now[:12]}..."
    yield Check("tokenizer", same, f"the tokenizer of {name} {how}")
    if "chat template" in changed_parts:
        yield Check("chat template", False, f"the chat template of {name} changed since training; restore it")
    yield _width(kept.get("bytes"), base, loaded, bundle)


def _width(kept: dict[str, int] | None, base: AdapterBase, loaded: Loaded, bundle: Bundle) -> Check:
    assert bundle.spec is not None
    held, trained = inventory(loaded.model).bytes, bundle.spec.method.bits
    if kept and "float32" not in held and kept.get("float32", 0) <= bundle.weights.stat().st_size:
        # earlier versions counted the tensors of some methods, which are in fp32, as the base's
        kept = {dtype: size for dtype, size in kept.items() if dtype != "float32"}
    share = _shares(held)
    if base.bits != trained or (kept is not None and kept.keys() != held.keys()):
        was = f" ({_in_words(_shares(kept))})" if kept else ""
        line = f"the base model has {base.bits} bits ({_in_words(share)}); in training it had {trained} bits{was}"
        return Check("bits", False, line)
    return Check("bits", True, f"the base model has {base.bits} bits, as in training: {_in_words(share)}")


def _shares(counts: dict[str, int]) -> dict[str, float]:
    total = sum(counts.values())
    return {dtype: 100 * size / total for dtype, size in counts.items()}


def _in_words(shares: dict[str, float]) -> str:
    return ", ".join(f"{share:.0f} % {dtype}" for dtype, share in sorted(shares.items()))


def _figures(bundle: Bundle, data: SplitData, model: Any, loaded: Loaded) -> Iterator[Check]:
    provenance, spec = bundle.provenance or {}, bundle.spec
    assert spec is not None
    loaded = replace(loaded, layout=chat_layout(loaded.tokenizer, loaded.layout, bundle.chat()))
    for part, claim in provenance["claims"].items():
        examples = usable_rows(getattr(data, part), bundle, model, loaded)
        if examples_sha256(examples) != provenance.get("data_sha256", {}).get(part):
            yield Check("data", False, f"the {part} examples are not the examples that the adapter was scored on")
            continue
        found = evaluation(model, loaded, spec.task.prefix, examples)
        yield _claimed(part, claim, found)
        if part == "test" and EXAMPLES in bundle.files:
            yield _example_by_example(rows_of(bundle.files[EXAMPLES]), found.scored)


def _claimed(part: str, claim: dict[str, Any], found: Evaluation) -> Check:
    """Compare the recorded exact match with the measured one."""
    now, claimed, size = 100 * found.exact_match, float(claim["exact_match"]), len(found.scored)
    apart = round(abs(now - claimed) * size / 100, 6)
    if apart < 0.5:
        about = f"{now:.2f} % exact match on {part}, equal to the recorded value"
        return Check("score", True, f"{about} ({count(size, 'example')})")
    about = (
        f"{now:.2f} % exact match on {part}; the recorded value is {claimed:.2f} %, a difference of "
        f"{apart:.0f} of {size:,} examples"
    )
    # A near-tie is an example whose outcome can change by rounding.
    if apart <= found.near_ties:
        ties = f"{count(found.near_ties, 'example')} {'is a near-tie' if found.near_ties == 1 else 'are near-ties'}"
        return Check("score", True, f"{about}; {ties}, whose result can change by rounding")
    return Check("score", False, about)


def _example_by_example(kept: Sequence[dict[str, Any]], scored: Sequence[ScoredExample]) -> Check:
    if [row["index"] for row in kept] != [row.index for row in scored]:
        return Check("examples", False, f"{EXAMPLES} does not list the same examples as the test part of the data")
    pairs = list(zip(kept, scored, strict=True))
    other = [row for before, row in pairs if bool(before["correct"]) != row.correct]
    moved = max(abs(before["log_prob"] - row.log_prob) for before, row in pairs)
    about = f"the log-probabilities of the targets differ by at most {moved:.2g} nats"
    certain = [row for row in other if not row.near_tie]
    if certain:
        line = f"{len(certain)} of {len(pairs):,} test examples do not have the result that is recorded in {EXAMPLES}"
        return Check("examples", False, f"{line}; the first is index {certain[0].index}; {about}")
    ties = f", except {count(len(other), 'near-tie')}" if other else ""
    same = f"all {len(pairs):,} test examples have the result that is recorded in {EXAMPLES}"
    return Check("examples", True, f"{same}{ties}; {about}")


def _plain(bundle: Bundle, data: SplitData, base: AdapterBase, model: Any, loaded: Loaded) -> Check:
    """Check that plain transformers and peft generate the same texts."""
    assert bundle.spec is not None
    loaded = replace(loaded, layout=chat_layout(loaded.tokenizer, loaded.layout, bundle.chat()))
    examples = usable_rows(data.test, bundle, model, loaded)
    found = differing_texts(bundle, base, model, loaded, examples)
    same = found.inputs - found.different
    line = f"plain transformers and peft generate the same text for {same} of {found.inputs} test inputs"
    if found.near_ties:
        other = "the other text differs" if found.different == 1 else f"{found.near_ties} other texts differ"
        line += f"; {other} after a near-tie, where rounding decides between two tokens"
    # At 8 and 4 bits, the check passes also for different texts.
    return Check("plain", found.different == found.near_ties or base.bits < 16, line)
