"""The loss computed in chunks equals the loss computed as a whole, for each supported architecture."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM

from petransfer.data.encoding import Layout
from petransfer.evaluation import one_pass
from petransfer.models.support import supported_class
from petransfer.training import losses
from petransfer.training.batches import IGNORED
from petransfer.training.stacked.layers import shared_copy
from petransfer.training.stacked.stacked_loop import accumulate, make_stack

T5 = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
T5 |= {"dropout_rate": 0.0}
USUAL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
GROUPED = USUAL | {"num_key_value_heads": 2, "pad_token_id": 0}
BART = {
    "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "dropout": 0.0, "max_position_embeddings": 32,
    "pad_token_id": 0, "attention_dropout": 0.0, "encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0,
}  # fmt: skip
# The cap is so low that the logits of random weights reach it.
CAPPED = GROUPED | {"head_dim": 8, "final_logit_softcapping": 0.1, "bos_token_id": 2}
VISION = {
    "model_type": "siglip_vision_model", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
    "num_attention_heads": 2, "image_size": 28, "patch_size": 14,
}  # fmt: skip
IMAGES = {"mm_tokens_per_image": 4, "image_token_index": 57, "boi_token_index": 59, "eoi_token_index": 58}
MROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
QWEN_VISION = {"depth": 1, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "patch_size": 14}
SMALL: dict[str, dict[str, Any]] = {
    "t5": T5,
    "mt5": T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "longt5": T5 | {"local_radius": 4},
    "gpt2": {"n_embd": 16, "n_layer": 1, "n_head": 2},
    "opt": {
        "dropout": 0.0,
        "hidden_size": 16,
        "ffn_dim": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "word_embed_proj_dim": 16,
    },
    "bloom": {"hidden_size": 16, "n_layer": 1, "n_head": 2},
    "gpt_neox": USUAL,
    "phi": GROUPED,
    "gemma": GROUPED | {"head_dim": 8},
    **dict.fromkeys(("m2m_100", "bart", "mbart", "marian", "pegasus"), BART),
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "phi3", "starcoder2", "smollm3"), GROUPED),
    "gemma2": CAPPED,
    "gemma3_text": CAPPED,
    "t5gemma": {"encoder": CAPPED | {"vocab_size": 60}, "decoder": CAPPED | {"vocab_size": 60}},
    "t5gemma2": {
        "encoder": {"text_config": CAPPED | {"vocab_size": 60}, "vision_config": VISION, **IMAGES},
        "decoder": CAPPED | {"vocab_size": 60}, "image_token_index": 57, "eoi_token_index": 58,
    },
    "gemma3": {"text_config": GROUPED | {"vocab_size": 60, "head_dim": 8}, "vision_config": VISION, **IMAGES},
    "qwen2_vl": {"text_config": GROUPED | {"vocab_size": 60, "rope_parameters": MROPE}, "vision_config": QWEN_VISION},
    "qwen2_5_vl": {"text_config": GROUPED | {"vocab_size": 60, "rope_parameters": MROPE}, "vision_config": {
        "depth": 1, "hidden_size": 16, "num_heads": 2, "patch_size": 14, "intermediate_size": 16, "out_hidden_size": 16,
    }},
}  # fmt: skip


def _model(kind: str) -> Any:
    own = {} if "text_config" in SMALL[kind] else {"vocab_size": 60}
    config = AutoConfig.for_model(kind, **own, **SMALL[kind])
    torch.manual_seed(1)
    auto = supported_class(config, kind)
    model = auto.from_config(config, dtype=torch.float32)
    for dropout in model.modules():
        if isinstance(dropout, torch.nn.Dropout):
            dropout.p = 0.0
    if kind in losses.BIASED_HEADS:
        model.final_logits_bias.normal_()
    return model.train()


def _batch(model: Any) -> dict[str, torch.Tensor]:
    ids = torch.randint(2, 56, (3, 7))
    labels = torch.randint(2, 56, (3, 7))
    labels[1, 3:] = IGNORED
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    return batch | ({"decoder_input_ids": ids.flip(1)} if model.config.is_encoder_decoder else {})


def test_each_supported_architecture_has_a_small_configuration() -> None:
    assert set(SMALL) == losses.PLAIN_HEADS | losses.BIASED_HEADS | losses.CAPPED_HEADS


@pytest.mark.parametrize("kind", sorted(losses.PLAIN_HEADS | losses.BIASED_HEADS | losses.CAPPED_HEADS))
def test_loss_and_gradients_in_chunks_equal_those_of_the_whole(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The head is trained or frozen. There are 21 token positions, and a chunk has 4."""
    model = _model(kind)
    batch = _batch(model)
    for trained in (True, False):
        model.get_output_embeddings().weight.requires_grad_(trained)
        found = []
        for whole in (losses.WHOLE, 60 * 16 * 4):
            monkeypatch.setattr(losses, "WHOLE", whole)
            loss = losses.token_loss(model, batch)
            (2 * loss).backward()
            found.append((loss.detach(), {name: value.grad for name, value in model.named_parameters()}))
            model.zero_grad(set_to_none=True)
        (one, gradients), (other, in_pieces) = found
        torch.testing.assert_close(other, one)
        for name, gradient in gradients.items():
            if gradient is not None:
                torch.testing.assert_close(in_pieces[name], gradient, msg=name, rtol=1e-4, atol=1e-5)
    assert "forward" not in vars(model.get_output_embeddings())
    if kind in losses.BIASED_HEADS:
        assert model.final_logits_bias.shape == (1, 60)


