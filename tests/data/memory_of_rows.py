"""The peak memory of training on very many rows, beside that on 1,000: `python -m tests.data.memory_of_rows`."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HELD_OUT = ("--dev", "100", "--test", "100")  # or else the larger evaluation would be measured too
CODE = """
import resource, sys
from petransfer.cli import main
sys.argv = ["petransfer", *sys.argv[1:]]
try:
    main()
except SystemExit as stop:
    assert not stop.code
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)
"""


def write_rows(path: Path, rows: int) -> None:
    """A jsonl of `rows` rows of about 130 bytes."""
    with path.open("w") as file:
        for n in range(rows):
            content = {
                "input": f"add {n} to {7 * n % 1000} and say it in words, please",
                "target": f"sum {n % 977} {n}",
            }
            file.write(json.dumps(content | {"category": ("odd", "even")[n % 2]}) + "\n")


def peak_megabytes(rows: int, folder: Path, steps: int = 20) -> tuple[float, float]:
    """Peak resident memory in MB (10^6) and seconds of `petransfer train` on so many rows, in a process of its own."""
    path = folder / f"rows-{rows}.jsonl"
    write_rows(path, rows)
    environment = os.environ | {"PETRANSFER_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    arguments = [
        "train",
        "nano/english",
        str(path),
        "--steps",
        str(steps),
        "--cpu",
        *HELD_OUT,
        "--out",
        str(folder / f"out-{rows}"),
    ]
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", CODE, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    peak = next(line for line in done.stderr.splitlines() if line.startswith("peak "))
    return int(peak.split()[1]) * 1024 / 1e6, time.monotonic() - started


def main() -> None:
    """Prints both peaks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as folder:
        found = {}
        for count in (1000, rows):
            found[count], seconds = peak_megabytes(count, Path(folder))
            print(f"{count:,} rows: peak {found[count]:,.0f} MB, {seconds:.0f} s", flush=True)
        print(f"difference {found[rows] - found[1000]:,.0f} MB")


if __name__ == "__main__":
    main()
