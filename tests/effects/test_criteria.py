"""Effects in metrics other than exact match. Such a metric has one score per run, and reports name it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from petransfer.effects.criteria import CRITERIA
from petransfer.effects.intervals import sum_interval
from petransfer.effects.kinds.contrast import CONTRAST
from petransfer.effects.seed_counts import smallest_p
from petransfer.effects.study_effects import update_effects
from petransfer.errors import UserError
from petransfer.recipe.schema import Recipe
from petransfer.study.folders import StudyFolder
from petransfer.study.grid import Cell
from tests.report.made import make, recipe_of

METHODS = [{"name": "lora", "bits": 32}, {"name": "full", "bits": 32, "rate_scaling": "rms"}]
METRICS = ("exact_match", "accuracy", "macro_f1", "chrf", "bleu", "rouge")


def judged_by(metric: str | None, metrics: Sequence[str] = METRICS[3:], **changes: Any) -> Recipe:
    """Return a recipe with English and scratch on one split, these metrics, and `judge_by` if `metric` is given."""
    content = {"arms": ["english", "scratch"], "methods": METHODS, "effects": ["english-scratch"]} | changes
    named = {"judge_by": metric} if metric else {}
    return recipe_of(task={"name": "scan", "splits": ["right"], "metrics": list(metrics)}, **content, **named)


def figures(english: float, scratch: float, spread: float = 1.0) -> Callable[[Cell], dict[str, float]]:
    """Return a function that gives a run its scores: in every metric, the arm's level plus `spread` times the seed."""

    def scores(cell: Cell) -> dict[str, float]:
        level = (english if cell.arm == "english" else scratch) + spread * cell.seed
        return {one.key: level for one in CRITERIA.values() if not one.by_example}

    return scores


def judged(
    path: Path, recipe: Recipe, scores: Callable[[Cell], dict[str, float]], **options: Any
) -> tuple[dict[str, Any], StudyFolder]:
    """Make a study with these scores, and return its effects and its folder. Exact match is 50 % in every run."""
    cells, folder = make(path / recipe.name, recipe, lambda cell: 0.5, scores=scores, **options)
    return update_effects(recipe, cells, folder), folder


def under_lora(found: dict[str, Any]) -> dict[str, Any]:
    (effect,) = [one for one in found["effects"] if "lora" in one["method"]]
    return dict(effect)


def test_effects_are_computed_in_the_first_declared_metric(tmp_path: Path) -> None:
    found, folder = judged(tmp_path, judged_by(None), figures(70, 50))
    assert found["judged_by"] == "chrf"
    effect = under_lora(found)
    assert (effect["difference"], effect["verdict"]) == (pytest.approx(20), "holds")
    assert effect["left_seeds"] == pytest.approx([70, 71, 72, 73, 74, 75])
    assert effect["p"] == pytest.approx(smallest_p(6, 6))
    assert (effect["log_odds"], effect["mcnemar"], effect["paper"]) == (None, None, None)
    assert effect["log_prob_difference"] == pytest.approx(0)
    note, _, *lines = found["sentences"]
    assert note.startswith("Effects are differences in test chrF. A run has one value of chrF")
    assert "Log-odds, McNemar's test and the comparison with the paper are left out." in note
    assert all("+20.0 points of test chrF (95 % interval " in line for line in lines)
    assert json.loads((folder.path / "effects.json").read_text())["judged_by"] == "chrf"


@pytest.mark.parametrize("examples", [10, 100])
def test_the_interval_in_another_metric_is_over_seeds_only(tmp_path: Path, examples: int) -> None:
    effect = under_lora(judged(tmp_path, judged_by("bleu"), figures(70, 50), examples=examples)[0])
    sides = {side: (level + np.arange(6.0))[:, None] / 100 for side, level in (("left", 70), ("right", 50))}
    expected = sum_interval(sides, {"left": 1.0, "right": -1.0}, np.zeros(1, dtype=np.int64), examples)
    assert expected
    bounds = (100 * expected.low, 100 * expected.high)
    assert (effect["interval"]["low"], effect["interval"]["high"]) == pytest.approx(bounds)


def test_other_measured_metrics_do_not_change_effects_in_exact_match(tmp_path: Path) -> None:
    """Effects are in exact match if no metric is declared, `judge_by` names it, or it is among the declared metrics."""
    plain, _ = judged(tmp_path / "a", judged_by(None, []), figures(70, 50))
    chosen, _ = judged(tmp_path / "b", judged_by("exact_match"), figures(70, 50))
    declared, _ = judged(tmp_path / "c", judged_by(None, ["exact_match", "chrf"]), figures(70, 50))
    for one in (plain, chosen, declared):
        assert "judged_by" not in one
        assert one.keys() == plain.keys()
        assert (one["effects"], one["sentences"]) == (plain["effects"], plain["sentences"])
    assert under_lora(plain)["verdict"] == "equivalent"


def test_saved_effects_are_judged_again_in_another_metric(tmp_path: Path) -> None:
    exact, chrf = judged_by("exact_match"), judged_by("chrf")
    first, folder = judged(tmp_path, exact, figures(70, 50))
    cells, _ = make(folder.path, chrf, lambda cell: 0.5, scores=figures(70, 50))
    second = update_effects(chrf, cells, folder)
    assert first["runs_sha256"] != second["runs_sha256"]
    assert [under_lora(one)["verdict"] for one in (first, second)] == ["equivalent", "holds"]


