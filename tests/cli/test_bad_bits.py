"""If 8 or 4 bits are not available, `run` and `fit --measure` end with exit code 2 and one error line."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from petransfer.cli import main
from petransfer.errors import UserError
from petransfer.models.bitsandbytes_import import import_problem
from tests.cli import calls

Refused = Callable[[Path, int], str]


@pytest.fixture(params=["run", "fit"])
def refused(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    tiny_rows: Path,
) -> Refused:
    """A function that requests LoRA on a checkpoint at a number of bits, and returns the one error line."""

    def call(folder: Path, bits: int) -> str:
        recipe = {
            "name": "narrow",
            "task": {"name": "lines", "options": {"train": str(tiny_rows)}},
            "family": {"name": "mine", "arms": {"english": str(folder)}},
            "arms": ["english"],
            "methods": [{"name": "lora", "rank": 4, "bits": bits}],
            "seeds": [0],
            "train": {"steps": 4, "batch_size": 4, "learning_rate": 1e-3},
        }
        (tmp_path / "narrow.yaml").write_text(json.dumps(recipe))
        run = ["run", "-r", str(tmp_path / "narrow.yaml"), "--out", str(tmp_path / "out"), "--cpu"]
        fit = ["fit", str(folder), "--bits", str(bits), "--cpu", "--measure", "--batch", "1"]
        found = calls.refused(monkeypatch, capsys, *(run if request.param == "run" else fit))
        assert not (tmp_path / "out").exists()
        return found

    return call


def test_8_and_4_bits_without_bitsandbytes_are_refused(
    refused: Refused, tiny_t5: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not import_problem()  # before the package is hidden, because the result is cached
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    for bits in (8, 4):
        error = refused(tiny_t5, bits)
        assert f"bits: {bits} needs bitsandbytes, which does not work here" in error
        assert "use bits: 16" in error


def test_a_checkpoint_quantised_by_gptq_is_refused(refused: Refused, tiny_t5: Path, tmp_path: Path) -> None:
    folder = tmp_path / "gptq"
    _quantised_by_gptq(tiny_t5, folder)
    assert "is quantised already (gptq)" in refused(folder, 4)


def test_plan_reports_a_checkpoint_quantised_by_gptq(
    tiny_t5: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "gptq"
    _quantised_by_gptq(tiny_t5, folder)
    family = f"family={{name: mine, arms: {{english: {folder}}}}}"
    given = ["--set", family, "--arms", "english", "--set", "effects=[]"]
    monkeypatch.setattr(sys, "argv", ["petransfer", "plan", "-r", "lora-scan", *given, "--card", "6GB", "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    written = capsys.readouterr()
    assert not ended.value.code, written.err
    (place,) = json.loads(written.out)["memory"]
    assert "is quantised already (gptq)" in place["line"]
    assert place["fits"] is None


def _quantised_by_gptq(source: Path, folder: Path) -> None:
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))


def test_4_bits_are_refused_for_a_mixture_of_experts(refused: Refused, tiny_t5: Path, tmp_path: Path) -> None:
    """All experts of a layer are stored in one tensor, which bitsandbytes skips without a warning."""
    from transformers import AutoTokenizer, MixtralConfig, MixtralForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(tiny_t5)
    sizes: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 512, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_local_experts": 4}
    config = MixtralConfig(vocab_size=len(tokenizer), pad_token_id=0, eos_token_id=1, bos_token_id=1, **sizes, **heads)
    MixtralForCausalLM(config).save_pretrained(tmp_path / "mixture")
    tokenizer.save_pretrained(tmp_path / "mixture")
    error = refused(tmp_path / "mixture", 4)
    assert "bits: 4 is not available" in error
    assert "(mixtral)" in error
    assert "experts" in error


def test_a_card_without_bf16_gets_the_advice_to_use_32_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    from petransfer.cli import doctor
    from petransfer.models.quantization import check_quantizable

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    with pytest.raises(UserError, match=r"bits: 4 computes in bf16, which Tesla T4 does not support; use bits: 32"):
        check_quantizable(4, torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert "use bits: 32" in doctor._bf16()


@pytest.mark.parametrize("size", ["huge", "12TB", "0GB", ""])
@pytest.mark.parametrize("verb", [["fit", "nano/english"], ["plan", "-r", "smoke"]])
def test_an_invalid_card_size_is_refused(
    verb: list[str], size: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["petransfer", *verb, "--card", size])
    with pytest.raises(SystemExit) as ended:
        main()
    error = capsys.readouterr().err.strip()
    assert ended.value.code == 2, error
    assert error.startswith(f"error: --card {size}" if size else "error: --card '': write a size")
    assert len(error.splitlines()) == 1
