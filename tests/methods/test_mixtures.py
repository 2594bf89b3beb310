"""Mixtures of experts: adapters train the layers outside the experts, and full fine-tuning also trains the router."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig

from petransfer.errors import UserError
from petransfer.memory.step_memory import meta_model
from petransfer.methods import apply_method
from petransfer.recipe.run_spec import MethodSpec
from petransfer.sharing.file_checks import FORBIDDEN

SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2, "num_experts_per_tok": 1, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
LORA = MethodSpec("lora", bits=32, rank=2)
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


def test_targets_that_are_only_experts_are_refused_and_other_layers_are_named() -> None:
    with pytest.raises(UserError, match=r"w1, w2, w3 of this model \(mixtral\): they belong to experts.*q_proj"):
        _with_method("mixtral", MethodSpec("lora", bits=32, rank=2, targets=("w1", "w2", "w3")))


def test_full_fine_tuning_trains_the_router() -> None:
    model = _with_method("phimoe", MethodSpec("full", bits=32))
    names = {name for name, value in model.named_parameters() if value.requires_grad}
    assert any("router" in name for name in names)
    assert isinstance(model, torch.nn.Module)
