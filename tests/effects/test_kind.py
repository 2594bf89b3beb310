"""Kinds of effects: the built-in kinds, an additional kind, and the errors for unknown kinds and keys."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from petransfer.effects.criteria import Criterion
from petransfer.effects.kind import KINDS, EffectKind, HolmResult, Missing, Thresholds, kinds_in_order
from petransfer.effects.pairs import Contrast, arms_under
from petransfer.effects.runs import Runs
from petransfer.effects.study_effects import update_effects
from petransfer.effects.wording import plain
from petransfer.errors import UserError
from petransfer.recipe.effect_requests import RequestedEffect
from petransfer.report.study_report import write_report
from petransfer.study.study import open_grid
from tests.report.made import draw_nothing, make, recipe_of


@dataclass(frozen=True)
class Times:
    """The exact match of the left arm divided by the exact match of the right arm."""

    name: str
    split: str
    ratio: float
    digits: int


def collect(effect: RequestedEffect, split: str, runs: Runs) -> Iterator[tuple[Contrast, int] | Missing]:
    for method in runs.methods(effect.left, split):
        found = arms_under(effect, split, method, runs)
        yield found if isinstance(found, Missing) else (found, int(effect.options.get("digits", 1)))


def judge(item: tuple[Contrast, int], family: HolmResult, thresholds: Thresholds) -> Times:
    contrast, digits = item
    ratio = float(contrast.left.mean() / contrast.right.mean())
    assert family.p_holm is None
    assert math.isfinite(ratio)
    return Times(contrast.name, contrast.split, ratio, digits)


def sentence(one: dict[str, Any], criterion: Criterion) -> str:
    return f"{one['name']} on {one['split']}: {plain(one['ratio'], one['digits'])} times as often right."


TIMES = EffectKind(
    name="times", key="times", heading="Times as often", requests=("times",), order=9, collect=collect,
    p_value=None, judge=judge, sentence=sentence, details=lambda one, criterion: "",
    plot=lambda *given: None,
)  # fmt: skip
EFFECT = {"kind": "times", "of": "english-scratch", "options": {"digits": 2}}


def test_the_kinds_of_petransfer_are_in_order() -> None:
    assert [kind.name for kind in kinds_in_order()] == ["contrast", "scale", "retention"]


def test_an_additional_kind_is_collected_judged_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KINDS, "_built_in", {**dict(KINDS), "times": TIMES})
    draw_nothing(monkeypatch)
    recipe = recipe_of(effects=["english-scratch", EFFECT], seeds=[0, 1])
    make(tmp_path, recipe)
    report = write_report(open_grid(tmp_path))
    found = report.effects["times"]
    assert len(found) == 2 * 3  # splits and methods
    assert report.effects["tests"] == 6  # only the contrasts are tested
    assert any(re.search(r"on right: \d\.\d\d times as often right\.", line) for line in report.effects["sentences"])
    assert "<h2>Times as often</h2>" in report.path.read_text(encoding="utf-8")


def test_the_error_for_an_unknown_kind_suggests_the_nearest_name(tmp_path: Path) -> None:
    recipe = recipe_of(effects=[EFFECT | {"kind": "retentoin"}], seeds=[0])
    cells, folder = make(tmp_path, recipe)
    with pytest.raises(UserError, match="retention"):
        update_effects(recipe, cells, folder)


@pytest.mark.parametrize("part", [{"kind": "times"}, {"kind": "times", "of": "english-scratch", "under": "lora"}])
def test_missing_and_unexpected_keys_of_a_kind_are_refused(part: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="kind"):
        recipe_of(effects=[part])
