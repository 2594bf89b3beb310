"""Invariant 2: a stack of K adapters gives the results of K single runs, and the same folders."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM, BartConfig

from petransfer.errors import Interrupted, UserError
from petransfer.memory.measured import peak_of
from petransfer.memory.planner import largest_stack, on_card
from petransfer.memory.step_memory import StepSpec, simulate
from petransfer.methods import apply_method
from petransfer.models.loading import load_checkpoint
from petransfer.models.registry import checkpoint_spec
from petransfer.recipe.methods import METHODS
from petransfer.recipe.run_spec import RunSpec
from petransfer.recipe.stacking import stack_key
from petransfer.study.folders import StudyFolder
from petransfer.study.grid import Cell
from petransfer.study.stack_groups import stacks_of
from petransfer.training.batches import Batch, Tensors
from petransfer.training.losses import token_loss
from petransfer.training.stacked.layers import refuse_layer_drop, shared_copy
from petransfer.training.stacked.stacked_loop import accumulate, make_stack, shares_passes
from petransfer.training.state import trained_tensors
from tests.conftest import LORA
from tests.invariants import stacks
from tests.invariants.stacks import (
    SETTINGS,
    WEIGHTS,
    KilledError,
    Make,
    assert_close,
    assert_identical,
    killed_at,
    members,
    run_alone,
    run_stacked,
    run_study,
)


def _settings_of_tests(patch: pytest.MonkeyPatch) -> None:
    """Let the members of a stack share passes, as on a GPU, and evaluate twice per run. Some tests change this."""
    patch.setattr("petransfer.training.stacked.stacked_loop.shares_passes", lambda device: True)
    patch.setattr("petransfer.study.run_scoring.CURVE_POINTS", 2)


def _without_reload_check(patch: pytest.MonkeyPatch) -> None:
    """Do not load saved adapters again, which takes as long as training them. One test keeps this check."""
    patch.setattr("petransfer.study.single_run.check_reloaded", lambda *_: True)


@pytest.fixture(autouse=True)
def _fast_and_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    _settings_of_tests(monkeypatch)


@pytest.fixture
def no_reload_check(monkeypatch: pytest.MonkeyPatch) -> None:
    _without_reload_check(monkeypatch)


@pytest.fixture(scope="module")
def pair(dropping: list[RunSpec]) -> list[RunSpec]:
    """Specs of two runs that differ in all settings in which the members of a stack may differ."""
    return dropping[1:]


@pytest.fixture(scope="module")
def whole(pair: list[RunSpec], tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    """A joined stack of two runs without interruption."""
    with pytest.MonkeyPatch.context() as patch:
        _settings_of_tests(patch)
        _without_reload_check(patch)
        return run_study(pair, tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize(
    ("kind", "changes", "count", "tolerance"),
    [
        ("tiny_t5", {"dropout": 0.2}, 3, 1e-5),
        ("tiny_gpt2", {"dropout": 0.2}, 3, 1e-5),
        pytest.param("tiny_t5", {"name": "rslora"}, 3, 1e-5, marks=pytest.mark.slow),
        ("tiny_t5", {"embeddings": "trained"}, 2, 1e-5),
        pytest.param("tiny_gpt2", {"embeddings": "trained"}, 3, 1e-5, marks=pytest.mark.slow),
        pytest.param("tiny_t5", {"bits": 16}, 3, 1e-2, marks=pytest.mark.slow),
        pytest.param("tiny_gpt2", {"bits": 8}, 3, 1e-2, marks=pytest.mark.slow),
        pytest.param("tiny_t5", {"bits": 8}, 2, 1e-2, marks=pytest.mark.slow),
        ("tiny_t5", {"bits": 4}, 2, 1e-2),
    ],
    ids=["t5", "gpt2", "rslora", "t5-rows", "gpt2-rows", "t5-bf16", "gpt2-8", "t5-8", "t5-4"],
)
def test_a_joined_stack_gives_the_results_of_single_runs(
    kind: str,
    changes: dict[str, Any],
    count: int,
    tolerance: float,
    make: Make,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # on a CPU with AVX-512 BF16, bitsandbytes repacks 4-bit weights for kernels that do not support such small layers
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)
    spec = make(request.getfixturevalue(kind))
    specs = members(replace(spec, method=replace(spec.method, **changes)))[:count]
    with monkeypatch.context() as patch:
        _without_reload_check(patch)
        alone = run_alone(specs, tmp_path / "alone")
    stacked = run_stacked(specs, tmp_path / "stacked")
    for one, other in zip(alone, stacked, strict=True):
        assert_close(one, other, tolerance)


@pytest.mark.usefixtures("no_reload_check")
def test_a_token_budget_cuts_batches_of_a_stack_like_those_of_single_runs(
    make: Make, tiny_t5: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dropout depends on the cuts. Members whose cuts differ take separate passes."""
    monkeypatch.setattr("petransfer.training.initial_progress.default_token_budget", lambda *_: 90)
    monkeypatch.setattr(stacks, "SETTINGS", replace(SETTINGS, execution=replace(SETTINGS.execution, micro_batch=0)))
    spec = make(tiny_t5)
    specs = members(replace(spec, method=replace(spec.method, dropout=0.2)))[:2]
    alone, stacked = run_alone(specs, tmp_path / "alone"), run_stacked(specs, tmp_path / "stacked")
    for one, other in zip(alone, stacked, strict=True):
        assert_close(one, other, 1e-5)


