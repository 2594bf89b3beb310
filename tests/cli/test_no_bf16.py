"""On a card without bf16, training uses 32 bits by default and refuses fewer bits with one error line."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import petransfer as pt
from petransfer.errors import UserError
from petransfer.memory.step_memory import StepSpec
from petransfer.models.quantization import check_bf16
from petransfer.recipe.run_spec import RunSpec
from petransfer.study.settings import Settings
from petransfer.study.single_run import open_base
from petransfer.training.distributed import Process
from tests.cli.calls import call, refused
from tests.conftest import FULL, LORA

REFUSED = "bits: {} computes in bf16, which Tesla T4 does not support; use bits: 32"


@pytest.fixture(params=["7.5, Tesla T4", "8.6, NVIDIA A10G"], ids=["t4", "a10g"])
def card(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The card that a fake `nvidia-smi` reports: its compute capability and name."""
    command = tmp_path / "bin" / "nvidia-smi"
    command.parent.mkdir()
    command.write_text(f"#!/bin/sh\necho '15360, 250, {request.param}'\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return str(request.param)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    (tmp_path / "rows.tsv").write_text("to walk\tgehen\nto run\trennen\nto see\tsehen\n" * 4)
    return tmp_path / "rows.tsv"


def test_train_uses_32_bits_by_default_on_a_card_without_bf16(
    card: str, rows: Path, tiny_t5: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("train", str(tiny_t5), str(rows), "--plan", "--json", "--steps", "2")
    assert call(monkeypatch, *given) == 0
    (method,) = json.loads(capsys.readouterr().out)["recipe"]["methods"]
    assert method["bits"] == (32 if "T4" in card else 16)


@pytest.mark.parametrize("card", ["7.5, Tesla T4"], indirect=True)
@pytest.mark.parametrize("bits", [16, 8, 4])
def test_train_refuses_fewer_than_32_bits_on_a_card_without_bf16(
    bits: Any,
    card: str,
    rows: Path,
    tiny_t5: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    words = ("train", str(tiny_t5), str(rows), "--bits", str(bits), "--out", str(out), "--force")
    assert refused(monkeypatch, capsys, *words) == f"error: {REFUSED.format(bits)}"
    with pytest.raises(UserError) as error:
        pt.train(tiny_t5, rows, bits=bits, out=out)
    assert str(error.value) == REFUSED.format(bits)
    assert not out.exists()


@pytest.mark.parametrize("card", ["7.5, Tesla T4"], indirect=True)
def test_run_refuses_16_bits_before_any_file_is_written(
    card: str, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = {
        "name": "narrow",
        "task": {"name": "lines", "options": {"train": str(rows)}},
        "family": "nano",
        "arms": ["english"],
        "methods": [{"name": "lora", "rank": 4, "bits": 16}],
        "seeds": [0],
        "train": {"steps": 4, "batch_size": 4, "learning_rate": 1e-3},
    }
    (tmp_path / "narrow.yaml").write_text(json.dumps(recipe))
    words = ("run", "-r", str(tmp_path / "narrow.yaml"), "--out", str(tmp_path / "out"))
    assert refused(monkeypatch, capsys, *words) == f"error: {REFUSED.format(16)}"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("card", ["7.5, Tesla T4"], indirect=True)
def test_pretrain_refuses_16_bits_before_any_file_is_written(
    card: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("pretrain", "--set", "bits=16", "--out", str(tmp_path / "out"))
    assert refused(monkeypatch, capsys, *words) == f"error: {REFUSED.format(16)}"
    assert not (tmp_path / "out").exists()


@pytest.fixture
def emulating(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """A CUDA device on which torch only emulates bf16."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    return torch.device("cuda")


def test_every_training_checks_bf16_on_its_own_device(
    emulating: torch.device, tiny_spec: Callable[..., RunSpec], tiny_t5: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a cluster, the machine that starts the runs can have another card than the machine that trains them."""
    from dataclasses import replace

    from petransfer.memory.measured import load_for
    from petransfer.models.registry import checkpoint_spec
    from petransfer.pretraining.pretrain import PretrainSpec, pretrain

    narrow = replace(LORA, bits=16)
    monkeypatch.setattr("petransfer.study.single_run.this_process", lambda cpu: Process(emulating))
    for method in (narrow, replace(FULL, bits=16)):
        with pytest.raises(UserError, match=REFUSED.format(16)):
            open_base(tiny_spec(method), Settings())
    with pytest.raises(UserError, match=REFUSED.format(16)):
        load_for(checkpoint_spec(str(tiny_t5)), StepSpec(narrow, 1, 4, 4))
    monkeypatch.setattr("petransfer.pretraining.pretrain.this_process", lambda cpu: Process(emulating))
    spec = PretrainSpec("english", "nano", "", "", 10, bits=16)
    with pytest.raises(UserError, match=REFUSED.format(16)):
        pretrain(spec, *[None] * 5)  # type: ignore[arg-type]
    check_bf16(32, emulating)
    check_bf16(16, torch.device("cpu"))
