"""Parts of a grid for job arrays: each run is in exactly one part, for any order of the cells."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from petransfer.errors import UserError
from petransfer.study.shard import Shard, parse_shard


@dataclass(frozen=True)
class Named:
    """A cell."""

    run_id: str


@given(ids=st.sets(st.text("0123456789abcdef", min_size=1), max_size=60), count=st.integers(1, 9), seed=st.randoms())
def test_each_run_is_in_one_part_and_part_sizes_differ_by_at_most_one(ids: set[str], count: int, seed: object) -> None:
    cells = [Named(name) for name in ids]
    parts = [Shard(index, count).of(cells) for index in range(1, count + 1)]
    assert sorted(cell.run_id for part in parts for cell in part) == sorted(ids)
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    shuffled = list(cells)
    seed.shuffle(shuffled)  # type: ignore[attr-defined]
    for index, part in enumerate(parts, start=1):  # machines can list the cells in different orders
        assert set(Shard(index, count).of(shuffled)) == set(part)


def test_parts_are_numbered_from_one() -> None:
    assert parse_shard("2/8") == Shard(2, 8)
    assert str(parse_shard("8/8")) == "8/8"


@pytest.mark.parametrize("text", ["0/8", "9/8", "1/0", "8", "a/b", "-1/3", "1/2/3", "", "1.0/2"])
def test_an_invalid_part_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=f"--shard {text}"):
        parse_shard(text)