@pytest.mark.parametrize("kind", ["m2m_100", "mbart"])
@pytest.mark.parametrize("whole", [losses.WHOLE, 60 * 16 * 4])
def test_the_losses_of_a_stack_equal_those_of_its_members(
    kind: str, whole: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    trunk = _model(kind)
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    members = [get_peft_model(shared_copy(trunk), config) for _ in range(2)]
    batches = [_batch(trunk) for _ in members]
    expected = [losses.token_loss(member, batch).detach() for member, batch in zip(members, batches, strict=True)]
    monkeypatch.setattr(losses, "WHOLE", whole)
    stack = make_stack(trunk, members)
    assert stack.hidden_only
    torch.testing.assert_close(accumulate(stack, batches, [1, 1], Layout(True, 0, 2)), expected)


def test_an_unsupported_architecture_computes_its_logits_without_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("granite", vocab_size=60, **GROUPED, logits_scaling=8.0)
    ).eval()
    batch = _batch(model)
    monkeypatch.setattr(losses, "WHOLE", 0)
    logits = model(**{name: tensor for name, tensor in batch.items() if name != "labels"}).logits
    expected = functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), reduction="sum")
    torch.testing.assert_close(losses.token_loss(model, batch), expected)


@pytest.mark.parametrize("kind", ["bart", "gemma2", "t5gemma", "qwen2"])
def test_an_evaluation_in_chunks_gives_the_same_scores(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model(kind).eval()
    batch = _batch(model)
    with torch.no_grad():
        whole = one_pass._padded_figures(model, batch)
        monkeypatch.setattr(losses, "WHOLE", 60 * 16 * 4)
        rows: list[int] = []
        plain = functional.linear
        monkeypatch.setattr(losses.functional, "linear", lambda *given: rows.append(len(given[0])) or plain(*given))
        chunked = one_pass._padded_figures(model, batch)
    assert rows.count(4) >= 5
    asked = batch["labels"] != IGNORED
    for one, other in zip(whole[:4], chunked[:4], strict=True):
        torch.testing.assert_close(other[asked], one[asked])
    torch.testing.assert_close(chunked[4], whole[4])


def test_each_chunk_has_a_limited_number_of_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model("t5")
    batch = _batch(model)
    seen: list[int] = []
    plain = losses._block_loss
    monkeypatch.setattr(losses, "WHOLE", 60 * 16 * 4)
    monkeypatch.setattr(losses, "_block_loss", lambda logits, *rest: seen.append(len(logits)) or plain(logits, *rest))
    losses.token_loss(model, batch)
    assert seen == [4, 4, 4, 4, 4, 1]
