"""The recommended bits and threads on a CPU, and measurements that restore the number of threads."""

from __future__ import annotations

import pytest
import torch

from petransfer.training.cpu import speed
from petransfer.training.cpu.speed import Speed, measure_speeds, recommended


def test_the_fewest_threads_that_are_nearly_as_fast_are_recommended() -> None:
    speeds = [Speed(32, 1, 1.0), Speed(16, 1, 5.0), Speed(32, 2, 2.0), Speed(16, 2, 9.2), Speed(16, 4, 10.0)]
    assert recommended(speeds) == Speed(16, 2, 9.2)
    assert recommended(speeds[:1]) == speeds[0]


def test_each_thread_count_is_measured_and_the_original_count_is_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "available_cores", lambda: 3)
    before = torch.get_num_threads()
    found = measure_speeds(0.0)
    assert {(one.bits, one.threads) for one in found} == {(bits, count) for bits in (16, 32) for count in (1, 2, 3)}
    assert all(one.flops > 0 for one in found)
    assert torch.get_num_threads() == before
