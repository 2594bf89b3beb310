"""Methods that peft cannot apply to an architecture: the message names options of petransfer that work."""

from __future__ import annotations

import re

import pytest
from transformers import LlamaConfig, MambaConfig

from petransfer.errors import UserError
from petransfer.memory.step_memory import meta_model
from petransfer.methods import apply_method
from petransfer.recipe.run_spec import MethodSpec

SIZES = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1, "state_size": 4}


def test_layers_that_peft_refuses_are_left_out_by_the_option_in_the_message() -> None:
    config = MambaConfig(**SIZES, eos_token_id=1)
    with pytest.raises(UserError, match=r"^LoRA cannot be put on the layers all-linear of this model") as error:
        apply_method(meta_model(config, "mamba", MethodSpec("lora", rank=4), False), MethodSpec("lora", rank=4), 0)
    said = str(error.value)
    assert "out_proj" in said
    assert "Please" not in said
    assert "PEFT:" not in said
    found = re.search(r"--set 'methods\.0\.targets=\[(.*)\]'", said)
    assert found is not None
    method = MethodSpec("lora", rank=4, targets=tuple(found[1].split(", ")))
    apply_method(meta_model(config, "mamba", method, False), method, 0)


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ("q_proj", {"q_proj"}),
        ("self_attn.q_proj", {"q_proj"}),
        ("q_proj, v_proj", {"q_proj", "v_proj"}),
        (r".*\.(q|k)_proj", {"q_proj", "k_proj"}),
        ("model.layers.0.self_attn.._proj", {"q_proj", "k_proj", "v_proj", "o_proj"}),
    ],
)
@pytest.mark.parametrize("method", ["lora", "ia3"])
def test_a_text_that_names_layers_is_a_list_and_a_pattern_stays_a_pattern(
    method: str, targets: str, expected: set[str]
) -> None:
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    asked = MethodSpec(method, rank=4, targets=targets)
    model = apply_method(meta_model(config, "llama", asked, False), asked, 0)
    trained = {
        name.split(".lora_")[0].split(".ia3_")[0] for name, value in model.named_parameters() if value.requires_grad
    }
    assert {name.rpartition(".")[2] for name in trained} == expected
