"""Invariant 2: K adapters trained stacked end where K single runs end, and leave the folders of single runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM, BartConfig

from petransfer.checkpoints.load import load
from petransfer.checkpoints.registry import checkpoint_spec
from petransfer.errors import UserError
from petransfer.fit.measure import peak_of
from petransfer.fit.planner import largest_stack, on_card
from petransfer.fit.simulate import Demand, simulate
from petransfer.methods import APPLY
from petransfer.methods.stacked import refuse_layer_drop, share
from petransfer.recipe.load import validate
from petransfer.recipe.spec import RunSpec
from petransfer.recipe.stacking import kind
from petransfer.study.executors import attempt_stacks
from petransfer.study.grid import Cell, expand, resolve
from petransfer.study.ledger import RunFolder, StudyFolder
from petransfer.study.run import FineTune, Settings, run_one
from petransfer.study.stacked import run_stack
from petransfer.study.stacks import stacks_of
from petransfer.train.execution import Execution
from petransfer.train.metrics import read_metrics
from petransfer.train.stacked import accumulate, make_stack
from petransfer.train.state import trained_tensors
from tests.conftest import LORA

SETTINGS = Settings(Execution(threads=1, log_every=1, save_every=0.0, micro_batch=4), cpu=True)
WEIGHTS = "adapter/adapter_model.safetensors"
Make = Callable[..., RunSpec]


@pytest.fixture(name="make")
def make_spec(tmp_path: Path, tiny_t5: Path) -> Make:
    """Specs on a few dozen rows of unlike lengths."""
    verbs = ("walk", "run", "look", "jump", "turn", "see")
    times = {"once": 1, "twice": 2, "thrice and then some more times": 3, "four times": 4, "often": 9}
    rows = [f"{verb} {word}\t{' '.join([verb.upper()] * count)}\n" for verb in verbs for word, count in times.items()]
    (tmp_path / "rows.tsv").write_text("".join(rows))

    def one(folder: Path | None = None, **changes: Any) -> RunSpec:
        task = {"name": "lines", "options": {"train": str(tmp_path / "rows.tsv"), "dev": 5, "test": 6}}
        content = {
            "name": "x", "task": task, "family": {"name": "t", "arms": {"english": str(folder or tiny_t5)}},
            "arms": ["english"], "methods": [{"name": "lora", "rank": 4, "bits": 32}], "seeds": [0],
            "train": {"steps": 4, "batch_size": 10, "learning_rate": 2e-3},
        }  # fmt: skip
        (cell,) = expand(resolve(validate(content, "x")))
        return replace(cell.spec, **changes)

    return one


def _members(spec: RunSpec) -> list[RunSpec]:
    """Three that differ in all in which members of a stack may differ."""
    other = replace(spec.method, rank=2, alpha=3.0)
    return [
        spec,
        replace(spec, seed=1, method=other, train=replace(spec.train, learning_rate=5e-3)),
        replace(spec, seed=2, train=replace(spec.train, schedule="constant", weight_decay=0.1, rate_scaling="rms")),
    ]


def _alone(specs: Sequence[RunSpec], out: Path) -> list[Path]:
    for spec in specs:
        run_one(spec, RunFolder(out / spec.run_id), SETTINGS)
    return [out / spec.run_id for spec in specs]


def _stacked(specs: Sequence[RunSpec], out: Path, **options: Any) -> list[Path]:
    run_stack(specs, [RunFolder(out / spec.run_id) for spec in specs], SETTINGS, **options)
    return [out / spec.run_id for spec in specs]


def _lines(run: Path) -> list[dict[str, Any]]:
    return [{**line, "seconds": 0} for line in read_metrics(run / "metrics.jsonl")]


def _close(alone: Path, stacked: Path, tolerance: float) -> None:
    """The same files and numbers, to rounding."""
    names = [{str(path.relative_to(run)) for path in run.rglob("*")} - {".claim"} for run in (alone, stacked)]
    assert names[0] == names[1]
    left, right = _lines(alone), _lines(stacked)
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        assert one.keys() == other.keys()
        assert other["loss"] == pytest.approx(one["loss"], rel=tolerance)
        assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=20 * tolerance)
        assert other["learning_rate"] == one["learning_rate"]
    weights = [load_file(run / WEIGHTS) for run in (alone, stacked)]
    assert weights[0].keys() == weights[1].keys()
    for name, value in weights[0].items():
        assert value.shape == weights[1][name].shape
        apart = float((value - weights[1][name]).norm() / value.norm().clamp(min=1e-6))
        assert apart < 30 * tolerance, (name, apart)
    results = [json.loads((run / "result.json").read_text()) for run in (alone, stacked)]
    assert results[1]["environment"].pop("stacked") > 1
    assert results[0]["environment"] == results[1]["environment"]
    for key in ("run_id", "parameters", "trained_parameters", "weights", "steps", "micro_batch", "out_of_memory"):
        assert results[0][key] == results[1][key]
    tables = [pyarrow.parquet.read_table(run / "examples.parquet").to_pydict() for run in (alone, stacked)]
    assert tables[0].keys() == tables[1].keys()
    assert tables[0]["index"] == tables[1]["index"]
    assert tables[1]["log_prob"] == pytest.approx(tables[0]["log_prob"], rel=10 * tolerance)


@pytest.mark.parametrize(
    ("kind", "changes", "count", "tolerance"),
    [
        ("tiny_t5", {"dropout": 0.2}, 3, 1e-5),
        ("tiny_gpt2", {"dropout": 0.2}, 3, 1e-5),
        ("tiny_t5", {"embeddings": "trained"}, 2, 1e-5),
        pytest.param("tiny_gpt2", {"embeddings": "trained"}, 3, 1e-5, marks=pytest.mark.slow),
        pytest.param("tiny_t5", {"bits": 16}, 3, 1e-2, marks=pytest.mark.slow),
        pytest.param("tiny_gpt2", {"bits": 8}, 3, 1e-2, marks=pytest.mark.slow),
        ("tiny_t5", {"bits": 8}, 2, 1e-2),
        ("tiny_t5", {"bits": 4}, 2, 1e-2),
    ],
    ids=["t5", "gpt2", "t5-rows", "gpt2-rows", "t5-bf16", "gpt2-8", "t5-8", "t5-4"],
)
def test_a_stack_ends_where_single_runs_end(
    kind: str,
    changes: dict[str, Any],
    count: int,
    tolerance: float,
    make: Make,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # where the CPU has them, bitsandbytes repacks 4-bit weights for kernels that take no layer as small as these
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)
    spec = make(request.getfixturevalue(kind))
    specs = _members(replace(spec, method=replace(spec.method, **changes)))[:count]
    alone, stacked = _alone(specs, tmp_path / "alone"), _stacked(specs, tmp_path / "stacked")
    for one, other in zip(alone, stacked, strict=True):
        _close(one, other, tolerance)


def _study(
    specs: Sequence[RunSpec],
    out: Path,
    stop: Callable[[], bool] = lambda: False,
    settings: Settings = SETTINGS,
) -> StudyFolder:
    """What a call of `petransfer run --stack` does with one stack, its recipe apart."""
    study = StudyFolder(out)
    cells = [Cell("english", "lora", "", spec.seed, spec) for spec in specs if not study.run(spec.run_id).done]
    for cell in cells:
        study.run(cell.run_id).path.mkdir(parents=True, exist_ok=True)
        (study.run(cell.run_id).path / "failed.json").unlink(missing_ok=True)
    attempt_stacks(cells, study, FineTune(settings), 1, stop, lambda: None)
    return study


def _identical(whole: StudyFolder, cut: StudyFolder, specs: Sequence[RunSpec]) -> None:
    """The same bits, but for the seconds that things took."""
    for spec in specs:
        one, other = whole.run(spec.run_id), cut.run(spec.run_id)
        assert one.done
        assert other.done
        left, right = (load_file(folder.path / WEIGHTS) for folder in (one, other))
        assert left.keys() == right.keys()
        assert all(torch.equal(left[name], right[name]) for name in left)
        assert _lines(one.path) == _lines(other.path)
        tables = [pyarrow.parquet.read_table(folder.path / "examples.parquet") for folder in (one, other)]
        assert tables[0].equals(tables[1])
        results = [folder.result() or {} for folder in (one, other)]
        timed = {"seconds": 0, "train_seconds": 0}
        assert results[0] | timed == results[1] | timed
        assert not (other.path / "state").exists()


class _KilledError(BaseException):
    """Ends everything at once, as SIGKILL would."""


def _killed_at(monkeypatch: pytest.MonkeyPatch, place: str, call: int, after: bool) -> None:
    """The function at `place` kills the process in its n-th call, before or after it does what it does."""
    module, _, name = place.rpartition(".")
    real, calls = getattr(sys.modules[module], name), iter(range(1000))

    def deadly(*arguments: Any, **options: Any) -> Any:
        struck = next(calls) == call
        if struck and not after:
            raise _KilledError
        given = real(*arguments, **options)
        if struck:
            raise _KilledError
        return given

    monkeypatch.setattr(place, deadly)


KILLS = {
    "between two states of one moment": ("petransfer.train.stacked.save_state", 4, True),
    "in the very first save": ("petransfer.train.stacked.save_state", 0, True),
    "while earlier states are removed": ("petransfer.train.stacked.keep_only", 7, True),
    "after one run was done": ("petransfer.study.stacked.finish", 0, True),
    "while one run is evaluated": ("petransfer.study.stacked.finish", 1, False),
}


@pytest.fixture
def dropping(make: Make) -> list[RunSpec]:
    """Three runs with dropout in the adapters too."""
    spec = make()
    return _members(replace(spec, method=replace(spec.method, dropout=0.2)))


def test_a_killed_stack_ends_bit_for_bit_where_the_other_does(
    dropping: list[RunSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _study(dropping, tmp_path / "whole")
    for at, (place, call, after) in enumerate(KILLS.values()):
        with monkeypatch.context() as patch:
            _killed_at(patch, place, call, after)
            with pytest.raises(_KilledError):
                _study(dropping, tmp_path / str(at))
        _identical(whole, _study(dropping, tmp_path / str(at)), dropping)


def test_a_stack_that_is_asked_to_stop_goes_on(dropping: list[RunSpec], tmp_path: Path) -> None:
    whole = _study(dropping, tmp_path / "whole")
    for _ in range(3):
        study = _study(dropping, tmp_path / "cut", lambda: _any_line(tmp_path / "cut"))
        assert {study.run(spec.run_id).status() for spec in dropping} == {"interrupted"}
        for metrics in (tmp_path / "cut").rglob("metrics.jsonl"):  # a kill may fall between a line and its state
            with metrics.open("a") as file:
                file.write('{"step": 99, "loss": 0}\n{"st')
    _identical(whole, _study(dropping, tmp_path / "cut"), dropping)


def _any_line(study: Path) -> bool:
    return any(study.rglob("metrics.jsonl"))


def test_a_failing_run_leaves_the_others_alone(
    dropping: list[RunSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wild = replace(dropping[0], seed=9, train=replace(dropping[0].train, learning_rate=1e38, warmup=0.0))
    specs = [dropping[0], wild, dropping[1]]
    alone = _alone([dropping[0], dropping[1]], tmp_path / "alone")
    study = _study(specs, tmp_path / "whole")
    failed = study.run(wild.run_id)
    assert failed.status() == "failed"
    assert "the loss is nan at step" in (failed.failure() or "")
    for run in alone:
        _close(run, study.run(run.name).path, 1e-5)
    for place, call in (("petransfer.train.stacked.save_state", 8), ("petransfer.study.stacked.finish", 1)):
        out = tmp_path / place
        with monkeypatch.context() as patch:
            _killed_at(patch, place, call, after=False)
            with pytest.raises(_KilledError):
                _study(specs, out)
        again = _study(specs, out)
        _identical(study, again, [dropping[0], dropping[1]])
        assert again.run(wild.run_id).status() == "failed"


def test_the_others_are_saved_before_a_failure_is_noted(
    dropping: list[RunSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that is begun again leaves failed runs out: the others go on from there, not from before."""
    wild = replace(dropping[0], seed=9, train=replace(dropping[0].train, learning_rate=1e38, warmup=0.0))
    seldom = replace(SETTINGS, execution=replace(SETTINGS.execution, save_every=1e9))
    _killed_at(monkeypatch, "petransfer.train.stacked.accumulate", 7, after=False)
    with pytest.raises(_KilledError):
        _study([dropping[0], wild, dropping[1]], tmp_path, settings=seldom)
    study = StudyFolder(tmp_path)
    assert study.run(wild.run_id).failure()
    states = [[state.name for state in (study.run(spec.run_id).path / "state").iterdir()] for spec in dropping[:2]]
    assert states == [["step-000000002"]] * 2


