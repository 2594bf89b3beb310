"""Parts of a grid for job arrays: nothing lost, nothing twice, whatever the order of the cells."""

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
def test_the_parts_are_the_whole_and_differ_by_one_run_at_most(ids: set[str], count: int, seed: object) -> None:
    cells = [Named(name) for name in ids]
    parts = [Shard(index, count).of(cells) for index in range(1, count + 1)]
    assert sorted(cell.run_id for part in parts for cell in part) == sorted(ids)
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    shuffled = list(cells)
    seed.shuffle(shuffled)  # type: ignore[attr-defined]
    for index, part in enumerate(parts, start=1):  # machines need not list the cells in one order
        assert set(Shard(index, count).of(shuffled)) == set(part)


def test_the_parts_are_counted_from_one() -> None:
    assert parse_shard("2/8") == Shard(2, 8)
    assert str(parse_shard("8/8")) == "8/8"


@pytest.mark.parametrize("text", ["0/8", "9/8", "1/0", "8", "a/b", "-1/3", "1/2/3", "", "1.0/2"])
def test_what_is_no_part_is_refused_in_a_line(text: str) -> None:
    with pytest.raises(UserError, match=f"--shard {text}"):
        parse_shard(text)
