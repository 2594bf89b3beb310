"""Memory does not grow with the rows: 40,000 here, 1,000,000 by hand (`-m slow`, or python -m ...memory_of_rows)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.memory_of_rows import peak_megabytes


@pytest.mark.parametrize(
    ("rows", "most"), [(40_000, 35), pytest.param(1_000_000, 300, marks=pytest.mark.slow)]
)  # MB more than with 1,000 rows
def test_the_peak_is_that_of_few_rows(rows: int, most: int, tmp_path: Path) -> None:
    (few, _), (many, _) = peak_megabytes((1000, rows), tmp_path)
    assert many - few < most
