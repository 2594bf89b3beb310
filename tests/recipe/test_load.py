"""Load recipes: the order of overrides, the messages about mistakes, and every shipped recipe."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from petransfer.effects.study_effects import seed_demand
from petransfer.errors import UserError
from petransfer.recipe.effect_requests import requested_effects
from petransfer.recipe.loading import (
    apply_override,
    find_recipe,
    load_any_recipe,
    load_pretraining,
    load_recipe,
    recipe_yaml,
    shipped_recipes,
    validate,
)
from petransfer.recipe.pretraining import PretrainRecipe
from petransfer.recipe.right_forms import FORMS
from petransfer.recipe.schema import Recipe, TaskPart
from petransfer.study.grid import expand, resolve
from petransfer.study.study import as_overrides, load_grid

RECIPE = """
name: mine
task: {name: scan, splits: [add_jump, simple]}
arms: [english]
methods:
  - {name: lora, rank: 4}
  - {name: full, bits: 32}
seeds: [1]
train: {steps: 10, learning_rate: 0.5}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    """The path of a recipe file."""
    path = tmp_path / "mine.yaml"
    path.write_text(RECIPE)
    return str(path)


def test_set_overrides_the_file_and_options_override_set(recipe: str) -> None:
    assert load_recipe(recipe).seeds == [1]
    assert load_recipe(recipe, ["seeds=[2]"]).seeds == [2]
    assert load_recipe(recipe, ["seeds=[2]"], {"seeds": [3]}).seeds == [3]
    assert load_recipe(recipe, ["seeds=[2]"], {"seeds": None}).seeds == [2]


def test_the_message_about_a_date_advises_quotes(recipe: str) -> None:
    path = Path(recipe)
    path.write_text(path.read_text().replace("name: mine", "name: 2026-01-05"))
    with pytest.raises(UserError, match=r"name: .*date; put it in quotes: '2026-01-05'"):
        load_recipe(recipe)


@pytest.mark.parametrize(
    ("old", "new", "place", "quoted"),
    [
        ("arms: [english]", "arms: [no]", "arms.0: give a text", "'no'"),
        ("arms: [english]", "arms: [2024]", "arms.0: give a text", "'2024'"),
        ("arms: [english]", "arms: [1.5]", "arms.0: give a text", "'1.5'"),
        ("name: mine", "name: On", "name: ", "'yes'"),
        ("name: mine", "name: 2026-01-05", "name: ", "'2026-01-05'"),
        ("name: mine", "name: mine\nfamily: {name: m, arms: {no: a/b}}", "family.arms: a key must be a text", "'no'"),
        ("name: mine", "name: mine\nfamily: {name: m, arms: {7: a/b}}", "family.arms: a key must be a text", "'7'"),
        ("name: mine", "name: mine\nfamily: {name: m, arms: {~: a/b}}", "family.arms: a key must be a text", "'null'"),
        ("name: mine", "name: mine\nfamily: {name: m, arms: {de: off}}", "family.arms.de: ", "'no'"),
    ],
)
def test_the_message_about_a_text_that_yaml_reads_as_another_type_advises_quotes(
    recipe: str, old: str, new: str, place: str, quoted: str
) -> None:
    path = Path(recipe)
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(UserError) as refused:
        load_recipe(recipe)
    assert place in str(refused.value)
    assert "in quotes" in str(refused.value)
    assert quoted in str(refused.value)


@pytest.mark.parametrize(
    ("text", "prefix"),
    [
        ("solve ", "solve "),  # YAML drops the space, so that an input would begin with `solvewalk`
        ("hello # world", "hello # world"),  # YAML reads a part of it as a comment
        ("'quoted '", "quoted "),
        ("5", "5"),
        ("'5'", "5"),
        ("no", "no"),
        ("1e3", "1e3"),
        ("a: b ", {"a": "b"}),
        ("scan: ", "scan: "),
    ],
)
def test_a_text_given_with_set_is_kept_as_it_is_written(recipe: str, text: str, prefix: Any) -> None:
    assert load_recipe(recipe, [f"task.prefix={text}"]).task.prefix == prefix


def test_a_pattern_given_with_set_may_begin_with_a_bracket(recipe: str) -> None:
    assert load_recipe(recipe, ["methods.0.targets=[qv]"]).methods[0].targets == ["qv"]
    assert load_recipe(recipe, ["methods.0.targets=[qv]$"]).methods[0].targets == "[qv]$"


