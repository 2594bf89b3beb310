"""Invariant 5: processes that share the batches of a run give the result of one process, and only one writes."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from safetensors.torch import load_file

from tests.cli.calls import call
from tests.invariants.kill_and_resume import ROWS

# The model has no dropout, because each process draws its own. After so few steps, only rounding makes a difference.
RECIPE = """
name: shared
task: {{name: lines, options: {{train: {rows}, dev: 5, test: 6}}}}
arms: [english]
methods:
  - {{name: lora, rank: 4, bits: 32}}
seeds: [0]
train: {{steps: 12, batch_size: 13, learning_rate: 2.0e-3}}
"""
RUN = ["petransfer", "run", "--threads", "1", "--micro-batch", "4", "--cpu"]
LAUNCHER = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
LAUNCHER += ["--main_process_port", "0", "--mixed_precision", "no", "--dynamo_backend", "no"]
WAYS = {
    "processes": [*RUN, "--processes", "2"],
    # the launcher's setting for gradient accumulation must have no effect, because the recipe decides
    "launcher": [*LAUNCHER, "--gradient_accumulation_steps", "4", "-m", *RUN],
}


# Slow, because every started process imports torch. test_sharded.py tests the same with two forked processes.
pytestmark = pytest.mark.slow


def _carried_out(folder: Path, way: str) -> tuple[Path, str]:
    """Run the study in one of `WAYS`. Return its folder and its output."""
    given = ["--recipe", str(folder / "recipe.yaml"), "--out", str(folder / way)]
    free = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    done = subprocess.run(
        [sys.executable, "-m", *WAYS[way], *given], capture_output=True, text=True, check=False, env=free
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / way, done.stdout


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder and the output of the study in a single process, which is this process."""
    folder = tmp_path_factory.mktemp("shared")
    (folder / "rows.tsv").write_text("".join(ROWS))
    (folder / "recipe.yaml").write_text(RECIPE.format(rows=folder / "rows.tsv"))
    message = io.StringIO()
    words = [*RUN[1:], "--workers", "1", "--recipe", str(folder / "recipe.yaml"), "--out", str(folder / "one")]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(message):
        assert call(patch, *words) == 0
    return folder / "one", message.getvalue()


@pytest.fixture(scope="module", params=list(WAYS))
def many(request: pytest.FixtureRequest, one: tuple[Path, str]) -> tuple[Path, str]:
    """The folder and the output of the same study in two processes."""
    return _carried_out(one[0].parent, request.param)


def _run(study: Path) -> Path:
    (run,) = (study / "runs").iterdir()
    return run


def _lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_two_processes_give_the_numbers_of_one_process(one: tuple[Path, str], many: tuple[Path, str]) -> None:
    runs = [_run(study) for study, _ in (one, many)]
    assert runs[0].name == runs[1].name
    alone, shared = (_lines(run) for run in runs)
    assert len(alone) == len(shared) == 12
    for left, right in zip(alone, shared, strict=True):
        assert left.keys() == right.keys()
        assert right["loss"] == pytest.approx(left["loss"], rel=1e-4)
        assert right["grad_norm"] == pytest.approx(left["grad_norm"], rel=1e-3)
        assert right["learning_rate"] == left["learning_rate"]
    weights = [load_file(run / "adapter" / "adapter_model.safetensors") for run in runs]
    assert weights[0].keys() == weights[1].keys()
    for name, value in weights[0].items():
        assert float((value - weights[1][name]).abs().max()) < 1e-4, name
    tables = [pyarrow.parquet.read_table(run / "examples.parquet").to_pydict() for run in runs]
    for column in ("index", "category", "correct", "tokens", "tokens_correct"):
        assert tables[0][column] == tables[1][column]
    assert tables[1]["log_prob"] == pytest.approx(tables[0]["log_prob"], abs=1e-2)


def test_only_one_process_writes_files_and_prints(one: tuple[Path, str], many: tuple[Path, str]) -> None:
    files = [{path.relative_to(study) for path in study.rglob("*")} for study, _ in (one, many)]
    assert files[0] == files[1]
    assert many[1].count("shared") == one[1].count("shared") == 1
    result = json.loads((_run(many[0]) / "result.json").read_text())
    assert result["environment"]["processes"] == 2
    assert result["test"]["examples"] == 6
