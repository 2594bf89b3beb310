"""Invariant 4: exact match from one forward pass equals exact match from greedy generation."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from petransfer.data import Example, load_task
from petransfer.data.encoding import encode_examples
from petransfer.data.layout import special_tokens
from petransfer.evaluation import batches, exact_match, one_pass
from petransfer.evaluation.exact_match import evaluate, score, summary
from petransfer.evaluation.generation import generate
from petransfer.models.loading import Loaded, load_checkpoint
from petransfer.models.registry import checkpoint_spec
from petransfer.training.autocast import autocast_forward
from petransfer.training.batches import IGNORED, collate
from petransfer.training.losses import token_loss


def _half_learnt(folder: Path, bits: int) -> tuple[Loaded, list[Example], list[object]]:
    """Return a model trained on 12 of 24 commands with 2 to 12 actions. It is right on some of the 24 commands."""
    loaded, examples, encoded = _trained(folder)
    model = copy.deepcopy(loaded.model)
    if bits == 16:
        model.bfloat16()
    return replace(loaded, model=model), examples, encoded


@cache
def _trained(folder: Path) -> tuple[Loaded, list[Example], list[object]]:
    rows = [row for row in load_task("scan").load("length").train if 2 <= len(row.target.split(" ")) <= 12]
    rows.sort(key=lambda row: (len(row.target), row.input))
    step = len(rows) // 12
    examples = [*rows[::step][:12], *rows[4::step][:12]]
    loaded = load_checkpoint(checkpoint_spec(str(folder)), 32)
    encoded = encode_examples(examples, "", loaded.tokenizer, loaded.layout)
    model = loaded.model.float().eval()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    batch = collate(encoded[:12], loaded.layout)
    tokens = int((batch["labels"] != IGNORED).sum())
    for _ in range(300):
        loss = token_loss(model, batch)
        if float(loss.detach()) < 0.2 * tokens:
            break
        loss.div(12).backward()
        optimizer.step()
        optimizer.zero_grad()
    return loaded, examples, encoded  # type: ignore[return-value]


@pytest.mark.parametrize("bits", [32, 16])
@pytest.mark.parametrize("kind", ["tiny_t5", "tiny_gpt2"])
def test_one_pass_agrees_with_generation_on_every_example(kind: str, bits: int, request: pytest.FixtureRequest) -> None:
    loaded, examples, encoded = _half_learnt(request.getfixturevalue(kind), bits)
    outcome = evaluate(loaded.model, loaded, examples, encoded, batch_size=7, audited=1000)  # type: ignore[arg-type]
    predictions = generate(loaded.model, loaded, [row.input_ids for row in encoded], 64)  # type: ignore[attr-defined]
    right = [text == example.target for text, example in zip(predictions, examples, strict=True)]
    assert [row.correct for row in outcome.scored] == right
    assert 3 <= sum(right) <= 21
    assert max(row.tokens for row in outcome.scored if row.correct) > 8
    assert outcome.disagreements == 0
    assert outcome.audited + outcome.near_ties == len(examples)
    for row in outcome.scored:
        assert row.near_tie or (row.margin > 0) == row.correct
        assert (row.tokens_correct == row.tokens) == (row.margin > 0)
        assert row.log_prob <= 0


def test_fp32_weights_under_bf16_autocast_are_scored_in_bf16(tiny_t5: Path) -> None:
    """An fp32 score could be wrong for an example whose two best tokens have the other order in bf16."""
    loaded, examples, encoded = _half_learnt(tiny_t5, 32)
    autocast_forward(loaded.model, torch.device("cpu"))
    outcome = evaluate(loaded.model, loaded, examples, encoded, audited=1000)  # type: ignore[arg-type]
    assert all(
        (row.margin * 2**14).is_integer() for row in outcome.scored
    )  # each margin is the difference of two bf16 numbers
    assert outcome.near_ties > 0
    assert outcome.audited + outcome.near_ties == len(examples)
    assert outcome.disagreements == 0


@pytest.mark.parametrize("kind", ["tiny_t5", "tiny_gpt2"])
def test_by_generation_all_texts_are_generated_and_the_outcomes_are_the_same(
    kind: str, request: pytest.FixtureRequest
) -> None:
    loaded, examples, encoded = _half_learnt(request.getfixturevalue(kind), 32)
    once = evaluate(loaded.model, loaded, examples, encoded)  # type: ignore[arg-type]
    outcome = evaluate(loaded.model, loaded, examples, encoded, audited=0, by_generation=True)  # type: ignore[arg-type]
    limit = max(len(row.target_ids) for row in encoded) + 8  # type: ignore[attr-defined]
    texts = generate(loaded.model, loaded, [row.input_ids for row in encoded], limit)  # type: ignore[attr-defined]
    assert [row.prediction for row in outcome.scored] == texts
    assert [row.correct for row in outcome.scored] == [row.correct for row in once.scored]
    assert outcome.audited + outcome.near_ties == len(examples)
    assert (outcome.disagreements, summary(outcome)["by_generation"]) == (0, True)
    assert "by_generation" not in summary(once)


def test_by_generation_a_wrong_forward_pass_is_detected_and_does_not_count(
    tiny_t5: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, examples, encoded = _half_learnt(tiny_t5, 32)
    true = evaluate(loaded.model, loaded, examples, encoded)  # type: ignore[arg-type]
    settled = [row.index for row in true.scored if not row.near_tie][:3]

    def lying(*arguments: object) -> list[exact_match.ScoredExample]:
        rows = score(*arguments)  # type: ignore[arg-type]
        return [replace(row, correct=row.correct != (row.index in settled)) for row in rows]

    monkeypatch.setattr(exact_match, "score", lying)
    outcome = evaluate(loaded.model, loaded, examples, encoded, by_generation=True)  # type: ignore[arg-type]
    assert outcome.disagreements == 3
    assert outcome.exact_match == true.exact_match
    assert [row.correct for row in outcome.scored] == [row.correct for row in true.scored]


def test_the_log_probability_is_the_sum_over_the_target_tokens(tiny_t5: Path) -> None:
    loaded, examples, encoded = _half_learnt(tiny_t5, 32)
    rows = score(loaded.model, loaded, examples, encoded, 24)  # type: ignore[arg-type]
    with torch.no_grad():
        expected = token_loss(loaded.model, collate(encoded[5:6], loaded.layout))  # type: ignore[arg-type]
    assert rows[5].log_prob == pytest.approx(-float(expected), rel=1e-5)


def test_the_audit_detects_a_wrong_forward_pass(tiny_t5: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, examples, encoded = _half_learnt(tiny_t5, 32)

    def lying(*arguments: object) -> list[exact_match.ScoredExample]:
        return [replace(row, correct=not row.correct, near_tie=False) for row in score(*arguments)]  # type: ignore[arg-type]

    monkeypatch.setattr(exact_match, "score", lying)
    outcome = evaluate(loaded.model, loaded, examples, encoded, audited=10)  # type: ignore[arg-type]
    assert outcome.audited == 10
    assert outcome.disagreements == 10


def test_near_ties_are_decided_by_generation(tiny_t5: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, examples, encoded = _half_learnt(tiny_t5, 32)
    sure = evaluate(loaded.model, loaded, examples, encoded)  # type: ignore[arg-type]
    monkeypatch.setattr(batches, "NOISE_UNITS", 1e9)
    unsure = evaluate(loaded.model, loaded, examples, encoded)  # type: ignore[arg-type]
    assert unsure.near_ties == len(examples)
    assert [row.correct for row in unsure.scored] == [row.correct for row in sure.scored]


def test_tokens_that_may_spell_the_target_differently_are_left_to_generation(tiny_t5: Path) -> None:
    loaded = load_checkpoint(checkpoint_spec(str(tiny_t5)), 32)
    whole = loaded.tokenizer("jump", add_special_tokens=False)["input_ids"]
    letters = [loaded.tokenizer.convert_tokens_to_ids(piece) for piece in ("Ġ", "j")]
    assert len(whole) == 1
    assert one_pass.may_spell([letters[0], letters[1]], "jump", loaded)
    assert not one_pass.may_spell([letters[0], loaded.tokenizer.convert_tokens_to_ids("k")], "jump", loaded)
    assert one_pass.may_spell([*whole, loaded.layout.eos_id], "jump", loaded)
    assert not one_pass.may_spell([letters[1], loaded.layout.eos_id], "jump", loaded)
    # untrained models predict sentinels and blanks, and generating the texts of all examples would be slow
    for hidden in (loaded.tokenizer.convert_tokens_to_ids("<extra_id_0>"), letters[0]):
        assert not one_pass.may_spell([hidden], "jump", loaded)


def test_the_first_byte_of_a_character_may_spell_the_character() -> None:
    loaded = load_checkpoint(checkpoint_spec("nano/english"), 32)
    first_byte = loaded.tokenizer("\u0416", add_special_tokens=False)["input_ids"][:2]  # a blank and a byte
    assert loaded.tokenizer.decode(first_byte) == "\ufffd"
    assert one_pass.may_spell(first_byte, "\u0416", loaded)


@pytest.mark.parametrize("kind", ["tiny_t5", "tiny_gpt2"])
def test_a_start_token_before_the_target_does_not_make_a_prediction_wrong(
    kind: str, request: pytest.FixtureRequest
) -> None:
    """Models of the BART family generate a start token first, which is not part of the text."""
    loaded = load_checkpoint(checkpoint_spec(str(request.getfixturevalue(kind))), 32)
    examples = [Example(at, word, word, "all") for at, word in enumerate(("walk", "jump"))]
    encoded = encode_examples(examples, "", loaded.tokenizer, loaded.layout)
    known = (loaded.layout.pad_id, *loaded.layout.end_ids)
    hidden = next(token for token in special_tokens(loaded.tokenizer) if token not in known)
    loaded.tokenizer.bos_token = loaded.tokenizer.convert_ids_to_tokens(hidden)
    model = loaded.model.float().eval()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    learnt = collate([replace(row, target_ids=(hidden, *row.target_ids)) for row in encoded], loaded.layout)
    for _ in range(60):
        token_loss(model, learnt).backward()
        optimizer.step()
        optimizer.zero_grad()
    outcome = evaluate(model, loaded, examples, encoded, audited=0)
    assert generate(model, loaded, [row.input_ids for row in encoded], 9) == ["walk", "jump"]
    assert [row.margin < -1 for row in outcome.scored] == [True, True]
    assert outcome.exact_match == 1.0
