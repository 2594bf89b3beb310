"""Checkpoints whose files lack tensors, contain other tensors or have other names, as some on the hub."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from petransfer.errors import UserError
from petransfer.models.architecture import configuration
from petransfer.models.complete_weights import refuse_damaged_files
from petransfer.models.loading import load
from petransfer.models.registry import NANO, checkpoint_spec
from petransfer.recipe.run_spec import Bits
from tests.tiny_models import keep

Tensors = dict[str, torch.Tensor]


def _v1_1(model_type: str) -> Callable[[int], Any]:
    """Return a function that makes a T5 v1.1 or a LongT5, with gated layers and an untied head."""

    def make(tokens: int) -> Any:
        from transformers import AutoConfig, AutoModelForSeq2SeqLM

        other = {"local_radius": 16} if model_type == "longt5" else {}
        config = AutoConfig.for_model(
            model_type, vocab_size=tokens, d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2, pad_token_id=0,
            eos_token_id=1, decoder_start_token_id=0, feed_forward_proj="gated-gelu", tie_word_embeddings=False,
            **other,
        )  # fmt: skip
        return AutoModelForSeq2SeqLM.from_config(config)

    return make


def _changed(folder: Path, change: Callable[[Tensors], Any]) -> Path:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture
def copied(tiny_t5: Path, tmp_path: Path) -> Path:
    """A copy of a T5, which a test can change."""
    return Path(shutil.copytree(tiny_t5, tmp_path / "base"))


@pytest.mark.parametrize("bits", [32, 16, 8, 4])
def test_a_checkpoint_without_some_weights_is_refused(bits: Bits, copied: Path) -> None:
    query = "encoder.block.0.layer.0.SelfAttention.q.weight"
    _changed(copied, lambda weights: (weights.pop(query), weights.pop(query.replace(".q.", ".k."))))
    with pytest.raises(
        UserError, match=r"SelfAttention\.k\.weight and 1 other tensors .*get the checkpoint again"
    ) as error:
        load(str(copied), bits, device="cpu")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("bits", [32, 8])
def test_a_checkpoint_with_weights_of_other_shapes_is_refused(bits: Bits, copied: Path) -> None:
    name = "decoder.block.0.layer.2.DenseReluDense.wi.weight"
    _changed(copied, lambda weights: weights.update({name: torch.zeros(48, 32)}))
    with pytest.raises(UserError, match=r"wi\.weight .* shape \(48, 32\).* \(64, 32\)") as error:
        load(str(copied), bits, device="cpu")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("model_type", "embeddings"), [("t5", "shared"), ("longt5", "shared"), ("t5", "decoder.embed_tokens")]
)
def test_embeddings_and_head_are_loaded_from_the_file(model_type: str, embeddings: str, tmp_path: Path) -> None:
    """On the hub, T5 v1.1 and LongT5 have `shared` and a head. MADLAD-400 has the decoder's embeddings and a head."""
    folder = keep(tmp_path / "base", _v1_1(model_type))
    config = json.loads((folder / "config.json").read_text())
    config.pop("scale_decoder_outputs", None)
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    rows = load_file(folder / "model.safetensors")["shared.weight"]
    head = torch.randn(rows.shape, generator=torch.Generator().manual_seed(1))

    def as_on_the_hub(weights: Tensors) -> None:
        for name in [name for name in weights if "embed_tokens" in name or name in ("shared.weight", "lm_head.weight")]:
            weights.pop(name)
        weights |= {f"{embeddings}.weight": rows.clone(), "lm_head.weight": head}

    model: Any = load(str(_changed(folder, as_on_the_hub)), 32, device="cpu")[0]
    assert torch.equal(model.encoder.embed_tokens.weight, rows)
    assert torch.equal(model.decoder.embed_tokens.weight, rows)
    assert torch.equal(model.lm_head.weight, head)


@pytest.mark.parametrize(
    "wrong",
    [
        {"vocab_size": "x"},
        {"vocab_size": 0},
        {"d_model": -1},
        {"num_heads": 0},
        {"d_kv": 0},
        {"num_layers": 1.5},
        {"d_ff": None},
        {"pad_token_id": "x"},
    ],
)
def test_a_configuration_with_impossible_sizes_is_refused_in_one_line(wrong: dict[str, Any], copied: Path) -> None:
    path = copied / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | wrong))
    for read in (lambda: load(str(copied), 32, device="cpu"), lambda: configuration(checkpoint_spec(str(copied)))):
        with pytest.raises(UserError) as error:
            read()
        assert next(iter(wrong)) in str(error.value)
        assert "\n" not in str(error.value)


def test_generation_defaults_of_wrong_types_are_ignored(copied: Path) -> None:
    content = {"max_length": "x", "eos_token_id": "y", "bos_token_id": True, "num_beams": [4]}
    (copied / "generation_config.json").write_text(json.dumps(content))
    load(str(copied), 32, device="cpu")


def _warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.name.startswith("petransfer")]


