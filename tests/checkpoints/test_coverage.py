"""Every architecture that petransfer is said to take, in every width: loaded, trained, evaluated, saved, read by peft.

The README's table of support is made from SMALL and REFUSED here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoTokenizer, ByT5Tokenizer

from petransfer.checkpoints.encoding import encode_examples
from petransfer.checkpoints.load import Loaded, load, model_class, with_new_weights
from petransfer.checkpoints.quantise import inventory
from petransfer.checkpoints.registry import NANO, checkpoint_spec
from petransfer.errors import UserError
from petransfer.evaluate.exact_match import score
from petransfer.methods import APPLY, SAVE
from petransfer.recipe.spec import Bits, MethodSpec
from petransfer.tasks.base import Example
from petransfer.train.batches import collate
from petransfer.train.losses import token_loss

T5 = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 1, "num_heads": 4, "decoder_start_token_id": 0}
GATED = T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
BART = {
    "d_model": 64, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "max_position_embeddings": 128,
    "decoder_start_token_id": 0, "forced_eos_token_id": None, "encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0,
}  # fmt: skip
USUAL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4}
GROUPED = USUAL | {"num_key_value_heads": 2, "max_position_embeddings": 128}
# name: (model_type, its configuration, the name by which the README calls it)
SMALL: dict[str, tuple[str, dict[str, Any], str]] = {
    "t5": ("t5", T5, "T5, CodeT5, CodeT5+ (220M, 770M), ProtT5"),
    "t5-v1.1": ("t5", GATED, "T5 v1.1, FLAN-T5"),
    "byt5": ("t5", GATED, "ByT5"),
    "mt5": ("mt5", GATED, "mT5"),
    "longt5": ("longt5", T5 | {"local_radius": 16}, "LongT5"),
    "marian": ("marian", BART | {"share_encoder_decoder_embeddings": True}, "Marian (opus-mt)"),
    "bart": ("bart", BART, "BART"),
    "mbart": ("mbart", BART, "mBART"),
    "pegasus": ("pegasus", BART, "Pegasus"),
    "m2m_100": ("m2m_100", BART, "M2M100, NLLB"),
    "gpt2": ("gpt2", {"n_embd": 64, "n_layer": 1, "n_head": 4, "n_positions": 128}, "GPT-2"),
    "llama": ("llama", GROUPED, "Llama"),
    "mistral": ("mistral", GROUPED, "Mistral"),
    "qwen2": ("qwen2", GROUPED, "Qwen2, Qwen2.5"),
    "qwen3": ("qwen3", GROUPED | {"head_dim": 16}, "Qwen3"),
    "gemma": ("gemma", GROUPED | {"head_dim": 16}, "Gemma"),
    "gemma2": ("gemma2", GROUPED | {"head_dim": 16}, "Gemma 2"),
    "phi": ("phi", GROUPED, "Phi-1, Phi-2"),
    "phi3": ("phi3", GROUPED, "Phi-3, Phi-4"),
    "starcoder2": ("starcoder2", GROUPED, "StarCoder2"),
    "opt": ("opt", {
        "hidden_size": 64, "ffn_dim": 128, "num_hidden_layers": 1, "num_attention_heads": 4, "word_embed_proj_dim": 64,
        "max_position_embeddings": 128,
    }, "OPT"),
    "bloom": ("bloom", {"hidden_size": 64, "n_layer": 1, "n_head": 4}, "BLOOM"),
    "gpt_neox": ("gpt_neox", USUAL | {"max_position_embeddings": 128}, "GPT-NeoX, Pythia"),
}  # fmt: skip
REFUSED = {
    "umt5": ("umt5", GATED, "umT5", "scales"),
    "bert": ("bert", USUAL | {"architectures": ["BertModel"]}, "BERT, ProtT5 encoders and other encoders", "encoder"),
}

EXAMPLES = [
    Example(at, f"jump {word}", word, "all") for at, word in enumerate(("left", "right", "twice", "thrice", "around"))
]
LORA = MethodSpec("lora", rank=8, alpha=32.0)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes and keeps a small checkpoint with random weights."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            _save(name, made[name])
        return made[name]

    return make


def _save(name: str, folder: Path) -> None:
    kind, fields, *_ = (SMALL | REFUSED)[name]  # type: ignore[operator]
    tokenizer = ByT5Tokenizer() if name == "byt5" else AutoTokenizer.from_pretrained(NANO / "tokenizer")
    ends = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": 1}
    config = AutoConfig.for_model(kind, vocab_size=len(tokenizer), **(ends | fields))
    torch.manual_seed(0)
    own_head = fields.get("tie_word_embeddings") is False
    with_new_weights(model_class(config, name), config, own_head).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _batch(loaded: Loaded) -> dict[str, torch.Tensor]:
    return collate(encode_examples(EXAMPLES, "", loaded.tokenizer, loaded.layout), loaded.layout)


@pytest.mark.parametrize("bits", [32, 16, 8, 4])
@pytest.mark.parametrize("name", SMALL)
def test_it_is_loaded_trained_evaluated_saved_and_read_by_peft(
    name: str, bits: Bits, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    spec = checkpoint_spec(str(checkpoint(name)))
    loaded = load(spec, bits)
    held = inventory(loaded.model)
    assert held.parameters == inventory(load(spec, 32).model).parameters
    if bits < 16:
        assert {"other"}.isdisjoint(tensor.reason for tensor in held.wide)
        assert held.bytes["int8" if bits == 8 else "nf4"] > 0
    torch.manual_seed(0)
    batch = _batch(loaded)
    wide = load(spec, 32).model.eval()
    with torch.no_grad():
        expected = wide(**{key: value for key, value in batch.items() if key != "labels"}).logits
        found = loaded.model.eval()(**{key: value for key, value in batch.items() if key != "labels"}).logits.float()
    assert float((found - expected).norm() / expected.norm()) < {32: 1e-5, 16: 0.03, 8: 0.05, 4: 0.3}[bits]

    model = APPLY["lora"](loaded, replace(LORA, bits=bits), 0).train()
    trained = [value for value in model.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    losses = []
    for _ in range(15):
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
    SAVE["lora"](model, tmp_path / "adapter", name)
    again = PeftModel.from_pretrained(load(spec, bits).model, str(tmp_path / "adapter")).eval()
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    with torch.no_grad():
        ours, plain = model(**inputs).logits.float(), again(**inputs).logits.float()
    torch.testing.assert_close(ours, plain, rtol=0.02, atol=0.02 if bits == 32 else 0.5)


@pytest.mark.parametrize("name", SMALL)
def test_all_that_full_fine_tuning_trains_has_a_gradient(name: str, checkpoint: Callable[[str], Path]) -> None:
    loaded = load(checkpoint_spec(str(checkpoint(name))), 32)
    model = APPLY["full"](loaded, MethodSpec("full", bits=32), 0).train()
    token_loss(model, _batch(loaded)).backward()
    trained = {key for key, value in model.named_parameters() if value.requires_grad}
    assert trained == {key for key, value in model.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_supported_is_refused_with_the_reason(name: str, tmp_path: Path) -> None:
    kind, fields, _, said = REFUSED[name]
    AutoConfig.for_model(kind, vocab_size=100, **fields).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=said):
        load(checkpoint_spec(str(tmp_path)), 32)


def test_the_readme_s_table_is_this_one() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"<!-- support -->\n(.*?)\n\n", readme, flags=re.DOTALL)
    rows = [f"| {label} | yes | yes | yes | yes |" for _, _, label in SMALL.values()]
    rows += [f"| {label} | no | no | no | no |" for _, _, label, _ in REFUSED.values()]
    assert table.splitlines() == ["| architecture | 32 | 16 | 8 | 4 |", "| --- | --- | --- | --- | --- |", *rows]
