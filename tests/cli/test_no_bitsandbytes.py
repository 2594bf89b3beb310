"""Without a working bitsandbytes, 32 and 16 bits work, and settings that need it are refused with the reason."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

# Makes bitsandbytes look uninstalled in a new process: no module and no metadata.
MISSING = """
import sys
from importlib import metadata

sys.modules["bitsandbytes"] = None
there = metadata.Distribution.from_name

def without(name):
    if name == "bitsandbytes":
        raise metadata.PackageNotFoundError(name)
    return there(name)

metadata.Distribution.from_name = without
"""
# For each state of the package: a file, its content, and a part of the error message.
STATES = {
    "missing": ("sitecustomize.py", MISSING, "import of bitsandbytes halted"),
    "cannot be linked": ("bitsandbytes/__init__.py", "raise ImportError('no libcudart.so')", "no libcudart.so"),
    "cannot be set up": ("bitsandbytes/__init__.py", "raise RuntimeError('CUDA setup\\nfailed')", "CUDA setup"),
}
# Runs several commands in one process.
MAIN = """
import json, sys
from petransfer.cli import main

if __name__ == "__main__":
    for line in json.loads(sys.argv.pop()):
        sys.argv = ["petransfer", *line]
        try:
            main()
        except SystemExit as end:
            print("exit", end.code or 0, file=sys.stderr)
"""


@pytest.mark.parametrize(
    "state", ["missing", *(pytest.param(f"cannot be {what}", marks=pytest.mark.slow) for what in ("linked", "set up"))]
)
def test_only_settings_that_need_bitsandbytes_fail_without_it(
    state: str, tiny_t5: Path, tiny_rows: Path, tmp_path: Path
) -> None:
    file, content, message = STATES[state]
    (tmp_path / "first" / file).parent.mkdir(parents=True)
    (tmp_path / "first" / file).write_text(content)
    (tmp_path / "commands.py").write_text(MAIN)
    recipe: dict[str, Any] = {
        "name": "plain",
        "task": {"name": "lines", "options": {"train": str(tiny_rows)}},
        "family": {"name": "mine", "arms": {"english": str(tiny_t5)}},
        "arms": ["english"],
        "methods": [{"name": "lora", "rank": 4, "bits": 32}],
        "seeds": [0],
        "train": {"steps": 2, "batch_size": 4, "learning_rate": 1e-3},
    }
    plain, eight = tmp_path / "plain.yaml", tmp_path / "eight.yaml"
    plain.write_text(json.dumps(recipe))
    recipe["train"]["optimizer"] = "adamw-8bit"
    eight.write_text(json.dumps(recipe))
    fit = ["fit", "nano/english", "--cpu", "--batch", "1", "--lengths", "4,4"]
    commands = [
        [*fit, "--bits", "16"],
        ["run", "-r", str(plain), "--out", str(tmp_path / "plain"), "--cpu"],
        ["run", "-r", str(eight), "--out", str(tmp_path / "eight"), "--cpu"],
        [*fit, "--bits", "4"],
    ]
    done = subprocess.run(
        [sys.executable, str(tmp_path / "commands.py"), json.dumps(commands)],
        env=os.environ | {"PYTHONPATH": str(tmp_path / "first")},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    ends = [line for line in done.stderr.splitlines() if line.startswith(("exit ", "error: "))]
    assert [line for line in ends if line.startswith("exit")] == ["exit 0", "exit 0", "exit 2", "exit 2"], done.stderr
    optimizer, bits = (line for line in ends if line.startswith("error: "))
    assert optimizer.startswith("error: optimizer: adamw-8bit needs bitsandbytes, which does not work here (")
    assert optimizer.endswith("; use optimizer: adamw, or install it for this platform")
    assert bits.startswith("error: bits: 4 needs bitsandbytes, which does not work here (")
    assert message in optimizer
    assert message in bits
    (result,) = (tmp_path / "plain" / "runs").glob("*/result.json")
    packages = json.loads(result.read_text())["environment"]["packages"]
    assert packages["peft"]
    assert ("bitsandbytes" in packages) == (state != "missing")
