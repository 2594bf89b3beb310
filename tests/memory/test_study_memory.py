"""Memory predictions for the runs of a recipe: one for each size of a model, in whatever folder the model is."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from petransfer.errors import UserError
from petransfer.memory import study_memory
from petransfer.memory.study_memory import predict_memory
from petransfer.models.registry import checkpoint_spec
from petransfer.recipe.run_spec import RunSpec
from petransfer.study.run_study import prepare_study
from petransfer.study.scheduling import Scheduling
from petransfer.study.settings import Settings
from petransfer.study.study import load_grid
from petransfer.training.execution import Execution
from tests.tiny_models import keep


def wide_t5(folder: Path) -> Path:
    from transformers import T5Config, T5ForConditionalGeneration

    def make(tokens: int) -> Any:
        sizes = {"d_model": 256, "d_kv": 64, "d_ff": 512, "num_layers": 1, "num_heads": 4, "decoder_start_token_id": 0}
        return T5ForConditionalGeneration(T5Config(vocab_size=tokens, **sizes))

    return keep(folder, make)


@pytest.mark.usefixtures("remembered_predictions")
def test_folders_of_the_same_name_can_hold_models_of_different_sizes(
    tiny_spec: Callable[..., RunSpec], tiny_t5: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("petransfer.memory.planner._advice", lambda *given: [])  # advice takes most of the time
    small, big = tmp_path / "small" / "final", tmp_path / "big" / "final"
    shutil.copytree(tiny_t5, small)
    big.parent.mkdir()
    wide_t5(big)
    specs = [tiny_spec(checkpoint=checkpoint_spec(str(place))) for place in (small, big)]
    assert {spec.checkpoint.name for spec in specs} == {"final"}
    found = predict_memory(specs, 10**9 // 4)
    assert [one.name for one in found] == [f"final, LoRA of rank 4, 32 bits, folder {place}" for place in (small, big)]
    first, second = (one.fit for one in found)  # nothing fits, so these are predictions for one example
    assert first is not None
    assert second is not None
    assert second.needed > first.needed
    only_small = predict_memory(specs, (first.needed + second.needed) // 2)
    assert [one.fit.fits for one in only_small if one.fit] == [True, False]


def test_folders_with_models_of_the_same_size_share_one_prediction(
    tiny_spec: Callable[..., RunSpec], tiny_t5: Path, tmp_path: Path
) -> None:
    """A recipe can have a checkpoint per seed."""
    places = [tmp_path / str(seed) / "final" for seed in range(3)]
    for place in places:
        shutil.copytree(tiny_t5, place)
        (place / "README.md").write_text(str(place))
    specs = [tiny_spec(checkpoint=checkpoint_spec(str(place)), seed=seed) for seed, place in enumerate(places)]
    specs = [replace(spec, checkpoint=replace(spec.checkpoint, weights=f"sha{spec.seed}")) for spec in specs]
    (found,) = predict_memory(specs, 10**12)
    assert "folder" not in found.name


@pytest.mark.usefixtures("one_layer")
def test_the_names_of_predictions_contain_the_revision_of_a_checkpoint(tiny_spec: Callable[..., RunSpec]) -> None:
    specs = [tiny_spec(checkpoint=checkpoint_spec(f"google-t5/t5-small@{name}")) for name in ("main", "other")]
    first, second = predict_memory(specs, 10**12)
    assert first.name.endswith(", revision main")
    assert second.name.endswith(", revision other")


@pytest.mark.usefixtures("remembered_predictions")
def test_the_check_on_a_cpu_counts_the_memory_that_gradient_checkpointing_saves(
    tiny_t5: Path, tiny_rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study_memory, "_longest", lambda spec: (800, 800))
    monkeypatch.setattr("petransfer.memory.planner._advice", lambda *given: [])  # advice takes most of the time
    recipe = {
        "name": "tiny",
        "task": {"name": "lines", "options": {"train": str(tiny_rows)}},
        "family": {"name": "tiny", "arms": {"tiny": str(tiny_t5)}},
        "arms": ["tiny"],
        "methods": [{"name": "lora", "bits": 32}],
        "train": {"steps": 1, "learning_rate": 1e-3},
    }
    grid = load_grid(recipe, out=tmp_path / "out")
    with_all, recomputed = (
        found.fit.needed
        for checkpointing in (False, True)
        for found in predict_memory([grid.cells[0].spec], 1, checkpointing, device="cpu")
        if found.fit
    )
    assert recomputed < with_all
    monkeypatch.setattr(study_memory, "host_bytes", lambda: (with_all + recomputed) // 2)
    needed = "one example of 502 input tokens and 502 target tokens needs"
    with pytest.raises(UserError, match=rf"does not fit this machine.s [\d.]+ GB: {needed}"):
        prepare_study(grid, Settings(cpu=True), Scheduling())
    prepare_study(grid, Settings(Execution(checkpointing=True), cpu=True), Scheduling())
