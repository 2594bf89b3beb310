"""The training loop: learning rate, optimiser, self-checks, losses, out-of-memory errors and training states."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from petransfer.data import load_task
from petransfer.data.encoding import Encoded, encode_examples
from petransfer.errors import RunError
from petransfer.memory.tensor_tracker import Tracker
from petransfer.methods import apply_method
from petransfer.models.loading import load_checkpoint
from petransfer.models.registry import checkpoint_spec
from petransfer.recipe.run_spec import TrainSpec
from petransfer.training import out_of_memory, self_checks
from petransfer.training.batches import ShuffledExamples
from petransfer.training.distributed import SingleProcess, this_process
from petransfer.training.execution import Execution
from petransfer.training.hooks import Hooks
from petransfer.training.loop import Loop
from petransfer.training.losses import token_loss
from petransfer.training.metrics_file import MetricsFile, read_metrics
from petransfer.training.optimizer import make_optimizer, schedule_factor
from petransfer.training.out_of_memory import is_out_of_memory
from petransfer.training.self_checks import SelfChecks, _not_finite
from petransfer.training.state import Progress, load_state, save_state, trained_tensors
from tests.conftest import FULL, LORA

SPEC = TrainSpec(steps=100, batch_size=8, learning_rate=1e-3, warmup=0.1)


def test_the_learning_rate_rises_in_the_warm_up_and_falls_to_its_final_share() -> None:
    factors = [schedule_factor(SPEC, step) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == factors[10] == 1.0
    assert factors[55] == pytest.approx(0.5)
    assert factors[99] == pytest.approx(1 / 90)
    assert schedule_factor(replace(SPEC, final=0.05), 99) == pytest.approx(0.05 + 0.95 / 90)
    assert schedule_factor(replace(SPEC, schedule="cosine"), 55) == pytest.approx(0.5)
    assert schedule_factor(replace(SPEC, schedule="constant"), 99) == 1.0


@given(
    steps=st.integers(1, 500), warmup=st.floats(0, 0.99), final=st.floats(0, 1),
    schedule=st.sampled_from(["linear", "cosine", "constant"]),
)  # fmt: skip
def test_the_learning_rate_is_positive_and_not_above_its_peak(
    steps: int, warmup: float, final: float, schedule: str
) -> None:
    spec = TrainSpec(steps, 1, 1e-3, warmup, schedule, final)  # type: ignore[arg-type]
    for step in range(steps):
        assert 0 < schedule_factor(spec, step) <= 1


def test_rms_scaling_sets_learning_rate_and_weight_decay_of_each_tensor() -> None:
    model = torch.nn.Linear(4, 4)
    with torch.no_grad():
        model.weight.fill_(0.5)
        model.bias.zero_()
    spec = replace(SPEC, rate_scaling="rms", weight_decay=0.01)
    weight, bias = make_optimizer(model, spec).param_groups
    assert (weight["scale"], weight["weight_decay"]) == (pytest.approx(0.5), pytest.approx(0.02))
    assert bias["scale"] == pytest.approx(1e-3)


def test_an_expert_without_a_token_in_the_first_steps_is_no_error() -> None:
    experts = torch.nn.ModuleDict({"expert_0": torch.nn.Linear(2, 2), "expert_1": torch.nn.Linear(2, 2)})
    model = torch.nn.ModuleDict({"mlp": torch.nn.ModuleDict({"experts": experts}), "used": torch.nn.Linear(2, 2)})
    checks = SelfChecks(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(3):
        model["used"](experts["expert_1"](torch.ones(1, 2))).sum().backward()
        checks.before_update(step)
        optimizer.step()
        checks.after_step(step)


def test_a_tensor_without_a_gradient_is_an_error() -> None:
    model = torch.nn.ModuleDict({"used": torch.nn.Linear(2, 2), "unused": torch.nn.Linear(2, 2)})
    checks = SelfChecks(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(2):
        model["used"](torch.ones(1, 2)).sum().backward()
        checks.before_update(step)
        optimizer.step()
        checks.after_step(step)
    with pytest.raises(RunError, match=r"2 of 4 trained tensors got no gradient.*unused"):
        checks.after_step(2)


def test_a_tensor_that_does_not_change_is_an_error() -> None:
    model = torch.nn.Linear(2, 2)
    checks = SelfChecks(model)
    for step in range(2):
        model(torch.ones(1, 2)).sum().backward()
        checks.before_update(step)
        checks.after_step(step)
    with pytest.raises(RunError, match="2 of 2 trained tensors did not change"):
        checks.after_step(2)


@pytest.mark.parametrize(("rate", "value", "moves"), [(1e-8, 1.0, True), (1e-8, 0.0, False), (0.0, 1.0, False)])
def test_a_learning_rate_too_small_to_change_a_tensor_is_no_error(rate: float, value: float, moves: bool) -> None:
    """At the beginning of a warm-up, fp32 has no number between 1 and 1 plus the learning rate."""
    model = torch.nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        model.weight.fill_(value)
    checks = SelfChecks(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    for step in range(2):
        model(torch.ones(1, 2)).sum().backward()
        checks.before_update(step)
    if moves:
        checks.after_step(2, optimizer)
    else:
        with pytest.raises(RunError, match="1 of 1 trained tensors did not change"):
            checks.after_step(2, optimizer)


def test_the_self_checks_need_little_memory_for_a_large_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_checks, "_PART", 1000)
    table, tracker = torch.arange(10_000.0).view(100, 100), Tracker("cpu", lambda tensor: "copies")
    tracker.count(table, "table")
    with tracker:
        found = self_checks._fingerprint(table)
    assert found == (sum(range(10_000)), sum(number**2 for number in range(10_000)))
    assert tracker.peak["copies"] < 3 * 8 * 1000


def test_a_model_without_trained_tensors_is_an_error() -> None:
    with pytest.raises(RunError, match="nothing is trained"):
        SelfChecks(torch.nn.Linear(2, 2).requires_grad_(False))


def test_out_of_memory_errors_are_recognised() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes"))
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    with pytest.raises(RuntimeError) as found:
        torch.empty(2**55)
    assert is_out_of_memory(found.value)
    assert not is_out_of_memory(RuntimeError("shapes cannot be multiplied"))


def test_metrics_are_shortened_and_a_half_written_line_is_ignored(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    metrics.append({"step": 1, "loss": 1.0, "seconds": 0.1})
    length = metrics.size()
    metrics.append({"step": 2, "loss": 1.0, "seconds": 0.2})
    metrics.path.open("a").write('{"step": 3')
    assert [line["step"] for line in read_metrics(metrics.path)] == [1, 2]
    metrics.cut(length)
    assert [line["step"] for line in read_metrics(metrics.path)] == [1]


def test_shortening_metrics_after_a_line_was_removed_adds_no_bytes(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    for step in (1, 2):
        metrics.append({"step": step, "loss": 1.0, "seconds": 0.1})
    length = metrics.size()
    metrics.path.write_text(metrics.path.read_text().splitlines()[1] + '\n{"step": 3')
    metrics.cut(length)
    metrics.append({"step": 4, "loss": 1.0, "seconds": 0.1})
    assert [line["step"] for line in read_metrics(metrics.path)] == [2, 4]


@cache
def _encoded_examples(checkpoint: Path) -> list[Encoded]:
    loaded = load_checkpoint(checkpoint_spec(str(checkpoint)), 32)
    return encode_examples(load_task("scan").load("length").train[:60], "", loaded.tokenizer, loaded.layout)


@pytest.fixture(scope="module")
def finished(tiny_t5: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished loop. Tests that change files or resume use a copy."""
    folder = tmp_path_factory.mktemp("finished")
    loop = make_loop(tiny_t5, folder)
    loop.progress.token_budget = 64
    loop.run()
    assert loop.progress.micro_batch == 8
    return folder


