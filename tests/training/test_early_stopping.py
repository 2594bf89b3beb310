"""Early stopping: when training ends, which weights are kept, and that interruptions do not change the result."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from petransfer.errors import Interrupted, UserError
from petransfer.recipe.run_spec import EarlyStopping, RunSpec
from petransfer.recipe.stacking import reasons_not_stacked, stack_key
from petransfer.study.folders import RunFolder
from petransfer.study.settings import Settings
from petransfer.study.single_run import run_one
from petransfer.training.early_stopping import EarlyStopper, StoppingState
from petransfer.training.execution import Execution
from petransfer.training.hooks import Hooks
from petransfer.training.loop import Loop
from petransfer.training.metrics_file import read_metrics
from petransfer.training.optimizer import schedule_factor
from petransfer.training.state import trained_tensors
from tests.training.test_loop import make_loop

SETTINGS = Settings(Execution(threads=1, save_every=0.0, log_every=4), cpu=True)


def _stopper(**settings: Any) -> EarlyStopper:
    return EarlyStopper(EarlyStopping(**settings), StoppingState())


def _record(stopper: EarlyStopper, *scores: tuple[float, float]) -> EarlyStopper:
    for at, (exact_match, loss) in enumerate(scores, 1):
        if not stopper.state.stop_reason:
            stopper.record(10 * at, {"dev_em": exact_match, "dev_loss": loss})
    return stopper


def test_patience_counts_evaluations_without_an_improvement() -> None:
    stopper = _record(_stopper(patience=2), (50, 1.0), (60, 0.9), (55, 1.0), (60, 0.95), (70, 0.5))
    state = stopper.state
    assert (state.stop_reason, state.best_step, state.evaluations) == ("no_improvement", 20, 4)


def test_a_falling_loss_is_an_improvement_while_exact_match_is_zero() -> None:
    state = _record(_stopper(patience=2), *[(0, 3.0 - 0.1 * at) for at in range(20)]).state
    assert (state.stop_reason, state.best_step) == ("", 200)


@pytest.mark.parametrize(("exact_match", "counts"), [(0, True), (19.9, True), (20, False), (60, False), (100, False)])
def test_a_falling_loss_is_an_improvement_only_below_20_percent_exact_match(exact_match: float, counts: bool) -> None:
    """Among equal exact matches, the weights with the lowest loss are always the best."""
    state = _record(_stopper(patience=3), *[(exact_match, 0.5**at) for at in range(20)]).state
    expected = ("", 20, 200) if counts else ("no_improvement", 4, 40)
    assert (state.stop_reason, state.evaluations, state.best_step) == expected


def test_the_loss_does_not_count_after_exact_match_has_once_reached_20_percent() -> None:
    state = _record(_stopper(patience=3), (30, 1.0), *[(10, 0.5**at) for at in range(20)]).state
    assert (state.stop_reason, state.evaluations, state.best_step) == ("no_improvement", 4, 10)


def test_with_metric_loss_a_falling_loss_is_an_improvement_at_any_exact_match() -> None:
    falling = [(100, 0.5**at) for at in range(10)]
    state = _record(_stopper(patience=3, metric="loss"), *falling, (100, 1.0), (100, 1.0), (100, 1.0)).state
    assert (state.stop_reason, state.evaluations, state.best_step) == ("no_improvement", 13, 100)


def test_a_gain_below_min_delta_is_no_improvement_but_its_weights_are_kept() -> None:
    scores = [(50, 1.0), (50.4, 1.0), (50.8, 1.0), (51.2, 1.0)]
    assert _record(_stopper(patience=2, min_delta=1.0), *scores).state.best_step == 30
    assert _record(_stopper(patience=2, min_delta=0.0), *scores).state.stop_reason == ""


def test_a_cooldown_begins_when_patience_runs_out() -> None:
    """Patience runs out at step 30. The cooldown lasts two evaluations of 10 steps, even if the score improves."""
    stopper = _stopper(patience=2, every=10, cooldown=2)
    state = _record(stopper, (50, 1.0), (50, 1.0), (50, 1.0)).state
    assert (state.stop_reason, state.cooldown_from, state.stale) == ("", 30, 2)
    factors = [stopper.cooldown_factor(step, 100) for step in (0, 29, 30, 35, 40, 49, 50)]
    assert factors == pytest.approx([1, 1, 1, 0.75, 0.5, 0.05, 0])
    assert stopper.cooldown_factor(35, 40) == 0.5, "the cooldown must end at the last step"
    stopper.record(40, {"dev_em": 60, "dev_loss": 0.9})
    assert state.stop_reason == ""
    stopper.record(50, {"dev_em": 55, "dev_loss": 0.9})
    assert (state.stop_reason, state.best_step) == ("no_improvement", 40)


def test_there_is_no_cooldown_at_100_percent_exact_match() -> None:
    state = _record(_stopper(patience=1, every=10, cooldown=2), (100, 1.0), (100, 0.5)).state
    assert (state.stop_reason, state.cooldown_from) == ("no_improvement", 0)


def test_the_learning_rate_falls_linearly_in_the_cooldown(tiny_t5: Path, tmp_path: Path) -> None:
    scores = {2: 9.0, 4: 5.0, 6: 5.0, 8: 5.0}
    hooks = Hooks(evaluate_at=set(scores))
    stopping = EarlyStopping(patience=1, every=2, cooldown=2)
    loop = make_loop(tiny_t5, tmp_path, hooks=hooks, early_stopping=stopping)
    hooks.evaluate = lambda _: {"dev_em": scores[loop.progress.step], "dev_loss": 1.0}
    assert loop.run().early_stopping["stop_reason"] == "no_improvement"
    rates = {line["step"]: line["learning_rate"] for line in read_metrics(tmp_path / "metrics.jsonl")}
    plain = [loop.spec.learning_rate * schedule_factor(loop.spec, step) for step in range(8)]
    assert rates[4] == pytest.approx(plain[3])
    assert rates[6] == pytest.approx(plain[5] * 0.75)
    assert rates[8] == pytest.approx(plain[7] * 0.25)


def test_with_metric_loss_a_rising_exact_match_is_no_improvement() -> None:
    state = _record(_stopper(patience=2, metric="loss"), (10, 1.0), (20, 1.2), (30, 1.1)).state
    assert (state.stop_reason, state.best_step) == ("no_improvement", 10)


def test_a_loss_that_is_not_finite_is_never_the_best() -> None:
    state = _record(_stopper(patience=9, metric="loss"), (0, float("nan")), (0, 2.0), (0, float("inf"))).state
    assert (state.best_step, state.best_loss) == (20, 2.0)
    assert json.loads(json.dumps(state.as_dict(), allow_nan=False)) == state.as_dict()


def _with_scores(scores: list[float], seen: dict[int, Any]) -> Hooks:
    """Return hooks with these dev scores, which copy the trained tensors of each evaluation to `seen`."""

    def evaluate(_: int) -> dict[str, Any]:
        loop: Loop = seen["loop"]
        seen[loop.progress.step] = {name: value.clone() for name, value in trained_tensors(loop.model).items()}
        return {"dev_em": scores[loop.progress.step // 2 - 1], "dev_loss": 1.0}

    return Hooks(evaluate_at={2, 4, 6, 8}, evaluate=evaluate)


@pytest.mark.parametrize(
    ("scores", "reason", "last", "best"),
    [([1, 9, 3, 4], "no_improvement", 8, 4), ([1, 2, 3, 4], "max_steps", 8, 8), ([5, 4, 3, 2], "no_improvement", 6, 2)],
)
def test_the_best_weights_are_in_the_model_at_the_end(
    scores: list[float], reason: str, last: int, best: int, tiny_t5: Path, tmp_path: Path
) -> None:
    seen: dict[int, Any] = {}
    stopping = EarlyStopping(patience=2, every=2)
    seen["loop"] = loop = make_loop(tiny_t5, tmp_path, hooks=_with_scores(scores, seen), early_stopping=stopping)
    progress = loop.run()
    assert (progress.step, progress.early_stopping["stop_reason"]) == (last, reason)
    assert progress.early_stopping["best_step"] == best
    for name, value in trained_tensors(loop.model).items():
        assert torch.equal(value, seen[best][name]), name
    loop.save()
    assert [path.name for path in sorted((tmp_path / "state").iterdir())] == [f"best-{best:09d}", f"step-{last:09d}"]


def test_a_time_limit_ends_training_with_an_evaluation(tiny_t5: Path, tmp_path: Path) -> None:
    """The first evaluation was planned for step 8."""
    hooks = Hooks(evaluate_at={8}, evaluate=lambda _: {"dev_em": 30.0, "dev_loss": 1.0})
    stopping = EarlyStopping(every=8, max_minutes=1e-6)
    progress = make_loop(tiny_t5, tmp_path, hooks=hooks, early_stopping=stopping).run()
    assert (progress.step, progress.early_stopping["stop_reason"]) == (1, "max_minutes")
    assert (progress.early_stopping["evaluations"], progress.early_stopping["best_step"]) == (1, 1)
    assert [(line["step"], line["dev_em"]) for line in read_metrics(tmp_path / "metrics.jsonl")] == [(1, 30.0)]


def _spec(tiny_spec: Callable[..., RunSpec], **stopping: Any) -> RunSpec:
    spec = tiny_spec(steps=12)
    train = replace(spec.train, learning_rate=0.5, early_stopping=EarlyStopping(**stopping))
    few = dict(spec.task.options) | {"dev": 8, "test": 8}
    return replace(spec, train=train, task=replace(spec.task, options=tuple(sorted(few.items()))))


def _run(spec: RunSpec, folder: Path, stop_at: int = 0) -> RunFolder:
    run, seen = RunFolder(folder), {"step": 0}
    with contextlib.suppress(Interrupted):
        run_one(
            spec, run, SETTINGS, lambda step, loss, seconds: seen.update(step=step), lambda: seen["step"] == stop_at
        )
    return run


def test_a_run_with_many_interruptions_ends_bit_for_bit_like_an_uninterrupted_one(
    tiny_spec: Callable[..., RunSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("petransfer.study.single_run.check_reloaded", lambda *_: True)  # it takes as long as training
    spec = _spec(tiny_spec, patience=2, every=1, metric="loss", cooldown=2)
    whole = _run(spec, tmp_path / "whole")
    result = whole.result()
    assert result is not None
    assert result["stop_reason"] == "no_improvement"
    best, last = result["best_step"], result["steps"]
    assert best <= last <= 12
    folder = tmp_path / "cut"
    for stop_at in sorted({1, 3, last - 1, min(best + 1, last), last}):
        assert _run(spec, folder, stop_at).result() is None
        if stop_at in (1, best + 1):  # as if killed before a training state refers to the best weights
            (folder / "state" / f"best-{99:09d}").mkdir()
    resumed = _run(spec, folder)
    again = resumed.result()
    assert again is not None
    for key in ("stop_reason", "best_step", "steps", "dev", "test"):
        assert again[key] == result[key], key
    left, right = (load_file(run.path / "adapter" / "adapter_model.safetensors") for run in (whole, resumed))
    assert all(torch.equal(left[name], right[name]) for name in left)
    lines = [[{**line, "seconds": 0} for line in read_metrics(run.path / "metrics.jsonl")] for run in (whole, resumed)]
    assert lines[0] == lines[1]


def test_the_final_dev_score_is_that_of_the_best_step(tiny_spec: Callable[..., RunSpec], tmp_path: Path) -> None:
    run = _run(_spec(tiny_spec, patience=2, every=1, metric="loss"), tmp_path / "early")
    result = run.result()
    assert result is not None
    best = {line["step"]: line for line in read_metrics(run.path / "metrics.jsonl")}[result["best_step"]]
    assert -result["dev"]["log_prob_per_token"] == pytest.approx(best["dev_loss"], rel=1e-6)


def test_early_stopping_without_a_dev_set_is_refused(
    tiny_spec: Callable[..., RunSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from petransfer.study import encoded_data

    real = encoded_data.task_data
    monkeypatch.setattr(encoded_data, "task_data", lambda *given: replace(real(*given), dev=()))
    encoded_data.encoded_task.cache_clear()
    with pytest.raises(UserError, match=r"early_stopping needs a dev set.*--dev"):
        _run(_spec(tiny_spec), tmp_path)


def test_runs_with_early_stopping_are_not_stacked(tiny_spec: Callable[..., RunSpec]) -> None:
    assert stack_key(tiny_spec()) is not None
    assert stack_key(_spec(tiny_spec)) is None
    assert reasons_not_stacked([tiny_spec()]) == []
    assert "early_stopping" in reasons_not_stacked([_spec(tiny_spec)])[0]