@pytest.mark.parametrize(
    "value", ["\U0001f600: ", "5", "1e3", "nan", "a\u2028b\u00a0\x7f\x85", 'tab\t"q" \\d', "true", ""]
)
def test_as_overrides_keeps_every_text_unchanged(recipe: str, value: str) -> None:
    (override,) = as_overrides({"task": {"prefix": value}})
    assert load_recipe(recipe, [override]).task.prefix == value
    (override,) = as_overrides({"effects": [{"contrast": "full-lora", "family": f"f{value}"}]})
    content: dict[str, Any] = {}
    apply_override(content, override)
    assert content["effects"][0]["family"] == f"f{value}"


def test_a_recipe_as_a_dict_may_contain_ranges_paths_and_numpy_numbers(tmp_path: Path) -> None:
    content = yaml.safe_load(RECIPE) | {"seeds": range(2), "data_dir": tmp_path, "margin": np.float32(2)}
    grid = load_grid(content)
    assert (grid.recipe.seeds, grid.recipe.data_dir, grid.recipe.margin) == ([0, 1], tmp_path, 2.0)
    (override,) = as_overrides({"seeds": range(2)})
    assert load_grid(content, [override]).recipe.seeds == [0, 1]


@pytest.mark.parametrize(
    ("one", "other", "setting"),
    [
        ({"name": "full", "bits": 32}, {"name": "full", "bits": 32, "rate_scaling": "rms"}, "rate_scaling"),
        ({"name": "lora", "match_parameters": 9000}, {"name": "lora", "match_parameters": 9000, "alpha": 32}, "alpha"),
        ({"name": "lora", "targets": "q"}, {"name": "lora", "targets": ["q"]}, "targets"),
    ],
)
def test_two_methods_with_one_label_are_refused(recipe: str, one: Any, other: Any, setting: str) -> None:
    """Tables and effects distinguish methods only by their labels, so they would mix the runs of the two methods."""
    with pytest.raises(UserError, match=rf"one label, .* differ only in {setting}"):
        load_recipe(recipe, [], {"methods": [one, other]})
    # `full` ignores the rank, so these are the same runs
    load_recipe(recipe, [], {"methods": [{"name": "full", "bits": 32}, {"name": "full", "bits": 32, "rank": 8}]})


def test_a_margin_is_written_only_if_it_is_given_and_changes_no_run(recipe: str) -> None:
    usual, strict = load_recipe(recipe), load_recipe(recipe, ["margin=2.5"])
    assert (usual.margin, strict.margin) == (5.0, 2.5)
    assert "margin" not in recipe_yaml(usual)  # so that the text of older recipes does not change
    assert validate(yaml.safe_load(recipe_yaml(strict)), "frozen") == strict
    assert [cell.run_id for cell in expand(usual)] == [cell.run_id for cell in expand(strict)]
    for wrong in ("0", "-1", "101", "yes", "nan"):
        with pytest.raises(UserError, match="margin"):
            load_recipe(recipe, [f"margin={wrong}"])


