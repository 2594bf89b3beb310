"""CUDA graphs: steps on padded batches have the same results. On a CPU, the functions are called without a graph."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.trainable_tokens import TrainableTokensLayer

from petransfer.cli import app, call
from petransfer.data import load_task
from petransfer.data.encoding import encode_examples
from petransfer.errors import RunError, UserError
from petransfer.methods import apply_method
from petransfer.models.loading import load_checkpoint
from petransfer.models.registry import checkpoint_spec
from petransfer.recipe.loading import load_recipe
from petransfer.recipe.run_spec import MethodSpec, TrainSpec
from petransfer.study.grid import expand
from petransfer.study.scheduling import Scheduling
from petransfer.training import graphs
from petransfer.training.batches import ShuffledExamples
from petransfer.training.distributed import this_process
from petransfer.training.execution import Execution, check_graphs
from petransfer.training.graphs import GraphedStep, NotCaptured, pad_widths
from petransfer.training.hooks import Hooks
from petransfer.training.loop import Loop
from petransfer.training.metrics_file import read_metrics
from petransfer.training.out_of_memory import OutOfMemory
from petransfer.training.state import trained_tensors
from tests.conftest import LORA

FULL = MethodSpec("full", 32)
TRAIN = TrainSpec(steps=4, batch_size=8, learning_rate=2e-3)
CPU = torch.device("cpu")


def make_loop(folder: Path, method: MethodSpec = LORA, hooks: Hooks | None = None, cpu: bool = True) -> Loop:
    """Return a loop of a few steps on nano/english, which has no dropout. On a GPU, later steps replay a graph."""
    process = this_process(cpu)
    train = TRAIN if cpu else replace(TRAIN, steps=8)
    loaded = load_checkpoint(checkpoint_spec("nano/english"), 32, device=process.device)
    examples = encode_examples(load_task("scan").load("length").train[:60], "", loaded.tokenizer, loaded.layout)
    return Loop(
        apply_method(loaded, method, 0).to(process.device), ShuffledExamples(examples, 8, 0, loaded.layout), train,
        process, folder, identity="x", seed=0, execution=Execution(log_every=1), hooks=hooks or Hooks(),
    )  # fmt: skip


def graphed(folder: Path, **options: Any) -> Loop:
    loop = make_loop(folder, **options)
    loop.use_graphs()
    return loop


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Loop:
    """A loop with LoRA that was run without graphs."""
    loop = make_loop(tmp_path_factory.mktemp("plain"))
    loop.run()
    loop.save()
    return loop


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Loop:
    """A loop with LoRA that was run with graphs and without interruption."""
    loop = graphed(tmp_path_factory.mktemp("whole"))
    loop.run()
    return loop


def check_equal(left: Loop, right: Loop, weights: bool = True) -> None:
    """Check that two loops ended with the same losses, norms and weights, except for rounding."""
    lines = [read_metrics(loop.metrics.path) for loop in (left, right)]
    for name in ("loss", "grad_norm", "learning_rate"):
        values = [[line[name] for line in each] for each in lines]
        assert len(values[0]) == left.spec.steps
        assert values[0] == pytest.approx(values[1], rel=1e-4)
    tensors = [trained_tensors(loop.model) for loop in (left, right)]
    for name, value in tensors[0].items() if weights else ():
        assert torch.allclose(value, tensors[1][name], atol=2e-4), name  # AdamW divides by gradients near zero


@pytest.mark.parametrize("method", [LORA, FULL], ids=["lora", "full"])
def test_steps_with_graphs_equal_the_steps_of_the_plain_loop(method: MethodSpec, plain: Loop, tmp_path: Path) -> None:
    padded = graphed(tmp_path / "padded", method=method)
    if method != LORA:
        plain = make_loop(tmp_path / "plain", method)
        plain.run()
    shapes = set()
    step = padded.graphed
    assert step is not None
    original = step._pass_of

    def record(batch: dict[str, torch.Tensor]) -> Any:
        shapes.update(value.shape[1] for value in batch.values())
        return original(batch)

    step._pass_of = record  # type: ignore[method-assign]
    padded.run()
    check_equal(plain, padded)
    assert shapes
    assert all(width % 16 == 0 for width in shapes)
    assert padded.progress.notes["cuda_graphs"]
    assert "cuda_graphs" not in plain.progress.notes


@pytest.mark.parametrize("resumed", [graphed, make_loop], ids=["graphed", "plain"])
def test_a_run_with_graphs_resumes_with_or_without_graphs(resumed: Any, whole: Loop, tmp_path: Path) -> None:
    half = graphed(tmp_path / "half")
    half.model.train()
    for step in range(2):
        half.record_step(step, *half.take_step(step), 0.0)
    half.save()
    again = resumed(tmp_path / "half")
    assert again.progress.step == 2
    again.run()
    check_equal(whole, again)


@pytest.mark.parametrize("error", [OutOfMemory("no memory"), NotCaptured("operation not permitted")])
def test_a_run_continues_without_graphs_after_a_graph_failed(
    error: Exception, plain: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    padded = graphed(tmp_path / "padded")
    original = GraphedStep._forward_and_backward
    calls = iter(range(100))

    def failing(self: GraphedStep, batch: dict[str, torch.Tensor]) -> None:
        original(self, batch)
        if next(calls) == 1:  # after the gradient was added
            raise error

    monkeypatch.setattr(GraphedStep, "_forward_and_backward", failing)
    padded.run()
    assert next(calls) == 2  # later passes do not use the graphs
    assert padded.progress.out_of_memory == 0
    assert padded.progress.micro_batch == plain.progress.micro_batch
    assert padded.progress.notes["cuda_graphs"] == "ended"
    assert f"without CUDA graphs: {error}" in caplog.text
    check_equal(plain, padded)


def test_with_graphs_trained_rows_do_not_use_the_method_of_peft(tmp_path: Path) -> None:
    """In each pass, peft's method copies from the CPU's memory. A graph cannot capture such a copy."""
    new = replace(LORA, embeddings="new")
    plain, padded = make_loop(tmp_path / "plain", new), graphed(tmp_path / "padded", method=new)
    assert _rows(padded)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("peft's method was called")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainableTokensLayer, "get_merged_weights", refuse)
        padded.model.train()
        padded.record_step(0, *padded.take_step(0), 0.0)
    plain.run()
    padded.run()
    check_equal(plain, padded)
    assert not any("get_merged_weights" in vars(layer) for layer in _rows(padded))  # peft's method is restored


def _rows(loop: Loop) -> list[TrainableTokensLayer]:
    return [layer for layer in loop.model.modules() if isinstance(layer, TrainableTokensLayer)]


def test_shapes_beyond_the_limit_have_no_graph(plain: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "MOST_GRAPHS", 1)
    padded = graphed(tmp_path / "padded")
    seen = []
    padded.hooks.progress = lambda *_: seen.append(len(padded.graphed._passes))  # type: ignore[union-attr]
    padded.run()
    assert set(seen) == {1}
    check_equal(plain, padded)


def test_a_batch_is_not_padded_beyond_the_positions_of_the_model() -> None:
    batch = {"input_ids": torch.ones(2, 20, dtype=torch.long), "labels": torch.ones(2, 3, dtype=torch.long)}
    assert {name: value.shape[1] for name, value in pad_widths(batch, 16, 30).items()} == {
        "input_ids": 20,
        "labels": 16,
    }


def test_graphs_are_not_recorded_for_a_run_that_was_already_finished(plain: Loop) -> None:
    finished = graphed(plain.metrics.path.parent)
    assert finished.finished
    finished.run()
    assert "cuda_graphs" not in finished.progress.notes


def test_with_graphs_a_tensor_without_gradient_is_still_an_error(tmp_path: Path) -> None:
    loop = graphed(tmp_path)
    unused = torch.nn.Parameter(torch.ones(3))
    loop.checks._parameters["unused"] = unused
    loop.checks._without_gradient.add("unused")
    with pytest.raises(RunError, match=r"1 of .* got no gradient .* unused"):
        loop.run()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": [{"name": "lora", "bits": 8}]}, "at 8 bits"),
        ({"methods": [{"name": "prompt", "bits": 32}], "train": {"learning_rate": 1}}, "with method: prompt"),
        ({"train": {"optimizer": "adamw-8bit"}}, "with optimizer: adamw-8bit"),
    ],
)
def test_settings_that_graphs_do_not_support_are_refused(changes: dict[str, Any], message: str) -> None:
    sets = [f"{name}={json.dumps(value)}" for name, value in changes.items() if name != "train"]
    sets += [f"train.{name}={value}" for name, value in changes.get("train", {}).items()]
    spec = expand(load_recipe("smoke", sets))[0].spec
    with pytest.raises(UserError, match=f"CUDA graphs do not work {message}; leave out --cuda-graphs"):
        check_graphs(spec, checkpointing=False, processes=1)


def test_graphs_need_one_process_without_gradient_checkpointing() -> None:
    spec = expand(load_recipe("smoke"))[0].spec
    check_graphs(spec, checkpointing=False, processes=1)
    with pytest.raises(UserError, match="with gradient checkpointing"):
        check_graphs(spec, checkpointing=True, processes=1)
    with pytest.raises(UserError, match="with several processes"):
        check_graphs(spec, checkpointing=False, processes=2)


def test_graphs_need_a_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["run", "--recipe", "smoke"], ["pretrain", "--recipe", "nano"]):
        with pytest.raises(SystemExit) as stopped:
            call(app, [*words, "--cuda-graphs", "--cpu", "--out", str(tmp_path / "out")])
        assert stopped.value.code
        assert "CUDA graphs need a GPU; leave out --cuda-graphs" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_stacks_are_not_combined_with_graphs() -> None:
    kept = Scheduling(stack="4")
    assert kept.without_stacks_if(False, "--cuda-graphs") is kept
    for stack in ("auto", "off", "1"):
        assert Scheduling(stack=stack).without_stacks_if(True, "--cuda-graphs").stack == "off"
    with pytest.raises(UserError, match="--stack 4 cannot be combined"):
        kept.without_stacks_if(True, "--cuda-graphs")


@pytest.mark.gpu
@pytest.mark.parametrize("method", [LORA, replace(LORA, embeddings="new"), FULL], ids=["lora", "new", "full"])
def test_replayed_graphs_equal_the_steps_of_the_plain_loop(method: MethodSpec, tmp_path: Path) -> None:
    plain = make_loop(tmp_path / "plain", method, cpu=False)
    replayed = graphed(tmp_path / "replayed", method=method, cpu=False)
    captured = []

    def count(*_: object) -> None:
        step: Any = replayed.graphed
        captured.append(sum(run._graph is not None for _, run in step._passes.values()))

    replayed.hooks.progress = count
    plain.run()
    replayed.run()
    check_equal(plain, replayed, weights=False)
    assert captured[-1] > captured[0] == 0
