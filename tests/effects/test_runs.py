"""Effects of the runs of a study: pairs of seeds, shared controls, families, categories, and notes on the runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from petransfer.effects.drawing import plot_forest
from petransfer.effects.runs import examples_of
from petransfer.effects.study_effects import (
    collect,
    few_pretrainings_note,
    seed_demand,
    several_cpus_note,
    update_effects,
)
from petransfer.errors import UserError
from petransfer.recipe.schema import EffectPart
from petransfer.report.headline import headline
from petransfer.report.page_data import checkpoints
from petransfer.report.run_groups import effects_table, groups_of
from petransfer.report.run_table import RunRow
from petransfer.study.grid import expand
from tests.report.made import make, recipe_of, remove_test_score

RIGHT = {"name": "scan", "splits": ["right"]}  # one split instead of two: half the runs


def test_methods_are_paired_by_seed(tmp_path: Path) -> None:
    recipe = recipe_of(effects=["4-bit - lora 32-bit"])
    skip = {"lora r16 4-bit": {0, 2}, "lora r16 32-bit": {5}}
    cells, folder = make(
        tmp_path,
        recipe,
        lambda cell: 0.1 * (cell.seed + 1) - (0.02 if "4-bit" in cell.method else 0),
        skip=lambda cell: cell.seed in skip.get(cell.method, set()),
    )
    contrasts = collect(recipe, cells, folder).of("contrast")
    assert len(contrasts) == 2 * 2  # splits, and arms that have both methods
    for one in contrasts:
        assert one.paired
        assert one.left.mean(1).tolist() == pytest.approx([0.18, 0.38, 0.48])
        assert one.right.mean(1).tolist() == pytest.approx([0.2, 0.4, 0.5])
        assert one.left_out == 3


def test_a_control_that_two_effects_share_is_one_sample(tmp_path: Path) -> None:
    recipe = recipe_of(task=RIGHT)
    cells, folder = make(tmp_path, recipe)
    retentions = collect(recipe, cells, folder).of("retention")
    assert retentions
    for two in retentions:
        assert two.keys[1] == two.keys[3]
        assert len(two.samples) == 3
        assert len(two.keys[0].split()) == 6 + 1  # runs, and a digest of their scores


@pytest.mark.parametrize(("reached", "learnt"), [(40.0, False), (85.0, False), (92.0, True), (None, True)])
def test_an_arm_that_has_not_learnt_the_task_is_reported(tmp_path: Path, reached: float | None, learnt: bool) -> None:
    """All other arms have 92.5 % on dev."""
    recipe = recipe_of(task=RIGHT)
    cells, folder = make(tmp_path, recipe)
    for cell in cells:
        if cell.arm == "english" and "4-bit" in cell.method:
            path = folder.run(cell.run_id).path / "result.json"
            result = json.loads(path.read_text())
            del result["dev"]
            if reached is not None:
                result["dev"] = {"exact_match": reached + cell.seed, "disagreements": 0}
            path.write_text(json.dumps(result))
    found = update_effects(recipe, cells, folder)
    short = [(one["name"], one["method"], one["arm"]) for one in found["effects"] if one["verdict"] == "not learnt"]
    under, within = ("english-scratch", "lora r16 4-bit", ""), ("4-bit - lora 32-bit", "", "english")
    assert sorted(short) == sorted([under, within] * (not learnt))
    assert sum("Not learnt: english reaches" in one for one in found["sentences"]) == (not learnt)
    # without dev scores, the two effects of the arm count as effects without runs
    assert found["tests"] == len(found["effects"]) - len(short) + 2 * (reached is None)
    cells_of_table = [line[5] for line in effects_table(found)]
    assert sum(cell.startswith("not learnt (dev: ") for cell in cells_of_table) == len(short)
    assert "nan" not in json.dumps(found).lower()


def test_effects_without_runs_count_in_the_correction(tmp_path: Path) -> None:
    """Otherwise a verdict of an unfinished study could change when the other arms have runs."""
    recipe = recipe_of(
        task=RIGHT, methods=[{"name": "lora", "rank": 16, "bits": 32}], effects=["english-scratch", "german-scratch"]
    )
    cells, folder = make(tmp_path, recipe, skip=lambda cell: cell.arm == "german")
    found = update_effects(recipe, cells, folder)
    (effect,) = found["effects"]
    assert found["tests"] == 2
    assert effect["p_holm"] == pytest.approx(2 * effect["p"]) != 1
    assert effect["least_p_holm"] == pytest.approx(2 * effect["smallest_p"])


def test_arms_with_a_single_pretrained_checkpoint_are_reported(tmp_path: Path) -> None:
    recipe = recipe_of(task=RIGHT)
    cells, folder = make(tmp_path, recipe)
    (note,) = update_effects(recipe, cells, folder)["notes"]
    assert note.startswith("Each of the arms english, german has only one pretrained checkpoint")
    assert "scratch" not in note


def test_an_arm_with_a_checkpoint_for_each_seed_is_not_reported() -> None:
    family = {"name": "mine", "arms": {"english": "owner/english-{seed}", "german": "owner/german"}}
    cells = expand(recipe_of(task=RIGHT, family=family, effects=["english-german"]))
    assert few_pretrainings_note(cells).startswith("The arm german has only one pretrained checkpoint")
    assert few_pretrainings_note([cell for cell in cells if cell.seed == 0]).startswith(
        "Each of the arms english, german has only one"
    )
    rows = checkpoints(groups_of([RunRow(cell, "waiting") for cell in cells]))
    assert [row for row in rows if row[0] == "english"] == [
        ("english", f"owner/english-{seed} (seed {seed})", "main") for seed in range(6)
    ]
    assert [row for row in rows if row[0] == "german"] == [("german", "owner/german", "main")]


def test_a_checkpoint_that_several_seeds_share_is_reported() -> None:
    family = {"name": "mine", "arms": {"english": "owner/english-{seed}", "german": "owner/german-{seed}"}}
    cells = expand(recipe_of(task=RIGHT, family=family, effects=["english-german"]))
    assert few_pretrainings_note(cells) == ""
    weights = {cell.seed: cell.spec.checkpoint for cell in cells if cell.arm == "english"}
    shared = [
        replace(cell, spec=replace(cell.spec, checkpoint=weights[cell.seed // 3])) if cell.arm == "english" else cell
        for cell in cells
    ]
    assert "english (2 checkpoints, 6 seeds). Such seeds are not independent" in few_pretrainings_note(shared)


@pytest.mark.parametrize(
    ("cpus", "message"),
    [
        ([], []),
        (["A"], ["not recorded: 23 runs", "A: 1 run)"]),
        (["A"] * 24, []),
        (["A"] * 23 + ["B"], ["A: 23 runs; B: 1 run)"]),
    ],
)
def test_runs_of_different_cpus_are_reported(tmp_path: Path, cpus: list[str], message: list[str]) -> None:
    task = {"name": "scan", "splits": ["add_jump"]}
    recipe = recipe_of(task=task, arms=["english", "scratch"], effects=["english-scratch"])
    cells, folder = make(tmp_path, recipe)
    assert len(cells) == 24
    for cell, cpu in zip(cells, cpus, strict=False):
        path = folder.run(cell.run_id).path / "result.json"
        result = json.loads(path.read_text())
        result["environment"]["cpu"] = cpu
        path.write_text(json.dumps(result))
    notes = [note for note in update_effects(recipe, cells, folder)["notes"] if "CPU" in note]
    assert len(notes) == bool(message)
    assert all(part in notes[0] for part in message)


def test_runs_of_a_cpu_and_of_a_gpu_are_reported(tmp_path: Path) -> None:
    recipe = recipe_of(task=RIGHT, methods=[{"name": "full", "bits": 32}], effects=[])
    cells, folder = make(tmp_path, recipe)
    path = folder.run(cells[0].run_id).path / "result.json"
    result = json.loads(path.read_text())
    result["environment"]["device"] = "cuda (NVIDIA H200)"
    path.write_text(json.dumps(result))
    counts = "not recorded: 17 runs; cuda (NVIDIA H200): 1 run"
    assert several_cpus_note(cells, folder).startswith(f"The runs were made on different devices ({counts}).")


def test_the_declared_effects_are_counted_before_any_run() -> None:
    recipe = recipe_of()
    found = seed_demand(recipe, expand(recipe))
    # two splits: two contrasts of arms for three methods, one contrast of methods in two arms; retention is not tested
    assert (found.unpaired, found.paired, found.tests) == (((6, 6),) * 12, (6,) * 4, 16)
    assert "16 effects are tested together (Holm). With 6 seeds, no effect with pairs of seeds can reach" in found.line


GROUPS = ("lexical", "structural", "pp_recursion")
CASES = ("cp_recursion", "pp_recursion", "active_to_passive", "passive_to_active")
COGS = {"name": "cogs", "splits": ["gen"]}


def test_an_effect_can_be_limited_to_some_categories(tmp_path: Path) -> None:
    """Two of the four categories are lexical. Examples of the other categories are not used."""
    under = "lora r16 32-bit"
    effects = ["english-scratch", *({"contrast": "english-scratch", "categories": one} for one in GROUPS)]
    recipe = recipe_of(task=COGS, methods=[{"name": "lora", "bits": 32}], effects=effects)
    cells, folder = make(tmp_path, recipe, categories=CASES)
    content = update_effects(recipe, cells, folder)
    found = {one["name"]: one for one in content["effects"]}
    assert list(found) == ["english-scratch", *(f"english-scratch ({one})" for one in GROUPS)]
    for name, counted in {"lexical": CASES[2:], "structural": CASES[:2], "pp_recursion": CASES[1:2]}.items():
        one = found[f"english-scratch ({name})"]
        sides = []
        for arm in ("english", "scratch"):
            runs = [folder.run(cell.run_id).result() or {} for cell in cells if cell.arm == arm]
            cases = [[run["test"]["categories"][case]["exact_match"] for case in counted] for run in runs]
            sides.append([sum(values) / len(values) for values in cases])
        assert one["left_seeds"] == pytest.approx(sides[0])
        assert one["right_seeds"] == pytest.approx(sides[1])
        assert one["categories"] == name
        assert one["left_seeds"] != pytest.approx(found["english-scratch"]["left_seeds"])
        assert one["dev"] == found["english-scratch"]["dev"]
        assert one["paper"]["left"] != found["english-scratch"]["paper"]["left"]
        start = f"english \N{MINUS SIGN} scratch ({name}) on gen ({under}):"
        assert sum(line.startswith(start) for line in content["sentences"]) == 1
    assert "categories" not in found["english-scratch"]
    assert content["tests"] == 4
    names = [line[0] for line in effects_table(content)]
    assert names == list(found)
    head = headline(content)
    assert head is not None
    assert len(head.rows) == 4


def test_categories_without_test_examples_are_reported(tmp_path: Path) -> None:
    effects = [
        {"contrast": "english-scratch", "categories": "cp_recursion"},
        {"contrast": "4-bit - lora 32-bit", "categories": "cp_recursion"},
    ]
    recipe = recipe_of(task=COGS, methods=[{"name": "lora", "bits": 32}, {"name": "lora", "bits": 4}], effects=effects)
    cells, folder = make(tmp_path, recipe, categories=CASES[1:])
    content = update_effects(recipe, cells, folder)
    assert content["effects"] == []
    assert {line.partition(": ")[2] for line in content["missing"]} == {
        "not estimated, because no test example has the category cp_recursion"
    }


def test_runs_that_were_not_scored_on_the_test_set_are_left_out(tmp_path: Path) -> None:
    recipe = recipe_of(
        task=RIGHT, methods=[{"name": "lora", "bits": 32}], effects=["english-scratch", "german-scratch"]
    )
    cells, folder = make(tmp_path, recipe)
    for cell in cells:
        if cell.arm == "german" or (cell.arm == "english" and cell.seed == 0):
            remove_test_score(folder.run(cell.run_id))
    found = update_effects(recipe, cells, folder)
    (effect,) = found["effects"]
    assert len(effect["left_seeds"]) == 5
    (missing,) = found["missing"]
    assert missing.endswith("not estimated, because no run of german (lora r16 32-bit) was scored on the test set")
    with (
        pytest.raises(UserError, match="this run was not scored on the test set"),
        examples_of(folder, cells[0].run_id),
    ):
        pass


UNPAIRED = {"contrast": "4-bit - lora 32-bit", "paired": False, "family": "methods"}


def test_methods_can_be_compared_as_independent_groups_of_seeds(tmp_path: Path) -> None:
    recipe = recipe_of(effects=[UNPAIRED])
    cells, folder = make(tmp_path, recipe, skip=lambda cell: cell.seed == 5 and "4-bit" in cell.method)
    for one in collect(recipe, cells, folder).of("contrast"):
        assert not one.paired
        assert (len(one.left), len(one.right), one.left_out) == (5, 6, 0)


def test_each_family_of_effects_is_adjusted_separately(tmp_path: Path) -> None:
    arms = ["english-scratch", "german-scratch"]
    cells, folder = make(tmp_path / "one", recipe_of(effects=[*arms, UNPAIRED]))
    found = update_effects(recipe_of(effects=[*arms, UNPAIRED]), cells, folder)
    alone = update_effects(recipe_of(effects=arms), *make(tmp_path / "two", recipe_of(effects=arms)))
    assert alone["tests"] == 12
    assert found["families"] == {"": 12, "methods": 4}
    assert found["tests"] == 16
    assert "families" not in alone
    main = [one for one in found["effects"] if "family" not in one]
    assert [one["p_holm"] for one in main] == [one["p_holm"] for one in alone["effects"]]
    second = [one for one in found["effects"] if one.get("family") == "methods"]
    # the smallest of four p values is multiplied by four, independently of the main family
    smallest = min(second, key=lambda one: one["p"])
    assert smallest["p_holm"] == pytest.approx(min(1.0, 4 * smallest["p"]))
    assert all(one["least_p_holm"] == pytest.approx(4 * one["smallest_p"]) for one in second)


def test_a_study_needs_the_seeds_of_its_most_demanding_family() -> None:
    arms = ["english-scratch", "german-scratch"]
    recipe = recipe_of(effects=[*arms, UNPAIRED])
    found = seed_demand(recipe, expand(recipe))
    assert (found.unpaired, found.paired) == (((6, 6),) * 12, ())
    paired = recipe_of(effects=[*arms, UNPAIRED | {"paired": True}])
    found = seed_demand(paired, expand(paired))
    assert (found.unpaired, found.paired) == ((), (6,) * 4)  # pairs need more seeds: the smallest p is 2 / 2 ** n
    assert found.needed == 8


def test_more_seeds_of_the_baseline_reduce_the_seeds_that_an_effect_needs() -> None:
    few = recipe_of(effects=["english-scratch", "german-scratch"], seeds=[0, 1, 2, 3])
    assert set(seed_demand(few, expand(few)).unpaired) == {(4, 4)}
    assert "With 4 seeds, no effect can reach p < 0.05" in seed_demand(few, expand(few)).line
    more = few.model_copy(update={"more_seeds": {"scratch": list(range(4, 16))}})
    assert set(seed_demand(more, expand(more)).unpaired) == {(4, 16)}
    assert seed_demand(more, expand(more)).line == ""
    # a smaller family, in which no effect has the control with more seeds
    two = more.model_copy(update={"effects": [*few.effects, EffectPart(contrast="english-german", family="second")]})
    assert set(seed_demand(two, expand(two)).unpaired) == {(4, 4)}
    assert "With 4 seeds, no effect can reach p < 0.05" in seed_demand(two, expand(two)).line


def test_further_seeds_of_an_arm_are_pairs_of_an_effect_between_its_methods() -> None:
    few = recipe_of(effects=["4-bit - lora 32-bit"], seeds=[0, 1, 2, 3], more_seeds={"english": list(range(4, 10))})
    assert seed_demand(few, expand(few)).paired == (10, 4) * 2
    assert seed_demand(few, expand(few)).line == ""


def test_effects_with_equal_names_are_told_apart_in_tables_and_plots(tmp_path: Path) -> None:
    effects = [
        "4-bit - lora 32-bit",
        {"contrast": "4-bit - lora 32-bit", "paired": False, "family": "groups"},
        {"contrast": "english-scratch", "family": "a"},
        "english-scratch",
        "german-scratch",
    ]
    recipe = recipe_of(effects=effects, seeds=[0, 1], task={"name": "scan", "splits": ["right"]})
    content = update_effects(recipe, *make(tmp_path, recipe))
    names = ["english \u2212 scratch (family a)", "english \u2212 scratch", "german \u2212 scratch"]
    methods = [f"4-bit \u2212 lora 32-bit ({text})" for text in ("paired", "not paired")]
    head = headline(content)
    assert head is not None
    assert {*head.columns, *(row.name for row in head.rows)} >= {*names, *methods}
    assert sum(cell is not None for row in head.rows for cell in row.cells) == len(content["effects"]) == 13
    assert len({line[:3] for line in effects_table(content)}) == 13
    (axes,) = plot_forest(content["effects"], "exact match").axes
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert {f"4-bit \u2212 lora 32-bit ({text}), german" for text in ("paired", "not paired")} <= {*labels}