@pytest.mark.parametrize(
    ("metrics", "judge_by", "metric"),
    [
        ("[]", None, "exact_match"),
        ("[chrf, exact_match]", None, "exact_match"),
        ("[chrf, rouge]", None, "chrf"),
        ("[chrf, rouge]", "rouge", "rouge"),
        ("[chrf, rouge]", "exact_match", "exact_match"),  # exact match is always measured
        ("[exact_match, chrf]", "chrf", "chrf"),
    ],
)
def test_judge_by_chooses_the_metric_of_the_effects_and_changes_no_run(
    recipe: str, metrics: str, judge_by: str | None, metric: str
) -> None:
    usual = load_recipe(recipe, [f"task.metrics={metrics}"])
    found = load_recipe(recipe, [f"task.metrics={metrics}", *([f"judge_by={judge_by}"] if judge_by else [])])
    assert found.judged_by == metric
    assert "judge_by" not in recipe_yaml(usual)
    assert ("judge_by" in recipe_yaml(found)) == (judge_by is not None)
    assert validate(yaml.safe_load(recipe_yaml(found)), "frozen") == found
    assert [cell.run_id for cell in expand(usual)] == [cell.run_id for cell in expand(found)]


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["judge_by=chrff"], "judge_by: unknown metric among task.metrics 'chrff': did you mean 'chrf'?"),
        (["judge_by=bleu"], r"'bleu' \(known: chrf, exact_match\)"),
        (["judge_bi=chrf"], "unknown key 'judge_bi': did you mean 'judge_by'"),
        (["steps=4"], "unknown key 'steps': did you mean 'train.steps'"),
        (["splits=[right]"], "unknown key 'splits': did you mean 'task.splits'"),
        (["rank=4"], "unknown key 'rank': did you mean 'methods.0.rank'"),
        (["train.stepps = 4"], "unknown key 'train.stepps': did you mean 'steps'"),
        (["judge_by=chrf", "task.metrics=[chrff]"], r"task\.metrics"),
    ],
)
def test_unmeasured_metrics_and_wrong_keys_are_refused_in_one_line(recipe: str, sets: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as refusal:
        load_recipe(recipe, ["task.metrics=[chrf]", *sets])
    assert len(str(refusal.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("arm: [english]", r"mine\.yaml: unknown key 'arm': did you mean 'arms'\?"),
        ("", r"mine\.yaml: arms: this key is missing; write, for example, arms: \[english, scratch\]"),
    ],
)
def test_a_missing_key_is_named_with_an_example_and_its_misspelling_is_found(
    line: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"name: mine\ntask: {{name: scan}}\n{line}\nmethods: [{{name: lora}}]\ntrain: {{steps: 5}}\n")
    with pytest.raises(UserError, match=message):
        load_recipe(str(path))


def test_judge_by_accepts_a_metric_that_is_chosen_from_the_data(recipe: str, tmp_path: Path) -> None:
    rows = tmp_path / "labels.tsv"
    rows.write_text("".join(f"number {at}\t{'odd' if at % 2 else 'even'}\n" for at in range(40)))
    sets = [f"task={{name: lines, options: {{train: {rows}}}}}"]
    assert resolve(load_recipe(recipe, [*sets, "judge_by=accuracy"])).judged_by == "accuracy"
    with pytest.raises(UserError, match=r"unknown metric among task\.metrics 'chrf'"):
        resolve(load_recipe(recipe, [*sets, "judge_by=chrf"]))


def test_the_last_of_two_overrides_counts(recipe: str) -> None:
    assert load_recipe(recipe, ["train.steps=20", "train.steps=30"]).train.steps == 30


@pytest.mark.parametrize("written", ["1e-3", "1.0e-3", "0.001", "'1e-3'"])
def test_all_notations_of_a_learning_rate_are_read_as_a_float(recipe: str, written: str) -> None:
    rate = load_recipe(recipe, [f"train.learning_rate={written}"]).train.learning_rate
    assert rate == 0.001
    assert isinstance(rate, float)


@given(rate=st.floats(min_value=1e-12, max_value=9.99))
def test_any_learning_rate_given_with_set_is_unchanged(rate: float) -> None:
    assert load_recipe("smoke", [f"train.learning_rate={rate!r}"]).train.learning_rate == rate


def test_a_whole_number_may_be_written_with_an_exponent(recipe: str) -> None:
    steps = load_recipe(recipe, ["train.steps=1e3"]).train.steps
    assert steps == 1000
    assert isinstance(steps, int)


def test_a_number_with_an_exponent_is_read_inside_a_mapping(recipe: str) -> None:
    assert load_recipe(recipe, ["train.learning_rate={lora: 1e-3}"]).train.learning_rate == {"lora": 0.001}


def test_set_changes_entries_of_lists(recipe: str) -> None:
    changed = load_recipe(recipe, ["methods.1.rank=7", "task.splits.0=length"])
    assert [method.rank for method in changed.methods] == [4, 7]
    assert changed.task.splits == ["length", "simple"]


def test_set_adds_keys_that_the_recipe_lacks(recipe: str) -> None:
    assert load_recipe(recipe, ["task.options.dev_size=40"]).task.options == {"dev_size": 40}


def test_a_value_may_contain_an_equals_sign(recipe: str) -> None:
    assert load_recipe(recipe, ["task.prefix='a=b: '"]).task.prefix == "a=b: "


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.steps", "write it as key=value"),
        ("=3", "write it as key=value"),
        ("train.steps=[1", "not YAML"),
        ("methods.2.rank=1", "there is no methods.2"),
        ("methods.first.rank=1", "there is no methods.first"),
        ("name.first=1", "there is no name.first"),
    ],
)
def test_a_malformed_override_is_refused(recipe: str, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_recipe(recipe, [override])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.learning_rate=abc", r"train\.learning_rate: .*number.*'abc'"),
        ("train.learning_rate={lora: abc}", r"train\.learning_rate\.lora: .*number.*'abc'"),
        ("family={name: own, arms: {english: a/b}, prefx: ''}", r"unknown key 'family\.prefx': did you mean 'prefix'"),
        (
            "family={name: own}",
            r"family\.arms: this key is missing; write, for example, family: \{name: mine",
        ),
        ("methods[0].rnk=8", r"unknown key 'methods\.0\.rnk': did you mean 'rank'"),
        ("methods.0.rnk=3", r"unknown key 'methods\.0\.rnk': did you mean 'rank'"),
        ("methods.0.bits=3", r"methods\.0\.bits: .*4, 8, 16 or 32"),
        ("zzz=3", r"unknown key 'zzz': known here: .*train"),
    ],
)
def test_the_message_about_a_mistake_names_the_dotted_key(recipe: str, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_recipe(recipe, [override])


@pytest.mark.parametrize("key", ["train.steps", "train.warmup", "train.learning_rate", "methods.0.rank", "seeds.0"])
def test_true_is_refused_as_a_number(recipe: str, key: str) -> None:
    with pytest.raises(UserError, match=key):
        load_recipe(recipe, [f"{key}=true"])


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", ".inf"])
@pytest.mark.parametrize("key", ["train.weight_decay", "train.max_grad_norm", "train.learning_rate", "methods.0.alpha"])
def test_numbers_that_are_not_finite_are_refused(recipe: str, key: str, value: str) -> None:
    with pytest.raises(UserError, match=key):
        load_recipe(recipe, [f"{key}={value}"])


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.text() | st.sampled_from(["name", "task", "train", "arms", "family", "steps"]), inner)
        ),
        max_leaves=12,
    )
)
def test_arbitrary_content_is_refused_in_one_line(content: object) -> None:
    with pytest.raises(UserError) as caught:
        validate({"task": content, "name": content}, "here")
    assert str(caught.value).startswith("here: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", list(shipped_recipes()))
