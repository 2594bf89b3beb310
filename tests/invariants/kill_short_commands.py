"""Kill commands that write files in a few seconds, with SIGKILL at random moments, and repeat them.

After each kill the command is run again. It must succeed, and what it writes must equal what a command that was never
killed writes; no partial file may be left.

    python -m tests.invariants.kill_short_commands --kills 10 --out results/bench/kills-short-cpu.json
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.invariants.kill_and_resume import RECIPE, ROWS, machine

# Each command with the place that it writes, relative to a fresh copy of a finished study.
COMMANDS = {
    "report": (["report", "study"], "study"),
    "pack": (["adapter", "pack", "study/runs/{run}", "--out", "packed.zip"], "packed.zip"),
    "pull": (["adapter", "pull", "bundle.zip", "--out", "pulled"], "pulled"),
    "merge": (["adapter", "merge", "study/runs/{run}", "merged"], "merged"),
    "recipes cp": (["recipes", "cp", "lora-scan", "copied.yaml"], "copied.yaml"),
    "checkpoints cp": (["checkpoints", "cp", "nano/english", "copied"], "copied"),
}


def petransfer(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a folder to its end."""
    line = [sys.executable, "-m", "petransfer", *arguments]
    return subprocess.run(line, cwd=folder, capture_output=True, text=True, check=False)


def contents(place: Path) -> dict[str, bytes]:
    """Return the bytes of every file at a place, by relative path; locks are left out."""
    if place.is_file():
        return {place.name: place.read_bytes()}
    files = (path for path in sorted(place.rglob("*")) if path.is_file() and not path.name.startswith(".lock"))
    return {str(path.relative_to(place)): path.read_bytes() for path in files}


def try_command(original: Path, name: str, kills: int, rng: random.Random) -> dict[str, Any]:
    """Kill one command `kills` times, each in a fresh copy of `original`, and compare."""
    words, place = COMMANDS[name]
    run = sorted(path.parent.name for path in original.glob("study/runs/*/adapter"))[0]
    arguments = [word.format(run=run) for word in words]
    with tempfile.TemporaryDirectory() as scratch:
        whole = Path(scratch) / "whole"
        shutil.copytree(original, whole)
        began = time.monotonic()
        done = petransfer(whole, *arguments)
        seconds = time.monotonic() - began
        assert done.returncode == 0, f"{name}: {done.stderr[-500:]}"
        expected = contents(whole / place)
        struck = 0
        for kill in range(kills):
            cut = Path(scratch) / f"cut-{kill}"
            shutil.copytree(original, cut)
            process = subprocess.Popen(
                [sys.executable, "-m", "petransfer", *arguments], cwd=cut, stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )  # fmt: skip
            time.sleep(rng.uniform(0, 0.25 * seconds) if rng.random() < 0.25 else rng.uniform(0.25, 1) * seconds)
            struck += process.poll() is None
            process.kill()
            process.wait()
            if (cut / place).exists() and name in ("pack", "merge", "pull", "recipes cp", "checkpoints cp"):
                half = contents(cut / place)
                assert half == expected, f"{name}: a kill left a half-written {place}: {sorted(half)}"
                continue  # these refuse to overwrite a finished result
            again = petransfer(cut, *arguments)
            assert again.returncode == 0, f"{name}: after a kill: {again.stderr[-500:]}"
            assert contents(cut / place) == expected, f"{name}: differs after a kill"
            partial = [path.name for path in cut.rglob("*") if "partial" in path.name or path.suffix == ".tmp"]
            assert not partial, f"{name}: left {partial}"
            shutil.rmtree(cut)
    return {"what": name, "kills": kills, "while_running": struck, "seconds": round(seconds, 1)}


def main(kills: int, names: list[str], seed: int = 0) -> list[dict[str, Any]]:
    """Make a finished study of one adapter and try each command on it; return a record for each."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "rows.tsv").write_text("".join(ROWS))
        recipe = RECIPE.format(rows=folder / "rows.tsv", steps=20).replace("[english, scratch]", "[english]")
        (folder / "recipe.yaml").write_text(recipe.replace("seeds: [0, 1]", "seeds: [0]"))
        for words in (
            ["run", "--recipe", "recipe.yaml", "--out", "study", "--workers", "1", "--threads", "1", "--cpu"],
            ["adapter", "pack", "study", "--out", "bundle.zip"],
        ):
            done = petransfer(folder, *words)
            assert done.returncode == 0, done.stderr[-2000:]
        rng = random.Random(seed)
        return [try_command(folder, name, kills, rng) for name in names]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10, help="of each command")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=[*COMMANDS], action="append")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    records = main(given.kills, given.only or [*COMMANDS], given.seed)
    for record in records:
        print(json.dumps(record))
    if given.out:
        given.out.write_text(json.dumps({"machine": machine(), "records": records}, indent=1) + "\n")
