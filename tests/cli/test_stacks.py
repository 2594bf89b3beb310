"""`run` and `plan` check and describe stacks before any training, and `plan` does not import torch for it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from petransfer.memory.cards import Card
from petransfer.memory.planner import on_card
from petransfer.memory.step_memory import simulate
from petransfer.memory.study_memory import step_spec_of
from petransfer.models.architecture import configuration
from petransfer.recipe.loading import load_recipe
from petransfer.study.grid import expand
from tests.cli.calls import call, refused

RECIPE = """
name: stacked
task: {{name: scan, splits: [length]}}
family: {{name: t, arms: {{english: {checkpoint}}}}}
arms: [english]
methods:
  - {{name: rslora, rank: 4, bits: 32}}
  - {{name: dora, rank: 4, bits: 32}}
seeds: [0, 1, 2, 3]
train: {{steps: 4, batch_size: 8, learning_rate: 2.0e-3}}
"""
DORA = "dora is not stacked, because its norms are computed over base and adapter together"


@pytest.fixture
def recipe(tmp_path: Path, tiny_t5: Path) -> str:
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(checkpoint=tiny_t5))
    return str(tmp_path / "recipe.yaml")


def test_plan_shows_how_runs_would_be_stacked(
    recipe: str, tiny_t5: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("plan", "--recipe", recipe, "--out", str(tmp_path / "out"), "--card", "1.2GB")
    assert call(monkeypatch, *words) == 0
    message = capsys.readouterr().out.splitlines()
    assert "stacks: 1 of 4 runs; trained alone: 4 runs" in message
    assert DORA in message
    stacked = rf"{tiny_t5.name}, rslora of rank 4, 32 bits, 4 stacked: [01]\.\d GB of 1\.2"
    assert any(re.match(stacked, line) for line in message), message
    assert call(monkeypatch, *words, "--stack", "3", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    methods = {run["run_id"]: run["method"] for run in found["runs"]}
    (stack,) = found["stacks"]
    assert [methods[name].startswith("rslora") for name in stack] == [True] * 3
    assert call(monkeypatch, *words, "--stack", "off") == 0
    message = capsys.readouterr().out.splitlines()
    assert not any(line.startswith("stacks: ") or " stacked: " in line for line in message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--stack", "abc"], "--stack abc: write a whole number of 1 or more, auto or off"),
        (["--stack", "4", "--checkpointing"], "--stack 4 cannot be combined with --gradient-checkpointing"),
    ],
)
def test_plan_refuses_an_invalid_stack_option_before_it_lists_the_runs(
    options: list[str], message: str, recipe: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(monkeypatch, capsys, "plan", "--recipe", recipe, *options)


def test_a_stack_that_does_not_fit_the_card_is_refused(
    recipe: str, tiny_t5: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = expand(load_recipe(recipe))[0].spec
    one = replace(step_spec_of(spec, False), batch=1, accumulates=True)
    config, own_head = configuration(spec.checkpoint)
    two, four = (simulate(config, "t5", replace(one, members=count), own_head).peak for count in (2, 4))
    # the card has room for two stacked runs with one example each, but not for four
    monkeypatch.setattr("petransfer.study.run_study.this_card", lambda: Card(on_card((two + four) // 2)))
    words = ("run", "--recipe", recipe, "--out", str(tmp_path / "out"), "--stack", "4")
    assert call(monkeypatch, *words) == 2
    (error,) = capsys.readouterr().err.strip().splitlines()
    assert error.startswith(f"error: {tiny_t5.name}, rslora of rank 4, 32 bits, 4 stacked: ")
    assert "does not fit" in error
    assert "it would fit with" in error
    assert "--stack 2" in error
    assert error.endswith("; --force starts the run anyway")


def test_more_processes_than_examples_in_a_batch_are_refused_before_the_launch(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("petransfer.cli.run.launch", lambda processes: pytest.fail("launched"))
    for verb in ("run", "sweep"):
        assert call(monkeypatch, verb, "--recipe", recipe, "--out", str(tmp_path / "out"), "--processes", "9") == 2
        message = "error: a batch of 8 cannot be shared by 9 processes; use 8 processes or fewer"
        assert capsys.readouterr().err.strip() == message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("memory", ["24576", ""])
def test_plan_of_stacks_of_embedded_checkpoints_imports_no_torch(memory: str, tmp_path: Path) -> None:
    asked = tmp_path / "nvidia-smi"
    asked.write_text(f"#!/bin/sh\necho '{memory}'\n")
    asked.chmod(0o755)
    code = (
        "import sys\nfrom petransfer.cli import main\nsys.argv = ['petransfer', *sys.argv[1:]]\n"
        "try: main()\nexcept SystemExit as stop: assert not stop.code\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    given = ("plan", "--recipe", "lora-scan", "--seeds", "0-2", *(() if memory else ("--card", "12GB")))
    done = subprocess.run(
        [sys.executable, "-c", code, *given],
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "stacks: " in done.stdout
