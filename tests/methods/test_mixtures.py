"""Mixtures of experts: adapters train the layers outside the experts, and full fine-tuning also trains the router."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM

from petransfer.errors import UserError
from petransfer.memory.meta_model import meta_model
from petransfer.methods import apply_method, save_method
from petransfer.models.loading import load_checkpoint
from petransfer.models.registry import checkpoint_spec
from petransfer.recipe.run_spec import MethodSpec
from petransfer.sharing.file_checks import FORBIDDEN
from petransfer.training.state import trained_tensors
from tests.tiny_models import keep

SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2, "num_experts_per_tok": 1, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
LORA = MethodSpec("lora", bits=32, rank=2, alpha=4.0)
FIELDS: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 2},
    "qwen3_moe": {"num_experts": 2, "moe_intermediate_size": 16, "head_dim": 16},
    "phimoe": {"num_local_experts": 2},
    "llama4_text": {"num_local_experts": 2, "head_dim": 16, "intermediate_size_mlp": 32},
}


def _with_method(kind: str, method: MethodSpec) -> Any:
    config = AutoConfig.for_model(kind, **SIZES, **FIELDS[kind])
    return apply_method(meta_model(config, kind, method, own_head=True), method, 0)


@pytest.mark.parametrize("kind", FIELDS)
def test_lora_trains_no_routed_experts_or_routers_and_saves_no_forbidden_setting(kind: str) -> None:
    model = _with_method(kind, LORA)
    saved = model.peft_config["default"].to_dict()
    assert [key for key in FORBIDDEN if saved.get(key)] == []
    trained = [name for name, value in model.named_parameters() if value.requires_grad]
    assert any("q_proj" in name for name in trained)
    assert [name for name in trained if "expert" in name.replace("shared_expert", "") or "router" in name] == []


@pytest.mark.parametrize("kind", FIELDS)
def test_plain_peft_loads_the_adapter_of_a_mixture_of_experts(kind: str, tmp_path: Path) -> None:
    def make(tokens: int) -> Any:
        config = AutoConfig.for_model(kind, **SIZES | FIELDS[kind] | {"vocab_size": tokens})
        return AutoModelForCausalLM.from_config(config)

    base = keep(tmp_path / "base", make)
    loaded, plain = (load_checkpoint(checkpoint_spec(str(base)), 32) for _ in range(2))
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        untrained = loaded.model.eval()(ids).logits
        model = apply_method(loaded, LORA, 0).eval()
        for value in trained_tensors(model).values():
            value.normal_()
        save_method("lora", model, tmp_path / "adapter", "tiny")
        again = PeftModel.from_pretrained(plain.model, str(tmp_path / "adapter")).eval()
        ours, theirs = (each(ids).logits for each in (model, again))
    assert torch.equal(ours, theirs)
    assert not torch.allclose(ours, untrained, atol=1e-3)


def test_targets_that_are_only_experts_are_refused_and_other_layers_are_named() -> None:
    with pytest.raises(UserError, match=r"w1, w2, w3 of this model \(mixtral\): they belong to experts.*q_proj"):
        _with_method("mixtral", MethodSpec("lora", bits=32, rank=2, targets=("w1", "w2", "w3")))


def test_full_fine_tuning_trains_the_router() -> None:
    model = _with_method("phimoe", MethodSpec("full", bits=32))
    names = {name for name, value in model.named_parameters() if value.requires_grad}
    assert any("router" in name for name in names)
    assert isinstance(model, torch.nn.Module)
