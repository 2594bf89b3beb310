"""Load, train, evaluate and save every supported architecture in 32, 16, 8 and 4 bits; peft loads its adapter."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, GenerationConfig

from petransfer import Adapter
from petransfer.data.encoding import decode, encode_examples
from petransfer.data.task import Example
from petransfer.errors import RunError, UserError
from petransfer.evaluation.exact_match import score
from petransfer.evaluation.generation import generations, greedy_config
from petransfer.memory.step_memory import StepSpec, simulate
from petransfer.methods import apply_method, save_method
from petransfer.models.architecture import configuration
from petransfer.models.complete_weights import refuse_missing_tensors
from petransfer.models.control_arms import randomly_initialized
from petransfer.models.loading import Loaded, load_checkpoint
from petransfer.models.quantization import inventory
from petransfer.models.registry import checkpoint_spec
from petransfer.models.saving import save_model
from petransfer.models.support import supported_class
from petransfer.models.text_part import is_text
from petransfer.recipe.run_spec import Bits, MethodSpec
from petransfer.training.batches import collate
from petransfer.training.losses import token_loss
from tests.models.architectures import REFUSED, SMALL, TOKENIZERS, TRIED
from tests.models.tokenizers import rows_needed, save_tokenizer

EXAMPLES = [
    Example(at, f"jump {word}", word, "all") for at, word in enumerate(("left", "right", "twice", "thrice", "around"))
]
LORA = MethodSpec("lora", rank=8, alpha=32.0)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that returns a small checkpoint with random weights, which it makes at the first call."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            _save(name, made[name])
        return made[name]

    return make


def _save(name: str, folder: Path) -> None:
    kind, fields, *_ = SMALL[name]
    tokenizer = save_tokenizer(TOKENIZERS[name], folder)
    size = rows_needed(tokenizer)
    ends = {
        "pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id,
    }  # fmt: skip
    config = AutoConfig.for_model(kind, **_with_vocabulary(fields, ends | {"vocab_size": size}))
    torch.manual_seed(0)
    own_head = fields.get("tie_word_embeddings") is False
    save_model(randomly_initialized(supported_class(config, name), config, own_head), folder)


def _with_vocabulary(fields: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration, with the size of the vocabulary and the special tokens in each of its text models."""
    if "num_hidden_layers" in fields or not any(isinstance(value, dict) for value in fields.values()):
        return own | fields
    return {
        key: _with_vocabulary(value, own) if isinstance(value, dict) and key != "vision_config" else value
        for key, value in fields.items()
    }


def _batch(loaded: Loaded) -> dict[str, torch.Tensor]:
    return collate(encode_examples(EXAMPLES, "", loaded.tokenizer, loaded.layout), loaded.layout)


# Only slow tests run most architectures in 8 and 16 bits. All architectures are always tested in 4 and 32 bits.
COMMON = {"t5", "bart", "gpt2", "llama"}
WAYS = [
    pytest.param(name, bits, marks=[pytest.mark.slow] if bits in (8, 16) and name not in COMMON else [])
    for name, bits in TRIED
]