def test_a_run_that_cannot_be_saved_does_not_keep_the_others_from_it(
    dropping: list[RunSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from petransfer.study import stacked

    real = stacked.finish

    def full(run: Any, *rest: Any) -> Any:
        if run.spec.seed == 1:
            raise OSError(28, "No space left on device")
        return real(run, *rest)

    monkeypatch.setattr(stacked, "finish", full)
    study = _study(dropping, tmp_path)
    assert [study.run(spec.run_id).status() for spec in dropping] == ["done", "failed", "done"]


def test_less_memory_halves_the_micro_batch_of_all(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from petransfer.train import stacked

    real = stacked.accumulate

    def scarce(stack: Any, micros: Any, tokens: Any, layout: Any) -> Any:
        if len(micros[0]["labels"]) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return real(stack, micros, tokens, layout)

    monkeypatch.setattr(stacked, "accumulate", scarce)
    specs = _members(make())[:2]
    for run in _stacked(specs, tmp_path):
        result = json.loads((run / "result.json").read_text())
        assert (result["micro_batch"], result["out_of_memory"]) == (2, 1)


def test_runs_of_unlike_kinds_are_not_stacked(make: Make) -> None:
    spec = make()
    drawn = replace(spec, checkpoint=replace(spec.checkpoint, reinit="body"))
    unlike = [
        replace(spec, method=replace(spec.method, bits=8)),
        replace(spec, method=replace(spec.method, dropout=0.1)),
        replace(spec, train=replace(spec.train, batch_size=11)),
        replace(spec, train=replace(spec.train, steps=7)),
        replace(spec, task=replace(spec.task, prefix="say: ")),
        drawn,
        replace(drawn, seed=1),  # another base
    ]
    kinds = {kind(one) for one in (spec, *unlike)}
    assert len(kinds) == 1 + len(unlike)
    assert len({kind(one) for one in _members(spec)}) == 1
    assert kind(replace(spec, method=replace(spec.method, name="full"))) is None
    cells = [Cell("a", "lora", "", one.seed, one) for one in (*_members(spec), unlike[0])]
    assert [len(stack) for stack in stacks_of(cells, 2)] == [2, 1, 1]
    assert [len(stack) for stack in stacks_of(cells, {cell.run_id: 16 for cell in cells})] == [3, 1]


def test_tensors_are_shared_and_modules_are_not(tiny_t5: Path) -> None:
    model = AutoModelForSeq2SeqLM.from_pretrained(tiny_t5)
    copied = share(model)
    for (name, left), (other, right) in zip(model.named_parameters(), copied.named_parameters(), strict=True):
        assert name == other
        assert left is right
    assert not set(map(id, model.modules())) & set(map(id, copied.modules()))


def test_layers_that_are_left_out_at_random_are_refused() -> None:
    refuse_layer_drop(BartConfig())
    with pytest.raises(UserError, match="decoder_layerdrop above 0 cannot be stacked; take --stack off"):
        refuse_layer_drop(BartConfig(decoder_layerdrop=0.1))


def test_the_planner_foresees_a_stack(tiny_t5: Path) -> None:
    spec = checkpoint_spec(str(tiny_t5))
    demand = Demand(replace(LORA, dropout=0.1), 4, 12, 20, "cpu", members=3)
    foreseen = simulate(*_plain(tiny_t5), demand, False).peak
    loaded = load(spec, 32)
    models = [APPLY["lora"](replace(loaded, model=share(loaded.model)), demand.method, at) for at in range(3)]
    stack = make_stack(loaded.model, models)
    parameters = [value for model in models for value in trained_tensors(model).values()]
    optimizer = torch.optim.AdamW(parameters, fused=True)
    micro = {
        "input_ids": torch.ones(4, 12, dtype=torch.long), "attention_mask": torch.ones(4, 12, dtype=torch.long),
        "decoder_input_ids": torch.ones(4, 20, dtype=torch.long), "labels": torch.ones(4, 20, dtype=torch.long),
    }  # fmt: skip

    def step() -> None:
        accumulate(stack, [micro] * 3, [1] * 3, loaded.layout)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()
    fixed = sum(value.nbytes for value in {id(value): value for value in models[0].parameters()}.values())
    fixed += 4 * sum(value.numel() for value in parameters[len(parameters) // 3 :]) + 8 * sum(
        value.numel() for value in parameters
    )
    assert foreseen == pytest.approx(peak_of(step, fixed, torch.device("cpu")), rel=0.05)


def test_as_many_are_stacked_as_fit_the_card(tiny_t5: Path) -> None:
    spec, (config, name) = checkpoint_spec(str(tiny_t5)), _plain(tiny_t5)
    demand = Demand(LORA, 4, 12, 20)
    card = on_card(simulate(config, name, replace(demand, members=3), False).peak)
    found = [largest_stack(config, spec, demand, False, size, 16) for size in (card // 2, card, 2 * card)]
    assert found == [1, 3, 16]
    assert largest_stack(config, spec, demand, False, 2 * card, 5) == 5
    assert largest_stack(config, spec, replace(demand, checkpointing=True), False, 2 * card, 5) == 1


def _plain(folder: Path) -> tuple[Any, str]:
    return AutoModelForSeq2SeqLM.from_pretrained(folder).config, str(folder)
