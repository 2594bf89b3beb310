"""Invariants 3 and 5 for two processes that each have the whole model, or a shard of every tensor (FSDP2)."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from petransfer.errors import Interrupted
from petransfer.models.registry import checkpoint_spec
from petransfer.recipe.run_spec import RunSpec, TaskSpec, TrainSpec
from petransfer.study import run_scoring
from petransfer.study import single_run as study_run
from petransfer.study.folders import RunFolder
from petransfer.study.settings import Settings
from petransfer.study.single_run import run_one
from petransfer.training.distributed.fsdp import shard_model
from petransfer.training.execution import Execution
from petransfer.training.metrics_file import read_metrics
from tests.conftest import FULL, LORA
from tests.training.test_two_processes import in_two

# Of 7 examples, one process has 4 and the other 3. With at most 3 examples in a pass, one process needs two passes. The
# other needs one pass, and then repeats one example with weight 0.
EXECUTION = Execution(threads=1, log_every=1, micro_batch=3)
STEPS, CUT = 3, 2
ROWS = [f"{one} {two}\t{two}\n" for one in ("walk", "run", "look") for two in ("left", "right twice", "jump", "turn")]


def _spec(checkpoint: Path, **changes: Any) -> RunSpec:
    """Return a spec for a checkpoint without dropout, because every process would draw its own dropout."""
    rows = checkpoint.parent / "rows.tsv"
    return RunSpec(
        checkpoint=checkpoint_spec(str(checkpoint)),
        task=TaskSpec("lines", "held-out", options=(("dev", 2), ("test", 3), ("train", str(rows)))),
        train=TrainSpec(steps=STEPS, batch_size=7, learning_rate=2e-3),
        seed=0,
        **changes,
    )


def _run(spec: RunSpec, folder: Path, stops: bool = False, execution: Execution = EXECUTION) -> None:
    at = [0]

    def progress(step: int, loss: float, seconds: float) -> None:
        at[0] = step

    with contextlib.suppress(Interrupted):
        run_one(spec, RunFolder(folder), Settings(execution, cpu=True), progress, lambda: stops and at[0] == CUT - 1)


def _with_little_memory(model: torch.nn.Module, *given: Any) -> torch.nn.Module:
    """Replace `shard_model`: the decoder has memory for two examples, and in the backward pass for one."""
    hollow = shard_model(model, *given)

    def refuse(value: torch.Tensor, most: int) -> None:
        if len(value) > most:
            raise MemoryError("out of memory")

    def hook(layer: torch.nn.Module, inputs: Any, outputs: Any) -> None:
        if torch.is_grad_enabled():
            refuse(outputs[0], 2)
            outputs[0].register_hook(lambda gradient: refuse(gradient, 1))

    model.get_submodule("decoder.block.0.layer.1").register_forward_hook(hook)
    return hollow


def _no_reload_check(*_: Any) -> bool:
    """Replace `check_reloaded`, which takes as long as training. Three runs in two processes keep this check."""
    return True


def _in_each(rank: int, folder: Path, full: RunSpec, lora: RunSpec, narrow: RunSpec) -> None:
    """Execute all runs of a process in one launch, because launching is slow: first with whole models, then sharded."""
    _run(lora, folder / "copies", execution=replace(EXECUTION, checkpointing=True))
    AcceleratorState._reset_state()
    os.environ.update(ACCELERATE_USE_FSDP="true", FSDP_VERSION="2", FSDP_CPU_RAM_EFFICIENT_LOADING="true")
    _run(full, folder / "full")
    _run(lora, folder / "lora", execution=replace(EXECUTION, checkpointing=True))
    study_run.check_reloaded = _no_reload_check
    _run(narrow, folder / "narrow")
    _run(full, folder / "resumed", stops=rank == 1)
    assert not (folder / "resumed" / "DONE").exists()
    if rank == 0:
        shutil.copytree(folder / "resumed", folder / "split-to-whole")
    _run(full, folder / "resumed")
    _run(full, folder / "whole-to-split")
    study_run.shard_model = _with_little_memory if rank == 1 else shard_model
    _run(full, folder / "short")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_t5: Path, tiny_gpt2: Path) -> Path:
    """A folder with the runs of two processes. The runs of a single process are in `alone/`."""
    folder = tmp_path_factory.mktemp("sharded")
    (folder / "rows.tsv").write_text("".join(ROWS))
    for made in (tiny_t5, tiny_gpt2):
        whole = shutil.copytree(made, folder / made.name)
        config = json.loads((whole / "config.json").read_text())
        silent = {name: 0.0 if "drop" in name and isinstance(value, float) else value for name, value in config.items()}
        (whole / "config.json").write_text(json.dumps(silent))
    full = _spec(folder / tiny_t5.name, method=FULL)
    lora = _spec(folder / tiny_gpt2.name, method=LORA)
    narrow = _spec(folder / tiny_t5.name, method=replace(FULL, bits=16))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_scoring, "CURVE_POINTS", 2)
        with patch.context() as alone:
            alone.setattr(study_run, "check_reloaded", _no_reload_check)
            for name, spec in (("full", full), ("lora", lora), ("narrow", narrow)):
                _run(spec, folder / "alone" / name)
            _run(full, folder / "whole-to-split", stops=True)
            assert not (folder / "whole-to-split" / "DONE").exists()
        in_two(folder, functools.partial(_in_each, full=full, lora=lora, narrow=narrow))
        patch.setattr(study_run, "check_reloaded", _no_reload_check)
        _run(full, folder / "split-to-whole")
    return folder


def _tensors(run: Path) -> dict[str, torch.Tensor]:
    (file,) = run.glob("*/*.safetensors")
    return load_file(file)


def _same(left: Path, right: Path, rel: float = 1e-4, weights: float = 1e-4) -> None:
    lines = [read_metrics(run / "metrics.jsonl") for run in (left, right)]
    assert len(lines[0]) == len(lines[1]) == STEPS
    for one, other in zip(*lines, strict=True):
        assert one.keys() == other.keys()
        assert other["loss"] == pytest.approx(one["loss"], rel=rel)
        assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=10 * rel)
    tensors = [_tensors(run) for run in (left, right)]
    assert tensors[0].keys() == tensors[1].keys()
    for name, value in tensors[0].items():
        assert float((value - tensors[1][name]).abs().max()) <= weights, name
    results = [json.loads((run / "result.json").read_text()) for run in (left, right)]
    for key in ("parameters", "trained_parameters", "weights", "steps"):
        assert results[0][key] == results[1][key]
    tables = [pyarrow.parquet.read_table(run / "examples.parquet").to_pydict() for run in (left, right)]
    assert tables[1]["index"] == tables[0]["index"]
    assert tables[1]["log_prob"] == pytest.approx(tables[0]["log_prob"], rel=10 * rel)
    assert [run.name for run in sorted(left.iterdir())] == [run.name for run in sorted(right.iterdir())]


@pytest.mark.parametrize("name", ["full", "lora"])
def test_sharded_training_gives_the_result_of_one_process(runs: Path, name: str) -> None:
    _same(runs / "alone" / name, runs / name)
    environment = json.loads((runs / name / "result.json").read_text())["environment"]
    assert (environment["processes"], environment["split"]) == (2, "fsdp2")


def test_two_whole_models_give_the_result_of_one_process(runs: Path) -> None:
    _same(runs / "alone" / "lora", runs / "copies")
    environment = json.loads((runs / "copies" / "result.json").read_text())["environment"]
    assert environment["processes"] == 2
    assert "split" not in environment


def test_sharded_training_at_16_bits_agrees_with_one_process_up_to_rounding(runs: Path) -> None:
    _same(runs / "alone" / "narrow", runs / "narrow", rel=2e-2, weights=2e-2)
    assert {value.dtype for value in _tensors(runs / "narrow").values()} == {torch.float32}


def test_an_interrupted_sharded_run_is_identical_to_an_uninterrupted_run(runs: Path) -> None:
    _same(runs / "full", runs / "resumed", rel=0, weights=0)


@pytest.mark.parametrize("name", ["split-to-whole", "whole-to-split"])
def test_a_run_resumes_in_another_number_of_processes(runs: Path, name: str) -> None:
    _same(runs / "alone" / "full", runs / name)


def test_all_processes_use_smaller_micro_batches_if_one_runs_out_of_memory(runs: Path) -> None:
    _same(runs / "full", runs / "short")
    result = json.loads((runs / "short" / "result.json").read_text())
    assert (result["out_of_memory"], result["micro_batch"]) == (2, 1)
