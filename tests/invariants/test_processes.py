"""Invariant 5: processes that share a run's batches end where one process ends, and one of them writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from safetensors.torch import load_file

from tests.invariants.kill_and_resume import ROWS

# Without dropout, which every process draws for itself. After so few steps nothing but rounding stands between them.
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
    "one": [*RUN, "--workers", "1"],
    "processes": [*RUN, "--processes", "2"],
    # what the launcher has to say of accumulation is not the recipe's
    "launcher": [*LAUNCHER, "--gradient_accumulation_steps", "4", "-m", *RUN],
}


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, str]]:
    """The study, carried out in every way, with what that printed."""
    folder = tmp_path_factory.mktemp("shared")
    (folder / "rows.tsv").write_text("".join(ROWS))
    (folder / "recipe.yaml").write_text(RECIPE.format(rows=folder / "rows.tsv"))
    free = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    found = {}
    for name, words in WAYS.items():
        given = ["--recipe", str(folder / "recipe.yaml"), "--out", str(folder / name)]
        done = subprocess.run(
            [sys.executable, "-m", *words, *given], capture_output=True, text=True, check=False, env=free
        )
        assert done.returncode == 0, done.stderr[-3000:]
        found[name] = folder / name, done.stdout
    return found


def _run(study: Path) -> Path:
    (run,) = (study / "runs").iterdir()
    return run


def _lines(study: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (_run(study) / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("way", ["processes", "launcher"])
def test_the_numbers_are_those_of_one_process(studies: dict[str, tuple[Path, str]], way: str) -> None:
    one, many = studies["one"][0], studies[way][0]
    assert _run(one).name == _run(many).name
    alone, shared = _lines(one), _lines(many)
    assert len(alone) == len(shared) == 12
    for left, right in zip(alone, shared, strict=True):
        assert left.keys() == right.keys()
        assert right["loss"] == pytest.approx(left["loss"], rel=1e-4)
        assert right["grad_norm"] == pytest.approx(left["grad_norm"], rel=1e-3)
        assert right["learning_rate"] == left["learning_rate"]
    weights = [load_file(_run(study) / "adapter" / "adapter_model.safetensors") for study in (one, many)]
    assert weights[0].keys() == weights[1].keys()
    for name, value in weights[0].items():
        assert float((value - weights[1][name]).abs().max()) < 1e-4, name
    tables = [pyarrow.parquet.read_table(_run(study) / "examples.parquet").to_pydict() for study in (one, many)]
    for column in ("index", "category", "correct", "tokens", "tokens_correct"):
        assert tables[0][column] == tables[1][column]
    assert tables[1]["log_prob"] == pytest.approx(tables[0]["log_prob"], abs=1e-2)


@pytest.mark.parametrize("way", ["processes", "launcher"])
def test_one_process_writes_and_speaks(studies: dict[str, tuple[Path, str]], way: str) -> None:
    (one, said), (many, said_by_many) = studies["one"], studies[way]
    assert {path.relative_to(one) for path in one.rglob("*")} == {path.relative_to(many) for path in many.rglob("*")}
    assert said_by_many.count("shared") == said.count("shared") == 1
    result = json.loads((_run(many) / "result.json").read_text())
    assert result["environment"]["processes"] == 2
    assert result["test"]["examples"] == 6
