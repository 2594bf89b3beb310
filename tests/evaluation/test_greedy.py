"""Greedy generation chooses the most likely token at each step, and ignores the base model's generation defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, GenerationConfig

import petransfer
from petransfer.errors import UserError
from petransfer.evaluation.generation import generations
from petransfer.models.loading import Loaded, load_checkpoint
from petransfer.models.registry import checkpoint_spec
from petransfer.training.out_of_memory import OutOfMemory

# Fields of transformers' GenerationConfig that can change the tokens or the return value of greedy decoding.
FIELDS: dict[str, Any] = {
    "min_length": 9,
    "min_new_tokens": 9,
    "max_length": 3,
    "max_time": 1e-9,
    "stop_strings": ["e"],
    "do_sample": True,
    "num_beams": 3,
    "num_return_sequences": 1,
    "penalty_alpha": 0.6,
    "repetition_penalty": 5.0,
    "encoder_repetition_penalty": 5.0,
    "no_repeat_ngram_size": 1,
    "encoder_no_repeat_ngram_size": 1,
    "bad_words_ids": [[5], [6], [7], [8], [9]],
    "sequence_bias": [[[11], 90.0]],
    "forced_bos_token_id": 17,
    "forced_eos_token_id": 1,
    "suppress_tokens": list(range(5, 400)),
    "begin_suppress_tokens": list(range(5, 400)),
    "exponential_decay_length_penalty": [1, 50.0],
    "guidance_scale": 3.0,
    "prompt_lookup_num_tokens": 2,
    "eos_token_id": [1, *range(5, 400)],
    "decoder_start_token_id": 7,
    "return_dict_in_generate": True,
    "output_scores": True,
    "use_cache": False,
    "cache_implementation": "static",
}
INPUTS = ((5, 9, 200), (44, 45, 46, 47, 48, 300))
LENGTH = 10


def by_hand(loaded: Loaded, ids: tuple[int, ...]) -> list[int]:
    """Return the most likely tokens, with one forward pass per token."""
    layout, new = loaded.layout, []
    for _ in range(LENGTH):
        if layout.encoder_decoder:
            given = {"decoder_input_ids": torch.tensor([[layout.decoder_start_id, *new]])}
            logits = loaded.model(input_ids=torch.tensor([ids]), **given).logits
        else:
            logits = loaded.model(input_ids=torch.tensor([[*ids, *new]])).logits
        new.append(int(logits[0, -1].argmax()))
        if new[-1] == layout.eos_id:
            return new[:-1]
    return new


@pytest.mark.parametrize("kind", ["tiny_t5", "tiny_gpt2"])
def test_generation_defaults_of_the_base_model_do_not_change_texts(kind: str, request: pytest.FixtureRequest) -> None:
    loaded = load_checkpoint(checkpoint_spec(str(request.getfixturevalue(kind))), 32)
    loaded.model.eval()
    expected = [loaded.tokenizer.decode(by_hand(loaded, ids), skip_special_tokens=True) for ids in INPUTS]
    assert any(expected)
    model = get_peft_model(loaded.model, LoraConfig(target_modules=["q"] if kind == "tiny_t5" else ["c_attn"]))
    for name, value in FIELDS.items():
        own = GenerationConfig()
        setattr(own, name, value)
        loaded.model.generation_config = own
        for each in (loaded.model, model):
            found = [one.text for one in generations(each, loaded, INPUTS, [LENGTH] * 2)]
            assert found == expected, name
        assert loaded.model.generation_config is own, "the model's own defaults must be restored"


def test_batches_are_halved_when_memory_runs_out(tiny_gpt2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_checkpoint(checkpoint_spec(str(tiny_gpt2)), 32)
    arguments = (loaded.model, loaded, INPUTS * 3, [LENGTH] * 6)
    expected, generate = generations(*arguments), loaded.model.generate
    sizes: list[int] = []
    most = 2

    def small(**options: Any) -> Any:
        sizes.append(len(options["input_ids"]))
        if sizes[-1] > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return generate(**options)

    monkeypatch.setattr(loaded.model, "generate", small)
    assert [one.text for one in generations(*arguments)] == [one.text for one in expected]
    assert sizes == [6, 3, 2, 2, 2]
    most = 0
    with pytest.raises(OutOfMemory):
        generations(*arguments)


@pytest.mark.parametrize("kind", ["tiny_t5", "tiny_gpt2"])
def test_exact_match_agrees_with_comparing_generated_texts(kind: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(kind)
    auto = AutoModelForSeq2SeqLM if kind == "tiny_t5" else AutoModelForCausalLM
    model, tokenizer = auto.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    inputs, targets = ["to walk", "to run", "to see", "to say"], ["gehen", "rennen", "sehen", "x"]
    torch.manual_seed(0)
    model = get_peft_model(
        model, LoraConfig(target_modules=["q", "v", "o", "wi", "wo"] if "t5" in kind else ["c_attn", "c_fc"], r=8)
    )
    optimizer = torch.optim.Adam([value for value in model.parameters() if value.requires_grad], lr=3e-2)
    loaded = load_checkpoint(checkpoint_spec(str(folder)), 32)
    loaded_like = Loaded(model.get_base_model(), tokenizer, loaded.layout, None, ())
    from petransfer.data import Example
    from petransfer.data.encoding import encode_examples
    from petransfer.training.batches import collate
    from petransfer.training.losses import token_loss

    rows = [Example(at, *pair, "all") for at, pair in enumerate(zip(inputs, targets, strict=True))]
    encoded = encode_examples(rows, "", tokenizer, loaded.layout)
    for _ in range(120):
        token_loss(model, collate(encoded[:3], loaded.layout)).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.generation_config.no_repeat_ngram_size = 1
    found = [one.text for one in generations(model, loaded_like, [row.input_ids for row in encoded], [16] * 4)]
    share = sum(text == target for text, target in zip(found, targets, strict=True)) / 4
    assert 0 < share < 1
    assert petransfer.exact_match(model, tokenizer, inputs, targets) == share


def test_exact_match_refuses_an_example_that_is_too_long(tiny_gpt2: Path) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_gpt2), AutoTokenizer.from_pretrained(tiny_gpt2)
    with pytest.raises(UserError, match=r"example 2 cannot be scored: .*more tokens than GPT2LMHeadModel accepts"):
        petransfer.exact_match(model, tokenizer, ["walk", "walk " * 200], ["walk", "walk"])


def test_exact_match_refuses_wrong_arguments(tiny_t5: Path) -> None:
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(tiny_t5), AutoTokenizer.from_pretrained(tiny_t5)
    with pytest.raises(UserError, match="2 inputs and 1 target;"):
        petransfer.exact_match(model, tokenizer, ["a", "b"], ["a"])
    with pytest.raises(UserError, match="no examples"):
        petransfer.exact_match(model, tokenizer, [], [])
    with pytest.raises(UserError, match="needs lists of texts"):
        petransfer.exact_match(model, tokenizer, "walk", "jump")  # each letter would be an example
    with pytest.raises(UserError, match="the target of row 1 is missing"):
        petransfer.exact_match(model, tokenizer, ["a"], [float("nan")])  # type: ignore[list-item]
    with pytest.raises(UserError, match="batch_size is 0"):
        petransfer.exact_match(model, tokenizer, ["a"], ["b"], batch_size=0)
