"""Folders with files of other programs: some have names that petransfer also uses, some are adapters in other forms."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from petransfer.errors import UserError
from petransfer.models.loading import load_checkpoint
from petransfer.models.registry import checkpoint_spec
from petransfer.recipe.run_spec import CheckpointSpec, MethodSpec, RunSpec, TaskSpec, TrainSpec
from petransfer.sharing.adapter import Adapter
from petransfer.sharing.base import AdapterBase, differing_weights
from petransfer.sharing.run_folders import run_folder
from petransfer.sharing.sources import opened_source


def _logs(folder: Path) -> None:
    """Write TensorBoard logs as the Trainer of transformers does."""
    (folder / "runs" / "Nov28_host").mkdir(parents=True)
    (folder / "runs" / "Nov28_host" / "events.out.tfevents.1").write_bytes(b"x")


OWN: dict[str, Callable[[Path], object]] = {
    "runs": _logs,
    "model": lambda folder: (folder / "model").mkdir(),
    "adapter": lambda folder: (folder / "adapter").mkdir(),
    "spec.json": lambda folder: (folder / "spec.json").write_text('{"a": 1}'),
    "recipe.yaml": lambda folder: (folder / "recipe.yaml").write_text("a: 1\n"),
}


@pytest.mark.parametrize("add", OWN.values(), ids=OWN)
def test_a_base_is_recognised_beside_files_of_other_programs(
    add: Callable[[Path], object], tiny_gpt2: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_gpt2, tmp_path / "base")
    add(folder)
    with opened_source(str(folder)) as source:
        assert source.kind == "checkpoint"
    assert Adapter.load(folder, device="cpu").predict(["a"], 3) == Adapter.load(tiny_gpt2, device="cpu").predict(
        ["a"], 3
    )


@pytest.mark.parametrize("add", OWN.values(), ids=OWN)
def test_an_adapter_is_recognised_beside_files_of_other_programs(
    add: Callable[[Path], object], tiny_gpt2: Path, tmp_path: Path
) -> None:
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["c_attn"])
    get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_gpt2), config).save_pretrained(tmp_path / "adapter")
    add(tmp_path / "adapter")
    with opened_source(str(tmp_path / "adapter")) as source:
        assert source.kind == "adapter"


def test_the_error_for_a_study_without_finished_runs_says_so(tmp_path: Path) -> None:
    (tmp_path / "runs" / "0123456789ab").mkdir(parents=True)
    with pytest.raises(UserError, match="holds no finished run"):
        run_folder(tmp_path)


@pytest.mark.parametrize("run", [None, "ID", "ID[:4]"])
def test_copies_of_a_run_folder_are_ignored_with_a_warning(
    run: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train = TrainSpec(steps=5, batch_size=8, learning_rate=1e-3)
    spec = RunSpec(CheckpointSpec("nano/english"), TaskSpec("scan", "length"), MethodSpec("lora", 32), train, 0)
    for name in (spec.run_id, f"{spec.run_id} (1)", f"{spec.run_id} (conflicted copy)"):
        (tmp_path / "runs" / name / "adapter").mkdir(parents=True)
        (tmp_path / "runs" / name / "DONE").touch()
        (tmp_path / "runs" / name / "spec.json").write_text(json.dumps(spec.as_dict()))
    asked = run and {"ID": spec.run_id, "ID[:4]": spec.run_id[:4]}[run]
    assert run_folder(tmp_path, asked).name == spec.run_id
    assert caplog.text.count("ignoring") == 1
    assert f"{spec.run_id} (1)" in caplog.text
    assert "and 1 more" in caplog.text


def test_a_whole_run_id_is_preferred_to_names_that_begin_with_it(tmp_path: Path) -> None:
    for name in ("0123456789ab", "0123456789ab-old"):  # without a readable spec.json
        (tmp_path / "runs" / name / "adapter").mkdir(parents=True)
        (tmp_path / "runs" / name / "DONE").touch()
    assert run_folder(tmp_path, "0123456789ab").name == "0123456789ab"


CARDS = [{"corpus": "mine", "steps": 5}, [1, 2], "text", None, {"new_pieces": "x"}, {"new_pieces": [10**9]},
         {"new_pieces": [True]}, {"new_pieces": [-1]}, {"new_pieces": [1.5]}]  # fmt: skip


@pytest.mark.parametrize(
    "content", [*(json.dumps(card) for card in CARDS), "{", "", "[" * 100_000], ids=lambda t: t[:30]
)
def test_a_pretraining_json_of_another_program_is_ignored(content: str, tiny_t5: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_t5, tmp_path / "base")
    (folder / "pretraining.json").write_text(content)
    assert load_checkpoint(checkpoint_spec(str(folder)), 32).new_tokens == ()


def test_a_pretraining_json_that_is_not_utf8_is_ignored(tiny_t5: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_t5, tmp_path / "base")
    (folder / "pretraining.json").write_bytes(b"\xff\xfe")
    assert load_checkpoint(checkpoint_spec(str(folder)), 32).new_tokens == ()


def test_weight_files_with_other_names_than_in_training_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("petransfer.sharing.base.weight_hashes", lambda *_: {"part-1.safetensors": "b" * 64})
    trained_on = {"weights_sha256": {"model.safetensors": "a" * 64}}
    base = AdapterBase(CheckpointSpec("nano/english"), 32, 0, (), None, trained_on)
    message = differing_weights(base, SimpleNamespace(commit=None))  # type: ignore[arg-type]
    assert message is not None
    assert "None" not in message
    assert "in training: model.safetensors; now: part-1.safetensors" in message


FORMS = {
    "adapters.safetensors": "mlx_lm.fuse",
    "0000100_adapters.safetensors": "mlx_lm.fuse",
    "adapter_0.pt": "torchtune",
    "pytorch_adapter.bin": "merge_adapter",
    "pytorch_lora_weights.safetensors": "image model",
    "pytorch_model_fsdp_0": "FULL_STATE_DICT",
    "zero_to_fp32.py": "stage3_gather_16bit_weights_on_model_save",
    "lora.gguf": "llama.cpp",
    "adapter_model.safetensors": "no adapter_config.json",
}


@pytest.mark.parametrize("config", [False, True])
@pytest.mark.parametrize("name", FORMS)
def test_an_adapter_in_the_form_of_another_program_is_refused_with_advice(
    name: str, config: bool, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(b"x")
    if config and name != "adapter_model.safetensors":
        (tmp_path / "adapter_config.json").write_text('{"r": 8}')
    for place in (tmp_path, tmp_path / name):
        with pytest.raises(UserError) as error, opened_source(str(place)):
            pass
        assert FORMS[name] in str(error.value)
        assert str(place) in str(error.value)


def test_the_error_for_an_adapter_s_weight_file_names_the_adapter_s_folder(tmp_path: Path) -> None:
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / name).write_bytes(b"{}")
    with (
        pytest.raises(UserError, match=f"name the folder {tmp_path}"),
        opened_source(str(tmp_path / "adapter_model.safetensors")),
    ):
        pass
