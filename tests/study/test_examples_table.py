"""The file of a run's test examples has the same values as with parquet's defaults, in less space."""

from __future__ import annotations

from pathlib import Path

import numpy
import pyarrow
import pyarrow.parquet

from petransfer.data import Example
from petransfer.evaluation.exact_match import Evaluation
from petransfer.evaluation.one_pass import ScoredExample
from petransfer.study.examples_table import write_examples, write_table

ROWS = 2000


def test_the_table_of_examples_is_smaller_than_by_default_and_has_equal_values(tmp_path: Path) -> None:
    drawn = numpy.random.default_rng(0).normal(size=(2, ROWS))
    table = pyarrow.table(
        {
            "index": numpy.arange(ROWS),
            "category": ["prim_to_subj_proper", "obj_to_subj_common"] * (ROWS // 2),
            "correct": drawn[0] > 0,
            "margin": drawn[0].astype("float32").astype("float64"),  # fp32 values, stored as fp64
            "log_prob": -abs(drawn[1]),
        }
    )
    write_table(table, tmp_path / "small.parquet")
    pyarrow.parquet.write_table(table, tmp_path / "default.parquet")
    assert pyarrow.parquet.read_table(tmp_path / "small.parquet").equals(table)
    assert (tmp_path / "small.parquet").stat().st_size < 0.6 * (tmp_path / "default.parquet").stat().st_size


def test_a_table_without_numeric_columns_can_be_written(tmp_path: Path) -> None:
    table = pyarrow.table({"category": ["", ""]})
    write_table(table, tmp_path / "examples.parquet")
    assert pyarrow.parquet.read_table(tmp_path / "examples.parquet").equals(table)


def test_the_targets_of_all_examples_are_written_if_they_are_labels(tmp_path: Path) -> None:
    scored = tuple(ScoredExample(n, "all", True, 1.0, -1.0, 2, 2, prediction=None if n else "yes") for n in range(2))
    rows = [Example(n, f"text {n}", "yes", "all") for n in range(2)]
    for of_labels, targets in ((True, ["yes", "yes"]), (False, ["yes", None])):
        write_examples(Evaluation(scored, 0, 1, 0), rows, ["yes", "no"], tmp_path / "examples.parquet", of_labels)
        table = pyarrow.parquet.read_table(tmp_path / "examples.parquet").to_pydict()
        assert (table["input"], table["target"]) == (["text 0", None], targets)
        assert (table["prediction"], table["answer"]) == (["yes", None], ["yes", "no"])
