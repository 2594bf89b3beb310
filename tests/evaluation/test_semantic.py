"""Semantic exact match of a model that generates other variables, compared with generating every text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from petransfer.data import TASKS, Example
from petransfer.data.encoding import Encoded, encode_examples
from petransfer.data.logical_forms import same_meaning
from petransfer.evaluation import semantic_match as semantic
from petransfer.evaluation.exact_match import evaluate, summary
from petransfer.evaluation.generation import generate, generations
from petransfer.models.loading import Loaded, load_checkpoint
from petransfer.models.registry import checkpoint_spec
from petransfer.training.batches import collate
from petransfer.training.losses import token_loss

NOUNS = ("dog", "cat", "boy", "girl", "bird", "cake")


def _form(noun: str, one: int, two: int, role: str = "agent") -> str:
    return f"{noun} ( {one} ) ; run ( {two} ) AND {role} ( {two} , {one} )"


@pytest.fixture(scope="module")
def taught(tiny_t5: Path) -> tuple[Loaded, list[Example], list[Encoded]]:
    """A T5 that learnt the target, the target with other variables, and another meaning, for two examples each."""
    asked = [
        Example(at, f"A {noun} ran .", _form(noun, 1, 2), "even" if at % 2 else "odd") for at, noun in enumerate(NOUNS)
    ]
    kinds = [lambda noun: _form(noun, 1, 2), lambda noun: _form(noun, 7, 3), lambda noun: _form(noun, 1, 2, "theme")]
    learnt = [replace(row, target=kinds[at % 3](noun)) for at, (row, noun) in enumerate(zip(asked, NOUNS, strict=True))]
    loaded = load_checkpoint(checkpoint_spec(str(tiny_t5)), 32)
    model = loaded.model.float().eval()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    batch = collate(encode_examples(learnt, "", loaded.tokenizer, loaded.layout), loaded.layout)
    for _ in range(200):
        token_loss(model, batch).div(6).backward()
        optimizer.step()
        optimizer.zero_grad()
    return loaded, asked, encode_examples(asked, "", loaded.tokenizer, loaded.layout)


def test_predictions_with_renamed_variables_count_as_semantically_correct(
    taught: tuple[Loaded, list[Example], list[Encoded]],
) -> None:
    loaded, examples, encoded = taught
    outcome = evaluate(loaded.model, loaded, examples, encoded, semantics=TASKS["recogs"].semantics)
    predictions = generate(loaded.model, loaded, [row.input_ids for row in encoded], 64)
    assert [row.correct for row in outcome.scored] == [
        text == row.target for text, row in zip(predictions, examples, strict=True)
    ]
    meant = [same_meaning(row.target, text) for text, row in zip(predictions, examples, strict=True)]
    assert meant == [True, True, False] * 2
    assert [row.semantic_correct for row in outcome.scored] == meant
    assert outcome.disagreements == 0
    # four texts differ from the target; the forward pass alone excludes the two with a wrong role
    assert outcome.semantic is not None
    assert outcome.semantic.generated == 2
    written = summary(outcome)
    assert written["exact_match"] == pytest.approx(100 / 3)
    assert written["semantic_exact_match"] == pytest.approx(200 / 3)
    assert all("semantic_exact_match" in group for group in written["categories"].values())  # type: ignore[attr-defined]


def test_tasks_without_semantics_have_no_semantic_exact_match(
    taught: tuple[Loaded, list[Example], list[Encoded]],
) -> None:
    loaded, examples, encoded = taught
    outcome = evaluate(loaded.model, loaded, examples, encoded)
    assert all(row.semantic_correct is None for row in outcome.scored)
    assert "semantic_exact_match" not in summary(outcome)
    assert "generated" not in summary(outcome)


def test_the_audit_finds_wrong_beginnings_of_generated_texts(
    taught: tuple[Loaded, list[Example], list[Encoded]], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, examples, encoded = taught
    elsewhere = tuple(loaded.tokenizer("theme", add_special_tokens=False)["input_ids"])
    monkeypatch.setattr(semantic, "beginnings", lambda *_: [(*elsewhere, *elsewhere)] * 4)
    outcome = evaluate(loaded.model, loaded, examples, encoded, semantics=TASKS["recogs"].semantics)
    assert outcome.disagreements == 2
    assert summary(outcome)["semantic_exact_match"] == pytest.approx(100 / 3)
    heard = evaluate(loaded.model, loaded, examples, encoded, semantics=TASKS["recogs"].semantics, by_generation=True)
    assert heard.disagreements == 2
    assert summary(heard)["semantic_exact_match"] == pytest.approx(200 / 3)


def test_beginnings_are_none_if_rounding_makes_them_uncertain(
    taught: tuple[Loaded, list[Example], list[Encoded]], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, _, encoded = taught
    sure = semantic.beginnings(loaded.model, loaded, encoded, 4)
    predictions = generate(loaded.model, loaded, [row.input_ids for row in encoded], 64)
    for ids, text in zip(sure, predictions, strict=True):
        assert ids is None or text.startswith(loaded.tokenizer.decode(list(ids), skip_special_tokens=True))
    assert [ids is None for ids in sure] == [True, False, False] * 2
    monkeypatch.setattr("petransfer.evaluation.batches.NOISE_UNITS", 1e9)
    assert semantic.beginnings(loaded.model, loaded, encoded, 4) == [None] * 6


def test_generations_report_whether_the_text_ended(taught: tuple[Loaded, list[Example], list[Encoded]]) -> None:
    loaded, _, encoded = taught
    rows = [encoded[0].input_ids]
    assert generations(loaded.model, loaded, rows, [64])[0].ended
    assert not generations(loaded.model, loaded, rows, [3])[0].ended


def test_a_decoder_that_starts_with_the_end_token_generates_text(
    taught: tuple[Loaded, list[Example], list[Encoded]],
) -> None:
    loaded, _, encoded = taught
    start = replace(loaded.layout, decoder_start_id=loaded.layout.eos_id)
    predictions = generations(loaded.model, replace(loaded, layout=start), [encoded[0].input_ids], [4])
    ids = loaded.model.generate(  # type: ignore[operator]
        input_ids=torch.tensor([encoded[0].input_ids]), decoder_start_token_id=start.eos_id, max_new_tokens=4
    )
    assert predictions[0].text == loaded.tokenizer.decode(ids[0, 1:], skip_special_tokens=True)
    assert predictions[0].text
