"""A kill at any moment leaves a complete training state. Sharded tensors are saved without a copy on the device."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from petransfer.study.folders import RunFolder
from petransfer.training.state import Progress, _copy, newest_progress, save_state

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the test forks")


def _save(folder: Path, loss_sum: float) -> None:
    model = torch.nn.Linear(2, 1)
    save_state(folder, Progress(step=4, loss_sum=loss_sum), model, torch.optim.AdamW(model.parameters()), "run")


@pytest.mark.parametrize("instant", range(6))
def test_a_kill_while_a_state_is_overwritten_leaves_a_complete_state(instant: int, tmp_path: Path) -> None:
    state = tmp_path / "state"
    _save(state, 1.0)
    child = os.fork()
    if child == 0:
        left = [instant]

        def counted(function: object) -> object:
            def call(*args: object, **options: object) -> object:
                if left[0] == 0:
                    os._exit(9)
                left[0] -= 1
                return function(*args, **options)  # type: ignore[operator]

            return call

        Path.rename = counted(Path.rename)  # type: ignore[assignment]
        shutil.rmtree = counted(shutil.rmtree)  # type: ignore[assignment]
        os.unlink = counted(os.unlink)  # type: ignore[assignment]
        _save(state, 2.0)
        os._exit(0)
    os.waitpid(child, 0)
    with RunFolder(tmp_path).claim() as claimed:
        assert claimed
        found = newest_progress(state, "run")
    assert found is not None
    assert found.loss_sum in (1.0, 2.0)
    assert sorted(path.name for path in (state / "step-000000004").iterdir()) == [
        "model.safetensors",
        "optimizer.safetensors",
        "progress.json",
    ]


def test_a_sharded_moment_is_not_copied_on_its_device() -> None:
    """A GPU that holds a part of the optimiser's state can lack the memory for a copy."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        moment = distribute_tensor(torch.ones(4), init_device_mesh("cpu", (1,)), [Shard(0)])
        copied = _copy(moment)
        assert isinstance(copied, DTensor)
        assert copied.to_local().data_ptr() == moment.to_local().data_ptr()
    finally:
        distributed.destroy_process_group()
