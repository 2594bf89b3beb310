"""Runs in results/ are rounded copies of the runs of a study."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from petransfer.study.examples_table import write_table
from tests.stored_runs import ROUNDED, main, rounded

RESULTS = Path(__file__).parents[1] / "results"


def test_values_are_rounded_to_13_binary_digits() -> None:
    values = np.array([1 + 2**-12, 1 + 2**-13, 1 + 3 * 2**-13, -math.pi, 0.0, 1e-30, -1e30])
    found = rounded(values)
    # ties are rounded to an even last digit
    assert found[:3].tolist() == [1 + 2**-12, 1.0, 1 + 2**-11]
    assert np.abs(found[3] + math.pi) < math.pi * 2**-13
    assert found[4] == 0
    assert np.all(np.abs(found - values) <= np.abs(values) * 2**-13)
    assert np.array_equal(rounded(found), found)


def test_a_finished_run_is_copied_once_and_only_its_margins_and_log_probabilities_change(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    columns = {"index": [0, 1], "correct": [True, False], "margin": [0.1, -0.2], "log_prob": [-1 / 3, -10 / 3]}
    for name, is_done in (("one", True), ("two", False)):
        run = tmp_path / "made" / "runs" / name
        (run / "adapter").mkdir(parents=True)
        (run / "spec.json").write_text(json.dumps({"checkpoint": {"source": str(tmp_path / "seeds" / "english-2")}}))
        (run / "result.json").write_text("{}")
        (run / "metrics.jsonl").write_text("")
        write_table(pyarrow.table(columns), run / "examples.parquet")
        if is_done:
            (run / "DONE").write_text("x")
    for _ in range(2):
        main(tmp_path / "kept", [tmp_path / "made"])
    assert capsys.readouterr().out == "one\n"
    (kept,) = (tmp_path / "kept" / "runs").iterdir()
    assert sorted(path.name for path in kept.iterdir()) == [
        "DONE", "examples.parquet", "metrics.jsonl", "result.json", "spec.json",
    ]  # fmt: skip
    assert json.loads((kept / "spec.json").read_text())["checkpoint"]["source"] == "./seeds/english-2"
    table = pyarrow.parquet.read_table(kept / "examples.parquet")
    assert {name: table[name].to_pylist() for name in ("index", "correct")} == {
        name: columns[name] for name in ("index", "correct")
    }
    for name in ROUNDED:
        assert table[name].to_pylist() != columns[name]
        assert table[name].to_pylist() == pytest.approx(columns[name], rel=2**-13)
    (kept / "DONE").unlink()  # as if the copying had been interrupted
    (kept / "examples.parquet").write_bytes(b"")
    main(tmp_path / "kept", [tmp_path / "made"])
    assert (kept / "DONE").is_file()
    assert pyarrow.parquet.read_table(kept / "examples.parquet") == table


def test_the_examples_of_all_shipped_studies_are_rounded() -> None:
    files = sorted(RESULTS.glob("*/runs/*/examples.parquet"))
    assert len(files) > 100
    for file in files[::7]:
        table = pyarrow.parquet.read_table(file, columns=[*ROUNDED])
        for name in ROUNDED:
            values = table[name].to_numpy()
            assert np.array_equal(rounded(values), values), f"{file}: {name}"
