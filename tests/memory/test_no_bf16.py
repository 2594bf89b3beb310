"""Predictions for cards without bf16, on which only trainings with 32 bits work."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from petransfer.memory.advice import recipe_options
from petransfer.memory.cards import Card, parse_card
from petransfer.memory.fit import fit
from petransfer.memory.study_memory import predict_memory
from petransfer.models.registry import checkpoint_spec
from petransfer.recipe.run_spec import RunSpec
from tests.cli.calls import call

pytestmark = pytest.mark.usefixtures("remembered_predictions")

SMALL: dict[str, Any] = {"batch_size": 1, "lengths": (4, 4)}
Bits = Literal[16, 8, 4]
NO_BF16 = "cannot run on this card with fewer than 32 bits, because the card does not support bf16"


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_16_8_and_4_bits_do_not_fit_a_card_without_bf16(bits: Bits, tiny_t5: Path) -> None:
    found = fit(tiny_t5, bits=bits, card="T4", **SMALL)
    assert not found.fits
    assert found.suggestions == ["--bits 32"]
    assert str(found) == NO_BF16
    assert found.as_dict()["lacks_bf16"] is True
    assert fit(tiny_t5, bits=bits, card="RTX 3060", **SMALL).fits
    assert fit(tiny_t5, bits=bits, card="T4", device="cpu", **SMALL).fits, "a CPU computes in bf16"


def test_32_bits_fit_a_card_without_bf16(tiny_t5: Path) -> None:
    found = fit(tiny_t5, bits=32, card="T4", **SMALL)
    assert found.fits
    assert found.step_spec.capability == (7, 5)
    assert found.as_dict()["lacks_bf16"] is False


@pytest.mark.usefixtures("one_layer")
def test_fewer_bits_are_never_advised_for_a_card_without_bf16() -> None:
    def advice(size: int, capability: tuple[int, int], **options: Any) -> list[str]:
        card = Card(size, capability=capability)
        return fit("google-t5/t5-small", card=card, **SMALL, **options).suggestions

    size = fit("google-t5/t5-small", bits=32, stack=2, **SMALL).needed - 1
    others = ["--stack 1", "--optimizer adamw-8bit"]
    assert advice(size, (8, 6), bits=32, stack=2) == [*others, "--bits 16", "--bits 8", "--bits 4"]
    assert advice(size, (7, 5), bits=32, stack=2) == others
    assert advice(size, (7, 5), bits=4, stack=2) == [f"--bits 32 {option}" for option in others]
    full = advice(1_000_000_000, (7, 5), bits=16, method="full")
    assert "--bits 32 --method lora" in full
    assert all(option.startswith("--bits 32 ") for option in full)


def test_the_command_fit_says_that_the_card_has_no_bf16(
    tiny_t5: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("fit", str(tiny_t5), "--batch", "1", "--lengths", "4,4", "--card", "T4")
    assert call(monkeypatch, *words, "--bits", "4") == 1
    message = capsys.readouterr().out.splitlines()[-1]
    assert message == f"{NO_BF16}; it would fit with --bits 32"
    assert call(monkeypatch, *words, "--bits", "32") == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("fits into 15.6 GB")


@pytest.mark.usefixtures("one_layer")
def test_a_model_that_is_too_large_at_32_bits_needs_another_card(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("petransfer.cli.fit.parse_card", lambda text: Card(10**9, "Tesla T4", (7, 5)))
    words = ("fit", "google-t5/t5-base", "--batch", "1", "--lengths", "4,4", "--card", "T4", "--bits", "4")
    assert call(monkeypatch, *words) == 1
    message = capsys.readouterr().out.splitlines()[-1]
    assert message.endswith(f"{NO_BF16}; with 32 bits it does not fit with any settings")


def test_runs_of_a_recipe_with_16_bits_do_not_fit_a_card_without_bf16(tiny_spec: Callable[..., RunSpec]) -> None:
    """Runs of shipped checkpoints surely fit the memory, but are predicted, too, if the card has no bf16."""
    wide = tiny_spec()
    narrow = replace(wide, method=replace(wide.method, bits=16))
    shipped = replace(narrow, checkpoint=checkpoint_spec("nano/english"))
    card = parse_card("T4")
    found = predict_memory([wide, narrow, shipped], card.bytes, capability=card.capability)
    assert [one.fit.fits for one in found if one.fit] == [True, False, False]
    options = recipe_options([wide.method, narrow.method], narrow)
    message = f": {NO_BF16}; it would fit with --set methods.1.bits=32"
    assert found[1].line(options).endswith(message)
    assert len(predict_memory([wide, narrow, shipped], card.bytes)) == 2


def test_plan_advises_32_bits_for_a_card_without_bf16(
    tiny_t5: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    family = f"family={{name: mine, arms: {{english: {tiny_t5}}}}}"
    given = ["--set", family, "--arms", "english", "--set", "effects=[]", "--set", "methods.0.bits=8"]
    assert call(monkeypatch, "plan", "-r", "smoke", *given, "--card", "T4", "--json") == 0
    (place,) = json.loads(capsys.readouterr().out)["memory"]
    assert place["fits"] is False
    assert place["advice"] == ["--set methods.0.bits=32"]


def test_attention_in_fp32_needs_no_aligned_heads_on_cards_without_bf16(tiny_t5: Path, tmp_path: Path) -> None:
    """On cards without bf16, memory-efficient attention reads one fp32 number at once; on newer cards, 16 bytes."""
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    AutoTokenizer.from_pretrained(tiny_t5).save_pretrained(tmp_path)
    torch.manual_seed(0)
    sizes = {"n_embd": 12, "n_head": 2, "n_layer": 1, "n_positions": 256}  # heads of size 6
    GPT2LMHeadModel(GPT2Config(vocab_size=200, bos_token_id=0, eos_token_id=1, **sizes)).save_pretrained(tmp_path)
    few: dict[str, Any] = {"bits": 32, "batch_size": 4, "lengths": (100, 100), "rank": 2}
    old, new = (fit(tmp_path, card=card, **few).memory.peak for card in ("RTX 2080", "RTX 3080"))
    weights = 4 * 2 * 199 * 199 * 4  # attention weights in fp32, which only steps without a fused kernel keep
    assert new - old > weights
