"""The cores, GPU share and memory that a run requests from a cluster."""

from __future__ import annotations

from dataclasses import replace

import pytest

from petransfer.errors import UserError
from petransfer.recipe.loading import load_recipe
from petransfer.study.grid import expand
from petransfer.study.resource_demands import ON_CPU, Resources, resources_of, stack_resources

GB = 2**30
SPEC = expand(load_recipe("smoke"))[0].spec


def test_a_run_on_a_cpu_requests_its_threads_and_the_memory_of_a_worker() -> None:
    assert resources_of(SPEC, None, threads=4) == Resources(cpus=4, memory=ON_CPU)
    assert resources_of(SPEC, None, threads=0) == Resources(cpus=1, memory=ON_CPU)


def test_a_run_on_a_cpu_also_requests_its_predicted_memory(tiny_t5: object) -> None:
    spec = replace(SPEC, checkpoint=replace(SPEC.checkpoint, name=str(tiny_t5)))
    small, large = (
        resources_of(replace(spec, train=replace(spec.train, batch_size=size)), None, threads=1).memory - ON_CPU
        for size in (1, 32)
    )
    assert 0 < small < large
    nowhere = replace(SPEC, checkpoint=replace(SPEC.checkpoint, name="nobody/nothing"))
    assert resources_of(nowhere, None, threads=1).memory == ON_CPU


def test_the_demands_of_a_stack_count_cores_and_process_memory_once() -> None:
    one = Resources(cpus=2, gpus=0.2, memory=3 * GB)
    assert stack_resources([one]) == one
    assert stack_resources([one, one]) == Resources(2, 0.4, 4 * GB)
    # a share above one half leaves no room for another task
    assert stack_resources([one, one, one]) == Resources(2, 1.0, 5 * GB)


def test_an_embedded_checkpoint_requests_a_share_of_a_gpu() -> None:
    assert resources_of(SPEC, 24 * GB, threads=1).gpus == pytest.approx(0.09)
    assert resources_of(SPEC, 3 * GB, threads=1).gpus == 1.0  # a share above one half leaves no room for another task


def test_a_run_on_a_gpu_requests_its_predicted_memory_and_is_refused_if_too_large(tiny_t5: object) -> None:
    spec = replace(SPEC, checkpoint=replace(SPEC.checkpoint, name=str(tiny_t5)))
    wanted = resources_of(spec, 24 * GB, threads=1)
    assert 0 < wanted.gpus < 0.5
    assert wanted.memory > 2 * GB
    with pytest.raises(UserError, match="--force starts the run anyway"):
        resources_of(spec, GB // 1000, threads=1)
    assert resources_of(spec, GB // 1000, threads=1, force=True).gpus == 1.0
