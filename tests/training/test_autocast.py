"""The forward pass in bf16 with weights in fp32, and runs in a process with a user's own Accelerator."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState

from petransfer.training.autocast import autocast_forward
from petransfer.training.distributed import Process, this_process

CPU = torch.device("cpu")


def test_a_forward_pass_computes_in_bf16_and_returns_fp32() -> None:
    torch.manual_seed(0)
    model, rows = torch.nn.Linear(64, 8), torch.randn(4, 64)
    exact = model(rows)
    narrow = torch.nn.functional.linear(rows.bfloat16(), model.weight.bfloat16(), model.bias.bfloat16())
    autocast_forward(model, CPU)
    found = model(rows)
    assert found.dtype == torch.float32
    assert torch.equal(found, narrow.float())
    assert not torch.equal(found, exact)


def test_a_copy_of_the_model_computes_with_its_own_weights() -> None:
    model = torch.nn.Linear(4, 4)
    autocast_forward(model, CPU)
    other = copy.deepcopy(model)
    torch.nn.init.zeros_(other.weight)
    torch.nn.init.zeros_(other.bias)
    assert not other(torch.ones(1, 4)).any()


@pytest.fixture
def users_accelerator() -> Iterator[Accelerator]:
    AcceleratorState._reset_state()
    yield Accelerator(mixed_precision="bf16", cpu=True)
    AcceleratorState._reset_state()


def test_a_users_own_accelerator_keeps_its_precision(users_accelerator: Accelerator) -> None:
    assert this_process(cpu=True) == Process(CPU)
    assert users_accelerator.mixed_precision == "bf16"


def test_apple_gpus_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Apple's GPUs have no fp64, and losses are summed in fp64."""
    monkeypatch.setattr("accelerate.state.is_mps_available", lambda *_, **__: True)
    PartialState._reset_state()
    try:
        assert this_process(cpu=torch.cuda.is_available()) == Process(CPU)
    finally:
        PartialState._reset_state()
