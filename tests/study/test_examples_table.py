"""The file of a run's test examples: equal values in less space than by parquet's defaults."""

from __future__ import annotations

from pathlib import Path

import numpy
import pyarrow
import pyarrow.parquet

from petransfer.study.examples_table import write_table

ROWS = 2000


def test_a_table_of_examples_needs_little_space_and_keeps_its_values(tmp_path: Path) -> None:
    drawn = numpy.random.default_rng(0).normal(size=(2, ROWS))
    table = pyarrow.table(
        {
            "index": numpy.arange(ROWS),
            "category": ["prim_to_subj_proper", "obj_to_subj_common"] * (ROWS // 2),
            "correct": drawn[0] > 0,
            "margin": drawn[0].astype("float32").astype("float64"),  # computed in fp32
            "log_prob": -abs(drawn[1]),
        }
    )
    write_table(table, tmp_path / "small.parquet")
    pyarrow.parquet.write_table(table, tmp_path / "default.parquet")
    assert pyarrow.parquet.read_table(tmp_path / "small.parquet").equals(table)
    assert (tmp_path / "small.parquet").stat().st_size < 0.6 * (tmp_path / "default.parquet").stat().st_size


def test_a_table_without_figures_can_be_written(tmp_path: Path) -> None:
    table = pyarrow.table({"category": ["", ""]})
    write_table(table, tmp_path / "examples.parquet")
    assert pyarrow.parquet.read_table(tmp_path / "examples.parquet").equals(table)
