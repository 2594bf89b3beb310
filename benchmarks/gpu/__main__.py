"""Run the stages one after another, each in its own process: python -m benchmarks.gpu --help."""

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
DYING = 10.0  # seconds that a killed process is waited for
LOG_BYTES = 2**20  # of each stage's output, the last part is kept


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the stages that were asked for; return 0 when all of them ended by themselves without an error."""
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
        0 when every stage ended without an error, else 1.
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
    """Run one stage; kill it and all processes that it started when its time is over."""
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
    """Kill the process and its children; the stage started a session of its own, so nobody else is in the group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):  # a process inside a driver call may not die
        process.wait(DYING)


def _shorten(log: Path, before: int) -> None:
    """Keep the last part of what a stage wrote behind the first `before` bytes."""
    content = log.read_bytes()
    if len(content) - before > LOG_BYTES:
        log.write_bytes(content[:before] + b"[...]\n" + content[-LOG_BYTES:])


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1][:200] if lines else ""


if __name__ == "__main__":
    sys.exit(main())
