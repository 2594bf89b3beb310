"""Adapters that plain peft saved: attached and merged with the same outputs, or refused with advice."""

from __future__ import annotations

import contextlib
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import EvaConfig, LoKrConfig, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
    Qwen2Config,
    Qwen2ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)  # fmt: skip

from petransfer.errors import UserError
from petransfer.sharing.adapter import Adapter
from petransfer.sharing.base import LoadOptions
from petransfer.sharing.combined_adapters import load_adapters
from petransfer.sharing.sources import opened_source
from tests.tiny_models import keep

FORMS: dict[str, dict[str, Any]] = {
    "attention": {"target_modules": ["q_proj", "v_proj"]},
    "embeddings and head beside it": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    "embeddings beside it": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "head": {"target_modules": ["lm_head"]},
    "the pattern of unsloth": {
        "target_modules": r"(?:.*?(?:language|text|model).*?(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense).*?"
        r"(?:q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj).*?)|(?:\bmodel\.layers\.[\d]{1,}\."
        r"(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense)\.(?:(?:q_proj|k_proj|v_proj|o_proj|gate_proj)))"
    },
    "a repeated group": {"target_modules": r"(\w+\.)*(q|v)_proj"},
    "layers of other models": {"target_modules": ["q_proj", "v_proj", "query_key_value", "c_attn"]},
    "layers that are excluded": {"target_modules": "all-linear", "exclude_modules": ["o_proj"]},
    "ends of names beside it": {"target_modules": ["q_proj"], "modules_to_save": ["input_layernorm", "norm"]},
    "patterns of ranks": {
        "target_modules": ["q_proj", "v_proj"], "rank_pattern": {r"(\w+\.)+q_proj": 2}, "alpha_pattern": {"v_proj": 3}
    },
    "started with EVA": {"target_modules": ["q_proj"], "init_lora_weights": "eva", "eva_config": EvaConfig(rho=1.5)},
}  # fmt: skip


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "own head"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2 of one layer, with an output head that is tied to the embeddings or not."""

    def make(tokens: int) -> Any:
        config = Qwen2Config(
            vocab_size=tokens, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1, max_position_embeddings=128, pad_token_id=0, eos_token_id=1, bos_token_id=1,
            tie_word_embeddings=request.param,
        )  # fmt: skip
        return Qwen2ForCausalLM(config)

    return keep(tmp_path_factory.mktemp("qwen2"), make)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("form", FORMS)
def test_an_adapter_of_plain_peft_gives_the_same_logits_attached_and_merged(
    form: str, base: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    made = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base),
        LoraConfig(task_type="CAUSAL_LM", r=4, **{"init_lora_weights": False, **FORMS[form]}),
    )
    for name, value in made.named_parameters():
        if "modules_to_save" in name or "lora_B" in name:
            value.data += 0.02 * torch.randn(value.shape)
    made.save_pretrained(tmp_path / "adapter")

    adapter = Adapter.load(tmp_path / "adapter", checkpoint=str(base), device="cpu")
    tokenizer = AutoTokenizer.from_pretrained(base)
    ids = tokenizer("walk twice and look\n", return_tensors="pt", add_special_tokens=False)["input_ids"]
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "adapter").eval()
    with torch.inference_mode():
        wanted = plain(ids).logits
        model: Any = adapter.predictor.model
        assert torch.allclose(model(ids).logits, wanted, atol=1e-4)

    merged = adapter.merge(tmp_path / "merged", bits=32)
    assert merged.moved < 1e-3
    with torch.inference_mode():
        alone = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
        assert torch.allclose(alone(ids).logits, wanted, atol=1e-3)
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    has_own_head = alone.get_input_embeddings().weight is not alone.get_output_embeddings().weight
    assert config["tie_word_embeddings"] is not has_own_head

    rounded = adapter.merge(tmp_path / "rounded", bits=16)
    assert rounded.moved < 0.02


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("modules", "missing"),
    [([], ""), (["embed_tokens", "lm_head"], ""), (["embed_tokens"], "lm_head"), ([], "embed_tokens")],
    ids=["resized", "resized and trained", "embeddings alone", "head alone"],
)
@pytest.mark.parametrize("more", [3, -5])
def test_the_base_of_an_adapter_with_another_vocabulary_is_resized(
    more: int, modules: list[str], missing: str, base: Path, tmp_path: Path
) -> None:
    """TRL, axolotl and LLaMA-Factory save such adapters after adding tokens, some with only one of the two tables."""
    torch.manual_seed(0)
    tokenizer, wide = AutoTokenizer.from_pretrained(base), AutoModelForCausalLM.from_pretrained(base)
    if more > 0:
        tokenizer.add_tokens([f"<{at}>" for at in range(more)])
    old, rows = wide.config.vocab_size, len(tokenizer) + min(more, 0)
    wide.resize_token_embeddings(rows, mean_resizing=False)
    config = LoraConfig(
        task_type="CAUSAL_LM", r=4, init_lora_weights=False, target_modules=["q_proj"], modules_to_save=modules or None
    )
    made = get_peft_model(wide, config).eval()
    for name, value in made.named_parameters():
        if "modules_to_save" in name:
            value.data += 0.02 * torch.randn(value.shape)
    made.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    if missing and not made.config.tie_word_embeddings:
        save_file({name: value for name, value in tensors.items() if missing not in name}, file)
        table = wide.lm_head.weight.data if missing == "lm_head" else wide.model.embed_tokens.weight.data
        table[old:] = table[:old].mean(dim=0)
    if more > 0:
        tokenizer.save_pretrained(tmp_path / "adapter")
    ids = torch.tensor([[5, 6, 7, 8, rows - 1]])
    with torch.inference_mode():
        wanted = made(ids).logits
    adapter = Adapter.load(tmp_path / "adapter", checkpoint=str(base), device="cpu")
    model: Any = adapter.predictor.model
    with torch.inference_mode():
        assert torch.allclose(model(ids).logits, wanted, atol=1e-4)
    assert adapter.merge(tmp_path / "merged", bits=32).moved < 1e-3
    with torch.inference_mode():
        alone = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
        assert torch.allclose(alone(ids).logits, wanted, atol=1e-3)
    assert len(AutoTokenizer.from_pretrained(tmp_path / "merged")) == len(tokenizer)
    with (
        opened_source(str(tmp_path / "adapter")) as source,
        pytest.raises(UserError, match="brings embeddings of its own for the base; use it without other adapters"),
    ):
        load_adapters([source.adapter(), source.adapter()], LoadOptions(checkpoint=str(base), device="cpu"))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_trained_token_rows_without_a_module_name_are_rows_of_the_input_embeddings(
    tiny_gpt2: Path, tmp_path: Path
) -> None:
    """In `trainable_token_indices`, a list means the input embeddings, which GPT-2 calls `wte`."""
    forms: list[Any] = [[5, 6], None, {"wte": [7]}]
    ids = torch.tensor([[5, 6, 7, 8]])
    wanted = []
    for at, rows in enumerate(forms):
        torch.manual_seed(at)
        made = get_peft_model(
            AutoModelForCausalLM.from_pretrained(tiny_gpt2),
            LoraConfig(
                task_type="CAUSAL_LM", r=4, target_modules=["c_attn"], init_lora_weights=False,
                trainable_token_indices=rows,
            ),
        ).eval()  # fmt: skip
        for name, value in made.named_parameters():
            if "trainable_tokens_delta" in name:
                value.data += torch.randn(value.shape)
        made.save_pretrained(tmp_path / str(at))
        with torch.inference_mode():
            wanted.append(made(ids).logits)
    with contextlib.ExitStack() as stack:
        bundles = [stack.enter_context(opened_source(str(tmp_path / str(at)))).adapter() for at in range(3)]
        adapters = load_adapters(bundles, LoadOptions(checkpoint=str(tiny_gpt2), device="cpu"), bits=32)
    for name, logits in zip(adapters.bundles, wanted, strict=True):
        adapters.model.set_adapter(name)
        with torch.inference_mode():
            assert torch.allclose(adapters.model(ids).logits, logits, atol=1e-5)


ENCODER_DECODERS: dict[str, Any] = {
    "t5": lambda tokens: T5ForConditionalGeneration(
        T5Config(vocab_size=tokens, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0)
    ),
    "bart": lambda tokens: BartForConditionalGeneration(
        BartConfig(
            vocab_size=tokens, d_model=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=16, decoder_ffn_dim=16,
            encoder_attention_heads=2, decoder_attention_heads=2, max_position_embeddings=64, pad_token_id=0,
            bos_token_id=1, eos_token_id=1, decoder_start_token_id=1, forced_eos_token_id=None,
        )
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("modules", [["shared"], ["lm_head"], ["shared", "lm_head"], ["embed_tokens"]], ids=str)
@pytest.mark.parametrize("kind", ENCODER_DECODERS)
def test_embeddings_and_head_saved_with_an_encoder_decoder_adapter_are_merged(
    kind: str, modules: list[str], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    base = keep(tmp_path / "base", ENCODER_DECODERS[kind])
    targets = ["q", "v"] if kind == "t5" else ["q_proj", "v_proj"]
    config = LoraConfig(
        task_type="SEQ_2_SEQ_LM", r=4, init_lora_weights=False, target_modules=targets, modules_to_save=modules
    )
    made = get_peft_model(AutoModelForSeq2SeqLM.from_pretrained(base), config)
    for name, value in made.named_parameters():
        if "modules_to_save" in name:
            value.data += 0.2 * torch.randn(value.shape)
    made.save_pretrained(tmp_path / "adapter")
    ids = torch.arange(3, 15)[None]
    plain = PeftModel.from_pretrained(AutoModelForSeq2SeqLM.from_pretrained(base), tmp_path / "adapter").eval()
    adapter = Adapter.load(tmp_path / "adapter", checkpoint=str(base), device="cpu")
    assert adapter.merge(tmp_path / "merged", bits=32).moved < 1e-3
    alone = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
    with torch.inference_mode():
        wanted = plain(input_ids=ids, decoder_input_ids=ids).logits
        assert torch.allclose(alone(input_ids=ids, decoder_input_ids=ids).logits, wanted, atol=1e-4)


@pytest.mark.parametrize(
    ("key", "value", "advice"),
    [
        ("init_lora_weights", "pissa", r"merge it with plain peft \(merge_and_unload\)"),
        ("target_parameters", ["experts"], r"merge it with plain peft \(merge_and_unload\)"),
        ("alora_invocation_tokens", [5, 6], "use it with plain peft"),
    ],
)
def test_the_error_for_an_unsupported_adapter_says_how_to_use_it(
    key: str, value: object, advice: str, base: Path, tmp_path: Path
) -> None:
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"])
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(UserError, match=rf"{key} is .*{advice}"):
        Adapter.load(tmp_path, checkpoint=str(base), device="cpu")


def test_a_base_is_found_by_the_folder_in_the_adapter_s_configuration(base: Path, tmp_path: Path) -> None:
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"])
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(
        tmp_path / "out" / "checkpoint-5"
    )
    assert len(Adapter.load(tmp_path / "out" / "checkpoint-5", device="cpu").predict(["a"], 2)) == 1
    with pytest.raises(UserError, match=r"name a folder inside it that holds one: checkpoint-5"):
        Adapter.load(tmp_path / "out")


def test_a_lora_bias_cannot_be_merged_into_a_layer_without_bias(base: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base)
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["o_proj"], lora_bias=True)
    get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
    adapter = Adapter.load(tmp_path / "adapter", checkpoint=str(base), device="cpu")
    with pytest.raises(UserError, match=r"cannot be merged: .*bias.*; use it with its base model"):
        adapter.merge(tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_the_error_for_a_missing_base_of_a_plain_adapter_names_checkpoint(base: Path, tmp_path: Path) -> None:
    made = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(task_type="CAUSAL_LM", r=4))
    made.save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    for name in ("output/checkpoint-31", "/gone/base"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": name}))
        with pytest.raises(UserError, match=r"base.*'checkpoint'"):
            Adapter.load(tmp_path, device="cpu").predict(["walk"])
    assert len(Adapter.load(tmp_path, checkpoint=str(base), device="cpu").predict(["walk"], max_new_tokens=2)) == 1


def test_an_adapter_in_a_pickle_is_converted_by_the_command_in_the_message(base: Path, tmp_path: Path) -> None:
    """Older versions of peft wrote adapter_model.bin."""
    made = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base),
        LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"], init_lora_weights=False),
    )
    folder = tmp_path / "an 'old' adapter"
    made.save_pretrained(folder)
    expected = load_file(folder / "adapter_model.safetensors")
    torch.save(expected, folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"only adapter_model\.bin, a pickle.*; this converts it") as error:
        Adapter.load(folder, checkpoint=str(base), device="cpu")
    python, option, code = shlex.split(str(error.value).partition("of the file: ")[2])
    assert (python, option) == ("python", "-c")
    exec(code, {})
    found = load_file(folder / "adapter_model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert len(Adapter.load(folder, checkpoint=str(base), device="cpu").predict(["walk"], max_new_tokens=2)) == 1


def test_the_advice_to_merge_an_unsupported_adapter_with_plain_peft_works(base: Path, tmp_path: Path) -> None:
    config = LoKrConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"], init_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(tmp_path / "adapter")
    advice = r"'LOKR' is not supported .*merge_and_unload.*the model and its tokenizer with save_pretrained"
    with pytest.raises(UserError, match=advice):
        Adapter.load(tmp_path / "adapter", checkpoint=str(base), device="cpu")
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "adapter")
    plain.merge_and_unload().save_pretrained(tmp_path / "merged")
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "merged")
    assert len(Adapter.load(tmp_path / "merged", device="cpu").predict(["walk"], max_new_tokens=2)) == 1
