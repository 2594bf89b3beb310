"""Peak memory of training on many rows, compared with 1,000 rows.

By default, the test has 40,000 rows. `-m slow` or `python -m tests.data.memory_of_rows` measures 1,000,000 rows.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.memory_of_rows import peak_megabytes


@pytest.mark.parametrize(
    ("rows", "most"), [(40_000, 35), pytest.param(1_000_000, 300, marks=pytest.mark.slow)]
)  # limit in MB above the peak with 1,000 rows
def test_peak_memory_of_many_rows_is_close_to_that_of_1000_rows(rows: int, most: int, tmp_path: Path) -> None:
    (few, _), (many, _) = peak_megabytes((1000, rows), tmp_path)
    assert many - few < most
