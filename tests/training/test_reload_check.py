"""A saved adapter or model is loaded again and compared with the trained model before its run is done."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from petransfer.errors import RunError
from petransfer.recipe.run_spec import MethodSpec, RunSpec
from petransfer.study import single_run
from petransfer.study.folders import RunFolder
from petransfer.study.settings import Settings
from petransfer.study.single_run import run_one
from petransfer.training import reload_check
from petransfer.training.execution import Execution
from tests.conftest import FULL, LORA

SETTINGS = Settings(Execution(threads=1), cpu=True)


@pytest.fixture
def make(tiny_spec: Callable[..., RunSpec], monkeypatch: pytest.MonkeyPatch) -> Callable[..., RunSpec]:
    """A function that makes specs like `tiny_spec`, but with two large steps and few examples to score."""
    monkeypatch.setattr("petransfer.study.run_scoring.CURVE_POINTS", 1)

    def short(method: MethodSpec = LORA) -> RunSpec:
        spec = tiny_spec(method, steps=2)
        few = dict(spec.task.options) | {"dev": 5, "test": 2}
        task = replace(spec.task, options=tuple(sorted(few.items())))
        return replace(spec, task=task, train=replace(spec.train, learning_rate=4e-3))

    return short


def _break_saving(monkeypatch: pytest.MonkeyPatch, word: str) -> None:
    """Make runs save other values for the tensors whose name contains `word`."""
    real = single_run.save_method

    def save(name: str, model: torch.nn.Module, folder: Path, base: str) -> None:
        real(name, model, folder, base)
        (file,) = folder.glob("*.safetensors")
        tensors = load_file(file)
        tensors |= {key: value + 3.0 for key, value in tensors.items() if word in key}
        save_file(tensors, file, metadata={"format": "pt"})

    monkeypatch.setattr(single_run, "save_method", save)


@pytest.mark.parametrize(
    ("method", "word"), [(LORA, "encoder.block.0.layer.0.SelfAttention.q.lora_B"), (FULL, "encoder.final_layer_norm")]
)
def test_the_error_names_a_tensor_that_was_saved_with_other_values(
    method: MethodSpec, word: str, make: Callable[..., RunSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _break_saving(monkeypatch, word)
    run = RunFolder(tmp_path)
    with pytest.raises(RunError, match=rf"logits differ by .*; tensors that differ: .*{word}") as raised:
        run_one(make(method), run, SETTINGS)
    assert str(raised.value).count("lora_B") <= 1
    assert not run.done
    assert not (tmp_path / "result.json").exists()


@pytest.mark.parametrize("bits", [32, 16, 8, 4])
@pytest.mark.parametrize("name", ["lora", "pissa", "full"])
def test_a_correctly_saved_run_is_compared_and_done(
    name: str, bits: Any, make: Callable[..., RunSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "full" and bits < 16:
        pytest.skip("full fine-tuning is not quantised")
    if bits < 16:
        pytest.importorskip("bitsandbytes")
    differences: list[float] = []
    real = reload_check._compare

    def compare(trained: Any, fresh: Any, expected: torch.Tensor, found: torch.Tensor, *rest: Any) -> None:
        differences.append(float((expected - found).abs().max() / expected.abs().max()))
        real(trained, fresh, expected, found, *rest)

    monkeypatch.setattr(reload_check, "_compare", compare)
    method = MethodSpec("full", bits=bits) if name == "full" else MethodSpec(name, bits=bits, rank=4, alpha=8.0)
    run = RunFolder(tmp_path)
    run_one(make(method), run, Settings(Execution(threads=1), cpu=True, force=True))
    assert run.done
    assert len(differences) == 1
    assert differences[0] <= reload_check.TOLERANCE[bits] / (2 if name == "pissa" else 1e3)


def test_a_run_without_memory_for_a_second_model_is_recorded_as_not_checked(
    make: Callable[..., RunSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_memory(*_: Any) -> None:
        raise MemoryError("out of memory")

    monkeypatch.setattr(reload_check, "_load", no_memory)
    run_one(make(), RunFolder(tmp_path), SETTINGS)
    assert json.loads((tmp_path / "result.json").read_text())["reload_checked"] is False
    assert "not enough memory" in caplog.text
