"""The grid of a recipe: its runs, their order, and the recipes that are refused."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from petransfer.atomic_files import write_text
from petransfer.data import load_task
from petransfer.errors import UserError
from petransfer.recipe.loading import load_recipe, recipe_yaml, validate
from petransfer.recipe.schema import Recipe
from petransfer.study.grid import Cell, expand, resolve
from petransfer.study.run_study import _default_workers, prepare_study
from petransfer.study.scheduling import Scheduling
from petransfer.study.settings import Settings
from petransfer.study.study import grid_of, load_grid


def recipe(**changes: Any) -> Recipe:
    """Return a recipe with the embedded family of checkpoints."""
    content = {
        "name": "grid",
        "task": {"name": "scan", "splits": ["add_jump"]},
        "arms": ["english", "scratch"],
        "methods": [{"name": "lora", "rank": 4, "bits": 32}],
        "train": {"steps": 10, "learning_rate": {"lora": 1e-3, "full": 1e-2, "scratch": 3e-2}},
    }
    return validate({**content, **changes}, "here")


def arm(cells: list[Cell], name: str) -> list[Cell]:
    return [cell for cell in cells if cell.arm == name]


TWO_LORAS = [{"name": "lora", "rank": 4, "bits": 32}, {"name": "lora", "rank": 64, "bits": 32}]


def test_scratch_uses_full_fine_tuning_with_its_own_learning_rate() -> None:
    (cell,) = arm(expand(recipe()), "scratch")
    assert cell.spec.method.name == "full"
    assert cell.spec.method.rank == 0
    assert cell.spec.checkpoint.reinit == "all"
    assert cell.spec.train.learning_rate == 3e-2
    assert cell.spec.train.rate_scaling == "rms"
    assert cell.method == "full 32-bit"


def test_scratch_uses_the_full_method_of_the_recipe_if_there_is_one() -> None:
    methods = [{"name": "lora", "bits": 32}, {"name": "full", "bits": 16}]
    (cell,) = arm(expand(recipe(methods=methods)), "scratch")
    assert (cell.spec.method.bits, cell.spec.train.rate_scaling) == (16, "none")


def test_scratch_has_one_run_if_the_recipe_has_two_lora_methods() -> None:
    cells = expand(recipe(methods=TWO_LORAS))
    assert [cell.method for cell in arm(cells, "english")] == ["lora r4 32-bit", "lora r64 32-bit"]
    assert len(arm(cells, "scratch")) == 1


def test_the_random_arm_keeps_the_method_of_the_recipe() -> None:
    (cell,) = expand(recipe(arms=["random"]))
    assert (cell.spec.method.name, cell.spec.checkpoint.reinit) == ("lora", "all")


def test_the_learning_rate_of_an_arm_overrides_that_of_its_method() -> None:
    rates = {"lora": 1e-3, "random": 5e-3, "scratch": 3e-2}
    cells = expand(recipe(arms=["english", "random"], train={"steps": 1, "learning_rate": rates}))
    assert [cell.spec.train.learning_rate for cell in cells] == [1e-3, 5e-3]


@pytest.mark.parametrize(
    ("rates", "found"),
    [
        ({"lora": 1e-3, "random lora": 5e-3}, [1e-3, 1e-3, 5e-3, 5e-3]),
        ({"lora": 1e-3, "random r64": 5e-3}, [1e-3, 1e-3, 1e-3, 5e-3]),
        ({"lora": 1e-3, "random": 2e-3, "random lora r64 32-bit": 5e-3}, [1e-3, 1e-3, 2e-3, 5e-3]),
        ({"lora": 1e-3, "random lora": 2e-3, "random lora r64": 5e-3}, [1e-3, 1e-3, 2e-3, 5e-3]),
        ({"english lora": 1e-3, "random lora": 5e-3}, [1e-3, 1e-3, 5e-3, 5e-3]),
    ],
)
def test_a_learning_rate_of_arm_and_method_overrides_that_of_either(
    rates: dict[str, float], found: list[float]
) -> None:
    train = {"steps": 1, "learning_rate": rates}
    cells = expand(recipe(arms=["english", "random"], methods=TWO_LORAS, train=train))
    assert [cell.spec.train.learning_rate for cell in cells] == found


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        (
            {"lora": 1, "englsh lora": 1},
            "unknown name in train.learning_rate 'englsh lora': did you mean 'english lora'?",
        ),
        ({"lora": 1, "english lara": 1}, "did you mean 'english lora'?"),
        ({"lora": 1, "english lora r5": 1}, "did you mean 'english lora'?"),
        ({"lora": 1, "lora english": 1}, "unknown name in train.learning_rate 'lora english'"),
        (
            {"lora": 1, "english lora": 1, "english 32-bit": 2},
            "train.learning_rate: 'english lora' and 'english 32-bit' both apply to english, lora r4 32-bit; keep one",
        ),
        ({"english lora": 1}, "train.learning_rate has no learning rate for method full (arm scratch); add full: 1e-3"),
    ],
)
def test_unknown_ambiguous_and_missing_learning_rates_are_refused(rates: dict[str, float], message: str) -> None:
    with pytest.raises(UserError) as refused:
        expand(recipe(train={"steps": 1, "learning_rate": rates}))
    assert message in str(refused.value)


def test_a_single_learning_rate_applies_to_all_runs() -> None:
    cells = expand(recipe(train={"steps": 1, "learning_rate": 1}))
    assert {cell.spec.train.learning_rate for cell in cells} == {1.0}


def test_runs_are_ordered_by_seed_then_split_then_arm_then_method() -> None:
    cells = expand(
        recipe(
            arms=["random", "english"],
            methods=TWO_LORAS,
            seeds=[3, 1],
            task={"name": "scan", "splits": ["simple", "length"]},
        )
    )
    assert [(cell.seed, cell.split, cell.arm, cell.spec.method.rank) for cell in cells] == [
        (seed, split, name, rank)
        for seed in (3, 1)
        for split in ("simple", "length")
        for name in ("random", "english")
        for rank in (4, 64)
    ]
    assert len({cell.run_id for cell in cells}) == len(cells)


@pytest.mark.parametrize(
    "twice",
    [
        {"arms": ["english", "scratch", "english"]},
        {"seeds": [0, 0]},
        {"methods": [TWO_LORAS[0]] * 2},
        {"task": {"name": "scan", "splits": ["add_jump"] * 2}},
    ],
)
def test_duplicate_arms_seeds_methods_and_splits_are_refused(twice: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"is given twice; keep one"):
        recipe(**twice)


def test_alpha_is_twice_the_rank_unless_given() -> None:
    def alpha(**method: Any) -> float:
        (cell,) = expand(recipe(arms=["english"], methods=[{"name": "lora", **method}]))
        return cell.spec.method.alpha

    assert alpha(rank=8) == 16.0
    assert alpha(rank=8, alpha=3) == 3.0


def test_full_fine_tuning_methods_that_differ_only_in_rank_are_one_run() -> None:
    methods = [{"name": "full", "bits": 32, "rank": rank} for rank in (4, 8)]
    assert len(expand(recipe(arms=["english"], methods=methods))) == 1


def test_task_options_change_the_run_ids() -> None:
    def ids(options: dict[str, Any]) -> list[str]:
        return [cell.run_id for cell in expand(recipe(task={"name": "scan", "splits": ["simple"], "options": options}))]

    assert ids({"dev_size": 3}) != ids({})


def test_name_description_data_folder_and_effects_do_not_change_run_ids() -> None:
    other = recipe(name="other", description="text", data_dir="/data", effects=["english-scratch"])
    assert [cell.run_id for cell in expand(other)] == [cell.run_id for cell in expand(recipe())]


def test_the_prefix_of_the_recipe_overrides_that_of_the_family() -> None:
    def prefix(**task: Any) -> str:
        changes = {"family": "t5-small", "arms": ["english"]}
        return expand(recipe(task={"name": "scan", "splits": ["simple"], **task}, **changes))[0].spec.task.prefix

    assert prefix() == "translate English to English: "
    assert prefix(prefix="") == ""
    assert prefix(prefix="say: ") == "say: "
    assert prefix(prefix={"english": "say: "}) == "say: "
    assert prefix(prefix={"scratch": "say: "}) == "translate English to English: "
    with pytest.raises(UserError, match=r"unknown name in task\.prefix 'englsh'"):
        prefix(prefix={"englsh": ""})


@pytest.mark.parametrize("effect", ["english-scratch", "english-newemb-scratch", "scratch-english-newemb"])
def test_contrasts_of_two_arms_of_the_recipe_are_accepted(effect: str) -> None:
    assert expand(recipe(arms=["english", "scratch", "english-newemb"], effects=[effect]))


@pytest.mark.parametrize("effect", ["english", "english-", "english-english", "english-newemb", ""])
def test_invalid_contrasts_are_refused(effect: str) -> None:
    with pytest.raises(UserError, match=f"'{effect}' is not a contrast.*two of the arms english, scratch"):
        expand(recipe(effects=[effect]))


@pytest.mark.parametrize(
    "effect",
    ["english-random", {"contrast": "random-english"}, {"scale": "english-random", "study": "other"}],
)
def test_the_error_for_an_effect_of_a_missing_arm_names_the_arm(effect: Any) -> None:
    with pytest.raises(UserError, match="needs random, and `arms` has only english, scratch; add random to `arms`"):
        expand(recipe(effects=[effect]))
    assert expand(recipe(effects=[effect], arms=["english", "random"]))


def test_a_contrast_is_refused_for_one_arm_and_one_method() -> None:
    with pytest.raises(UserError, match="only the arm english and one method; add an arm") as refusal:
        expand(recipe(effects=["english-elsewhere"], arms=["english"]))
    assert "a-b" not in str(refusal.value)


def test_an_arm_whose_runs_all_equal_those_of_another_arm_is_refused(pretrainings: Path) -> None:
    base = str(pretrainings / "english-0")
    content = recipe(arms=["english"]).model_dump(mode="json")
    content |= {"family": {"name": "mine", "arms": {"one": base, "two": base}}, "arms": ["one", "two"]}
    out = pretrainings / "study"
    with pytest.raises(UserError, match=r"every run of two equals a run of one.*english-0.*remove one of the two"):
        load_grid(content, out=out)
    content["train"] = {"steps": 10, "learning_rate": {"one": 0.1, "two": 0.2}}
    assert len(load_grid(content, out=out).cells) == 2
    # not refused: a control arm that shares only some runs, and a study that already exists
    both = {"arms": ["scratch", "random"], "methods": [{"name": "lora", "bits": 32}, {"name": "full", "bits": 32}]}
    assert load_grid(recipe(**both).model_dump(mode="json"), out=out)
    content["train"] = {"steps": 10, "learning_rate": 0.1}
    out.mkdir()
    write_text(out / "recipe.yaml", recipe_yaml(validate(content, "here")))
    assert len(load_grid(content, out=out).cells) == 1


SPLIT = ["simple"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": {"name": "scam", "splits": SPLIT}}, "unknown task 'scam': did you mean 'scan'"),
        ({"task": {"name": "scan", "splits": ["add_jmp"]}}, "unknown split of scan 'add_jmp': did you mean 'add_jump'"),
        ({"task": {"name": "scan", "splits": SPLIT, "options": {"dev_siz": 3}}}, "'dev_siz': did you mean 'dev_size'"),
        ({"task": {"name": "scan", "splits": SPLIT, "options": {"dev_size": -1}}}, "dev_size of scan is -1"),
        ({"arms": ["englsh"]}, "unknown arm of family nano 'englsh': did you mean 'english'"),
        (
            {"arms": ["./my-t5"]},
            r"'./my-t5' is no arm of the family nano; .*arms: \{one: ./my-t5",
        ),
        ({"family": "google/flan-t5-small"}, r"is no family of checkpoints; .*arms: \{one: google/flan-t5-small"),
        ({"family": "nanno"}, "unknown family 'nanno': did you mean 'nano'"),
        ({"methods": [{"name": "lorra"}]}, "unknown method 'lorra': did you mean 'lora'"),
        ({"train": {"steps": 1, "learning_rate": {"lorra": 1}}}, "train.learning_rate 'lorra': did you mean 'lora'"),
        ({"train": {"steps": 1, "learning_rate": {"lora": 1}}}, r"no learning rate for method full \(arm scratch\)"),
    ],
)
def test_unknown_names_and_bad_values_are_refused_with_advice(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        expand(recipe(**changes))


def test_a_grid_is_expanded_without_importing_torch() -> None:
    code = (
        "import sys; from petransfer.recipe.loading import load_recipe; from petransfer.study.grid import expand;"
        "expand(load_recipe('smoke')); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_epochs_are_converted_to_steps_with_the_train_size_of_the_split() -> None:
    train = {"epochs": {"lora": 2, "scratch": 3.5}, "batch_size": {"full": 128, "lora": 32}, "learning_rate": 0.1}
    cells = expand(recipe(task={"name": "scan", "splits": ["add_jump", "length"]}, train=train, effects=[]))
    sizes = {"add_jump": 14_670 - 500, "length": 16_990 - 500}
    for cell in cells:
        epochs, batch = (3.5, 128) if cell.arm == "scratch" else (2, 32)
        assert cell.spec.train.batch_size == batch
        assert cell.spec.train.steps == math.ceil(epochs * sizes[cell.split] / batch)


@pytest.mark.parametrize("split", ["add_jump", "length", "opposite_right"])
def test_train_size_is_the_number_of_training_examples(split: str) -> None:
    task = load_task("scan", None, dev_size=77)
    assert task.train_size(split) == len(task.load(split).train)


@pytest.mark.parametrize("train", [{"learning_rate": 0.1}, {"learning_rate": 0.1, "steps": 3, "epochs": 1}])
def test_a_recipe_needs_either_steps_or_epochs(train: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="either steps or epochs"):
        recipe(train=train)


def seeded(folder: Path, **changes: Any) -> Recipe:
    """Return a recipe whose English arm has a separate checkpoint for each seed."""
    family = {"name": "mine", "arms": {"english": str(folder / "english-{seed}")}}
    return recipe(family=family, seeds=[0, 1], **changes)


@pytest.fixture
def pretrainings(tmp_path: Path) -> Path:
    """A folder with two checkpoints that have different weights, and only the files that a grid reads."""
    for seed in (0, 1):
        folder = tmp_path / f"english-{seed}"
        folder.mkdir()
        (folder / "config.json").write_text('{"model_type": "t5"}')
        (folder / "model.safetensors").write_bytes(bytes([seed]))
    return tmp_path


def test_each_seed_has_its_own_pretrained_checkpoint(pretrainings: Path) -> None:
    english = arm(expand(seeded(pretrainings)), "english")
    assert [(cell.seed, cell.spec.checkpoint.name) for cell in english] == [(0, "english-0"), (1, "english-1")]
    assert len({cell.spec.checkpoint.weights for cell in english}) == 2


def test_a_relative_checkpoint_folder_with_a_seed_is_relative_to_the_recipe(pretrainings: Path) -> None:
    content = seeded(Path(".")).model_dump(exclude_none=True, mode="json")
    (pretrainings / "mine.yaml").write_text(json.dumps(content))
    cells = arm(expand(load_recipe(str(pretrainings / "mine.yaml"))), "english")
    assert [cell.run_id for cell in cells] == [cell.run_id for cell in arm(expand(seeded(pretrainings)), "english")]


def test_a_resolved_recipe_is_expanded_after_its_checkpoints_were_deleted(pretrainings: Path) -> None:
    begun = resolve(seeded(pretrainings))
    ids = [cell.run_id for cell in expand(begun)]
    assert ids == [cell.run_id for cell in expand(seeded(pretrainings))]
    shutil.rmtree(pretrainings)
    assert [cell.run_id for cell in expand(begun)] == ids
    with pytest.raises(UserError, match="english-0"):
        expand(seeded(pretrainings))
    with pytest.raises(UserError, match="english-2"):  # the resolved recipe does not have this seed
        expand(begun.model_copy(update={"seeds": [0, 2]}))


def test_methods_can_have_different_numbers_of_steps() -> None:
    methods = [{"name": "lora", "rank": 4, "bits": 32}, {"name": "full", "bits": 32}]
    train = {"steps": {"lora": 16, "full": 12, "scratch": 10}, "learning_rate": 1e-3}
    cells = expand(recipe(methods=methods, train=train))
    assert {(cell.arm, cell.spec.method.name): cell.spec.train.steps for cell in cells} == {
        ("english", "lora"): 16,
        ("english", "full"): 12,
        ("scratch", "full"): 10,
    }
    alone = recipe(methods=methods[:1], arms=["english"], train={"steps": 16, "learning_rate": 1e-3})
    assert expand(alone)[0].run_id == cells[0].run_id
    with pytest.raises(UserError, match=r"train\.steps has no number for method full"):
        expand(recipe(methods=methods, arms=["english"], train={"steps": {"lora": 16}, "learning_rate": 1e-3}))
    with pytest.raises(UserError, match="lora"):  # the error suggests the nearest name
        expand(recipe(train={"steps": {"lor": 16}, "learning_rate": 1e-3}))


def test_a_started_study_is_read_after_its_base_was_deleted(pretrainings: Path) -> None:
    """The recipe has no hash of the base. The hash is read from the folders of the runs."""
    mine = recipe(family={"name": "mine", "arms": {"english": str(pretrainings / "english-0")}}, arms=["english"])
    study = pretrainings / "study"
    begun = grid_of(mine, study).cells
    shutil.rmtree(pretrainings / "english-0")
    with pytest.raises(UserError, match=r"there is no folder .*english-0; put the checkpoint back"):
        grid_of(mine, study)  # no run records the base
    for cell in begun:
        (study / "runs" / cell.run_id).mkdir(parents=True)
        write_text(study / "runs" / cell.run_id / "spec.json", json.dumps(cell.spec.as_dict()))
    assert [cell.run_id for cell in grid_of(mine, study).cells] == [cell.run_id for cell in begun]
    other = replace(begun[0].spec, checkpoint=replace(begun[0].spec.checkpoint, weights="0" * 64))
    (study / "runs" / "another").mkdir()
    write_text(study / "runs" / "another" / "spec.json", json.dumps(other.as_dict()))
    with pytest.raises(UserError, match="there is no folder"):  # the runs record two different bases
        grid_of(mine, study)


def test_there_is_one_worker_for_each_core_that_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job on a cluster may often use only two of a machine's sixty cores."""
    grid = load_grid("smoke")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {4, 7, 9}, raising=False)
    assert _default_workers(grid, cpu=True) == 3


