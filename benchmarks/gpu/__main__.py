"""Run the GPU measurements (stages) one after another, each in its own process: python -m benchmarks.gpu --help."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.stages import STAGES, Stage

WHOLE = 480  # seconds of all stages together
LEAST = 10.0  # seconds below which a stage is not started
DYING = 10.0  # seconds to wait until a killed process has ended
LOG_BYTES = 2**20  # bytes of each stage's output that are kept, from its end


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the stages that the arguments name, and return the exit code.

    It is 0 if all stages ended within their time and without an error, otherwise 1.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--stages", default=",".join(STAGES), help="letters, comma-separated; default: all")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "first-light")), help="folder")
    parser.add_argument("--seconds", type=float, default=WHOLE, help="time limit of all stages together")
    parser.add_argument("--rehearse", action="store_true", help="use the CPU and tiny sizes")
    asked = parser.parse_args(arguments)
    letters = [letter.strip() for letter in asked.stages.split(",")]
    unknown = [letter for letter in letters if letter not in STAGES]
    if unknown:
        parser.error(f"--stages {asked.stages}: there is no stage '{unknown[0]}'; choose from {', '.join(STAGES)}")
    return run_all([STAGES[letter] for letter in letters], asked.out, asked.seconds, asked.rehearse)


def run_all(stages: Sequence[Stage], out: Path, seconds: float, rehearse: bool) -> int:
    """Run each stage in a separate process.

    Args:
        stages: The stages, in the order in which they run.
        out: The folder for the results; it is created.
        seconds: The time limit of all stages together. A stage also has a limit of its own.
        rehearse: Use the CPU and tiny sizes.

    Returns:
        0 if every stage ended within its time and without an error, otherwise 1.
    """
    out.mkdir(parents=True, exist_ok=True)
    ends_at = time.monotonic() + seconds
    summary: dict[str, dict[str, object]] = {}
    for stage in stages:
        limit = min(stage.seconds, ends_at - time.monotonic())
        started = time.monotonic()
        outcome = _run(stage, out, limit, rehearse) if limit >= LEAST else "not started: no time was left"
        summary[stage.letter] = {"outcome": outcome, "seconds": round(time.monotonic() - started, 1)}
        (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
        print(f"stage {stage.letter} ({stage.about}): {outcome}, {summary[stage.letter]['seconds']} s", flush=True)
    return int(any(entry["outcome"] != "done" for entry in summary.values()))


def _run(stage: Stage, out: Path, limit: float, rehearse: bool) -> str:
    """Run one stage for at most `limit` seconds, and return its outcome as text: `done` or the reason of a failure.

    At the end, the stage and all processes that it started are killed.
    """
    command = [sys.executable, "-m", "benchmarks.gpu.stages", stage.letter, "--out", str(out), "--seconds", str(limit)]
    log = out / "log.txt"
    before = log.stat().st_size if log.exists() else 0
    with log.open("ab") as output:
        output.write(f"== stage {stage.letter}: {stage.about}\n".encode())
        output.flush()
        process = subprocess.Popen(
            [*command, *(["--rehearse"] if rehearse else [])],
            stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _kill_group(process)
    _shorten(log, before)
    if code is None:
        return f"cut off after {limit:.0f} s"
    return "done" if code == 0 else f"failed with exit code {code}: {_last_line(log)}"


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a stage's process and its children. They are a process group of their own, so no other process is killed."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):  # a process that is inside a GPU driver call may not end
        process.wait(DYING)


def _shorten(log: Path, before: int) -> None:
    """Shorten the log to its first `before` bytes, which other stages wrote, and the end of this stage's output."""
    content = log.read_bytes()
    if len(content) - before > LOG_BYTES:
        log.write_bytes(content[:before] + b"[...]\n" + content[-LOG_BYTES:])


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1][:200] if lines else ""


if __name__ == "__main__":
    sys.exit(main())
