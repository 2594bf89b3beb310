"""Kill commands that write files within a few seconds, with SIGKILL at random moments, and repeat them.

After each kill, the command runs again unless its result is complete. It must succeed, its files must equal the files
of a command that was not killed, and no partial file may remain. Commands start as forks of a process that has imported
all modules. A quarter of the kills happen in the first second of a command's own work. `push` writes to a hub on this
machine.

    python -m tests.invariants.kill_short_commands --kills 20 --out results/bench/kills-short-cpu.json
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.invariants.forked_command import ForkedCommand
from tests.invariants.kill_and_resume import RECIPE, ROWS, machine
from tests.sharing.hub_server import TOKEN, Hub, serving
from tests.tiny_models import make_tiny_t5

# Each command with the path that it writes to, relative to a new copy of a finished study.
COMMANDS = {
    "report": (["report", "finished"], "finished"),
    "pack": (["adapter", "pack", "finished/runs/{run}", "--out", "packed.petransfer.zip"], "packed.petransfer.zip"),
    "push": (["adapter", "push", "bundle.petransfer.zip", "me/mine"], "hub"),
    "pull": (["adapter", "pull", "bundle.petransfer.zip", "--out", "pulled"], "pulled"),
    "merge": (["adapter", "merge", "finished/runs/{run}", "merged"], "merged"),
    "recipes cp": (["recipes", "cp", "lora-scan", "copied.yaml"], "copied.yaml"),
    "checkpoints cp": (["checkpoints", "cp", "nano/english", "copied"], "copied"),
}


# Commands that refuse to overwrite a finished result.
WRITE_ONCE = ("pack", "merge", "pull", "recipes cp", "checkpoints cp")
FIRST_SECOND, EARLY_SHARE = 1.0, 0.25


def petransfer(folder: Path, *arguments: str) -> ForkedCommand:
    """Start a command in a folder. Its output goes to a log file next to the folder."""
    return ForkedCommand(arguments, folder, folder.with_name(f"{folder.name}.log"))


def contents(place: Path, hub: Hub) -> dict[str, bytes]:
    """Return the bytes of every file of `place` by relative path, except locks. For `hub`: the files of its main."""
    if place.name == "hub":
        made = hub.repositories.get("me/mine")
        return {} if made is None else made.commits[made.head]
    if place.is_file():
        return {place.name: place.read_bytes()}
    files = (path for path in sorted(place.rglob("*")) if path.is_file() and not path.name.startswith(".lock"))
    return {str(path.relative_to(place)): path.read_bytes() for path in files}


def try_command(original: Path, name: str, kills: int, rng: random.Random, hub: Hub) -> dict[str, Any]:
    """Kill a command `kills` times while it runs, each time in a new copy of `original`, and check its files."""
    words, place = COMMANDS[name]
    run = sorted(path.parent.name for path in original.glob("finished/runs/*/adapter"))[0]
    arguments = [word.format(run=run) for word in words]
    with tempfile.TemporaryDirectory() as scratch:
        whole = Path(scratch) / "whole"
        seconds = _whole(original, whole, arguments)
        expected = contents(whole / place, hub)
        struck = early = tried = 0
        while struck < kills:
            tried += 1
            assert tried <= 10 * kills, f"{name}: only {struck} of {kills} kills came before its end"
            hub.repositories.clear()
            cut = Path(scratch) / f"cut-{tried}"
            shutil.copytree(original, cut)
            in_first_second = rng.random() < EARLY_SHARE
            if _killed(petransfer(cut, *arguments), rng.uniform(0, FIRST_SECOND if in_first_second else seconds)):
                struck, early = struck + 1, early + in_first_second
            _repeat(name, cut, arguments, place, expected, hub)
            shutil.rmtree(cut)
    return {"what": name, "kills": struck, "in_first_second": early, "seconds_of_command": round(seconds, 1)}


def _whole(original: Path, whole: Path, arguments: list[str]) -> float:
    """Run the command to its end in a copy of `original`, and return its time in seconds."""
    shutil.copytree(original, whole)
    began = time.monotonic()
    done = petransfer(whole, *arguments)
    assert done.wait() == 0, f"{arguments}: {done.message()}"
    return time.monotonic() - began


def _killed(command: ForkedCommand, seconds: float) -> bool:
    """Kill a command after `seconds` seconds. Return whether it was still running."""
    time.sleep(seconds)
    running = command.poll() is None
    command.kill()
    command.wait()
    return running


def _repeat(name: str, cut: Path, arguments: list[str], place: str, expected: dict[str, bytes], hub: Hub) -> None:
    """Check the files of a killed command, run it again, and check its files again."""
    left = contents(cut / place, hub)
    if left and name in WRITE_ONCE:
        assert left == expected, f"{name}: a kill left a half-written {place}: {sorted(left)}"
        return
    if name == "push":
        assert set(left) in (set(), {".gitattributes"}, set(expected)), f"push: half a commit: {sorted(left)}"
    again = petransfer(cut, *arguments)
    assert again.wait() == 0, f"{name}: after a kill: {again.message()}"
    assert contents(cut / place, hub) == expected, f"{name}: differs after a kill"
    partial = [path.name for path in cut.rglob("*") if "partial" in path.name or path.suffix == ".tmp"]
    assert not partial, f"{name}: left {partial}"


def main(kills: int, names: list[str], seed: int = 0) -> list[dict[str, Any]]:
    """Make a finished study with one adapter, kill each command on it, and return a record for each command."""
    with tempfile.TemporaryDirectory() as name, serving() as hub:
        os.environ |= {
            "HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HOME": f"{name}/hf", "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
        }  # fmt: skip
        folder = Path(name) / "original"
        folder.mkdir()
        (folder / "rows.tsv").write_text("".join(ROWS))
        recipe = RECIPE.format(rows=folder / "rows.tsv", base=make_tiny_t5(Path(name) / "base"), steps=20)
        recipe = recipe.replace("[english, scratch]", "[english]").replace("seeds: [0, 1]", "seeds: [0]")
        (folder / "recipe.yaml").write_text(recipe)
        for words in (
            ["run", "--recipe", "recipe.yaml", "--out", "finished", "--workers", "1", "--threads", "1", "--cpu"],
            ["adapter", "pack", "finished", "--out", "bundle.petransfer.zip"],
        ):
            done = petransfer(folder, *words)
            assert done.wait() == 0, done.message()
        rng = random.Random(seed)
        records = []
        for command in names:
            records.append(try_command(folder, command, kills, rng, hub))
            print(json.dumps(records[-1]), flush=True)
        return records


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10, help="of each command")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=[*COMMANDS], action="append")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    records = main(given.kills, given.only or [*COMMANDS], given.seed)
    if given.out:
        given.out.write_text(json.dumps({"machine": machine(), "records": records}, indent=1) + "\n")
