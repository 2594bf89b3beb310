"""Train, predict, verify and merge at all bit widths, with a small encoder-decoder that has real pretrained weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from petransfer.models.loading import load_checkpoint
from petransfer.models.registry import checkpoint_spec
from tests.cli.calls import call

pytestmark = [pytest.mark.real, pytest.mark.usefixtures("elsewhere")]

STEPS = "10"
LEARNT = -0.42  # log-probability per token on dev that training must exceed; before training it is -0.50


def result(study: Path) -> dict[str, Any]:
    (found,) = study.glob("runs/*/result.json")
    content: dict[str, Any] = json.loads(found.read_text())
    return content


def trained(monkeypatch: pytest.MonkeyPatch, base: Path, pairs: Path, *options: str) -> tuple[Path, dict[str, Any]]:
    """Train, and return the run's folder and its result."""
    out = pairs.with_name("study")
    assert (
        call(monkeypatch, "train", str(base), str(pairs), "--cpu", "--steps", STEPS, "--out", str(out), *options) == 0
    )
    (run,) = (out / "runs").iterdir()
    return run, result(out)


@pytest.mark.parametrize("bits", [32, pytest.param(16, marks=pytest.mark.slow), 8, 4])
def test_a_lora_adapter_is_trained_reloaded_verified_and_merged(
    bits: int, annalog: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        call(monkeypatch, "fit", str(annalog), "--bits", str(bits), "--cpu", "--lengths", "30,30", "--batch", "4") == 0
    )
    run, found = trained(monkeypatch, annalog, pairs, "--bits", str(bits), "--lr", "5e-3")
    assert found["dev"]["log_prob_per_token"] > LEARNT
    assert found["dev"]["disagreements"] == 0
    held = {"32": "float32", "16": "bfloat16", "8": "int8", "4": "nf4"}[str(bits)]
    assert max(found["weights"]["bytes"], key=found["weights"]["bytes"].get) == held
    capsys.readouterr()
    assert call(monkeypatch, "predict", str(run), "--max-new-tokens", "40", "c1ccc(C)cc1", "c1ccc(CC)cc1") == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert call(monkeypatch, "adapter", "verify", str(run)) == 0
    merged = pairs.with_name("merged")
    assert call(monkeypatch, "adapter", "merge", str(run), str(merged)) == 0
    assert load_checkpoint(checkpoint_spec(str(merged)), 32).model.config.model_type == "marian"


def test_a_fully_fine_tuned_model_gives_the_same_predictions_after_reloading(
    annalog: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, found = trained(monkeypatch, annalog, pairs, "--method", "full", "--bits", "32", "--lr", "1e-3")
    assert found["dev"]["log_prob_per_token"] > LEARNT
    rows = pyarrow.parquet.read_table(run / "examples.parquet").to_pylist()
    generated = {row["input"]: row["prediction"] for row in rows if row["prediction"] is not None}
    assert generated
    capsys.readouterr()
    assert call(monkeypatch, "predict", str(run), "--cpu", *generated) == 0
    assert capsys.readouterr().out.splitlines() == list(generated.values())