def test_a_tilde_in_the_data_folder_means_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "data").mkdir()
    grid = load_grid("smoke", ["data_dir=~/data"], out=tmp_path / "out")
    assert prepare_study(grid, Settings(cpu=True), Scheduling()).settings.data_dir == tmp_path / "data"


def seeds_of(cells: Sequence[Cell]) -> dict[str, list[int]]:
    return {name: [cell.seed for cell in cells if cell.arm == name] for name in dict.fromkeys(c.arm for c in cells)}


def test_single_arms_have_further_seeds() -> None:
    two_methods = [*TWO_LORAS[:1], {"name": "full"}]
    cells = expand(recipe(methods=two_methods, seeds=[0, 1], more_seeds={"scratch": [7, 4], "german": [7]}))
    assert seeds_of(cells) == {"english": [0, 0, 1, 1], "scratch": [0, 1, 7, 4]}  # the recipe does not train german
    assert [cell.seed for cell in cells[-2:]] == [7, 4]
    plain = expand(recipe(methods=two_methods, seeds=[7]))
    assert cells[-2].run_id == arm(plain, "scratch")[0].run_id  # the run of this seed, as in any other recipe


def test_a_random_control_needs_no_checkpoint_for_its_further_seeds(pretrainings: Path) -> None:
    given = seeded(pretrainings, more_seeds={"scratch": [2, 3]})
    assert seeds_of(expand(given)) == {"english": [0, 1], "scratch": [0, 1, 2, 3]}
    names = [cell.spec.checkpoint.name for cell in arm(expand(given), "scratch")]
    assert names == ["english-0", "english-1", "english-0", "english-0"]
    begun = resolve(given)
    shutil.rmtree(pretrainings)
    assert seeds_of(expand(begun)) == seeds_of(expand(begun)) == {"english": [0, 1], "scratch": [0, 1, 2, 3]}