def test_shipped_recipes_can_be_loaded_expanded_and_restored_from_yaml(name: str) -> None:
    assert load_any_recipe(name).description
    if "kind: pretrain" in find_recipe(name).read_text():
        pretraining = load_pretraining(name)
        assert pretraining.name == name
        assert PretrainRecipe.model_validate(yaml.safe_load(recipe_yaml(pretraining))) == pretraining
        return
    recipe = load_recipe(name)
    assert recipe.name == name
    cells = expand(recipe)
    assert cells
    again = validate(yaml.safe_load(recipe_yaml(recipe)), "frozen")
    assert again == recipe
    assert [cell.run_id for cell in expand(again)] == [cell.run_id for cell in cells]


def test_protein_is_compared_with_english_newemb_and_the_recipe_in_results_agrees() -> None:
    recipe = load_recipe("lora-transfer-nano")
    cells = expand(recipe)
    partners = [cell for cell in cells if cell.arm == "english-newemb"]
    assert {cell.spec.checkpoint.reinit for cell in partners} == {"embeddings"}
    for arm in ("protein", "english-newemb"):
        assert len({(cell.method, cell.seed) for cell in cells if cell.arm == arm}) == 2 * 6
    assert any((one.left, one.right) == ("protein", "english-newemb") for one in requested_effects(recipe))
    assert not seed_demand(recipe, cells).line  # the seeds are enough for all effects
    kept = expand(load_recipe(str(Path(__file__).parents[2] / "results" / "lora-transfer-nano" / "recipe.yaml")))
    assert {cell.run_id for cell in kept} == {cell.run_id for cell in cells}


@pytest.mark.parametrize("name", ["lora-transfer-nano", "methods-scan"])
def test_learning_rates_are_within_three_points_of_the_best_dev_score(name: str) -> None:
    """The dev scores come from the study's sweep.json. A worse learning rate would put a method at a disadvantage."""
    swept = json.loads((Path(__file__).parents[2] / "results" / name / "sweep.json").read_text())
    assert {group["method"] for group in swept["groups"]} == {cell.method for cell in expand(load_recipe(name))}
    rates = {(cell.arm, cell.method): cell.spec.train.learning_rate for cell in expand(load_recipe(name))}
    for group in swept["groups"]:
        seen = {one["rate"]: one["dev_em"] for one in group["rates"]}
        assert seen[rates[group["arm"], group["method"]]] >= max(seen.values()) - 3, group["method"]