@pytest.mark.parametrize(("name", "bits"), WAYS)
def test_a_model_is_loaded_trained_evaluated_saved_and_loaded_by_peft(
    name: str, bits: Bits, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    spec = checkpoint_spec(str(checkpoint(name)))
    loaded = load_checkpoint(spec, bits)
    wide = load_checkpoint(spec, 32).model.eval()
    held = inventory(loaded.model)
    assert held.parameters == inventory(wide).parameters
    if bits < 16:
        assert {"other"}.isdisjoint(tensor.reason for tensor in held.wide)
        assert held.bytes["int8" if bits == 8 else "nf4"] > 0
    torch.manual_seed(0)
    batch = _batch(loaded)
    with torch.no_grad():
        expected = wide(**{key: value for key, value in batch.items() if key != "labels"}).logits
        found = loaded.model.eval()(**{key: value for key, value in batch.items() if key != "labels"}).logits.float()
    assert float((found - expected).norm() / expected.norm()) < {32: 1e-5, 16: 0.03, 8: 0.05, 4: 0.4}[bits]

    model = apply_method(loaded, replace(LORA, bits=bits), 0).train()
    trained = [value for value in model.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    losses = []
    for _ in range(10):
        loss = token_loss(model, batch)
        loss.backward()
        assert all(value.grad is not None for value in trained)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.97 * losses[0]

    model.eval()
    encoded = encode_examples(EXAMPLES, "", loaded.tokenizer, loaded.layout)
    scored = score(model, replace(loaded, model=model), EXAMPLES, encoded, len(EXAMPLES))  # type: ignore[arg-type]
    assert all(row.log_prob < 0 for row in scored)
    save_method("lora", model, tmp_path / "adapter", name)
    base = wide if bits == 32 else load_checkpoint(spec, bits).model
    again = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    with torch.no_grad():
        ours, plain = model(**inputs).logits.float(), again(**inputs).logits.float()
    torch.testing.assert_close(ours, plain, rtol=0.02, atol=0.02 if bits == 32 else 0.5)


@pytest.mark.parametrize("name", SMALL)
def test_the_generated_text_equals_that_of_plain_transformers(name: str, checkpoint: Callable[[str], Path]) -> None:
    loaded = load_checkpoint(checkpoint_spec(str(checkpoint(name))), 32)
    loaded.model.eval()
    layout = loaded.layout
    ids = encode_examples(EXAMPLES[:1], "", loaded.tokenizer, layout)[0].input_ids
    found = generations(loaded.model, loaded, [ids], [6])
    loaded.model.generation_config = GenerationConfig()
    given = torch.tensor([ids])
    config = greedy_config(layout, 6)
    expected = loaded.model.generate(
        given, attention_mask=torch.ones_like(given), generation_config=config, use_cache=False
    )
    first = 1 if layout.encoder_decoder else len(ids)
    new = [token for token in expected[0, first:].tolist() if token not in layout.end_ids]
    assert found[0].text == decode([new], loaded.tokenizer)[0]
    assert found[0].tokens == len(new)


@pytest.mark.parametrize("name", ["t5gemma", "t5gemma2", "qwen2_vl", "mllama"])
def test_a_model_of_several_parts_is_merged(name: str, checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    """T5Gemma is an example: its head shares the decoder's embeddings, but not the encoder's embeddings."""
    loaded = load_checkpoint(checkpoint_spec(str(checkpoint(name))), 32)
    model = apply_method(loaded, replace(LORA, bits=32), 0)
    for key, value in model.named_parameters():
        value.data += 0.02 * ("lora_B" in key)
    save_method("lora", model, tmp_path / "adapter", name)
    adapter = Adapter.load(tmp_path / "adapter", checkpoint=str(checkpoint(name)), device="cpu")
    assert adapter.merge(tmp_path / "merged", bits=32).moved < 1e-3
    assert Adapter.load(tmp_path / "merged", device="cpu").predict(["jump"]) == adapter.predict(["jump"])


def test_the_message_about_an_unloadable_merged_model_names_the_given_folder(
    checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_auto: object, folder: str, **_options: object) -> None:
        raise UserError(f"the weights of {folder} lack a tensor; get the checkpoint again")

    model = apply_method(load_checkpoint(checkpoint_spec(str(checkpoint("gpt2"))), 32), replace(LORA, bits=32), 0)
    save_method("lora", model, tmp_path / "adapter", "gpt2")
    adapter = Adapter.load(tmp_path / "adapter", checkpoint=str(checkpoint("gpt2")), device="cpu")
    monkeypatch.setattr("petransfer.sharing.merge.load_complete", fail)
    with pytest.raises(RunError, match=f"the weights of {tmp_path / 'merged'} lack a tensor; use the adapter"):
        adapter.merge(tmp_path / "merged", bits=32)
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("name", SMALL)
def test_a_missing_tensor_is_found_without_loading_the_model(
    name: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    """The check of file headers gives the same message as loading. It accepts a complete checkpoint."""
    refuse_missing_tensors(checkpoint_spec(str(checkpoint(name))))
    folder = Path(shutil.copytree(checkpoint(name), tmp_path / "cut"))
    weights = load_file(folder / "model.safetensors")
    layers = sorted(key for key in weights if is_text(key) and re.search(r"\.\d+\.", key))
    del weights[layers[len(layers) // 2]]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    spec = checkpoint_spec(str(folder))
    with pytest.raises(UserError, match=r"lack .*get the checkpoint again") as by_loading:
        load_checkpoint(spec, 32)
    with pytest.raises(UserError) as by_headers:
        refuse_missing_tensors(spec)
    assert str(by_headers.value) == str(by_loading.value)


@pytest.mark.parametrize("method", [LORA, MethodSpec("full", bits=32)])
@pytest.mark.parametrize("name", SMALL)
def test_fit_counts_the_parameters_that_are_trained(
    name: str, method: MethodSpec, checkpoint: Callable[[str], Path]
) -> None:
    """The simulated model on the meta device has as many trained parameters as the real model."""
    spec = checkpoint_spec(str(checkpoint(name)))
    config, own_head = configuration(spec)
    method = replace(method, bits=32)
    memory = simulate(config, name, StepSpec(method, 2, 8, 8, "cpu"), own_head)
    model = apply_method(load_checkpoint(spec, 32), method, 0)
    assert memory.trained_parameters == sum(value.numel() for value in model.parameters() if value.requires_grad)


@pytest.mark.parametrize("name", SMALL)
def test_all_parameters_of_full_fine_tuning_get_a_gradient(name: str, checkpoint: Callable[[str], Path]) -> None:
    loaded = load_checkpoint(checkpoint_spec(str(checkpoint(name))), 32)
    model = apply_method(loaded, MethodSpec("full", bits=32), 0).train()
    token_loss(model, _batch(loaded)).backward()
    trained = {key for key, value in model.named_parameters() if value.requires_grad}
    assert trained == {key for key, value in model.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("name", REFUSED)
def test_unsupported_architectures_are_refused_with_the_reason(name: str, tmp_path: Path) -> None:
    kind, fields, _, message = REFUSED[name]
    AutoConfig.for_model(kind, **fields).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=message) as training:
        load_checkpoint(checkpoint_spec(str(tmp_path)), 32)
    with pytest.raises(UserError) as fit:
        configuration(checkpoint_spec(str(tmp_path)))
    assert str(fit.value) == str(training.value)


@pytest.mark.parametrize("method", ["prefix", "prompt", "lora"])
def test_a_forward_pass_does_not_depend_on_texts_that_were_generated_before(
    method: str, checkpoint: Callable[[str], Path]
) -> None:
    """Qwen2-VL keeps an offset of positions for each generated text."""
    loaded = load_checkpoint(checkpoint_spec(str(checkpoint("qwen2_vl"))), 32)
    spec = LORA if method == "lora" else MethodSpec(method, virtual_tokens=3)
    model = apply_method(loaded, replace(spec, bits=32), 0).eval()
    batch = _batch(loaded)
    with torch.no_grad():
        before = token_loss(model, batch)
        for rows in (2, 8):
            inputs = [(5, 6, 7)] * rows + [(5,)]
            generations(model, loaded, inputs, [3] * len(inputs))
            torch.testing.assert_close(token_loss(model, batch), before)


@pytest.mark.parametrize("name", ["t5gemma", "t5gemma2", "narrow_opt"])
def test_virtual_tokens_have_the_width_of_the_embeddings(
    name: str, checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OPT-350m has embeddings that are narrower than its layers. T5Gemma has two parts with sizes of their own."""
    monkeypatch.setitem(SMALL, "narrow_opt", ("opt", SMALL["opt"][1] | {"word_embed_proj_dim": 32}, ""))
    monkeypatch.setitem(TOKENIZERS, "narrow_opt", TOKENIZERS["opt"])
    spec = checkpoint_spec(str(checkpoint(name)))
    loaded = load_checkpoint(spec, 32)
    model = apply_method(loaded, MethodSpec("prompt", bits=32, virtual_tokens=3), 0).eval()
    (trained,) = [value for value in model.parameters() if value.requires_grad]
    assert trained.shape == (3, loaded.model.get_input_embeddings().weight.shape[1])
    save_method("prompt", model, tmp_path, name)
    again = PeftModel.from_pretrained(load_checkpoint(spec, 32).model, str(tmp_path)).eval()
    batch = _batch(loaded)
    with torch.no_grad():
        torch.testing.assert_close(token_loss(again, batch), token_loss(model, batch))


def test_prompt_tuning_is_refused_if_peft_does_not_find_the_embeddings(checkpoint: Callable[[str], Path]) -> None:
    loaded = load_checkpoint(checkpoint_spec(str(checkpoint("mllama"))), 32)
    with pytest.raises(
        UserError, match=r"prompt tuning is not available for mllama, because its embeddings have \d+ rows"
    ):
        apply_method(loaded, MethodSpec("prompt", bits=32, virtual_tokens=3), 0)
