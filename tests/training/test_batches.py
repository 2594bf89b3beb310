"""Micro-batches within a token budget, and the random order of the examples."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from petransfer.data.encoding import Encoded, Layout
from petransfer.training import batches
from petransfer.training.batches import IGNORED, Batch, ShuffledExamples

LAYOUT = Layout(encoder_decoder=True, pad_id=0, eos_id=1)
LENGTHS = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 40)), min_size=1, max_size=40)


@given(lengths=LENGTHS, size=st.integers(1, 40), budget=st.integers(1, 600), encoder_decoder=st.booleans())
def test_each_example_is_in_one_micro_batch_within_the_token_budget(
    lengths: list[tuple[int, int]], size: int, budget: int, encoder_decoder: bool
) -> None:
    # the tokens of an example are all equal and identify the example
    examples = [Encoded((at + 1,) * source, (at + 1,) * target) for at, (source, target) in enumerate(lengths)]
    batch = Batch(examples, 1, replace(LAYOUT, encoder_decoder=encoder_decoder))
    found = []
    for cut in batch.micro_batches(size, budget):
        rows = len(cut["labels"])
        read = [name for name in ("input_ids", "decoder_input_ids") if name in cut]
        assert rows == 1 or (rows <= size and sum(cut[name].numel() for name in read) <= budget)
        for row in cut["labels"]:
            asked = row[row != IGNORED]
            found.append((int(asked[0]), len(asked)))
    assert sorted(found) == [(at + 1, target) for at, (_, target) in enumerate(lengths)]


@pytest.mark.parametrize("encoder_decoder", [True, False])
def test_examples_of_similar_length_share_a_micro_batch(encoder_decoder: bool) -> None:
    # the two lengths alternate; for a decoder-only model, the shorter input has the longer target
    pairs = [(2, 2), (20, 20)] if encoder_decoder else [(30, 2), (2, 4)]
    examples = [Encoded((1,) * source, (1,) * target) for _ in range(8) for source, target in pairs]
    batch = Batch(examples, 1, replace(LAYOUT, encoder_decoder=encoder_decoder))
    padded = [int((cut["attention_mask"] == 0).sum()) for cut in batch.micro_batches(16, 160)]
    assert padded[0] == 0
    assert sum(padded) <= 20


def test_each_source_computes_its_own_order_once_per_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The runs of a stack take their batches in turn."""
    made: list[tuple[int, int]] = []
    order = batches._order

    def counted(count: int, seed: int, epoch: int) -> np.ndarray:
        made.append((seed, epoch))
        return order(count, seed, epoch)

    monkeypatch.setattr(batches, "_order", counted)
    examples = [Encoded((at,), (at, 1)) for at in range(10)]
    sources = [ShuffledExamples(examples, 4, seed, Layout(True, 0, 1)) for seed in range(4)]
    seen: list[list[int]] = [[] for _ in sources]
    for step in range(5):  # two epochs
        for source, ids in zip(sources, seen, strict=True):
            ids += [example.input_ids[0] for example in source.batch(step, 0, 1).examples]
    assert sorted(made) == [(seed, epoch) for seed in range(4) for epoch in (0, 1)]
    for seed, ids in enumerate(seen):
        assert ids == [*order(10, seed, 0), *order(10, seed, 1)]
