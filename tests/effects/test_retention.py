"""Retention: known effects, Fieller's formula, and simulated studies."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from petransfer.effects.criteria import CRITERIA
from petransfer.effects.kind import Thresholds
from petransfer.effects.kinds.retention import Retention, retention, sentence
from petransfer.effects.pairs import ContrastPair
from petransfer.effects.study_effects import update_effects
from tests.effects.test_scale import contrast, flat, group
from tests.report.made import make, recipe_of


def sentence_of(one: Retention) -> str:
    return sentence(json.loads(json.dumps(asdict(one))), CRITERIA["exact_match"])


def test_retention_of_known_effects() -> None:
    one = retention(ContrastPair(contrast(flat(0.5), flat(0.2)), contrast(flat(0.6), flat(0.2)), "lora", "full"))
    assert one.ratio == pytest.approx(0.75)
    assert one.interval is not None
    assert one.interval.low < 0.75 < one.interval.high
    assert "75 % of the effect is retained (95 % interval " in sentence_of(one)


@pytest.mark.parametrize(
    ("under", "over", "why"),
    [
        (
            (flat(0.5), flat(0.2)),
            (flat(0.21), flat(0.2)),
            "the effect under full is not certain enough to divide by it",
        ),
        ((flat(0.5), flat(0.2)), (flat(0.6, 1), flat(0.2)), "full has a single seed"),
        ((flat(0.5, 1), flat(0.2)), (flat(0.6), flat(0.2)), "lora has a single seed"),
    ],
)
def test_no_ratio_if_the_denominator_may_be_zero_or_a_method_has_one_seed(
    under: tuple[np.ndarray, np.ndarray], over: tuple[np.ndarray, np.ndarray], why: str
) -> None:
    one = retention(ContrastPair(contrast(*under), contrast(*over), "lora", "full"))
    assert one.ratio is None
    assert one.interval is None
    assert str(one.undefined) in sentence_of(one)
    assert why in str(one.undefined)
    assert str(one.undefined).startswith("not defined, because ")


def test_a_shared_control_makes_the_interval_narrower() -> None:
    """If both effects use the same scratch runs, they share the random error of these runs. The ratio varies less."""
    rng = np.random.default_rng(0)
    control = group(rng, 0.3, 0.12, 6)
    lora, full = flat(0.6), flat(0.62)
    both = [replace(contrast(side, control), right_key="scratch") for side in (lora, full)]
    shared = retention(ContrastPair(*both, "lora", "full"))
    apart = retention(ContrastPair(contrast(lora, control), contrast(full, control), "lora", "full"))
    assert shared.interval is not None
    assert apart.interval is not None
    assert shared.interval.high - shared.interval.low < 0.7 * (apart.interval.high - apart.interval.low)


def test_the_interval_satisfies_fiellers_formula() -> None:
    """With one example per seed, drawing examples adds no variance, so only the variance between seeds counts."""
    rng = np.random.default_rng(5)
    a, b, c, d = (rng.random((6, 1)) * 0.1 + at for at in (0.5, 0.2, 0.7, 0.2))
    found = retention(ContrastPair(contrast(a, b), contrast(c, d), "lora", "full"))
    top, bottom = a.mean() - b.mean(), c.mean() - d.mean()
    var_top, var_bottom = (sum(x.var(ddof=1) / 6 for x in pair) for pair in ((a, b), (c, d)))
    free = min((x.var() + y.var()) ** 2 / (x.var() ** 2 / 5 + y.var() ** 2 / 5) for x, y in ((a, b), (c, d)))
    assert found.interval
    for ratio in (found.interval.low, found.interval.high):
        distance = abs(top - ratio * bottom) / math.sqrt(var_top + ratio**2 * var_bottom)
        assert distance == pytest.approx(stats.t.ppf(0.975, free))


def test_no_ratio_if_an_arm_has_not_learnt_the_task() -> None:
    learnt = contrast(flat(0.6), flat(0.2))
    one = retention(ContrastPair(replace(learnt, dev=(0.5, 0.99)), learnt, "lora", "full"))
    assert one.ratio is None
    assert "an arm is below 90 % on dev under lora" in str(one.undefined)
    assert (
        retention(ContrastPair(replace(learnt, dev=(0.5, 0.99)), learnt, "lora", "full"), Thresholds(learnt=0)).ratio
        == 1
    )


@pytest.mark.slow
def test_the_interval_contains_the_true_retention_at_its_nominal_rate() -> None:
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(300):
        control = group(rng, 0.25, 0.07, 6, 200)
        sides = [contrast(group(rng, mean, 0.09, 6, 200), control) for mean in (0.55, 0.65)]
        under, over = (replace(side, right_key="scratch") for side in sides)
        found = retention(ContrastPair(under, over, "lora", "full")).interval
        assert found is not None
        covered += found.low <= 0.75 <= found.high
    assert covered / 300 >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / 300)


def test_a_study_of_another_task_is_not_compared(tmp_path: Path) -> None:
    recipe = recipe_of(effects=[{"retention": "english-scratch", "under": "4-bit", "over": "full", "study": "other"}])
    cells, folder = make(tmp_path / "mine", recipe)
    make(tmp_path / "other", recipe_of(task={"name": "cogs", "splits": ["gen"]}, effects=[]))
    found = update_effects(recipe, cells, folder)
    assert found["retentions"] == []
    assert all("not estimated, because the study other has another task, cogs" in line for line in found["missing"])
    assert len(found["missing"]) == 2


def test_studies_on_other_rows_are_not_treated_as_studies_on_the_same_rows(tmp_path: Path) -> None:
    """Equal row numbers are not enough. Retention is not estimated, and a scale effect gets a note."""
    files = {name: tmp_path / f"{name}.tsv" for name in ("mine", "theirs")}
    for name, file in files.items():
        file.write_text("".join(f"{name} {n}\t{n}\n" for n in range(40)))
    effects = [
        {"retention": "english-scratch", "under": "lora", "over": "lora", "study": "other"},
        {"scale": "english-scratch", "study": "other"},
    ]
    changes = {"arms": ["english", "scratch"], "methods": [{"name": "lora", "bits": 32}]}
    task = {name: {"name": "lines", "options": {"train": str(file)}} for name, file in files.items()}
    recipe = recipe_of(task=task["mine"], effects=effects, **changes)
    cells, folder = make(tmp_path / "study", recipe)
    make(tmp_path / "other", recipe_of(task=task["mine"], effects=[], **changes))
    same = update_effects(recipe, cells, folder)
    assert len(same["retentions"]) == len(same["scales"]) == 1
    assert not any("different test examples" in note for note in same["notes"])
    shutil.rmtree(tmp_path / "other")
    make(tmp_path / "other", recipe_of(task=task["theirs"], effects=[], **changes))
    found = update_effects(recipe, cells, folder)
    why = "not estimated, because the study other has other test examples"
    assert found["missing"] == [f"retention of english-scratch on held-out: {why}"]
    assert found["retentions"] == []
    (note,) = (note for note in found["notes"] if "different test examples" in note)
    assert "english-scratch on held-out" in note
    assert note in found["sentences"]
    (scale,) = found["scales"]
    assert scale["difference"] == pytest.approx(0)
    assert scale["interval"]["low"] < same["scales"][0]["interval"]["low"]
