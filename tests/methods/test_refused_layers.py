"""Methods that peft cannot apply to an architecture: the message names options of petransfer that work."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, BartConfig, LlamaConfig, MambaConfig, MixtralConfig, T5Config

from petransfer.api import Study
from petransfer.errors import UserError
from petransfer.memory.meta_model import meta_model
from petransfer.memory.step_memory import StepSpec, simulate
from petransfer.methods import apply_method
from petransfer.recipe.run_spec import MethodSpec

SIZES = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1, "state_size": 4}


def test_the_option_in_the_message_leaves_out_layers_that_peft_refuses() -> None:
    config = MambaConfig(**SIZES, eos_token_id=1)
    with pytest.raises(UserError, match=r"^LoRA cannot be applied to the layers all-linear of this model") as error:
        apply_method(meta_model(config, "mamba", MethodSpec("lora", rank=4), False), MethodSpec("lora", rank=4), 0)
    output = str(error.value)
    assert "out_proj" in output
    assert "Please" not in output
    assert "PEFT:" not in output
    found = re.search(r"--set 'methods\.0\.targets=\[(.*)\]'", output)
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
def test_targets_as_text_are_names_of_layers_or_a_pattern(method: str, targets: str, expected: set[str]) -> None:
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


SMALL: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
    "pad_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
ALTUP = {
    "num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"], "head_dim": 8, "laurel_rank": 4,
    "activation_sparsity_pattern": None, "num_kv_shared_layers": 0, "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": 64, "altup_num_inputs": 2,
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("jamba", {"num_hidden_layers": 2, "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2}),
        ("doge", {"num_hidden_layers": 1}),
        ("gemma3n_text", ALTUP),
    ],
)
def test_layers_without_gradients_are_left_out_of_all_linear(kind: str, fields: dict[str, Any]) -> None:
    """For example layers whose weights are used without a call of the layer. `simulate` refuses adapters on these."""
    config = AutoConfig.for_model(kind, **SMALL | fields)
    assert (
        simulate(config, kind, StepSpec(MethodSpec("lora", rank=4, bits=32), 1, 4, 4, "cpu"), False).trained_parameters
        > 0
    )


def test_layers_for_global_attention_are_not_trained() -> None:
    config = AutoConfig.for_model(
        "led", vocab_size=64, d_model=32, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=32, decoder_ffn_dim=32,
        encoder_attention_heads=2, decoder_attention_heads=2, attention_window=[8], decoder_start_token_id=0,
    )  # fmt: skip
    for method in (MethodSpec("lora", rank=4, bits=32), MethodSpec("full", bits=32)):
        model = apply_method(meta_model(config, "led", method, False), method, 0)
        trained = {name for name, value in model.named_parameters() if value.requires_grad}
        assert trained
        assert not any("_global" in name for name in trained)


@pytest.mark.parametrize("bits", [32, 16])
def test_the_memory_of_a_mixture_of_experts_is_predicted(bits: Any) -> None:
    config = MixtralConfig(**SMALL, num_hidden_layers=1, num_local_experts=4)
    for method in (MethodSpec("lora", rank=4, bits=bits), MethodSpec("full", bits=bits)):
        for device in ("cpu", "cuda"):
            assert simulate(config, "mixtral", StepSpec(method, 2, 8, 8, device), True).trained_parameters > 0  # type: ignore[arg-type]


def test_a_target_that_would_get_no_gradient_is_refused_by_the_memory_check() -> None:
    config = BartConfig(
        vocab_size=64, d_model=32, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=32, decoder_ffn_dim=32,
        encoder_attention_heads=2, decoder_attention_heads=2,
    )  # fmt: skip
    method = MethodSpec("lora", rank=4, bits=32, targets=("shared", "q_proj"))
    with pytest.raises(
        UserError, match=r"^LoRA cannot be applied to .*'shared' would get no gradient.*targets=\[fc1, "
    ):
        simulate(config, "bart", StepSpec(method, 1, 4, 4, "cpu"), False)


@pytest.mark.parametrize("name", ["lora", "ia3"])
@pytest.mark.parametrize(
    ("targets", "output"),
    [
        (["q_proj"], r"q_proj of this model \(t5\): .*'q_proj'"),
        (
            ["q", "vv"],
            r"q, vv of this model \(t5\): no layer's name ends in 'vv' \(did you mean 'v'\?\); .*=\[k, .*v, wi",
        ),
        ("q, vv", r"q, vv of this model \(t5\): no layer's name ends in 'vv'"),
    ],
)
def test_targets_that_no_layer_has_are_refused_before_anything_is_written(
    name: str, targets: Any, output: str, tmp_path: Path
) -> None:
    method = {"name": name, "targets": targets, "bits": 32} | ({"rank": 4} if name == "lora" else {})
    rate = {"learning_rate": 1e-3}
    study = Study("smoke", arms=["english"], methods=[method], effects=[], train=rate, out=tmp_path / "out")
    with pytest.raises(UserError, match=rf"^\S+ cannot be applied to the layers {output}"):
        study.run(cpu=True)
    assert not (tmp_path / "out").exists()


def test_each_name_in_targets_must_match_one_of_the_chosen_layers() -> None:
    config = T5Config(vocab_size=64, d_model=32, d_kv=16, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0)
    method = MethodSpec("lora", rank=4, targets=("q", "shared"), layers=(1,))
    with pytest.raises(UserError, match=r"no layer's name in layers 1 ends in 'shared'"):
        apply_method(meta_model(config, "t5", method, False), method, 0)
    method = replace(method, targets=("q", "SelfAttention.q", "encoder.block.1.layer.1.DenseReluDense.wo"))
    apply_method(meta_model(config, "t5", method, False), method, 0)


def test_experts_in_a_list_of_targets_are_left_out_and_unknown_layers_are_refused() -> None:
    config = MixtralConfig(**SMALL, num_hidden_layers=1, num_local_experts=4)
    method = MethodSpec("lora", rank=4, targets=("q_proj", "w1", "w2", "w3"))
    model = apply_method(meta_model(config, "mixtral", method, True), method, 0)
    trained = [name for name, value in model.named_parameters() if value.requires_grad]
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in trained} == {"q_proj"}
    method = replace(method, targets=("q_proj", "w4"))
    with pytest.raises(UserError, match=r"no layer's name ends in 'w4'"):
        apply_method(meta_model(config, "mixtral", method, True), method, 0)
