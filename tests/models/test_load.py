"""Loading in 32, 16, 8 and 4 bits, the control arms, and the embedded checkpoint."""

from __future__ import annotations

import errno
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForSeq2SeqLM, BertConfig, BertModel, MT5Config, PreTrainedModel, T5Config
from transformers.pytorch_utils import Conv1D

from petransfer.errors import UserError
from petransfer.memory.study_memory import trained_tokens_of_run
from petransfer.methods import apply_method
from petransfer.methods.shared.trained_tokens import trained_tokens
from petransfer.models.architecture import configuration, has_own_head
from petransfer.models.control_arms import randomly_initialized
from petransfer.models.file_backed import FileBackedTensors
from petransfer.models.loading import load_checkpoint, load_on_disk
from petransfer.models.quantization import REASONS, inventory
from petransfer.models.registry import NANO, checkpoint_spec
from petransfer.recipe.run_spec import Bits, Embeddings, Reinit, RunSpec
from petransfer.study.folders import RunFolder
from petransfer.study.settings import Settings
from petransfer.study.single_run import open_base, prepare
from petransfer.training.execution import Execution
from petransfer.training.losses import token_loss
from tests.conftest import LORA


@pytest.mark.parametrize("kind", ["tiny_t5", "tiny_gpt2"])
def test_reinit_initialises_only_the_parts_that_it_names(kind: str, request: pytest.FixtureRequest) -> None:
    spec = checkpoint_spec(str(request.getfixturevalue(kind)))

    def parts(reinit: Reinit, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        model = load_checkpoint(replace(spec, reinit=reinit), 32, seed=seed).model
        embeddings = model.get_input_embeddings().weight
        body = next(
            value for name, value in model.named_parameters() if "SelfAttention.q" in name or "c_attn.weight" in name
        )
        return embeddings, body

    embeddings, body = parts("none")
    new = {reinit: parts(reinit) for reinit in ("embeddings", "body", "all")}  # type: ignore[arg-type]
    assert [torch.equal(pair[0], embeddings) for pair in new.values()] == [False, True, False]
    assert [torch.equal(pair[1], body) for pair in new.values()] == [True, False, False]
    assert torch.equal(parts("all")[0], new["all"][0])
    assert not torch.equal(parts("all", seed=1)[0], new["all"][0])
    # the random numbers have the scale of the model's own initialisation
    assert float(new["all"][0].detach().std()) == pytest.approx(float(embeddings.detach().std()), rel=0.1)


@pytest.mark.parametrize("kind", ["tiny_t5", "tiny_gpt2"])
@pytest.mark.parametrize("bits", [32, 16, 8, 4])
def test_weights_have_the_requested_bits_and_lora_trains_on_them(
    kind: str, bits: int, request: pytest.FixtureRequest
) -> None:
    loaded = load_checkpoint(checkpoint_spec(str(request.getfixturevalue(kind))), bits)  # type: ignore[arg-type]
    held = inventory(loaded.model).bytes
    expected = {32: {"float32"}, 16: {"bfloat16"}, 8: {"int8", "scales", "bfloat16"}, 4: {"nf4", "scales", "bfloat16"}}
    assert set(held) == expected[bits]
    if kind == "tiny_t5" and bits < 16:
        wo = loaded.model.encoder.block[0].layer[1].DenseReluDense.wo
        assert type(wo).__name__ == {8: "Linear8bitLt", 4: "Linear4bit"}[bits]
    model = apply_method(loaded, LORA, 0)
    batch = {"input_ids": torch.tensor([[5, 9, 1]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    labels = torch.tensor([[8, 12, 1]])
    batch |= {"labels": labels}
    if loaded.layout.encoder_decoder:
        batch |= {"decoder_input_ids": torch.tensor([[0, 8, 12]])}
    optimizer = torch.optim.AdamW([value for value in model.parameters() if value.requires_grad], lr=1e-1)
    losses = []
    for _ in range(25):
        loss = token_loss(model, batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.3


def test_a_reinitialised_model_can_be_quantised(tiny_t5: Path) -> None:
    loaded = load_checkpoint(replace(checkpoint_spec(str(tiny_t5)), reinit="all"), 4)
    assert "nf4" in inventory(loaded.model).bytes


@pytest.mark.parametrize("kind", ["tiny_t5", "tiny_gpt2"])
@pytest.mark.parametrize("reinit", ["all", "body", "embeddings"])
def test_random_weights_drawn_into_files_equal_those_drawn_in_memory(
    kind: str, reinit: Reinit, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are equal bit for bit, so that the results of earlier runs can be reproduced."""
    spec = replace(checkpoint_spec(str(request.getfixturevalue(kind))), reinit=reinit)
    held = load_checkpoint(spec, 16, seed=5).model.state_dict()
    monkeypatch.setattr("petransfer.models.file_backed.LEAST", 0)
    made: list[object] = []
    monkeypatch.setattr(
        FileBackedTensors, "empty", lambda *given, own=FileBackedTensors.empty: made.append(given) or own(*given)
    )
    load_on_disk(spec, str(tmp_path), seed=5)
    drawn = load_checkpoint(checkpoint_spec(str(_with_tokenizer(tmp_path))), 16).model.state_dict()
    assert made
    assert drawn.keys() == held.keys()
    assert all(torch.equal(drawn[name], held[name]) for name in held)


def _with_tokenizer(folder: Path) -> Path:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((NANO / "tokenizer" / name).read_bytes())
    return folder


def test_random_weights_of_a_quantised_control_arm_are_drawn_into_files(
    tiny_t5: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In memory they would take 4 bytes per parameter, and 2 more as bf16. A quantised model should need less."""
    monkeypatch.setattr("petransfer.models.file_backed.LEAST", 0)
    files: list[str | None] = []

    def keep(model: PreTrainedModel, folder: str, own: Any = PreTrainedModel.save_pretrained, **named: Any) -> None:
        files.extend(value.untyped_storage().filename for value in model.parameters())
        own(model, folder, **named)

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", keep)
    for reinit in ("all", "body", "embeddings"):
        files.clear()
        load_checkpoint(replace(checkpoint_spec(str(tiny_t5)), reinit=reinit), 4)  # type: ignore[arg-type]
        assert files
        assert all(files)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), SafetensorError("I/O: (os error 28)")])
def test_a_full_temporary_folder_is_named(tiny_t5: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def full(*_: object) -> None:
        raise error

    monkeypatch.setattr("petransfer.models.loading.write_partly_random", full)
    drawn = replace(checkpoint_spec(str(tiny_t5)), reinit="body")
    with pytest.raises(UserError, match=r"is too full to load .* set TMPDIR to a folder with room"):
        load_checkpoint(drawn, 4)


def test_an_encoder_only_checkpoint_is_refused(tmp_path: Path, tiny_t5: Path) -> None:
    BertModel(
        BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=1, intermediate_size=16)
    ).save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((tiny_t5 / name).read_bytes())
    with pytest.raises(UserError, match="encoder-only"):
        load_checkpoint(checkpoint_spec(str(tmp_path)), 32)


def test_the_embedded_checkpoint_agrees_with_its_card() -> None:
    card = json.loads((NANO / "english" / "pretraining.json").read_text())
    loaded = load_checkpoint(checkpoint_spec("nano/english"), 32)
    assert sum(value.numel() for value in loaded.model.parameters()) == card["parameters"]
    assert len(loaded.tokenizer) == loaded.model.config.vocab_size
    assert loaded.new_tokens == tuple(card["new_pieces"])
    symbol = loaded.tokenizer.convert_tokens_to_ids("ĠI_JUMP")
    new = loaded.new_tokens
    assert symbol in new
    assert loaded.tokenizer.convert_tokens_to_ids("Ġthe") not in new


def test_no_two_embeddings_of_the_embedded_checkpoint_have_the_same_direction() -> None:
    weight = load_checkpoint(checkpoint_spec("nano/english"), 32).model.get_input_embeddings().weight.detach()
    rows = torch.nn.functional.normalize(weight, dim=1)
    cosine = rows @ rows.T
    cosine.fill_diagonal_(0)
    assert float(cosine.max()) < 0.99


def test_words_of_the_benchmarks_are_single_tokens() -> None:
    tokenizer = load_checkpoint(checkpoint_spec("nano/english"), 32).tokenizer
    text = "jump around right twice and walk opposite left thrice after look"
    text += " I_TURN_RIGHT I_JUMP I_WALK * cookie ( x _ 1 ) ; eat"
    pieces = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(pieces) == len(text.split())
    assert tokenizer.decode(pieces) == text


def test_embeddings_new_trains_only_the_embeddings_of_new_tokens(tiny_spec: Callable[..., RunSpec]) -> None:
    loaded = load_checkpoint(checkpoint_spec("nano/english"), 32)
    model = apply_method(loaded, replace(LORA, embeddings="new"), 0)
    rows = [value for name, value in model.named_parameters() if value.requires_grad and "trainable_tokens" in name]
    assert {value.shape[0] for value in rows} == {len(loaded.new_tokens)}
    none = apply_method(
        replace(load_checkpoint(checkpoint_spec("nano/english"), 32), new_tokens=()), replace(LORA, embeddings="new"), 0
    )
    assert not any("trainable_tokens" in name for name, _ in none.named_parameters())


def test_trained_tokens_occur_in_the_training_data() -> None:
    used = {200, 3, 9}
    assert trained_tokens(replace(LORA, embeddings="used"), new=(200, 7), used=used) == (3, 9, 200)
    assert trained_tokens(replace(LORA, embeddings="new"), new=(200, 7), used=used) == (200,)
    assert trained_tokens(LORA, new=(200, 7), used=used) == ()


def test_embeddings_used_trains_the_rows_that_the_memory_planner_counts(
    tiny_spec: Callable[..., RunSpec], tmp_path: Path
) -> None:
    spec = tiny_spec(replace(LORA, embeddings="used"), steps=2)
    config = configuration(spec.checkpoint)[0]
    tokens = trained_tokens_of_run(spec, config)
    assert 10 < len(tokens) < config.vocab_size
    settings = Settings(Execution(threads=1), cpu=True)
    model = prepare(spec, RunFolder(tmp_path), open_base(spec, settings)).model
    rows = [value for name, value in model.named_parameters() if value.requires_grad and "trainable_tokens" in name]
    assert {value.shape[0] for value in rows} == {len(tokens)}


def test_a_checkpoint_with_its_own_tokenizer_has_no_new_tokens(tiny_t5: Path) -> None:
    loaded = load_checkpoint(checkpoint_spec(str(tiny_t5)), 32)
    assert loaded.new_tokens == ()
    model = apply_method(loaded, replace(LORA, embeddings="new"), 0)
    assert not any("trainable_tokens" in name for name, _ in model.named_parameters())


def test_an_image_text_model_without_new_tokens_trains_no_embeddings(tiny_spec: Callable[..., RunSpec]) -> None:
    config = AutoConfig.for_model("gemma3")
    assert not hasattr(config, "vocab_size")  # only its text part has one
    assert trained_tokens_of_run(tiny_spec(replace(LORA, embeddings="new")), config) == ()


def test_a_trained_embedding_is_used_wherever_its_token_is_read_or_predicted() -> None:
    """T5 uses its embeddings in four places. A trained embedding must be used in all of them."""
    loaded = load_checkpoint(checkpoint_spec("nano/english"), 32)
    token_id, other = (loaded.new_tokens)[5], 300
    model = apply_method(replace(loaded, new_tokens=(token_id,)), replace(LORA, embeddings="new"), 0)
    read = {
        "in the encoder": {"input_ids": torch.tensor([[token_id, 1]]), "decoder_input_ids": torch.tensor([[0, other]])},
        "in the decoder": {"input_ids": torch.tensor([[other, 1]]), "decoder_input_ids": torch.tensor([[0, token_id]])},
        "nowhere": {"input_ids": torch.tensor([[other, 1]]), "decoder_input_ids": torch.tensor([[0, other]])},
    }
    with torch.no_grad():
        before = {place: model(**inputs).logits[0, -1] for place, inputs in read.items()}
        for name, value in model.named_parameters():
            if "trainable_tokens_delta" in name:
                value.add_(torch.ones_like(value))
        after = {place: model(**inputs).logits[0, -1] for place, inputs in read.items()}
    changed = {place: before[place] != after[place] for place in read}
    assert changed["in the encoder"].float().mean() > 0.9
    assert changed["in the decoder"].float().mean() > 0.9
    assert changed["nowhere"].nonzero().flatten().tolist() == [token_id]  # only the logit of this token changes


@pytest.fixture
def own_head(tiny_t5: Path, tmp_path: Path) -> Path:
    """A T5 v1.1, with gated layers and an untied head."""
    config = T5Config(
        vocab_size=6176, d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2, feed_forward_proj="gated-gelu",
        tie_word_embeddings=False, decoder_start_token_id=0,
    )  # fmt: skip
    torch.manual_seed(3)
    randomly_initialized(AutoModelForSeq2SeqLM, config, own_head=True).save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((tiny_t5 / name).read_bytes())
    return tmp_path


@pytest.mark.parametrize("reinit", ["none", "embeddings", "body", "all"])
def test_every_control_arm_keeps_an_untied_head(own_head: Path, reinit: Reinit) -> None:
    spec = checkpoint_spec(str(own_head))
    trained = load_checkpoint(spec, 32).model
    model = load_checkpoint(replace(spec, reinit=reinit), 32, seed=1).model
    assert model.lm_head.weight is not model.shared.weight
    assert sum(value.numel() for value in model.parameters()) == sum(value.numel() for value in trained.parameters())
    ends_kept = reinit in {"none", "body"}
    assert torch.equal(model.shared.weight, trained.shared.weight) == ends_kept
    assert torch.equal(model.lm_head.weight, trained.lm_head.weight) == ends_kept
    assert float(model.lm_head.weight.detach().std()) == pytest.approx(1.0, rel=0.05)
    assert not model.config.scale_decoder_outputs


@pytest.mark.parametrize("embeddings", ["new", "trained"])
def test_training_embeddings_is_refused_for_a_model_with_an_untied_head(embeddings: Embeddings, own_head: Path) -> None:
    loaded = replace(load_checkpoint(checkpoint_spec(str(own_head)), 32), new_tokens=(300,))
    with pytest.raises(UserError, match=r"this model \(t5\): its output head is not tied to the encoder's embeddings"):
        apply_method(loaded, replace(LORA, embeddings=embeddings), 0)
    apply_method(loaded, LORA, 0)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(("bits", "bound"), [(8, 0.02), (4, 0.2)])
def test_the_logits_of_a_quantised_t5_are_close_to_those_in_fp32(
    bits: int, bound: float, gated: bool, tmp_path: Path
) -> None:
    """T5 itself would convert the input of a 4-bit `wo` to uint8, the dtype of packed weights: an error above 1."""
    torch.manual_seed(3)
    config = T5Config(
        vocab_size=100, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, decoder_start_token_id=0,
        feed_forward_proj="gated-gelu" if gated else "relu",
    )  # fmt: skip
    AutoModelForSeq2SeqLM.from_config(config).save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes((NANO / "tokenizer" / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_bytes((NANO / "tokenizer" / "tokenizer_config.json").read_bytes())
    ids = torch.randint(2, 100, (4, 12))
    logits = {}
    for taken in (32, bits):
        model = load_checkpoint(checkpoint_spec(str(tmp_path)), taken).model.eval()  # type: ignore[arg-type]
        logits[taken] = model(input_ids=ids, decoder_input_ids=ids).logits.detach().float()
    quantised = {type(module).__name__ for name, module in model.named_modules() if name.endswith(".wo")}
    assert quantised == {"Linear4bit" if bits == 4 else "Linear8bitLt"}
    assert float((logits[bits] - logits[32]).norm() / logits[32].norm()) < bound


def test_the_inventory_counts_all_bytes_and_gives_reasons_for_wide_tensors(tiny_t5: Path) -> None:
    wide = inventory(load_checkpoint(checkpoint_spec(str(tiny_t5)), 32).model)
    assert wide.wide == ()
    assert wide.bytes == {"float32": 4 * wide.parameters}
    for bits, name, per_weight in ((8, "int8", 1.0), (4, "nf4", 0.5)):
        model = load_checkpoint(checkpoint_spec(str(tiny_t5)), bits).model  # type: ignore[arg-type]
        found = inventory(model)
        linear = 4 * 32 * 32 * 3 + 2 * 2 * 32 * 64  # three attentions of four matrices, two feed-forward layers of two
        assert found.parameters == wide.parameters
        assert found.bytes[name] == linear * per_weight
        assert found.bytes["bfloat16"] == 2 * (wide.parameters - linear)
        assert {tensor.reason for tensor in found.wide} == {"tied head", "norm", "embeddings"}
        model(input_ids=torch.tensor([[5, 1]]), decoder_input_ids=torch.tensor([[0]]))
        assert inventory(model).bytes == found.bytes  # bitsandbytes moves its scales in the first forward pass
    rows = (3 * 4 * 32 + 2 * (64 + 32)) * 4  # one fp32 number per output
    assert inventory(load_checkpoint(checkpoint_spec(str(tiny_t5)), 8).model).bytes["scales"] == rows


def test_an_error_of_the_device_is_not_reported_as_a_damaged_checkpoint(
    tiny_t5: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
        raise AssertionError("Torch not compiled with CUDA enabled")

    monkeypatch.setattr(PreTrainedModel, "to", fail)
    with pytest.raises(AssertionError, match="CUDA"):
        load_checkpoint(checkpoint_spec(str(tiny_t5)), 32)


def test_a_checkpoint_that_is_already_quantised_is_refused(tiny_t5: Path, tmp_path: Path) -> None:
    for path in tiny_t5.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for bits in (16, 4):
        with pytest.raises(UserError, match=r"quantised already \(gptq\)"):
            load_checkpoint(checkpoint_spec(str(tmp_path)), bits)  # type: ignore[arg-type]


def test_4_bits_are_refused_without_bitsandbytes(tiny_t5: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match="needs bitsandbytes"):
        load_checkpoint(checkpoint_spec(str(tiny_t5)), 4)


def test_layers_in_keep_wide_are_not_quantised(tiny_t5: Path) -> None:
    spec = checkpoint_spec(str(tiny_t5))
    widths: tuple[Bits, ...] = (8, 4)
    for bits in widths:
        loaded = load_checkpoint(spec, bits, keep_wide=("wo", "SelfAttention.q"))
        model = loaded.model
        wide = {name for name, module in model.named_modules() if type(module) is torch.nn.Linear}
        assert {name.rpartition(".")[2] for name in wide} == {"wo", "q", "lm_head"}
        assert not any("EncDecAttention" in name for name in wide)
        adapted = apply_method(loaded, replace(LORA, bits=bits), 0)
        found = inventory(adapted, ("wo", "SelfAttention.q")).as_dict()["wide"]
        assert set(found) == {"keep_wide", "norm", "tied head", "embeddings"}
        kept = {f"{name}.weight" for name in wide if name != "lm_head"}
        assert set(found["keep_wide"]["tensors"]) == kept  # with the names that they have in the checkpoint
        assert found["keep_wide"]["why"] == "kept in 16 bits by the recipe (keep_wide)"
        again = load_checkpoint(spec, bits).model
        assert type(again.encoder.block[0].layer[1].DenseReluDense.wo) is not torch.nn.Linear
        with pytest.raises(UserError, match="no layer's name ends in 'wx'"):
            load_checkpoint(spec, bits, keep_wide=("wx",))


@pytest.mark.parametrize("bits", [8, 4])
def test_layers_of_gpt2_in_keep_wide_are_not_quantised(bits: Bits, tiny_gpt2: Path) -> None:
    """The linear layers of GPT-2 are of the class Conv1D of transformers."""
    model = load_checkpoint(checkpoint_spec(str(tiny_gpt2)), bits, keep_wide=("c_proj",)).model
    wide = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, Conv1D)}
    assert wide == {"c_proj"}
    assert set(inventory(model, ("c_proj",)).as_dict()["wide"]["keep_wide"]["tensors"]) == {
        "transformer.h.0.attn.c_proj.weight",
        "transformer.h.0.mlp.c_proj.weight",
    }
    with pytest.raises(UserError, match="no layer's name ends in 'c_prox'"):
        load_checkpoint(checkpoint_spec(str(tiny_gpt2)), bits, keep_wide=("c_prox",))


def test_other_wide_tensors_are_not_recorded_under_keep_wide(tiny_t5: Path) -> None:
    model = load_checkpoint(checkpoint_spec(str(tiny_t5)), 4).model
    model.extra = torch.nn.Parameter(torch.zeros(3, 3))
    found = inventory(model, ("wo",)).as_dict()["wide"]
    assert "keep_wide" not in found
    assert found["other"] == {"bytes": 36, "why": REASONS["other"], "tensors": ["extra"]}


@pytest.mark.parametrize("bits", [8, 4])
def test_the_reason_for_a_wide_head_gives_the_measured_change_of_the_loss(bits: Bits, own_head: Path) -> None:
    """The figures are from `python -m benchmarks quantise`: the six embedded arms with a quantised and a wide head."""
    cells = json.loads((Path(__file__).parents[2] / "results" / "bench" / "quantise-cpu.json").read_text())
    losses = {(cell["checkpoint"], cell["bits"], cell["wide"]): 100 * cell["change"] for cell in cells}
    added = [losses[arm, bits, "nothing"] - losses[arm, bits, "head"] for arm, _, wide in losses if wide == "all"]
    assert len(added) == 6
    why = inventory(load_checkpoint(checkpoint_spec(str(own_head)), bits).model).as_dict()["wide"]["head"]["why"]
    if bits == 4:
        assert f"raises the loss by {min(added):.1f} to {max(added):.1f} % at 4 bits" in why
    else:
        assert 0 < max(added) < 0.05
        assert "less than 0.05 % at 8 bits" in why


def test_an_evaluation_does_not_repack_4bit_weights(tiny_t5: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """bitsandbytes would repack them on every CPU with avx512_bf16, with errors and irreversibly."""
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    model = load_checkpoint(checkpoint_spec(str(tiny_t5)), 4).model
    layers = [module for module in model.modules() if hasattr(module, "support_avx512bf16_for_cpu")]
    assert layers
    with torch.no_grad():
        model.eval()(input_ids=torch.tensor([[5, 1]]), decoder_input_ids=torch.tensor([[0]]))
    assert not any(getattr(layer.weight.quant_state, "packing_format_for_cpu", False) for layer in layers)


@pytest.mark.parametrize("size", ["50GB", "20KB"])
def test_the_untied_head_of_an_mt5_is_found_in_one_or_several_files(size: str, tmp_path: Path) -> None:
    config = MT5Config(
        vocab_size=300, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0
    )  # fmt: skip
    model = randomly_initialized(AutoModelForSeq2SeqLM, config, own_head=True)
    model.save_pretrained(tmp_path, max_shard_size=size)
    assert (tmp_path / "model.safetensors.index.json").is_file() == (size == "20KB")
    content = json.loads((tmp_path / "config.json").read_text()) | {"tie_word_embeddings": True}
    content.pop("scale_decoder_outputs", None)
    assert has_own_head(content, str(tmp_path))
    tied = randomly_initialized(AutoModelForSeq2SeqLM, config, own_head=False)
    shutil.rmtree(tmp_path)
    tied.save_pretrained(tmp_path, max_shard_size=size)
    assert not has_own_head(content, str(tmp_path))
