"""LoRA at 32, 16, 8 and 4 bits, chat template and generation with SmolLM2-135M-Instruct, a decoder-only model.

The tests take some minutes on a CPU: `pytest -m slow tests/real/test_smollm2.py`.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.quantized_real import dates
from tests.cli.calls import call

pytestmark = [pytest.mark.real, pytest.mark.slow]


@pytest.mark.parametrize("bits", [32, 16, 8, 4])
def test_a_lora_adapter_is_trained_reloaded_and_verified(
    bits: int, smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PETRANSFER_CACHE", str(tmp_path / "cache"))
    rows = [
        {"messages": [{"role": "user", "content": date}, {"role": "assistant", "content": iso}]}
        for date, iso in dates(64)
    ]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ("--cpu", "--bits", str(bits), "--steps", "12", "--batch-size", "4", "--out", "study")
    assert call(monkeypatch, "train", str(smollm2), "chats.jsonl", *arguments) == 0
    (run,) = Path("study/runs").iterdir()
    found = json.loads((run / "result.json").read_text())
    assert found["dev"]["disagreements"] == 0
    held = {32: "float32", 16: "bfloat16", 8: "int8", 4: "nf4"}[bits]
    assert found["weights"]["bytes"][held] > 0
    capsys.readouterr()
    assert call(monkeypatch, "predict", str(run), "3 March 2021") == 0
    assert len(capsys.readouterr().out.splitlines()) == 1
    assert call(monkeypatch, "adapter", "verify", str(run)) == 0