def test_a_file_takes_precedence_over_a_shipped_recipe_of_the_same_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_recipe("smoke") == shipped_recipes()["smoke"]
    Path("smoke").write_text(RECIPE)
    assert load_recipe("smoke").name == "mine"


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("task.options.template=summarize: {document}", "summarize: {document}"),
        ("task.options.template={document}", "{document}"),
        ("task.options.template={title}: {document}", "{title}: {document}"),
        ("task.options.template='{title} {document}'", "{title} {document}"),
        ("task.options.dev=0.2", 0.2),
        ("task.prefix=translate: ", "translate: "),
        ("task.prefix={english: 'a: '}", {"english": "a: "}),
        ("arms=[english]", ["english"]),
        ("description=one: two", "one: two"),
    ],
)
def test_overrides_distinguish_texts_from_mappings_and_other_values(override: str, value: object) -> None:
    content: dict[str, Any] = {"task": {"options": {}}}
    apply_override(content, override)
    *path, last = override.partition("=")[0].split(".")
    for key in path:
        content = content[key]
    assert content[last] == value


def test_relative_paths_are_also_looked_up_in_the_folder_of_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, here = tmp_path / "home", tmp_path / "here"
    for folder in (home / "data", home / "base", home / "nano" / "english", here):
        folder.mkdir(parents=True)
    (home / "data" / "rows.csv").write_text("input,target\n")
    content = yaml.safe_load(RECIPE) | {
        "task": {"name": "lines", "options": {"train": "data/rows.csv", "dev": 5, "input": "data"}},
        "family": {
            "name": "own",
            "arms": {"a": "./base", "b": {"checkpoint": "base"}, "c": "nano/english", "d": "o/n"},
        },
        "arms": ["a", "b", "c", "d"],
    }
    path = home / "mine.yaml"
    path.write_text(yaml.safe_dump(content))
    monkeypatch.chdir(here)
    found = load_recipe(str(path))
    assert found.task.options == {"train": str(home / "data" / "rows.csv"), "dev": 5, "input": "data"}
    arms = found.family.arms  # type: ignore[union-attr]
    assert arms["a"] == str(home / "base")
    assert arms["b"].checkpoint == str(home / "base")  # type: ignore[union-attr]
    assert (arms["c"], arms["d"]) == ("nano/english", "o/n")

    (here / "data").mkdir()
    (here / "data" / "rows.csv").write_text("input,target\n")
    assert load_recipe(str(path)).task.options["train"] == "data/rows.csv", "the current folder comes first"
    (here / "data" / "rows.csv").unlink()
    (here / "given" / "data").mkdir(parents=True)
    (here / "given" / "data" / "rows.csv").write_text("input,target\n")
    with_folder = load_recipe(str(path), options={"data_dir": Path("given")})
    assert with_folder.task.options["train"] == "data/rows.csv", (
        "the folder of the data comes before that of the recipe"
    )


