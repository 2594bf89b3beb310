"""Whether an adapter is what its bundle says: files, base, tokenizer, width, data, and the figures that it claims."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow
import pyarrow.parquet

from petransfer.errors import UserError
from petransfer.evaluation.exact_match import Evaluation
from petransfer.evaluation.one_pass import Scored
from petransfer.models.hashes import tokenizer_sha256, weight_hashes
from petransfer.models.loading import Loaded
from petransfer.models.quantization import inventory
from petransfer.recipe.run_spec import Bits
from petransfer.sharing import file_checks as checks
from petransfer.sharing.attach import attach
from petransfer.sharing.base import Base, Where, base_of
from petransfer.sharing.bundle import Bundle, differences, other_base
from petransfer.sharing.bundle_files import CARD, EXAMPLES, WEIGHTS
from petransfer.sharing.safe_reading import card_data
from petransfer.sharing.scoring import evaluation
from petransfer.sharing.task_data import data_of
from petransfer.study.provenance import examples_sha256

PARTS = {"dev": "validation", "test": "test"}


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. line: what was found, and by how much it differs where it does."""

    what: str
    passed: bool
    line: str


def verify(bundle: Bundle, where: Where, bits: Bits | None = None, evaluated: bool = True) -> Iterator[Check]:
    """Every check as it is done; stops where the rest would mean nothing.

    evaluated: whether the claimed figures are measured again, which takes the data and most of the time.

    Raises:
        UserError: there is nothing to check against, or the base or the data cannot be had.
    """
    if bundle.provenance is None or bundle.spec is None:
        raise UserError(f"{bundle.label} was not made by petransfer: there is no provenance to verify; see info")
    if not bundle.provenance.get("base") or not bundle.provenance.get("claims"):
        raise UserError(f"{bundle.label} was made by an older petransfer, which kept nothing to verify")
    checks.check(bundle.config, bundle.tensors)
    yield from _files(bundle)
    yield from _card(bundle)
    base = base_of(bundle, where.checkpoint, where.revision, bits)
    loaded = base.load(where.device)
    of_base = list(_base(bundle, base, loaded))
    yield from of_base
    if not all(check.passed for check in of_base):
        return
    model = attach_as_it_is(loaded, bundle, base.bits)
    yield Check("tensors", True, f"all {len(bundle.tensors)} tensors land")
    if evaluated:
        yield from _figures(bundle, where, model, loaded)


def attach_as_it_is(loaded: Loaded, bundle: Bundle, bits: Bits) -> Any:
    """The model, whatever the hashes say: that they differ was said before, and how much it matters is asked now."""
    plain = Bundle(bundle.label, bundle.files, bundle.config, bundle.tensors, None, bundle.spec, None, bundle.here)
    return attach(loaded, [plain], bits)


def _files(bundle: Bundle) -> Iterator[Check]:
    wrong = differences(bundle)
    for name, line in wrong.items():
        yield Check("card" if name == CARD else "files", False, line)
    other = other_base(bundle)
    if other:
        yield Check("config", False, other)
    if not wrong:
        listed = bundle.manifest or (bundle.provenance or {}).get("files") or {}
        yield Check("files", True, f"{len(listed)} files have the sha256 that they were saved with")


def _card(bundle: Bundle) -> Iterator[Check]:
    """What the card claims is what the provenance claims, of this adapter."""
    text, provenance = bundle.card, bundle.provenance or {}
    if text is None:
        return
    sha = (provenance.get("files") or {}).get(WEIGHTS, "")
    if sha and sha not in text:
        yield Check("card", False, f"the card is another adapter's: {CARD} does not name the sha256 {sha[:12]}...")
    figures = dict(_figures_of(card_data(text)))
    for part, split in PARTS.items():
        claim = provenance["claims"].get(part, {}).get("exact_match")
        if split in figures and claim is not None and abs(figures[split] - claim) > 1e-6:
            yield Check(
                "card", False, f"the card says {figures[split]:.2f} % EM on {part}, the provenance {claim:.2f} %"
            )
    result = bundle.result() or {}
    for part in PARTS:
        claim, measured = provenance["claims"].get(part, {}).get("exact_match"), result.get(part, {}).get("exact_match")
        if claim is not None and measured is not None and abs(measured - claim) > 1e-6:
            yield Check("claim", False, f"result.json says {measured:.2f} % EM on {part}, the provenance {claim:.2f} %")


def _figures_of(metadata: dict[str, Any]) -> Iterator[tuple[str, float]]:
    try:
        for one in metadata["model-index"][0]["results"]:
            for metric in one["metrics"]:
                if metric["type"] == "exact_match":
                    yield str(one["dataset"]["split"]), float(metric["value"])
    except (KeyError, IndexError, TypeError, ValueError):
        return


