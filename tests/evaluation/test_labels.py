"""The label chosen with one forward pass equals the generated text, if this text is a label."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from petransfer.data import Example
from petransfer.data.encoding import Encoded, encode_examples, encode_targets
from petransfer.evaluation import label_scoring as module
from petransfer.evaluation.generation import generate
from petransfer.evaluation.label_scoring import choose_labels
from petransfer.methods import apply_method
from petransfer.models.loading import Loaded, load_checkpoint
from petransfer.models.registry import checkpoint_spec
from petransfer.recipe.run_spec import MethodSpec
from petransfer.training import losses
from petransfer.training.batches import collate
from petransfer.training.losses import Head, token_loss

# two labels share their first words, and one label is the beginning of both
LABELS = ("red", "red and blue", "red and green", "blue", "the colour of the sea")
WORDS = ("one", "two", "three", "four", "five", "six", "seven")


def taught(checkpoint: str, steps: int, rate: float) -> tuple[torch.nn.Module, Loaded, list[Encoded]]:
    """Train a tiny model to generate labels. The labels are often wrong."""
    loaded = load_checkpoint(checkpoint_spec(checkpoint), 32)
    model = apply_method(loaded, MethodSpec("full", 32), 0)
    torch.manual_seed(0)
    draw = random.Random(0)
    texts = [" ".join(draw.choices(WORDS, k=3)) for _ in range(96)]
    rows = [Example(at, text, LABELS[WORDS.index(text.split()[0]) % 5], "all") for at, text in enumerate(texts)]
    encoded = encode_examples(rows, "", loaded.tokenizer, loaded.layout)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    model.train()
    for step in range(steps):
        token_loss(model, collate(encoded[step * 8 % 96 :][:8], loaded.layout)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval(), loaded, encoded


@pytest.mark.parametrize(("name", "steps", "rate"), [("nano/english", 60, 3e-3), ("tiny_gpt2", 200, 1e-2)])
def test_chosen_labels_agree_with_generated_labels(
    name: str, steps: int, rate: float, request: pytest.FixtureRequest
) -> None:
    checkpoint = name if "/" in name else str(request.getfixturevalue(name))
    model, loaded, encoded = taught(checkpoint, steps, rate)
    predictions = generate(model, loaded, [row.input_ids for row in encoded], 12)
    chosen = choose_labels(model, loaded, encoded, LABELS)
    heard = [at for at, text in enumerate(predictions) if text in LABELS]
    assert len(heard) > 48
    assert len({predictions[at] for at in heard}) > 1
    assert [chosen[at] for at in heard] == [predictions[at] for at in heard]
    assert set(chosen) <= set(LABELS)


def test_chosen_labels_agree_with_one_forward_pass_per_token() -> None:
    """Compare with a search that chooses the best allowed token with one forward pass per token."""
    model, loaded, encoded = taught("nano/english", 60, 3e-3)
    pieces = {label: (*loaded.tokenizer(label, add_special_tokens=False)["input_ids"], 1) for label in LABELS}
    expected = []
    for row in encoded[:40]:
        way: tuple[int, ...] = ()
        while way not in pieces.values():
            start = torch.tensor([[loaded.layout.decoder_start_id, *way]])
            with torch.inference_mode():
                logits = model(input_ids=torch.tensor([row.input_ids]), decoder_input_ids=start).logits[0, -1]
            allowed = {ids[len(way)] for ids in pieces.values() if ids[: len(way)] == way and len(ids) > len(way)}
            way = (*way, max(allowed, key=lambda piece: float(logits[piece])))
        expected.append(next(label for label, ids in pieces.items() if ids == way))
    assert choose_labels(model, loaded, encoded[:40], LABELS) == expected
    assert len(set(expected)) > 1


def test_the_batch_size_does_not_change_the_chosen_labels(tiny_t5: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, loaded, encoded = taught(str(tiny_t5), 5, 1e-2)
    chosen = choose_labels(model, loaded, encoded[:12], LABELS)
    monkeypatch.setattr(module, "LOGITS", 1)
    assert choose_labels(model, loaded, encoded[:12], LABELS) == chosen


def test_the_vocabulary_size_is_read_from_the_configuration_of_the_text_part(tiny_t5: Path) -> None:
    model, loaded, encoded = taught(str(tiny_t5), 5, 1e-2)
    config = SimpleNamespace(get_text_config=lambda decoder: loaded.model.config)  # as in Gemma 3 and Qwen2-VL
    other = replace(loaded, model=SimpleNamespace(config=config))  # type: ignore[arg-type]
    assert choose_labels(model, other, encoded, LABELS) == choose_labels(model, loaded, encoded, LABELS)


@pytest.mark.parametrize("name", ["tiny_t5", "tiny_gpt2"])
def test_chunks_give_the_same_labels_and_compute_only_the_logits_of_labels(
    name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, loaded, encoded = taught(str(request.getfixturevalue(name)), 5, 1e-2)
    whole = choose_labels(model, loaded, encoded, LABELS)
    rows = []
    head_logits = Head.logits

    def logits(head: Head, hidden_nd: torch.Tensor) -> torch.Tensor:
        rows.append(len(hidden_nd))
        return head_logits(head, hidden_nd)

    monkeypatch.setattr(losses, "WHOLE", 64 * 16 * loaded.model.config.vocab_size)  # chunks of 64 rows
    monkeypatch.setattr(Head, "logits", logits)
    assert choose_labels(model, loaded, encoded, LABELS) == whole
    assert max(rows) == 64
    targets = sum(len(ids) for ids in encode_targets(LABELS, loaded.tokenizer, loaded.layout))
    assert sum(rows) == len(encoded) * targets