def test_data_beside_the_recipe_give_the_same_run_ids_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PETRANSFER_CACHE", str(tmp_path / "cache"))
    (tmp_path / "home" / "data").mkdir(parents=True)
    (tmp_path / "here").mkdir()
    rows = "".join(f"say {n},{n}\n" for n in range(40))
    (tmp_path / "home" / "data" / "rows.csv").write_text(f"input,target\n{rows}")
    path = tmp_path / "home" / "mine.yaml"
    task = {"task": {"name": "lines", "options": {"train": "data/rows.csv"}}}
    path.write_text(yaml.safe_dump(yaml.safe_load(RECIPE) | task | {"methods": [{"name": "lora"}]}))
    ids = []
    for folder in ("home", "here"):
        monkeypatch.chdir(tmp_path / folder)
        cells = expand(resolve(load_recipe(str(path))))
        ids.append([cell.run_id for cell in cells])
        places = {dict(cell.spec.task.source)["train"] for cell in cells}
        assert places == {str(tmp_path / "home" / "data" / "rows.csv")}, "runs have the absolute path of the data"
    assert ids[0] == ids[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("methods=lora", "methods: give a list in brackets, such as methods: [{name: lora}] (it is 'lora')"),
        ("methods.0=lora", "methods.0: give a mapping of keys to values, such as methods: [{name: lora}]"),
        ("methods.0.layers=3", "such as layers: [0, 1] (it is 3)"),
        ("methods.0.bits='4'", "methods.0.bits: give a number without quotes, such as bits: 4 (it is '4')"),
        ("methods.0.bits=5", "methods.0.bits: the value should be 4, 8, 16 or 32 (it is 5)"),
        ("task=data.csv", "such as task: {name: lines, options: {train: data.csv}} (it is 'data.csv')"),
        ("task.splits=simple", "such as splits: [add_jump, length]"),
        ("seeds=0-5", "seeds: give a list in brackets, such as seeds: [0, 1, 2] (it is '0-5')"),
        ("seeds=3", "such as seeds: [0, 1, 2] (it is 3)"),
        ("seeds=[a]", "seeds.0: give a whole number, as in seeds: [0, 1, 2] (it is 'a')"),
        ("arms=english", "such as arms: [english, scratch]"),
        ("arms=[5]", "arms.0: give a text, as in arms: [english, scratch] (YAML reads 5 as a number"),
        ("effects=english-scratch", "such as effects: [english-scratch]"),
        ("train=5", "such as train: {steps: 2000, learning_rate: 1.0e-3}"),
        ("train.steps=12,000", "without separators between the digits: steps: 12000 (it is '12,000')"),
        ("train.steps='1 200 000'", "without separators between the digits: steps: 1200000"),
        ("train.steps=many", "train.steps: give a whole number, such as steps: 1 (it is 'many')"),
        ("train.warmup=5%", "train.warmup: give a number, such as warmup: 0.1 (it is '5%')"),
        ("train.packing=perhaps", "give true or false, such as packing: true"),
        ("train.early_stopping=x", "such as early_stopping: {patience: 5}"),
        (f"name={'x' * 101}", "name: give a text of at most 100 characters (it is 'xxx"),
        ("data_dir=/dev/null", "data_dir: /dev/null is not a folder"),
        ("train.steps=0", "the value should be greater than or equal to 1 (it is 0)"),
    ],
)
def test_the_message_about_a_value_of_a_wrong_type_shows_the_right_form(recipe: str, change: str, message: str) -> None:
    with pytest.raises(UserError) as refused:
        load_recipe(recipe, [change])
    assert message in str(refused.value)


def test_the_message_about_a_path_shows_no_python_object(recipe: str) -> None:
    with pytest.raises(UserError) as refused:
        load_recipe(recipe, [], {"data_dir": Path("/dev/null")})
    assert str(refused.value).endswith("data_dir: /dev/null is not a folder")


def test_the_right_forms_shown_in_messages_are_valid(recipe: str) -> None:
    content = yaml.safe_load(RECIPE)
    for place, text in FORMS.items():
        at = content
        *outer, key = place.split(".")
        if outer != ["effects"] and place != "task.splits":
            for name in outer:
                at = at[name][0] if isinstance(at[name], list) else at[name]
            at.update(yaml.safe_load(text))
            assert list(yaml.safe_load(text)) == [key]
    content["family"]["arms"] = dict.fromkeys(content["arms"], "nano/english")
    content["methods"][0].pop("keep_wide")  # only for quantised weights
    assert validate(content, recipe).seeds == [0, 1, 2]


def test_messages_about_wrong_values_contain_no_class_names_or_words_of_pydantic(recipe: str) -> None:
    for key in (*Recipe.model_fields, *(f"task.{key}" for key in TaskPart.model_fields), "train.steps", "methods.0"):
        for value in (5, "x", True, ["a"], {"a": "b"}, None, [[1]]):
            content = yaml.safe_load(RECIPE)
            at: Any = content
            *outer, last = [int(one) if one.isdigit() else one for one in key.split(".")]
            for name in outer:
                at = at[name]
            at[last] = value
            message = ""
            try:
                validate(content, "mine.yaml")
            except UserError as error:
                message = str(error)
            assert not re.search(r"Part\b|instance of|dictionary|valid (list|string|integer|number)", message)


def test_configurations_and_keys_of_other_programs_are_recognised(tmp_path: Path) -> None:
    (tmp_path / "axolotl.yaml").write_text("base_model: a/b\nload_in_4bit: true\nlora_r: 8\nlearning_rate: 1e-4\n")
    with pytest.raises(UserError, match=r"axolotl.yaml is no recipe of petransfer: it has base_model, .*recipes cp"):
        load_recipe(str(tmp_path / "axolotl.yaml"))
    names = {"methods.0.lora_r": "rank", "methods.0.target_modules": "targets", "train.lr": "learning_rate",
             "lora_alpha": "methods.0.alpha"}  # fmt: skip
    for key, meant in names.items():
        with pytest.raises(UserError, match=rf"unknown key '{key}': did you mean '{meant}'"):
            load_recipe("smoke", [f"{key}=8"])