@pytest.fixture
def copy_of_finished(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "finished")


def make_loop(checkpoint: Path, folder: Path, cpu: bool = True, save_every: float = 0.0, **options: Any) -> Loop:
    """Return a loop of eight steps, with a line of metrics after every fourth step."""
    process = this_process(cpu)
    loaded = load_checkpoint(checkpoint_spec(str(checkpoint)), 32, device=process.device)
    examples = _encoded_examples(checkpoint)
    early_stopping = options.pop("early_stopping", None)
    spec = TrainSpec(steps=8, batch_size=8, learning_rate=2e-3, early_stopping=early_stopping)
    hooks = options.pop("hooks", Hooks())
    execution = Execution(log_every=4, save_every=save_every, micro_batch=options.pop("micro_batch", 0))
    model = apply_method(loaded, options.pop("method", LORA), 0).to(process.device)
    return Loop(
        model, ShuffledExamples(examples, 8, 0, loaded.layout), spec, process, folder, identity="x", seed=0,
        execution=execution, hooks=hooks, **options,
    )  # fmt: skip


def test_metrics_do_not_depend_on_when_losses_are_read_and_batches_are_made(tiny_t5: Path, tmp_path: Path) -> None:
    lines, read = [], []
    for seldom in (False, True):
        loop = make_loop(
            tiny_t5, tmp_path / str(seldom), save_every=60.0, hooks=Hooks(evaluate_at={6}, evaluate=lambda _: {"at": 6})
        )
        loop.reads_every_step, loop.feed.ahead = not seldom, seldom
        losses: list[int] = []
        loop.hooks.progress = lambda step, *_, loop=loop, losses=losses: losses.append(len(loop._unread))
        loop.run()
        read.append([step for step, left in enumerate(losses, 1) if not left])
        lines.append([{**line, "seconds": 0} for line in read_metrics(loop.metrics.path)])
    assert lines[0] == lines[1]
    assert [line["step"] for line in lines[0]] == [4, 6, 8]
    assert read == [[1, 2, 3, 4, 5, 6, 7, 8], [1, 2, 3, 4, 6, 8]]