def _base(bundle: Bundle, base: Base, loaded: Loaded) -> Iterator[Check]:
    kept, spec = (bundle.provenance or {})["base"], bundle.spec
    assert spec is not None
    name, made = base.checkpoint.name, spec.checkpoint.name
    if kept.get("commit") and loaded.commit != kept["commit"]:
        at = str(loaded.commit)[:12]
        yield Check("revision", False, f"{name} is at commit {at}; the adapter was trained at {kept['commit'][:12]}")
    expected, found = kept.get("weights_sha256") or {}, weight_hashes(base.checkpoint, loaded.commit)
    other = next((file for file in {**expected, **found} if expected.get(file) != found.get(file)), None)
    if other:
        shas = f"{str(found.get(other))[:12]}..., not {str(expected.get(other))[:12]}..."
        yield Check(
            "base", False, f"{name} is not the base that it was trained on, {made}: {other} has the sha256 {shas}"
        )
    elif expected:
        yield Check("base", True, f"{name}: {len(expected)} files of weights have the sha256 that it was trained on")
    else:
        yield Check("base", bool(kept.get("commit")), f"{name}: no sha256 of its weights was kept, only its commit")
    now = tokenizer_sha256(loaded.tokenizer)
    same = now == kept.get("tokenizer_sha256")
    said = "cuts text as it did" if same else f"is another: its rules have the sha256 {now[:12]}..."
    yield Check("tokenizer", same, f"the tokenizer of {name} {said}")
    yield _width(kept.get("bytes"), base, loaded, spec.method.bits)


def _width(kept: dict[str, int] | None, base: Base, loaded: Loaded, trained: int) -> Check:
    now = inventory(loaded.model).bytes
    share = _shares(now)
    if base.bits != trained or (kept is not None and _shares(kept).keys() != share.keys()):
        was = f" ({_in_words(_shares(kept))})" if kept else ""
        line = f"the base is at {base.bits} bits ({_in_words(share)}); the adapter was trained on one at {trained}{was}"
        return Check("bits", False, line)
    return Check("bits", True, f"the base is at {base.bits} bits as it was: {_in_words(share)}")


def _shares(counts: dict[str, int]) -> dict[str, float]:
    total = sum(counts.values())
    return {dtype: 100 * size / total for dtype, size in counts.items()}


def _in_words(shares: dict[str, float]) -> str:
    return ", ".join(f"{share:.0f} % {dtype}" for dtype, share in sorted(shares.items()))


def _figures(bundle: Bundle, where: Where, model: Any, loaded: Loaded) -> Iterator[Check]:
    provenance, spec = bundle.provenance or {}, bundle.spec
    assert spec is not None
    data = data_of(bundle, where.data_dir)
    for part, claim in provenance["claims"].items():
        examples = getattr(data, part)
        if examples_sha256(examples) != provenance.get("data_sha256", {}).get(part):
            yield Check("data", False, f"the {part} examples here are not those that it was tested on")
            continue
        found = evaluation(model, loaded, spec.task.prefix, examples)
        yield _claimed(part, claim, found)
        if part == "test" and EXAMPLES in bundle.files:
            yield _example_by_example(_rows(bundle), found.scored)


def _claimed(part: str, claim: dict[str, Any], found: Evaluation) -> Check:
    """Equal, but for as many examples as lie within rounding of the boundary."""
    now, claimed, size = 100 * found.exact_match, float(claim["exact_match"]), len(found.scored)
    apart = round(abs(now - claimed) * size / 100, 6)
    if apart < 0.5:
        return Check("claim", True, f"{now:.2f} % EM on {part}, as claimed ({size:,} examples)")
    about = f"{now:.2f} % EM on {part}; claimed are {claimed:.2f} %, {apart:.0f} of {size:,} examples"
    if apart <= found.near_ties:
        return Check("claim", True, f"{about}, within the {found.near_ties} near-ties")
    return Check("claim", False, f"{about} {'more' if claimed > now else 'fewer'} than were measured here")


def _rows(bundle: Bundle) -> list[dict[str, Any]]:
    try:
        table = pyarrow.parquet.read_table(bundle.files[EXAMPLES], columns=["index", "correct", "log_prob"])
    except (pyarrow.ArrowException, OSError, ValueError, KeyError) as error:
        raise UserError(f"{EXAMPLES} cannot be read ({str(error).splitlines()[0][:100]}); get it again") from None
    kinds = {"index": pyarrow.int64(), "correct": pyarrow.bool_(), "log_prob": pyarrow.float64()}
    if any(table.schema.field(name).type != kind or table[name].null_count for name, kind in kinds.items()):
        raise UserError(f"{EXAMPLES} holds other values than a run writes; get it again")
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def _example_by_example(kept: Sequence[dict[str, Any]], scored: Sequence[Scored]) -> Check:
    if [row["index"] for row in kept] != [row.index for row in scored]:
        return Check("examples", False, f"{EXAMPLES} lists other examples than the test part has")
    pairs = list(zip(kept, scored, strict=True))
    other = [row for before, row in pairs if bool(before["correct"]) != row.correct]
    moved = max(abs(before["log_prob"] - row.log_prob) for before, row in pairs)
    about = f"log-probabilities of targets differ by at most {moved:.2g} nats"
    settled = [row for row in other if not row.near_tie]
    if settled:
        line = (
            f"{len(settled)} of {len(pairs):,} test examples come out otherwise than in {EXAMPLES}, the first at index"
        )
        return Check("examples", False, f"{line} {settled[0].index}; {about}")
    ties = f", {len(other)} near-ties apart" if other else ""
    return Check("examples", True, f"all {len(pairs):,} test examples come out as in {EXAMPLES}{ties}; {about}")
