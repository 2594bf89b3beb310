"""The effect of quantisation on the loss is measured before training and recorded. A large effect stops the run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import BitsAndBytesConfig

from petransfer.data import load_task
from petransfer.data.encoding import Encoded, encode_examples
from petransfer.errors import RunError
from petransfer.models import loading
from petransfer.models.loading import load_checkpoint, load_on_disk
from petransfer.models.registry import checkpoint_spec
from petransfer.recipe.run_spec import Bits, RunSpec
from petransfer.study.folders import RunFolder
from petransfer.study.settings import Settings
from petransfer.study.single_run import run_one
from petransfer.training import quantization_cost as calibrate
from petransfer.training.execution import Execution
from tests.conftest import LORA

ENGLISH = checkpoint_spec("nano/english")


def _examples() -> list[Encoded]:
    loaded = load_checkpoint(ENGLISH, 32)
    return encode_examples(load_task("scan").load("opposite_right").dev, "", loaded.tokenizer, loaded.layout)


@pytest.mark.parametrize("bits", [8, 4])
def test_quantisation_hardly_changes_the_loss_of_an_embedded_checkpoint(bits: Bits) -> None:
    cost = calibrate.quantisation_cost(ENGLISH, 0, load_checkpoint(ENGLISH, bits), _examples())
    assert 0 < abs(cost.change) < 0.03
    calibrate.check_quantization_cost(cost, "nano/english")


def test_activations_rounded_to_whole_numbers_give_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With the default storage of 4-bit weights, T5 rounds activations to whole numbers without a message."""
    usual = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    monkeypatch.setattr(loading, "quantization_config", lambda bits: usual)
    cost = calibrate.quantisation_cost(ENGLISH, 0, load_checkpoint(ENGLISH, 4), _examples())
    calibrate.check_quantization_cost(cost, "nano/english")
    (warning,) = caplog.messages
    assert "nano/english" in warning
    assert f"{100 * cost.change:+.1f} %" in warning
    assert "keep_wide" in warning


@pytest.mark.parametrize(("before", "after", "outcome"), [
    (2.0, 2.05, "silent"), (2.0, 2.3, "warning"), (2.0, 1.7, "warning"), (2.0, 3.1, "error"), (2.0, 0.9, "error"),
    (0.01, 0.02, "warning"), (2.0, float("inf"), "error"), (2.0, float("nan"), "error"), (0.0, 0.01, "warning"),
    (0.0, 0.0, "silent"), (0.0, 0.5, "error"), (float("nan"), 2.0, "16 bits"), (float("inf"), 2.0, "16 bits"),
])  # fmt: skip
def test_a_change_of_the_loss_is_silent_a_warning_or_an_error(
    before: float, after: float, outcome: str, caplog: pytest.LogCaptureFixture
) -> None:
    cost = calibrate.QuantisationCost(before, after)
    if outcome == "16 bits":
        with pytest.raises(RunError, match=r"base computes no finite loss at 16 bits .*--force"):
            calibrate.check_quantization_cost(cost, "base")
    elif outcome == "error":
        with pytest.raises(RunError, match="bits") as error:
            calibrate.check_quantization_cost(cost, "base")
        assert f"{after:.3f}" in str(error.value)
        assert "keep_wide" in str(error.value)
        assert "(+inf" not in str(error.value)
    else:
        calibrate.check_quantization_cost(cost, "base")
        assert len(caplog.messages) == (outcome == "warning")
        assert "(+inf" not in caplog.text


def test_without_free_memory_the_16_bit_weights_are_read_from_disk(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    examples = _examples()
    held = calibrate.quantisation_cost(ENGLISH, 0, load_checkpoint(ENGLISH, 8), examples)
    monkeypatch.setattr(calibrate, "_room", lambda device: 0)
    asked = []
    monkeypatch.setattr(calibrate, "load_on_disk", lambda *given: asked.append(given) or load_on_disk(*given))
    read = calibrate.quantisation_cost(ENGLISH, 0, load_checkpoint(ENGLISH, 8), examples)
    assert asked
    assert read.loss_at_16_bits == pytest.approx(held.loss_at_16_bits, abs=1e-3)
    on_disk = load_on_disk(ENGLISH, str(tmp_path)).model
    assert all(value.device.type == "meta" for name, value in on_disk.named_parameters() if "layer" in name)


def test_without_free_memory_a_control_arm_is_read_from_disk_too(
    tiny_t5: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = _examples()
    for reinit in ("all", "embeddings"):
        spec = replace(checkpoint_spec(str(tiny_t5)), reinit=reinit)  # type: ignore[arg-type]
        loaded = load_checkpoint(spec, 4, seed=2)
        monkeypatch.setattr(calibrate, "_room", lambda device: 2**40)
        held = calibrate.quantisation_cost(spec, 2, loaded, examples)
        monkeypatch.setattr(calibrate, "_room", lambda device: 0)
        with monkeypatch.context() as patched:
            patched.setattr(calibrate, "load_checkpoint", lambda *given, **named: pytest.fail("loaded whole"))
            read = calibrate.quantisation_cost(spec, 2, loaded, examples)
        assert read.loss_at_16_bits == pytest.approx(held.loss_at_16_bits, abs=1e-3)


def test_out_of_memory_leads_to_reading_from_disk_and_then_to_a_one_line_error(
    monkeypatch: pytest.MonkeyPatch, tiny_t5: Path
) -> None:
    """If loading runs out of memory, the weights are read from disk, even if enough memory seemed to be free."""
    spec, examples = checkpoint_spec(str(tiny_t5)), _examples()
    loaded = load_checkpoint(spec, 4)

    def short(*given: object, **named: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(calibrate, "load_checkpoint", short)
    assert calibrate.quantisation_cost(spec, 0, loaded, examples).loss > 0
    monkeypatch.setattr(calibrate, "load_on_disk", short)
    with pytest.raises(
        RunError, match=r"out of memory while the quantised .* was compared with the 16-bit model"
    ) as error:
        calibrate.quantisation_cost(spec, 0, loaded, examples)
    assert "\n" not in str(error.value)


def test_a_run_records_the_quantisation_cost_and_stops_if_it_is_too_high(
    tiny_spec: Callable[..., RunSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(Execution(threads=1), cpu=True)
    spec = tiny_spec(replace(LORA, bits=4), steps=4)
    run_one(spec, RunFolder(tmp_path / "good"), settings)
    result = json.loads((tmp_path / "good" / "result.json").read_text())
    assert set(result["weights"]) == {"bytes", "share", "parameters", "wide", "quantisation"}
    assert set(result["weights"]["quantisation"]) == {"loss_at_16_bits", "loss"}
    assert sum(result["weights"]["share"].values()) == pytest.approx(100, abs=0.05)
    assert {"norm", "tied head"} <= set(result["weights"]["wide"])
    monkeypatch.setattr(calibrate, "REFUSE_ABOVE", 0.0)
    monkeypatch.setattr(calibrate, "REFUSE_NATS", 0.0)
    with pytest.raises(RunError, match="more than 0%"):
        run_one(spec, RunFolder(tmp_path / "bad"), settings)
    assert not RunFolder(tmp_path / "bad").done
    run_one(spec, RunFolder(tmp_path / "forced"), replace(settings, force=True))
    assert RunFolder(tmp_path / "forced").done