@pytest.mark.parametrize(("metric", "has_odds"), [("macro_f1", False), ("bleu", False), ("accuracy", True)])
def test_only_metrics_that_are_shares_of_correct_answers_have_log_odds(
    tmp_path: Path, metric: str, has_odds: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores of 0.3 and 0.4 are saturated, not equivalent, in every metric."""
    monkeypatch.setattr(
        "petransfer.study.grid.check_metrics", lambda *given: None
    )  # it refuses label metrics, because SCAN has no labels
    found, _ = judged(tmp_path, judged_by(metric, METRICS), figures(0.4, 0.3, spread=0.01))
    effect = under_lora(found)
    assert effect["verdict"] == "saturated"
    assert (effect["log_odds"] is not None) == has_odds
    assert ("Log-odds" in CONTRAST.details(effect, CRITERIA[metric])) == has_odds
    assert ("Log-odds" in found["sentences"][0]) == (not has_odds)


def test_effects_in_rouge_use_rouge_l(tmp_path: Path) -> None:
    scores = figures(70, 50)
    found, _ = judged(tmp_path, judged_by("rouge"), lambda cell: scores(cell) | {"rouge1": 1.0, "rouge2": 2.0})
    assert under_lora(found)["left"] == pytest.approx(72.5)
    assert "points of test ROUGE-L" in found["sentences"][2]


def test_one_seed_gives_no_interval_and_no_mcnemar_test(tmp_path: Path) -> None:
    found, _ = judged(tmp_path, judged_by("chrf", seeds=[0]), figures(70, 50))
    effect = under_lora(found)
    assert (effect["verdict"], effect["interval"], effect["mcnemar"]) == ("inconclusive", None, None)


def test_more_examples_are_not_advised_if_the_interval_is_over_seeds_only(tmp_path: Path) -> None:
    """All English seeds are slightly above all scratch seeds, and one is far above: the exact p value is 0.029."""
    scores = figures(50, 49.6, spread=0.1)
    recipe = judged_by("chrf", seeds=[0, 1, 2, 3], methods=METHODS[1:])

    def one_far_above(cell: Cell) -> dict[str, float]:
        return {"chrf": 95.0} if (cell.arm, cell.seed) == ("english", 3) else scores(cell)

    found, _ = judged(tmp_path, recipe, one_far_above)
    (effect,) = found["effects"]
    assert effect["p_holm"] < 0.05
    assert effect["interval"]["low"] < 0
    assert effect["verdict"] == "inconclusive"
    assert "the 95 % interval of the difference includes zero" in found["sentences"][2]
    assert "examples" not in found["sentences"][2]


def test_retention_and_scale_use_the_chosen_metric(tmp_path: Path) -> None:
    effects = [{"retention": "english-scratch", "under": "lora"}, {"scale": "english-scratch", "study": "small"}]
    judged(tmp_path, judged_by("bleu", name="small"), figures(60, 50))
    scores = figures(70, 50)

    def half_under_lora(cell: Cell) -> dict[str, float]:
        return {name: value - (10 if "lora" in cell.method else 0) for name, value in scores(cell).items()}

    found, _ = judged(tmp_path, judged_by("chrf", effects=effects), half_under_lora)
    (kept,) = found["retentions"]
    assert (kept["under"]["difference"], kept["ratio"]) == (pytest.approx(10), pytest.approx(0.5))
    assert [one["difference"] for one in found["scales"]] == pytest.approx([0, 10])  # LoRA, then full fine-tuning
    assert any("in nano (72.5 against 52.5)" in line for line in found["sentences"])


def test_retention_is_not_estimated_from_different_test_examples(tmp_path: Path) -> None:
    """This holds although the metric has one score per run, so that the interval could be computed."""
    judged(tmp_path, judged_by("chrf", name="whole"), figures(70, 50), examples=80)
    effects = [{"retention": "english-scratch", "under": "lora", "study": "whole"}]
    found, _ = judged(tmp_path, judged_by("chrf", effects=effects), figures(70, 50))
    assert found["retentions"] == []
    why = "not estimated, because the study whole has other test examples"
    assert found["missing"] == [f"retention of english-scratch on right: {why}"]


def test_a_study_that_did_not_measure_the_metric_is_reported(tmp_path: Path) -> None:
    judged(tmp_path, judged_by(None, [], name="small"), figures(60, 50))
    recipe = judged_by("chrf", effects=["english-scratch", {"scale": "english-scratch", "study": "small"}])
    found, _ = judged(tmp_path, recipe, figures(70, 50))
    line = "scale of english-scratch on right: not estimated, because the study small did not measure chrf"
    assert found["missing"] == [line]


def test_a_run_without_the_score_is_reported_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"result\.json has no finite test score for chrf, .* repeat the run") as one:
        judged(tmp_path, judged_by("chrf"), lambda cell: {} if cell.seed == 3 else {"chrf": 50.0})
    assert len(str(one.value).splitlines()) == 1


def test_metrics_have_a_name_and_a_unit_for_effects() -> None:
    known = {name: (CRITERIA[name].word, CRITERIA[name].unit) for name in CRITERIA}
    expected = {
        "exact_match": ("exact match", " %"), "accuracy": ("accuracy", " %"), "macro_f1": ("macro-F1", " %"),
        "chrf": ("chrF", ""), "bleu": ("BLEU", ""), "rouge": ("ROUGE-L", ""),
    }  # fmt: skip
    assert expected.items() <= known.items()
    assert next(iter(known)) == "exact_match"


def test_a_score_that_is_nan_is_reported(tmp_path: Path) -> None:
    recipe = judged_by("chrf")
    cells, folder = make(tmp_path, recipe, lambda cell: 0.5, scores=figures(70, 50))
    run = folder.run(cells[0].run_id)
    result = run.result()
    assert result
    result["test"]["chrf"] = float("nan")
    run.write_json("result.json", result)
    with pytest.raises(UserError, match="no finite test score for chrf"):
        update_effects(recipe, cells, folder)
