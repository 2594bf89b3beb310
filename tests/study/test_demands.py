"""What a run asks of a cluster's nodes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from petransfer.errors import UserError
from petransfer.recipe.loading import load_recipe
from petransfer.study.grid import expand
from petransfer.study.resource_demands import ON_CPU, Demands, demands_of, together

GB = 2**30
SPEC = expand(load_recipe("smoke"))[0].spec


def test_on_a_cpu_a_run_asks_for_its_threads_and_the_memory_of_a_worker() -> None:
    assert demands_of(SPEC, None, threads=4) == Demands(cpus=4, memory=ON_CPU)
    assert demands_of(SPEC, None, threads=0) == Demands(cpus=1, memory=ON_CPU)


def test_and_for_what_the_planner_foresees_there(tiny_t5: object) -> None:
    spec = replace(SPEC, checkpoint=replace(SPEC.checkpoint, name=str(tiny_t5)))
    small, large = (
        demands_of(replace(spec, train=replace(spec.train, batch_size=size)), None, threads=1).memory - ON_CPU
        for size in (1, 32)
    )
    assert 0 < small < large
    nowhere = replace(SPEC, checkpoint=replace(SPEC.checkpoint, name="nobody/nothing"))
    assert demands_of(nowhere, None, threads=1).memory == ON_CPU


def test_a_stack_asks_for_no_more_than_its_runs_and_less_processes() -> None:
    one = Demands(cpus=2, gpus=0.2, memory=3 * GB)
    assert together([one]) == one
    assert together([one, one]) == Demands(2, 0.4, 4 * GB)
    assert together([one, one, one]) == Demands(2, 1.0, 5 * GB)  # more than a half leaves no room for another


def test_embedded_checkpoints_share_a_card() -> None:
    assert demands_of(SPEC, 24 * GB, threads=1).gpus == pytest.approx(0.09)
    assert demands_of(SPEC, 3 * GB, threads=1).gpus == 1.0  # more than a half leaves no room for another


def test_what_the_planner_foresees_is_asked_for(tiny_t5: object) -> None:
    spec = replace(SPEC, checkpoint=replace(SPEC.checkpoint, name=str(tiny_t5)))
    wanted = demands_of(spec, 24 * GB, threads=1)
    assert 0 < wanted.gpus < 0.5
    assert wanted.memory > 2 * GB
    with pytest.raises(UserError, match="--force tries all the same"):
        demands_of(spec, GB // 1000, threads=1)
    assert demands_of(spec, GB // 1000, threads=1, force=True).gpus == 1.0
