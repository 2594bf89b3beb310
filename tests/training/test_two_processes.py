"""Training in two processes, which exchange gradients, out-of-memory errors, dev scores and stop requests."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import distributed, multiprocessing

from petransfer.data.encoding import Encoded, Layout
from petransfer.errors import Interrupted, UserError
from petransfer.recipe.run_spec import EarlyStopping, TrainSpec
from petransfer.training.batches import ShuffledExamples
from petransfer.training.distributed import this_process
from petransfer.training.distributed.collectives import CHUNK_BYTES, agree, sum_gradients
from petransfer.training.early_stopping import EarlyStopper, StoppingState
from petransfer.training.execution import Execution
from petransfer.training.hooks import Hooks
from petransfer.training.loop import Loop

SPEC = TrainSpec(steps=4, batch_size=8, learning_rate=0.05, max_grad_norm=0.5)
EXAMPLES = [Encoded(tuple(range(1, 2 + at % 3)), (at % 5 + 1, 9)[: 1 + at % 2]) for at in range(20)]


class Small(torch.nn.Module):
    """A small model. `squares` uses it to predict the target tokens from the sum of the input tokens."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.body, self.seldom = torch.nn.Linear(1, 3), torch.nn.Linear(3, 1)


def squares(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the squared error, summed over the target tokens, as the loop requires."""
    source = (batch["input_ids"] * batch["attention_mask"]).sum(1, keepdim=True).float()
    labels = batch["labels"]
    guess = model.seldom(torch.tanh(model.body(source / 10)))
    return ((guess - labels.clamp(min=0) / 10).square() * (labels >= 0)).sum()


def _loop(folder: Path, loss: Any, batch_size: int = 8, **hooks: Any) -> Loop:

    layout = Layout(encoder_decoder=True, pad_id=0, eos_id=9)
    spec = TrainSpec(**{**vars(SPEC), "batch_size": batch_size})
    return Loop(
        Small(), ShuffledExamples(EXAMPLES, batch_size, 0, layout), spec, this_process(cpu=True), folder,
        identity="small", seed=0, execution=Execution(micro_batch=4, log_every=1), hooks=Hooks(**hooks),
        loss_function=loss,
    )  # fmt: skip


def _process(rank: int, port: int, folder: str, job: Any) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="localhost")
    os.environ.update(MASTER_PORT=str(port), OMP_NUM_THREADS="1")
    torch.set_num_threads(1)
    AcceleratorState._reset_state(reset_partial_state=True)  # the state copied from the parent process
    found = job(rank, Path(folder))
    (Path(folder) / f"{rank}.json").write_text(json.dumps(found))
    if distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()


def in_two(folder: Path, job: Any) -> list[Any]:
    """Run `job(rank, folder)` in each of two processes and return both results."""
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    # forked, because importing torch in both processes takes ten seconds
    multiprocessing.start_processes(_process, args=(port, str(folder), job), nprocs=2, start_method="fork")
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


def _trained(loop: Loop) -> dict[str, Any]:
    progress = loop.run()
    values = [value.tolist() for value in loop.model.parameters()]
    return {"values": values, "out_of_memory": progress.out_of_memory, "micro_batch": progress.micro_batch}


def _stopped_early(rank: int, folder: Path) -> dict[str, Any]:
    """Train with early stopping and different dev scores in the two processes. The first process's scores count."""
    seen: dict[int, Any] = {}

    def evaluate(_: int) -> dict[str, Any]:
        step = loop.progress.step
        seen[step] = [value.tolist() for value in loop.model.parameters()]
        return {"dev_em": [5.0, 9.0, 7.0, 8.0][step - 1] + 10 * step * rank, "dev_loss": 1.0}

    loop = _loop(folder, squares, evaluate_at={1, 2, 3, 4}, evaluate=evaluate)
    loop.dev.stopper = EarlyStopper(EarlyStopping(patience=1), StoppingState())
    progress = loop.run()
    values = [value.tolist() for value in loop.model.parameters()]
    return {"step": progress.step, **progress.early_stopping, "is_best": values == seen[2]}


def everything(rank: int, folder: Path) -> dict[str, Any]:
    """Run all checks of two processes in one launch, because starting processes is slow."""

    def short(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        if rank == 1 and len(batch["labels"]) > 2:
            raise MemoryError("out of memory")
        return squares(model, batch)

    found = {"plain": _trained(_loop(folder / "plain", squares)), "short": _trained(_loop(folder / "short", short))}
    asked: list[int] = []

    def told() -> bool:
        asked.append(1)
        return rank == 1 and len(asked) >= 2

    loop = _loop(folder / "stopped", squares, should_stop=told)
    try:
        loop.run()
    except Interrupted:
        found["stopped_at"] = loop.progress.step
    found["early"] = _stopped_early(rank, folder / "early")
    try:
        _loop(folder / "few", squares, batch_size=1)
    except UserError as error:
        found["few"] = str(error)
    try:
        _loop(folder / f"own-{rank}" if rank else folder / "stopped", squares)
    except UserError as error:
        found["folders"] = str(error)
    found["agreed"] = agree([rank, 1, 0], torch.device("cpu"))
    parameters = [torch.nn.Parameter(torch.zeros(size)) for size in (3, 2, CHUNK_BYTES // 4 + 1)]
    parameters[0].grad = torch.full((3,), 1.0 + rank)
    if rank == 0:
        parameters[2].grad = torch.ones(CHUNK_BYTES // 4 + 1)
    sum_gradients(parameters, [2, 0, 1])
    found["summed"] = [None if value.grad is None else value.grad.unique().tolist() for value in parameters]
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The results of `everything` in the two processes."""
    return in_two(tmp_path_factory.mktemp("two"), everything)


def test_two_processes_train_the_same_weights_as_one(found: list[dict[str, Any]], tmp_path: Path) -> None:
    alone = _trained(_loop(tmp_path, squares))
    assert found[0]["plain"] == found[1]["plain"]  # bitwise equal
    for left, right in zip(alone["values"], found[0]["plain"]["values"], strict=True):
        assert torch.tensor(right) == pytest.approx(torch.tensor(left), rel=1e-5, abs=1e-7)


def test_if_one_process_runs_out_of_memory_both_halve_the_micro_batch(found: list[dict[str, Any]]) -> None:
    for one in found:
        assert (one["plain"]["out_of_memory"], one["plain"]["micro_batch"]) == (0, 4)
        assert (one["short"]["out_of_memory"], one["short"]["micro_batch"]) == (1, 2)
        for left, right in zip(one["plain"]["values"], one["short"]["values"], strict=True):
            assert torch.tensor(right) == pytest.approx(torch.tensor(left), rel=1e-5, abs=1e-7)
    assert found[0]["short"] == found[1]["short"]


def test_both_processes_stop_early_at_the_same_step_with_the_best_weights(found: list[dict[str, Any]]) -> None:
    for one in found:
        early = one["early"]
        assert (early["step"], early["best_step"], early["stop_reason"]) == (3, 2, "no_improvement")
        assert early["best_exact_match"] == 9.0
        assert early["is_best"]


def test_both_processes_stop_at_the_same_step_if_one_gets_a_stop_request(found: list[dict[str, Any]]) -> None:
    assert [one["stopped_at"] for one in found] == [2, 2]


def test_small_batches_and_different_folders_are_refused_in_both_processes(found: list[dict[str, Any]]) -> None:
    for one in found:
        assert "a batch of 1 cannot be shared by 2 processes" in one["few"]
        assert "the processes do not see the same files" in one["folders"]


def test_values_and_gradients_are_summed_even_if_only_one_process_has_one(found: list[dict[str, Any]]) -> None:
    for one in found:
        assert one["agreed"] == [1, 2, 0]
        assert one["summed"] == [[3.0], None, [1.0]]
