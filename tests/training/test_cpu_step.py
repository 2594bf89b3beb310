"""The fast training step on a CPU has the loss and gradients of the plain step, and leaves the model unchanged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from petransfer.data import load_task
from petransfer.data.encoding import encode_examples
from petransfer.evaluation import exact_match, one_pass
from petransfer.methods import apply_method
from petransfer.models.loading import Loaded, load_checkpoint
from petransfer.models.registry import checkpoint_spec
from petransfer.recipe.run_spec import Bits, MethodSpec
from petransfer.training.batches import Tensors, collate
from petransfer.training.cpu import lora_pairs as pairs
from petransfer.training.cpu.cpu_step import CpuFastPath, _score_block
from petransfer.training.losses import token_loss
from petransfer.training.stacked.layers import shared_copy
from tests.conftest import FULL, LORA

ROWS = replace(LORA, embeddings="new")
METHODS = [LORA, ROWS, FULL]


def _model(folder: Path, method: MethodSpec) -> tuple[torch.nn.Module, Loaded, Tensors]:
    loaded = load_checkpoint(checkpoint_spec(str(folder)), method.bits, keep_wide=method.keep_wide)
    examples = load_task("scan").load("length").train[:12]
    encoded = encode_examples(examples, "", loaded.tokenizer, loaded.layout)
    if method.embeddings == "new":
        last = sorted({token for row in encoded for token in row.target_ids})[-4:]
        loaded = replace(loaded, new_tokens=tuple(last))
    model = apply_method(loaded, method, 0).eval()  # no dropout, whose random numbers depend on the shape of its input
    torch.manual_seed(3)
    for name, value in model.named_parameters():  # LoRA's A has no gradient while B is zero
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.1)
    return model, loaded, collate(encoded, loaded.layout)


def _gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    found = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("method", METHODS, ids=["lora", "rows", "full"])
@pytest.mark.parametrize("kind", ["tiny_t5", "tiny_gpt2"])
def test_loss_and_gradients_equal_those_of_the_plain_step(
    kind: str, method: MethodSpec, request: pytest.FixtureRequest
) -> None:
    model, _loaded, batch = _model(request.getfixturevalue(kind), method)
    lean = CpuFastPath(model)
    assert lean.usable
    expected = token_loss(model, batch)
    (expected / 7).backward()
    plain = _gradients(model)
    halves = [{name: value[rows] for name, value in batch.items()} for rows in (slice(0, 5), slice(5, 12))]
    total = 0.0
    with lean.step() as loss_function:
        for half in halves:
            loss = loss_function(model, half)
            (loss / 7).backward()
            total += float(loss.detach())
    found = _gradients(model)
    assert total == pytest.approx(float(expected.detach()), rel=1e-5)
    assert found.keys() == plain.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(
            found[name], gradient, rtol=2e-4, atol=2e-5, msg=lambda text, name=name: f"{name}: {text}"
        )
    assert not any("forward" in vars(module) for module in model.modules())
    assert not any(value.requires_grad for value in found.values())


NARROW = [
    replace(ROWS, bits=16),
    replace(ROWS, bits=8),
    replace(ROWS, bits=4),
    replace(ROWS, bits=4, keep_wide=("wo",)),
]


@pytest.mark.parametrize("method", NARROW, ids=["16", "8", "4", "4 but wo"])
def test_below_32_bits_gradients_equal_the_plain_ones_up_to_bf16_rounding(method: MethodSpec) -> None:
    model, _loaded, batch = _model(Path("nano/english"), method)  # random weights would amplify the rounding
    model.train()  # in training, LLM.int8 multiplies by dequantised weights; nano has no dropout
    lean = CpuFastPath(model)
    assert lean.usable
    assert lean.skips_padding
    assert len(lean._beside) == sum(hasattr(part, "lora_A") for part in model.modules())
    expected = token_loss(model, batch)
    expected.backward()
    plain = _gradients(model)
    with lean.step() as loss_function:
        found_loss = loss_function(model, batch)
        found_loss.backward()
    found = _gradients(model)
    assert float(found_loss.detach()) == pytest.approx(float(expected.detach()), rel=5e-3)
    assert found.keys() == plain.keys()
    for name, gradient in plain.items():
        assert found[name].dtype == gradient.dtype
        apart = float((found[name] - gradient).norm() / gradient.norm())
        assert apart < 0.15, f"{name}: {apart:.3f}"
    both = [torch.cat([gradients[name].flatten() for name in plain]) for gradients in (found, plain)]
    assert float((both[0] - both[1]).norm() / both[1].norm()) < 0.04
    assert not any("forward" in vars(module) for module in model.modules())


def test_dequantised_weights_above_the_size_limit_are_not_kept(tiny_t5: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "MOST_KEPT", 1000)
    assert not CpuFastPath(_model(tiny_t5, NARROW[2])[0])._beside
    assert CpuFastPath(_model(tiny_t5, NARROW[0])[0])._beside  # at 16 bits no weight is copied


@pytest.mark.parametrize("bits", [32, 8])
def test_models_of_one_base_share_derived_tensors_and_have_correct_gradients(bits: Bits, tiny_t5: Path) -> None:
    spec = checkpoint_spec(str(tiny_t5))
    loaded = load_checkpoint(spec, bits)
    examples = encode_examples(load_task("scan").load("length").train[:12], "", loaded.tokenizer, loaded.layout)
    batch = collate(examples, loaded.layout)
    pieces = sorted({piece for row in examples for piece in row.target_ids})
    models = []
    for new in (pieces[:3], pieces[-2:]):
        part = replace(loaded, model=shared_copy(loaded.model), new_tokens=tuple(new))
        models.append(apply_method(part, replace(ROWS, bits=bits), 0).eval())
        for name, value in models[-1].named_parameters():
            if value.requires_grad:
                torch.nn.init.normal_(value, std=0.1 + 0.4 * ("token" in name))
    leans = [CpuFastPath(model) for model in models]
    for model, lean in zip(models, leans, strict=True):
        token_loss(model, batch).backward()
        plain = _gradients(model)
        with lean.step() as loss_function:
            loss_function(model, batch).backward()
        for name, gradient in _gradients(model).items():
            apart = float((gradient - plain[name]).norm() / plain[name].norm())
            assert apart < {32: 1e-4, 8: 0.15}[bits], f"{name}: {apart:.5f}"
    assert leans[0]._rows
    assert leans[1]._rows
    assert leans[0]._rows.whole is leans[1]._rows.whole
    held = [[pair.folded for pair in lean._folded] + [pair.weight for pair in lean._beside] for lean in leans]
    assert held[0]
    assert all(one is other or one.data_ptr() == other.data_ptr() for one, other in zip(*held, strict=True))
    assert {pair.down for lean in leans for pair in (*lean._folded, *lean._beside)} == {
        value for model in models for name, value in model.named_parameters() if "lora_A" in name
    }


def test_a_failed_step_leaves_the_model_unchanged(tiny_t5: Path) -> None:
    model, _loaded, batch = _model(tiny_t5, ROWS)
    before = token_loss(model, batch)
    with pytest.raises(MemoryError), CpuFastPath(model).step():
        raise MemoryError
    torch.testing.assert_close(token_loss(model, batch), before)
    assert not any("forward" in vars(module) for module in model.modules())


def test_unsupported_models_do_not_use_the_fast_path(tiny_t5: Path) -> None:
    model, _loaded, _ = _model(tiny_t5, LORA)
    assert not CpuFastPath(model.to(torch.float64)).usable
    assert not CpuFastPath(_model(tiny_t5, NARROW[0])[0], scoring=True).usable
    other: Any = torch.nn.Linear(2, 2)
    assert not CpuFastPath(other).usable


def test_label_scores_equal_cross_entropy_and_the_largest_other_logit() -> None:
    """The logits are bitwise equal. The rival's token id is needed and computed only where the label does not win."""
    logits_nv = torch.randn(200, 50, generator=torch.Generator().manual_seed(0)) * 4
    wanted_n = torch.randint(0, 50, (200,), generator=torch.Generator().manual_seed(1))
    wanted_n[:120] = logits_nv[:120].argmax(1)
    logits_nv[5, (wanted_n[5] + 1) % 50] = logits_nv[5, wanted_n[5]]  # a tie
    others_nv = logits_nv.scatter(1, wanted_n[:, None], -torch.inf)
    expected, rival_id_n = others_nv.max(1)
    message, log_prob, rival, found_id, largest = _score_block(logits_nv.clone(), wanted_n[:, None])
    missed = rival >= message
    assert 75 < int(missed.sum()) < 85
    assert missed[5]
    assert torch.equal(message, logits_nv.gather(1, wanted_n[:, None])[:, 0])
    assert torch.equal(rival, expected)
    assert torch.equal(found_id[missed], rival_id_n[missed])
    assert torch.equal(largest, logits_nv.abs().amax(1))
    torch.testing.assert_close(log_prob, -torch.nn.functional.cross_entropy(logits_nv, wanted_n, reduction="none"))


def test_one_pass_scores_equal_those_without_the_fast_path(tiny_t5: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, loaded, _ = _model(tiny_t5, ROWS)
    examples = load_task("scan").load("length").test[:40]
    encoded = encode_examples(examples, "", loaded.tokenizer, loaded.layout)
    lean = exact_match.score(model, loaded, examples, encoded, 16)
    monkeypatch.setattr(
        one_pass, "CpuFastPath", lambda model, **_: CpuFastPath(model.to(torch.float64))
    )  # not usable in fp64
    model.double()
    plain = exact_match.score(model, loaded, examples, encoded, 16)
    for one, other in zip(lean, plain, strict=True):
        assert (one.tokens_correct, one.correct) == (other.tokens_correct, other.correct)
        assert one.margin == pytest.approx(other.margin, abs=1e-3)
        assert one.log_prob == pytest.approx(other.log_prob, rel=1e-4)
