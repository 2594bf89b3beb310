"""Batches that a thread prepares ahead are equal to batches that are made when they are needed."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from petransfer.data.encoding import Encoded, Layout
from petransfer.training.batch_feed import BatchFeed
from petransfer.training.batches import Batch
from petransfer.training.distributed import this_process

LAYOUT = Layout(encoder_decoder=True, pad_id=0, eos_id=1)


class _Source:
    """A source that records the requested steps and the threads. The batch of step `bad` raises an error."""

    def __init__(self, bad: int = -1) -> None:
        self.asked: list[int] = []
        self.threads: set[str] = set()
        self.bad, self.busy = bad, threading.Lock()

    def batch(self, step: int, process: int, processes: int) -> Batch:
        assert self.busy.acquire(blocking=False), "two batches were requested at the same time"
        self.asked.append(step)
        self.threads.add(threading.current_thread().name)
        self.busy.release()
        if step == self.bad:
            raise ValueError("a row is gone")
        return Batch([Encoded((step + 1, at), (step + 1,)) for at in range(4)], 4, LAYOUT)


def _taken(feed: BatchFeed, sizes: list[int]) -> list[list[list[int]]]:
    found = []
    for step, size in enumerate(sizes):
        _, cuts = feed.take(step, size, 0)
        found.append([cut["input_ids"].flatten().tolist() for cut in cuts])
    return found


def _feed(source: Any, ahead: bool, steps: int = 6) -> BatchFeed:
    feed = BatchFeed(source, steps, this_process(cpu=True))
    feed.ahead = ahead
    return feed


def test_batches_prepared_ahead_are_the_same_and_end_with_the_last_step() -> None:
    plain, ahead = _Source(), _Source()
    sizes = [4, 4, 2, 2, 1, 1]  # smaller, as after running out of memory
    feed = _feed(ahead, True)
    assert _taken(feed, sizes) == _taken(_feed(plain, False), sizes)
    feed.close()
    assert plain.threads == {"MainThread"}
    assert ahead.threads == {"MainThread", "feed_0"}
    assert sorted({*ahead.asked}) == plain.asked == [0, 1, 2, 3, 4, 5]
    assert len(ahead.asked) == 8  # two batches were made again, because the size had changed


def test_the_next_batch_is_prepared_during_the_current_step() -> None:
    source = _Source()
    feed = _feed(source, True)
    feed.take(0, 4, 0)
    feed.wait()
    assert source.asked == [0, 1]
    feed.close()
    feed.take(3, 4, 0)
    feed.close()
    assert source.asked[2] == 3


def test_an_error_in_a_batch_is_raised_at_the_step_of_the_batch() -> None:
    feed = _feed(_Source(bad=1), True)
    feed.take(0, 4, 0)
    with pytest.raises(ValueError, match="a row is gone"):
        feed.take(1, 4, 0)
    feed.close()