def test_a_pretrained_arm_needs_its_own_checkpoint_for_a_further_seed(pretrainings: Path) -> None:
    family = {"name": "mine", "arms": {name: str(pretrainings / f"{name}-{{seed}}") for name in ("english", "german")}}
    for seed in (0, 1):
        shutil.copytree(pretrainings / f"english-{seed}", pretrainings / f"german-{seed}")
    given = recipe(
        family=family,
        arms=["english", "german", "english-newemb"],
        seeds=[0, 1],
        more_seeds={"english": [2], "english-newemb": [3]},
    )
    with pytest.raises(UserError, match="english-2"):
        expand(given)
    for seed in (2, 3):
        shutil.copytree(pretrainings / "english-1", pretrainings / f"english-{seed}")
        (pretrainings / f"english-{seed}" / "model.safetensors").write_bytes(bytes([seed]))
    cells = expand(resolve(given))  # no German checkpoint is needed for the seeds 2 and 3
    assert [cell.spec.checkpoint.name for cell in cells[-2:]] == ["english-2", "english-3"]
    hashes = resolve(given).family.arms  # type: ignore[union-attr]
    assert set(hashes["english"].sha256) == {0, 1, 2, 3}  # type: ignore[union-attr, arg-type]
    assert set(hashes["german"].sha256) == {0, 1}  # type: ignore[union-attr, arg-type]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"scrach": [5]}, "unknown name in more_seeds 'scrach': did you mean 'scratch'?"),
        ({"scratch": [5, 1]}, "more_seeds.scratch: seeds already has 1; more_seeds takes only other seeds"),
        ({"scratch": [5, 5]}, "5 is given twice; keep one"),
        ({"scratch": []}, "more_seeds.scratch"),
        ([5], "more_seeds: {scratch: [3, 4, 5]}"),
    ],
)
def test_wrong_further_seeds_are_refused(more: Any, message: str) -> None:
    with pytest.raises(UserError) as refused:
        expand(recipe(seeds=[0, 1], more_seeds=more))
    assert message in str(refused.value)


def test_the_option_seeds_replaces_all_seeds(tmp_path: Path) -> None:
    content = recipe(seeds=[0, 1], more_seeds={"scratch": [4]}).model_dump(exclude_none=True, mode="json")
    grids = [load_grid(content, options=options, out=tmp_path) for options in ({}, {"seeds": [4]}, {"seeds": [8]})]
    assert [seeds_of(grid.cells) for grid in grids] == [
        {"english": [0, 1], "scratch": [0, 1, 4]},
        {"english": [4], "scratch": [4]},
        {"english": [8], "scratch": [8]},
    ]
    assert "more_seeds" not in recipe_yaml(grids[1].recipe)  # recipes without further seeds keep their text
    further = load_grid(content, ["more_seeds.english=[4, 5]"], {"seeds": [2]}, tmp_path)
    assert seeds_of(further.cells) == {"english": [2, 4, 5], "scratch": [2]}