@pytest.mark.usefixtures("no_reload_check")
def test_a_stack_without_shared_passes_is_identical_to_single_runs(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a CPU: each member has its own step on the fast path, without padding to the width of another member."""
    monkeypatch.setattr("petransfer.training.stacked.stacked_loop.shares_passes", shares_passes)
    spec = make(Path("nano/english"))  # it has no dropout, and its batches are packed
    spec = replace(spec, method=replace(spec.method, embeddings="new"), train=replace(spec.train, steps=2))
    specs = members(spec)[:2]
    alone = run_alone(specs, tmp_path / "alone")
    monkeypatch.delattr("petransfer.training.stacked.stacked_loop.accumulate")
    for one, other in zip(alone, run_stacked(specs, tmp_path / "stacked"), strict=True):
        assert_close(one, other, 0.0)


# Each command resumes the study that the kill before it has left, so that one study is killed several times.
KILLS = {
    "in the very first save": ("petransfer.training.loop.save_state", 0, True),
    "between two states of one moment": ("petransfer.training.loop.save_state", 2, True),
    "while earlier states are removed": ("petransfer.training.stacked.stacked_loop.keep_only", 2, True),
    "while the first run is evaluated": ("petransfer.study.stacked_run.finish", 0, False),
    "after one run was done": ("petransfer.study.stacked_run.finish", 0, True),
}


@pytest.mark.usefixtures("no_reload_check")
def test_a_killed_stack_is_bit_identical_to_an_uninterrupted_stack(
    whole: StudyFolder, pair: list[RunSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place, call, after in KILLS.values():
        with monkeypatch.context() as patch:
            killed_at(patch, place, call, after)
            with pytest.raises(KilledError):
                run_study(pair, tmp_path)
    assert_identical(whole, run_study(pair, tmp_path), pair)


@pytest.mark.usefixtures("no_reload_check")
@pytest.mark.parametrize("joined", [True, False])
def test_an_interrupted_stack_is_bit_identical_to_an_uninterrupted_stack(
    joined: bool, whole: StudyFolder, pair: list[RunSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("petransfer.training.stacked.stacked_loop.shares_passes", lambda device: joined)
    if not joined:
        whole = run_study(pair, tmp_path / "whole")
    for _ in range(2):
        study = run_study(pair, tmp_path / "cut", lambda: _any_line(tmp_path / "cut"))
        assert {study.run(spec.run_id).status() for spec in pair} == {"interrupted"}
        for metrics in (tmp_path / "cut").rglob("metrics.jsonl"):  # a kill can happen between a line and its state
            with metrics.open("a") as file:
                file.write('{"step": 99, "loss": 0}\n{"st')
    assert_identical(whole, run_study(pair, tmp_path / "cut"), pair)


def test_the_trackers_of_a_stack_are_closed_when_it_is_interrupted(
    dropping: list[RunSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[str] = []
    monkeypatch.setattr("petransfer.training.trackers.RunTrackers.close", lambda trackers: closed.append("closed"))
    with pytest.raises(Interrupted):
        run_stacked(dropping, tmp_path, should_stop=lambda: True)
    assert len(closed) == len(dropping)


@pytest.mark.usefixtures("no_reload_check")
def test_a_run_restores_the_number_of_threads(
    dropping: list[RunSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number of threads of a run must not apply to later runs in the same process."""
    monkeypatch.setattr(stacks, "SETTINGS", replace(SETTINGS, execution=replace(SETTINGS.execution, threads=3)))
    before = torch.get_num_threads()
    assert before != 3
    short = [replace(spec, train=replace(spec.train, steps=1)) for spec in dropping]
    run_alone(short[:1], tmp_path / "alone")
    run_stacked(short[1:], tmp_path / "stacked")
    assert torch.get_num_threads() == before


def _any_line(study: Path) -> bool:
    return any(study.rglob("metrics.jsonl"))


@pytest.mark.usefixtures("no_reload_check")
def test_a_failing_run_does_not_change_the_other_runs_of_a_stack(
    dropping: list[RunSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wild = replace(dropping[0], seed=9, train=replace(dropping[0].train, learning_rate=1e38, warmup=0.0))
    specs = [dropping[0], wild, dropping[1]]
    alone = run_alone([dropping[0], dropping[1]], tmp_path / "alone")
    study = run_study(specs, tmp_path / "whole")
    failed = study.run(wild.run_id)
    assert failed.status() == "failed"
    assert "the loss is nan at step" in (failed.failure() or "")
    for run in alone:
        assert_close(run, study.run(run.name).path, 1e-5)
    out = tmp_path / "cut"
    for place, call in (
        ("petransfer.training.loop.save_state", 8),
        ("petransfer.study.stacked_run.finish", 1),
    ):
        with monkeypatch.context() as patch:
            killed_at(patch, place, call, after=False)
            with pytest.raises(KilledError):
                run_study(specs, out)
    again = run_study(specs, out)
    assert_identical(study, again, [dropping[0], dropping[1]])
    assert again.run(wild.run_id).status() == "failed"


def test_the_other_runs_are_saved_before_a_failure_is_recorded(
    dropping: list[RunSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restarted worker leaves out failed runs. The others must resume at the step of the failure, not before it."""
    wild = replace(dropping[0], seed=9, train=replace(dropping[0].train, learning_rate=1e38, warmup=0.0))
    seldom = replace(SETTINGS, execution=replace(SETTINGS.execution, save_every=1e9))
    killed_at(monkeypatch, "petransfer.training.stacked.stacked_loop.accumulate", 7, after=False)
    with pytest.raises(KilledError):
        run_study([dropping[0], wild, dropping[1]], tmp_path, settings=seldom)
    study = StudyFolder(tmp_path)
    assert study.run(wild.run_id).failure()
    states = [[state.name for state in (study.run(spec.run_id).path / "state").iterdir()] for spec in dropping[:2]]
    assert states == [["step-000000002"]] * 2


@pytest.mark.usefixtures("no_reload_check")
def test_a_run_that_cannot_be_saved_does_not_prevent_saving_the_others(
    dropping: list[RunSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from petransfer.study import stacked_run as stacked

    real = stacked.finish

    def full(run: Any, *rest: Any) -> Any:
        if run.spec.seed == 1:
            raise OSError(28, "No space left on device")
        return real(run, *rest)

    monkeypatch.setattr(stacked, "finish", full)
    short = [replace(spec, train=replace(spec.train, steps=1)) for spec in dropping]
    study = run_study(short, tmp_path)
    assert [study.run(spec.run_id).status() for spec in short] == ["done", "failed", "done"]


@pytest.mark.usefixtures("no_reload_check")
@pytest.mark.parametrize("joined", [True, False])
def test_running_out_of_memory_halves_the_micro_batch_of_all_runs(
    joined: bool, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("petransfer.training.stacked.stacked_loop.shares_passes", lambda device: joined)
    spec = make()
    specs = members(replace(spec, train=replace(spec.train, steps=2)))[:2]
    few = replace(SETTINGS, execution=replace(SETTINGS.execution, micro_batch=2))
    given = run_study(specs, tmp_path / "few", settings=few)
    real, calls = Batch.micro_batches, itertools.count()

    def scarce(batch: Batch, size: int, budget: int = 0) -> list[Tensors]:
        if size > 2 and next(calls):  # not in the first call, so that one gradient may exist already
            raise torch.OutOfMemoryError("out of memory")
        return real(batch, size, budget)

    monkeypatch.setattr(Batch, "micro_batches", scarce)
    for run in run_stacked(specs, tmp_path / "found"):
        result = json.loads((run / "result.json").read_text())
        assert (result["micro_batch"], result["out_of_memory"]) == (2, 1)
        weights = [load_file(folder / WEIGHTS) for folder in (run, given.run(run.name).path)]
        assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_runs_with_different_bases_methods_tasks_or_batches_are_not_stacked(make: Make) -> None:
    spec = make()
    drawn = replace(spec, checkpoint=replace(spec.checkpoint, reinit="body"))
    longer = replace(spec, checkpoint=replace(spec.checkpoint, added_tokens=("\n",)))
    unlike = [
        replace(spec, method=replace(spec.method, bits=8)),
        replace(spec, method=replace(spec.method, dropout=0.1)),
        replace(spec, train=replace(spec.train, batch_size=11)),
        replace(spec, train=replace(spec.train, steps=7)),
        replace(spec, task=replace(spec.task, prefix="say: ")),
        drawn,
        replace(drawn, seed=1),  # another base model
        longer,
        replace(longer, seed=1),  # the embeddings of added tokens are drawn from the seed
    ]
    kinds = {stack_key(one) for one in (spec, *unlike)}
    assert len(kinds) == 1 + len(unlike)
    assert len({stack_key(one) for one in members(spec)}) == 1
    for name, form in METHODS.items():
        of_method = stack_key(replace(spec, method=replace(spec.method, name=name)))
        assert (of_method is None) == bool(form.not_stacked)
        assert of_method not in kinds or name == "lora"
    cells = [Cell("a", "lora", "", one.seed, one) for one in (*members(spec), unlike[0])]
    assert [len(stack) for stack in stacks_of(cells, 2)] == [2, 1, 1]
    assert [len(stack) for stack in stacks_of(cells, {cell.run_id: 16 for cell in cells})] == [3, 1]


def test_members_of_a_stack_share_tensors_but_not_modules(tiny_t5: Path) -> None:
    model = AutoModelForSeq2SeqLM.from_pretrained(tiny_t5)
    copied = shared_copy(model)
    for (name, left), (other, right) in zip(model.named_parameters(), copied.named_parameters(), strict=True):
        assert name == other
        assert left is right
    assert not set(map(id, model.modules())) & set(map(id, copied.modules()))


def test_models_with_layerdrop_are_refused() -> None:
    refuse_layer_drop(BartConfig())
    with pytest.raises(UserError, match="decoder_layerdrop above 0 cannot be stacked; use --stack off"):
        refuse_layer_drop(BartConfig(decoder_layerdrop=0.1))


@pytest.mark.parametrize("joined", [True, False])
def test_the_planner_predicts_the_memory_of_a_stack(
    joined: bool, tiny_t5: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("petransfer.memory.step_memory.shares_passes", lambda device: joined)
    spec = checkpoint_spec(str(tiny_t5))
    step_spec = StepSpec(replace(LORA, dropout=0.1), 4, 12, 20, "cpu", members=3)
    foreseen = simulate(*_plain(tiny_t5), step_spec, False).peak
    loaded = load_checkpoint(spec, 32)
    models = [apply_method(replace(loaded, model=shared_copy(loaded.model)), step_spec.method, at) for at in range(3)]
    stack = make_stack(loaded.model, models)
    parameters = [value for model in models for value in trained_tensors(model).values()]
    optimizer = torch.optim.AdamW(parameters, fused=True)
    micro = {
        "input_ids": torch.ones(4, 12, dtype=torch.long), "attention_mask": torch.ones(4, 12, dtype=torch.long),
        "decoder_input_ids": torch.ones(4, 20, dtype=torch.long), "labels": torch.ones(4, 20, dtype=torch.long),
    }  # fmt: skip

    def step() -> None:
        if joined:
            accumulate(stack, [micro] * 3, [1] * 3, loaded.layout)
        for model in [] if joined else models:
            torch.autograd.backward(token_loss(model.train(), micro))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()
    fixed = sum(value.nbytes for value in {id(value): value for value in models[0].parameters()}.values())
    fixed += 4 * sum(value.numel() for value in parameters[len(parameters) // 3 :]) + 8 * sum(
        value.numel() for value in parameters
    )
    assert foreseen == pytest.approx(peak_of(step, fixed, torch.device("cpu")), rel=0.05)


def test_stack_size_is_limited_by_the_memory_of_the_card(tiny_t5: Path) -> None:
    spec, (config, name) = checkpoint_spec(str(tiny_t5)), _plain(tiny_t5)
    step_spec = StepSpec(LORA, 4, 12, 20)
    card = on_card(simulate(config, name, replace(step_spec, members=3), False).peak)
    found = [largest_stack(config, spec, step_spec, False, size, 5) for size in (card // 2, card, 2 * card)]
    assert found == [1, 3, 5]
    assert largest_stack(config, spec, replace(step_spec, checkpointing=True), False, 2 * card, 5) == 1


def _plain(folder: Path) -> tuple[Any, str]:
    return AutoModelForSeq2SeqLM.from_pretrained(folder).config, str(folder)
