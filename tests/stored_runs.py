"""Copy the finished runs of a study into results/, in the form in which results/ stores runs.

    python -m tests.stored_runs results/NAME FOLDER [FOLDER ...]

Each FOLDER is the folder of a study that `petransfer run` made. Adapters and training states are not copied. In
examples.parquet, the columns `margin` and `log_prob` are rounded. The folders of local checkpoints become relative to
results/NAME.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet

from petransfer.study.examples_table import write_table

BINARY_DIGITS = 13
ROUNDED = ("margin", "log_prob")
COPIED = ("spec.json", "result.json", "metrics.jsonl")


def rounded(values: np.ndarray, digits: int = BINARY_DIGITS) -> np.ndarray:
    """Return the values (n,), rounded to a number of binary digits. The relative error is at most 2 ** -digits."""
    mantissas, exponents = np.frexp(values)
    return np.ldexp(np.round(np.ldexp(mantissas, digits)), exponents - digits)


def rounded_table(table: pyarrow.Table) -> pyarrow.Table:
    """Return a table of examples with rounded margins and log-probabilities."""
    for name in ROUNDED:
        column = pyarrow.array(rounded(table[name].to_numpy()))
        table = table.set_column(table.column_names.index(name), name, column)
    return table


def store(run: Path, study: Path) -> None:
    """Copy one finished run.

    Args:
        run: The folder of the run.
        study: The folder in results/.
    """
    target = study / "runs" / run.name
    target.mkdir(parents=True, exist_ok=True)
    for name in COPIED:
        (target / name).write_bytes((run / name).read_bytes())
    spec = json.loads((run / "spec.json").read_text(encoding="utf-8"))
    if source := spec["checkpoint"]["source"]:
        spec["checkpoint"]["source"] = "./" + "/".join(Path(source).parts[-2:])
        (target / "spec.json").write_text(json.dumps(spec, indent=1) + "\n", encoding="utf-8")
    write_table(rounded_table(pyarrow.parquet.read_table(run / "examples.parquet")), target / "examples.parquet")
    (target / "DONE").write_bytes((run / "DONE").read_bytes())


def main(study: Path, folders: list[Path]) -> None:
    """Copy the finished runs of `folders` that `study` does not have yet, and print their ids."""
    for folder in folders:
        for run in sorted((folder / "runs").iterdir()):
            if (run / "DONE").is_file() and not (study / "runs" / run.name / "DONE").exists():
                store(run, study)
                print(run.name)


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(folder) for folder in sys.argv[2:]])
