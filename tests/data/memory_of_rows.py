"""Measure the peak memory of training on many rows and on 1,000 rows: `python -m tests.data.memory_of_rows`."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

HELD_OUT = ("--dev", "20", "--test", "20")  # fixed sizes, because a larger evaluation would also need memory
CODE = """
import json, resource, sys, time
from petransfer.cli import main
for line in json.loads(sys.argv.pop()):
    started = time.monotonic()
    sys.argv = ["petransfer", *line]
    try:
        main()
    except SystemExit as stop:
        assert not stop.code
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print("peak", peak, time.monotonic() - started, file=sys.stderr)
"""


def write_rows(path: Path, rows: int) -> None:
    """Write a jsonl file with `rows` rows of about 130 bytes each."""
    with path.open("w") as file:
        for n in range(rows):
            content = {
                "input": f"add {n} to {7 * n % 1000} and say it in words, please",
                "target": f"sum {n % 977} {n}",
            }
            file.write(json.dumps(content | {"category": ("odd", "even")[n % 2]}) + "\n")


def peak_megabytes(counts: Sequence[int], folder: Path, steps: int = 4) -> list[tuple[float, float]]:
    """Return the peak resident memory in MB (10^6) and the seconds of `petransfer train` for each number of rows.

    All trainings run in one subprocess. The numbers of rows ascend, because the peak of a process never falls.
    """
    commands = []
    for rows in sorted(counts):
        path = folder / f"rows-{rows}.jsonl"
        write_rows(path, rows)
        length = ["--steps", str(steps), "--cpu", *HELD_OUT]
        commands.append(["train", "nano/english", str(path), *length, "--out", str(folder / f"out-{rows}")])
    environment = os.environ | {"PETRANSFER_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CODE, json.dumps(commands)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    peaks = [line.split()[1:] for line in done.stderr.splitlines() if line.startswith("peak ")]
    return [(int(peak) * 1024 / 1e6, float(seconds)) for peak, seconds in peaks]


def main() -> None:
    """Print both peaks and their difference."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as folder:
        found = peak_megabytes((1000, rows), Path(folder))
    for count, (peak, seconds) in zip((1000, rows), found, strict=True):
        print(f"{count:,} rows: peak {peak:,.0f} MB, {seconds:.0f} s")
    print(f"difference {found[1][0] - found[0][0]:,.0f} MB")


if __name__ == "__main__":
    main()
