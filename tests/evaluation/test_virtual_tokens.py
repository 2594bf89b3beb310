"""Adapters of plain peft with virtual tokens before a decoder-only model's input. They have logits, as other tokens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PromptEncoderConfig, PromptTuningConfig, get_peft_model
from torch.nn import functional

import petransfer
from petransfer.data.encoding import Encoded, encode_examples
from petransfer.data.task import Example
from petransfer.errors import UserError
from petransfer.evaluation.generation import generate
from petransfer.evaluation.label_scoring import choose_labels
from petransfer.evaluation.semantic_match import beginnings
from petransfer.models.loading import Loaded, load_checkpoint
from petransfer.models.registry import checkpoint_spec
from petransfer.training import losses
from petransfer.training.batches import IGNORED, collate

PAIRS = {"jump": "I_JUMP", "walk and run": "I_WALK I_RUN", "look left thrice": "I_LOOK", "turn right": "I_TURN"}
TOKENS = 5


@pytest.fixture(scope="module", params=[PromptTuningConfig, PromptEncoderConfig], ids=["prompt tuning", "p-tuning"])
def taught(request: pytest.FixtureRequest, tiny_gpt2: Path) -> tuple[Any, Loaded, list[Encoded]]:
    """A model that learnt PAIRS with all its weights, in a training loop without petransfer."""
    loaded = load_checkpoint(checkpoint_spec(str(tiny_gpt2)), 32)
    rows = [Example(at, *pair, "all") for at, pair in enumerate(PAIRS.items())]
    encoded = encode_examples(rows, "", loaded.tokenizer, loaded.layout)
    torch.manual_seed(0)
    model: Any = get_peft_model(loaded.model, request.param(task_type="CAUSAL_LM", num_virtual_tokens=TOKENS))
    model.eval().requires_grad_(True)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    batch = collate(encoded, loaded.layout)
    labels = batch.pop("labels")
    for _ in range(60):
        logits = model(**batch, use_cache=False).logits[:, TOKENS:]
        functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert generate(model, loaded, [row.input_ids for row in encoded], 16) == list(PAIRS.values())
    return model, loaded, encoded


@pytest.mark.parametrize("whole", [losses.WHOLE, 1], ids=["whole logits", "logits in chunks"])
def test_exact_match_agrees_with_the_generated_texts(
    whole: int, taught: tuple[Any, Loaded, list[Encoded]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, loaded, _ = taught
    monkeypatch.setattr(losses, "WHOLE", whole)
    assert petransfer.exact_match(model, loaded.tokenizer, PAIRS, PAIRS.values()) == 1
    assert petransfer.exact_match(model, loaded.tokenizer, PAIRS, ["I_JUMP", "I_RUN", "I_LOOK", "I_JUMP"]) == 0.5


@pytest.mark.parametrize("whole", [losses.WHOLE, 1], ids=["whole logits", "logits in chunks"])
def test_choose_labels_returns_the_learnt_labels(
    whole: int, taught: tuple[Any, Loaded, list[Encoded]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, loaded, encoded = taught
    monkeypatch.setattr(losses, "WHOLE", whole)
    assert choose_labels(model, loaded, encoded, sorted(PAIRS.values())) == list(PAIRS.values())


def test_beginnings_are_those_of_the_generated_texts(taught: tuple[Any, Loaded, list[Encoded]]) -> None:
    model, loaded, encoded = taught
    wrong = [replace(row, target_ids=(*row.target_ids[:1], 300)) for row in encoded]
    assert beginnings(model, loaded, wrong, 4) == [row.target_ids[:2] for row in encoded]


def test_virtual_tokens_reduce_the_positions_for_an_example(taught: tuple[Any, Loaded, list[Encoded]]) -> None:
    model, loaded, _ = taught
    longest = "walk"
    while len(loaded.tokenizer(longest + " walk\n", add_special_tokens=False)["input_ids"]) <= 118:
        longest += " walk"
    taken = "of which 8 are kept for generation and 5 for virtual tokens"
    with pytest.raises(UserError, match=f"^example 1 cannot be scored: .* of 128, {taken}"):
        petransfer.exact_match(model, loaded.tokenizer, [longest], ["I_WALK"])
