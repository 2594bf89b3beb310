"""Rehearsals of the GPU stages on the CPU, and the runner, which continues after a failed stage."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import __main__ as runner
from benchmarks.gpu.memory_caps import _hidden_card, largest_near
from benchmarks.gpu.records import LIMIT, Records
from benchmarks.gpu.stages import STAGES, Stage, Task, run_here
from petransfer.models import registry

ROOT = Path(__file__).parents[2]


@pytest.fixture
def only_english(monkeypatch: pytest.MonkeyPatch) -> None:
    """Allow only nano/english, as in the lean copy of the repository, which has one embedded checkpoint."""
    real = registry._embedded_sha256

    def present(name: str) -> str:
        assert name == "nano/english", f"{name} is not in the lean copy"
        return real(name)

    monkeypatch.setattr(registry, "_embedded_sha256", present)


def test_every_stage_has_a_module_with_a_run_function() -> None:
    for stage in STAGES.values():
        assert callable(importlib.import_module(stage.module).run)


@pytest.mark.parametrize("letter", ["d", *(pytest.param(letter, marks=pytest.mark.slow) for letter in "abce")])
def test_a_stage_runs_on_the_cpu(letter: str, only_english: None, tmp_path: Path) -> None:
    run_here(STAGES[letter], Task(tmp_path, rehearse=True, ends_at=time.monotonic() + 1000))
    content = json.loads((tmp_path / f"{letter}.json").read_text())
    assert content["about"]["processor"]
    assert content["about"]["rehearsal"]
    records = content["records"]
    errors = [row["error"] for row in records if row.get("error")]
    assert all("liger_kernel" in error for error in errors), errors
    expected = {"a": "all", "b": "cap", "c": "training", "d": "scoring", "e": "throughput"}[letter]
    assert records[-1]["what"] == expected
    if letter == "c":  # before any update, static shapes, graphs and stacks only change the order of sums
        losses = [row["first_loss"] for row in records if row["checkpoint"] == "nano/english" and "first_loss" in row]
        assert len(losses) == 6
        assert losses == pytest.approx([losses[0]] * len(losses), rel=2e-3)


def _stages(folder: Path, **bodies: str) -> list[Stage]:
    """Write modules whose `run` functions have these bodies, and return their stages."""
    for name, body in bodies.items():
        (folder / f"{name}.py").write_text(f"def run(records, task):\n    {body}\n")
    return [Stage(name[0], name, 60, name) for name in bodies]


@pytest.mark.slow
def test_a_stage_that_fails_or_hangs_does_not_affect_other_stages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = _stages(
        tmp_path,
        fails="records.add(found=1); raise ValueError('broken')",
        hangs="records.add(found=2); import time; time.sleep(600)",
        works="records.add(found=3)",
    )
    script = tmp_path / "stub.py"  # replaces benchmarks.gpu.stages, which would import torch
    script.write_text(
        "import importlib, sys, time\n"
        f"sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]\n"
        "from pathlib import Path\n"
        "from benchmarks.gpu.records import Records\n"
        "names = {'f': 'fails', 'h': 'hangs', 'w': 'works'}\n"
        "letter, out = sys.argv[1], Path(sys.argv[3])\n"
        "importlib.import_module(names[letter]).run(Records(out / f'{letter}.json', {}), None)\n"
    )
    plain = subprocess.Popen

    def started(command: list[str], **options: Any) -> Any:
        return plain([command[0], str(script), *command[3:]], **options)

    monkeypatch.setattr(runner.subprocess, "Popen", started)
    monkeypatch.setattr(runner, "LEAST", 0)
    stages[1] = Stage("h", "hangs", 8, "hangs")
    assert runner.run_all(stages, tmp_path / "out", 100, rehearse=True) == 1
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert "exit code 1" in summary["f"]["outcome"]
    assert "broken" in summary["f"]["outcome"]
    assert summary["h"]["outcome"] == "cut off after 8 s"
    assert summary["w"]["outcome"] == "done"
    for letter, found in {"f": 1, "h": 2, "w": 3}.items():
        assert json.loads((tmp_path / "out" / f"{letter}.json").read_text())["records"][0]["found"] == found
    assert len(list((tmp_path / "out").iterdir())) <= 8
    assert "stage w (works): done" in capsys.readouterr().out


def test_no_stage_is_started_if_no_time_is_left(tmp_path: Path) -> None:
    assert runner.run_all([STAGES["a"]], tmp_path, seconds=1, rehearse=True) == 1
    assert "no time was left" in json.loads((tmp_path / "summary.json").read_text())["a"]["outcome"]


def test_an_unknown_stage_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        runner.main(["--stages", "a,z"])
    assert stop.value.code == 2
    assert "there is no stage 'z'" in capsys.readouterr().err


def test_records_above_the_size_limit_are_refused(tmp_path: Path) -> None:
    records = Records(tmp_path / "a.json", {})
    records.add(kept=1)
    with pytest.raises(ValueError, match="at most"):
        records.add(text="x" * LIMIT)
    assert json.loads((tmp_path / "a.json").read_text())["records"][0]["kept"] == 1


@pytest.mark.parametrize("largest", [0, 1, 3, 8, 9, 20, 64])
@pytest.mark.parametrize("guess", [1, 8, 64])
def test_the_largest_micro_batch_is_nearly_found_from_any_guess(largest: int, guess: int) -> None:
    tried: list[int] = []
    found = largest_near(lambda count: tried.append(count) or count <= largest, guess, 64)  # type: ignore[func-returns-value]
    assert found <= largest
    if largest:
        assert found >= min(largest, 64) * 3 // 4
    assert len(tried) <= 30


@pytest.mark.parametrize("before", [None, "0"])
def test_the_gpu_is_hidden_from_processes_of_the_planner(before: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if before is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", before)
    with _hidden_card():
        assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == before


def _script(name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(ROOT / "benchmarks" / "gpu" / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})


def test_the_scripts_have_valid_syntax_and_are_executable() -> None:
    for name in ("pack.sh", "first_light.sh"):
        script = ROOT / "benchmarks" / "gpu" / name
        assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0
        assert os.access(script, os.X_OK)


@pytest.mark.slow
def test_the_whole_script_runs_as_a_rehearsal(tmp_path: Path) -> None:
    """Each stage runs in a separate process, as on the GPU."""
    import sys

    done = _script("first_light.sh", "--rehearse", "--out", str(tmp_path), PYTHON=sys.executable)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert {letter: row["outcome"] for letter, row in summary.items()} == dict.fromkeys(STAGES, "done")