@pytest.mark.parametrize("bits", [32, 4])
def test_a_warning_names_weights_of_layers_that_config_json_lacks(
    bits: Bits, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / f"base-{bits}"
    shutil.copytree(NANO / "english", folder)
    shutil.copytree(NANO / "tokenizer", folder, dirs_exist_ok=True)
    load(str(folder), bits, device="cpu")
    assert not _warnings(caplog)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_layers": 1}))
    for _ in range(2):
        load(str(folder), bits, device="cpu")
    (text,) = _warnings(caplog)
    assert (
        "has fewer layers than its weights: encoder.block.1.layer.0.SelfAttention.k.weight and 7 other tensors" in text
    )


_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


@pytest.mark.parametrize("kind", ["pointer", "cut"])
@pytest.mark.parametrize("name", ["model.safetensors", "model-00002-of-00002.safetensors", "pytorch_model.bin"])
def test_a_weight_file_that_is_a_git_lfs_pointer_or_truncated_is_named(name: str, kind: str, copied: Path) -> None:
    weights = load_file(copied / "model.safetensors")
    if name == "pytorch_model.bin":
        (copied / "model.safetensors").unlink()
        torch.save(weights, copied / name)
    elif name != "model.safetensors":
        (copied / "model.safetensors").unlink()
        first, last = "model-00001-of-00002.safetensors", name
        keys = sorted(weights)
        parts = {first: keys[::2], last: keys[1::2]}
        for part, names in parts.items():
            save_file({key: weights[key] for key in names}, copied / part, metadata={"format": "pt"})
        index = {"metadata": {}, "weight_map": {key: part for part, names in parts.items() for key in names}}
        (copied / "model.safetensors.index.json").write_text(json.dumps(index))
    load(str(copied), 32, device="cpu")
    whole = (copied / name).read_bytes()
    (copied / name).write_bytes(_POINTER.encode() if kind == "pointer" else whole[: len(whole) // 2])
    text = "Git LFS pointer.*`git lfs pull`" if kind == "pointer" else "damaged .*get this file of the checkpoint again"
    for check in (
        lambda: load(str(copied), 32, device="cpu"),
        lambda: refuse_damaged_files(checkpoint_spec(str(copied))),
    ):
        with pytest.raises(UserError, match=f"/{name} is (a )?{text}"):
            check()


def test_a_tokenizer_file_that_is_a_git_lfs_pointer_is_named(copied: Path) -> None:
    (copied / "tokenizer.json").write_text(_POINTER)
    with pytest.raises(UserError, match=r"/tokenizer\.json is a Git LFS pointer"):
        load(str(copied), 32, device="cpu")


def test_missing_tensors_in_a_pickled_checkpoint_are_noticed_before_loading(copied: Path) -> None:
    weights = load_file(copied / "model.safetensors")
    (copied / "model.safetensors").unlink()
    torch.save(weights, copied / "pytorch_model.bin")
    refuse_damaged_files(checkpoint_spec(str(copied)))
    query = "encoder.block.0.layer.0.SelfAttention.q.weight"
    del weights[query]
    torch.save(weights, copied / "pytorch_model.bin")
    with pytest.raises(UserError, match=f"lack {query}"):
        refuse_damaged_files(checkpoint_spec(str(copied)))


def test_quantised_weights_without_their_configuration_are_refused(copied: Path) -> None:
    """This happens if `quantization_config` is deleted from the config.json of an 8-bit checkpoint."""
    query = "encoder.block.0.layer.0.SelfAttention.q"

    def quantise(weights: Tensors) -> None:
        weights[f"{query}.weight"] = weights[f"{query}.weight"].mul(100).to(torch.int8)
        weights[f"{query}.SCB"] = torch.ones(32)

    text = rf"the weights of .*base are quantised \({query}.SCB\), and config.json has no quantization_config; use the"
    _changed(copied, quantise)
    with pytest.raises(UserError, match=text):
        load(copied, 32, device="cpu")
    with pytest.raises(UserError, match=text):
        refuse_damaged_files(checkpoint_spec(str(copied)))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("model-00001-of-00002.safetensors", r"model.safetensors.index.json, which lists the parts, is missing"),
        ("pytorch_model-00001-of-00002.bin", r"pytorch_model.bin.index.json, which lists the parts, is missing"),
        (
            "model.fp16.safetensors",
            r"neither model.safetensors nor pytorch_model.bin, and model.fp16.safetensors is not",
        ),
    ],
)
def test_a_missing_index_and_weight_files_with_wrong_names_are_named(name: str, text: str, copied: Path) -> None:
    (copied / "model.safetensors").rename(copied / name)
    with pytest.raises(UserError, match=text):
        load(copied, 32, device="cpu")
    with pytest.raises(UserError, match=text):
        refuse_damaged_files(checkpoint_spec(str(copied)))


def test_the_message_about_a_missing_head_suggests_tied_embeddings(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = {"tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
    folder = keep(tmp_path / "base", lambda tokens: LlamaForCausalLM(LlamaConfig(vocab_size=tokens, **config, **sizes)))
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | {"tie_word_embeddings": False}))
    with pytest.raises(UserError, match=r'lack lm_head.weight .*write "tie_word_embeddings": true into config.json'):
        load(folder, 32, device="cpu")
    (folder / "config.json").write_text(json.dumps(content | {"tie_word_embeddings": True}))
    load(folder, 32, device="cpu")


@pytest.mark.parametrize("bits", [32, 4])
def test_sinusoidal_positions_that_the_file_lacks_are_computed(bits: Bits, tmp_path: Path) -> None:
    """The files of Pegasus on the hub lack them."""
    from transformers import PegasusConfig, PegasusForConditionalGeneration

    sizes = {"d_model": 64, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_position_embeddings": 32}
    folder = keep(
        tmp_path / "base",
        lambda tokens: PegasusForConditionalGeneration(PegasusConfig(vocab_size=tokens, **sizes, **heads)),
    )
    positions = [f"model.{part}.embed_positions.weight" for part in ("encoder", "decoder")]
    expected: Tensors = {}
    _changed(folder, lambda weights: expected.update({name: weights.pop(name) for name in positions}))
    refuse_damaged_files(checkpoint_spec(str(folder)))
    model, _ = load(folder, bits, device="cpu")
    for name in positions:
        torch.testing.assert_close(model.get_parameter(name).float(), expected[name], atol=0.01, rtol=0)
