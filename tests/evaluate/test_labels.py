"""Scoring every label in one pass says what free generation says, wherever that says a label."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from petransfer.checkpoints.encoding import Encoded, encode_examples, encode_inputs
from petransfer.checkpoints.load import Loaded, load
from petransfer.checkpoints.registry import checkpoint_spec
from petransfer.evaluate import labels as module
from petransfer.evaluate.generate import generate
from petransfer.evaluate.labels import choose_labels
from petransfer.methods import APPLY
from petransfer.recipe.spec import MethodSpec
from petransfer.tasks import Example
from petransfer.train.batches import collate
from petransfer.train.losses import token_loss

# one label begins like another, and one is the beginning of another
LABELS = ("red", "red and blue", "red and green", "blue", "the colour of the sea")
WORDS = ("one", "two", "three", "four", "five", "six", "seven")


def taught(folder: Path, steps: int) -> tuple[torch.nn.Module, Loaded, list[Encoded]]:
    """A tiny model that was trained to say labels and is often wrong about which."""
    loaded = load(checkpoint_spec(str(folder)), 32)
    model = APPLY["full"](loaded, MethodSpec("full", 32), 0)
    draw = random.Random(0)
    texts = [" ".join(draw.choices(WORDS, k=3)) for _ in range(96)]
    rows = [Example(at, text, LABELS[WORDS.index(text.split()[0]) % 5], "all") for at, text in enumerate(texts)]
    encoded = encode_examples(rows, "", loaded.tokenizer, loaded.layout)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2)
    model.train()
    for step in range(steps):
        token_loss(model, collate(encoded[step * 16 % 96 :][:16], loaded.layout)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval(), loaded, encoded


@pytest.mark.parametrize("fixture", ["tiny_t5", "tiny_gpt2"])
def test_labels_agree_with_generating_and_comparing(fixture: str, request: pytest.FixtureRequest) -> None:
    model, loaded, encoded = taught(request.getfixturevalue(fixture), 150)
    said = generate(model, loaded, [row.input_ids for row in encoded], 12)
    chosen = choose_labels(model, loaded, encoded, LABELS)
    heard = [at for at, text in enumerate(said) if text in LABELS]
    assert len(heard) > 80
    assert len({said[at] for at in heard}) > 2
    assert [chosen[at] for at in heard] == [said[at] for at in heard]
    assert set(chosen) <= set(LABELS)


def test_an_untrained_model_says_a_label_too(tiny_t5: Path) -> None:
    """The way through the labels, piece by piece, by one forward pass for each beginning."""
    loaded = load(checkpoint_spec(str(tiny_t5)), 32)
    loaded.model.eval()
    texts = [f"{word} and {other}" for word in WORDS for other in WORDS[:3]]
    encoded = [Encoded(ids, (1,)) for ids in encode_inputs(texts, loaded.tokenizer, loaded.layout)]
    pieces = {label: (*loaded.tokenizer(label, add_special_tokens=False)["input_ids"], 1) for label in LABELS}
    expected = []
    for row in encoded:
        way: tuple[int, ...] = ()
        while way not in pieces.values():
            start = torch.tensor([[loaded.layout.decoder_start_id, *way]])
            logits = loaded.model(input_ids=torch.tensor([row.input_ids]), decoder_input_ids=start).logits[0, -1]
            allowed = {ids[len(way)] for ids in pieces.values() if ids[: len(way)] == way and len(ids) > len(way)}
            way = (*way, max(allowed, key=lambda piece: float(logits[piece])))
        expected.append(next(label for label, ids in pieces.items() if ids == way))
    assert choose_labels(loaded.model, loaded, encoded, LABELS) == expected
    assert len(set(expected)) > 1


def test_how_many_are_scored_at_once_changes_nothing(tiny_t5: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, loaded, encoded = taught(tiny_t5, 20)
    chosen = choose_labels(model, loaded, encoded[:12], LABELS)
    monkeypatch.setattr(module, "LOGITS", 1)
    assert choose_labels(model, loaded, encoded[:12], LABELS) == chosen