class _Diverging:
    """A loss that is NaN from the fifth forward pass on."""

    def __init__(self) -> None:
        self.passes = 0

    def __call__(self, model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        self.passes += 1
        return token_loss(model, batch) * (torch.nan if self.passes >= 5 else 1)


def test_the_error_for_weights_of_a_base_that_are_not_finite_names_the_tensor(tiny_t5: Path, tmp_path: Path) -> None:
    loop = make_loop(tiny_t5, tmp_path)
    frozen = next(value for name, value in loop.model.named_parameters() if ".layer_norm." in name)
    frozen.requires_grad_(False).data.fill_(torch.nan)
    name = r"encoder\.block\.0\.layer\.0\.layer_norm\.weight"
    with pytest.raises(RunError, match=rf"the loss is nan at step 1; {name} of the base holds NaN"):
        loop.run()


def test_the_error_names_a_tensor_of_the_base_that_full_fine_tuning_trains(tiny_t5: Path, tmp_path: Path) -> None:
    """The first update spreads NaN to all trained tensors, so they are checked before it."""
    name = "decoder.block.0.layer.0.SelfAttention.q.weight"
    folder = shutil.copytree(tiny_t5, tmp_path / "broken")
    weights = load_file(folder / "model.safetensors")
    weights[name][0, 0] = torch.nan
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(RunError, match=f"the loss is nan at step 1; {name} of the base holds NaN or infinity"):
        make_loop(folder, tmp_path / "run", method=FULL).run()


def test_a_lower_learning_rate_is_not_advised_for_the_first_step(tiny_t5: Path, tmp_path: Path) -> None:
    loop = make_loop(tiny_t5, tmp_path, loss_function=lambda model, batch: token_loss(model, batch) * torch.inf)
    with pytest.raises(RunError, match="the loss is inf at step 1; no weight has changed yet, so a lower learning"):
        loop.run()


@pytest.mark.parametrize("seldom", [False, True])
@pytest.mark.parametrize(("save_every", "saved"), [(0.0, ["step-000000004"]), (60.0, [])])
def test_a_run_that_diverges_names_the_step_and_saves_no_later_state(
    seldom: bool, save_every: float, saved: list[str], tiny_t5: Path, tmp_path: Path
) -> None:
    loop = make_loop(tiny_t5, tmp_path, save_every=save_every, loss_function=_Diverging())
    loop.reads_every_step = not seldom
    with pytest.raises(RunError, match="the loss is nan at step 5; use a lower learning rate or bits: 32"):
        loop.run()
    assert sorted(path.name for path in (tmp_path / "state").glob("*")) == saved
    assert [line["step"] for line in read_metrics(loop.metrics.path)] == [4]


def test_a_run_that_has_diverged_saves_nothing_when_it_is_asked_to_stop(tiny_t5: Path, tmp_path: Path) -> None:
    seen = {"step": 0}
    hooks = Hooks(lambda step, loss, seconds: seen.update(step=step), lambda: seen["step"] == 6)
    loop = make_loop(tiny_t5, tmp_path, save_every=60.0, hooks=hooks, loss_function=_Diverging())
    loop.reads_every_step = False
    with pytest.raises(RunError, match="the loss is nan at step 5"):
        loop.run()
    assert seen["step"] == 6
    assert not (tmp_path / "state").exists()


def test_a_gradient_that_is_not_finite_ends_the_run_before_its_weights_are_saved(tiny_t5: Path, tmp_path: Path) -> None:
    loop = make_loop(tiny_t5, tmp_path)
    loop.fast_path = None  # only autograd calls hooks
    first = next(iter(trained_tensors(loop.model).values()))
    first.register_hook(lambda gradient: gradient * (torch.inf if loop.progress.step == 7 else 1))
    with pytest.raises(RunError, match=r"the gradient's norm is (nan|inf) at step 8"):
        loop.run()
    assert [path.name for path in (tmp_path / "state").glob("*")] == ["step-000000007"]


def test_an_optimizer_out_of_memory_ends_the_run_without_a_second_attempt(tiny_t5: Path, tmp_path: Path) -> None:
    loop, calls = make_loop(tiny_t5, tmp_path), []

    def fails(*_: Any) -> None:
        calls.append(loop.progress.micro_batch)
        raise torch.OutOfMemoryError("CUDA out of memory")

    loop.optimizer.step = fails  # type: ignore[method-assign, assignment]
    with pytest.raises(RunError, match="out of memory for the optimiser's state; use optimizer: adamw-8bit"):
        loop.run()
    assert len(calls) == 1


def test_a_paged_optimizers_moments_are_loaded_into_its_pages(tmp_path: Path) -> None:
    class Paged(torch.optim.AdamW):
        is_paged = True

        def get_state_buffer(self, parameter: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
            self.pages = [*getattr(self, "pages", []), torch.zeros_like(parameter, dtype=dtype)]
            return self.pages[-1]

    model = torch.nn.Linear(3, 2)
    first = Paged(model.parameters())
    for at, value in enumerate(model.parameters()):
        moment = torch.full(value.shape, at + 1, dtype=torch.uint8)
        first.state[value] = {"step": 4, "state1": moment, "state2": moment, "absmax1": torch.ones(1)}
    save_state(tmp_path, Progress(step=4), model, first, "")
    second = Paged(model.parameters())
    load_state(tmp_path, Progress(step=4), model, second)
    for at, value in enumerate(model.parameters()):
        found = second.state[value]
        assert found["step"] == 4
        assert found["state1"].tolist() == torch.full(value.shape, at + 1).tolist()
        assert any(found["state2"] is page for page in second.pages)
        assert all(found["absmax1"] is not page for page in second.pages)
    assert len(second.pages) == 4


@pytest.mark.gpu
def test_on_a_gpu_an_update_does_not_wait_for_the_device(tiny_t5: Path, tmp_path: Path) -> None:
    loop = make_loop(tiny_t5, tmp_path, cpu=False)
    assert loop.progress.token_budget
    for step in range(4):
        loop.record_step(step, *loop.take_step(step), 0.0)
    batch, cuts = loop.feed.take(4, loop.progress.micro_batch, loop.progress.token_budget)
    assert all(tensor.is_pinned() for cut in cuts for tensor in cut.values())
    total = loop.accumulate(batch, cuts)
    torch.cuda.set_sync_debug_mode("error")
    try:
        loop.record_step(4, *loop.update(4, total, batch.target_tokens), 0.0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert [step for step, *_ in loop._unread] == [4]
    loop.feed.close()


def test_rotary_frequencies_that_are_not_finite_are_found() -> None:
    """The frequencies are computed from config.json. A factor of 0 there makes them infinite."""
    model = torch.nn.Linear(2, 2).requires_grad_(False)
    model.register_buffer("mask", torch.tensor([0.0, -float("inf")]))
    assert _not_finite(model) is None
    model.register_buffer("inv_freq", torch.tensor([1.0, float("inf")]))
    assert _not_finite(model) == "inv_freq"


@pytest.mark.parametrize(("asked", "taken"), [(0, 8), (4, 4), (32, 8)])
def test_a_resumed_run_uses_a_smaller_micro_batch_on_request(
    asked: int, taken: int, tiny_t5: Path, finished: Path
) -> None:
    assert make_loop(tiny_t5, finished, micro_batch=asked).progress.micro_batch == taken


def test_on_a_cpu_a_token_budget_limits_the_micro_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(out_of_memory, "PACKED_TOKENS", 100)
    loop = make_loop(Path("nano/english"), tmp_path)
    assert loop.fast_path
    assert loop.fast_path.skips_padding
    batch, cuts = loop.feed.take(0, loop.progress.micro_batch, loop.progress.token_budget)
    assert len(cuts) > 1
    assert sum(len(cut["labels"]) for cut in cuts) == len(batch.examples) == 8
    assert all(cut["input_ids"].numel() + cut["labels"].numel() <= 100 for cut in cuts if len(cut["labels"]) > 1)
    assert make_loop(Path("nano/english"), tmp_path, micro_batch=4).progress.token_budget == 0


def test_a_run_resumed_with_sharded_tensors_has_no_token_budget(
    tiny_t5: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a budget, the number of passes could differ between processes, which then wait for each other forever."""
    assert make_loop(tiny_t5, finished).progress.token_budget == 64
    monkeypatch.setattr(SingleProcess, "shards_tensors", True)
    assert make_loop(tiny_t5, finished).progress.token_budget == 0


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors"])
def test_the_error_for_a_damaged_state_names_the_file_and_what_to_do(
    name: str, tiny_t5: Path, copy_of_finished: Path
) -> None:
    file = copy_of_finished / "state" / "step-000000008" / name
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(RunError, match=rf"step-000000008/{name} cannot be read .*remove .*step-000000008 to resume"):
        make_loop(tiny_t5, copy_of_finished)


@pytest.mark.parametrize("content", ["[]", "null", '{"identity": "x"}', '{"identity": "x", "progress": {"later": 1}}'])
def test_a_state_whose_progress_cannot_be_read_is_ignored(content: str, tiny_t5: Path, copy_of_finished: Path) -> None:
    assert make_loop(tiny_t5, copy_of_finished).progress.step == 8
    (copy_of_finished / "state" / "step-000000008" / "progress.json").write_text(content)
    assert make_loop(tiny_t5, copy_of_finished).progress.step == 0
