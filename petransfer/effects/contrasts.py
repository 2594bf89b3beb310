"""From a study's run folders to its effects, and effects.json."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from petransfer.effects.criteria import CRITERIA
from petransfer.effects.seed_counts import Demand
from petransfer.recipe.effect_requests import Wanted, matching, wanted
from petransfer.recipe.schema import EXACT_MATCH, Recipe
from petransfer.study.folders import StudyFolder
from petransfer.study.grid import Cell

if TYPE_CHECKING:
    from petransfer.effects.ratios import Two
    from petransfer.effects.runs import Runs
    from petransfer.effects.verdict import Contrast, Effect

# Raised when the same runs are judged otherwise, so that what was kept is judged anew.
JUDGED_VERSION = 6


@dataclass
class Collected:
    """What the recipe's effects are estimated from, and a line for each that cannot be."""

    contrasts: list[Contrast] = field(default_factory=list)
    scales: list[Two] = field(default_factory=list)
    retentions: list[Two] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def update_effects(recipe: Recipe, cells: Sequence[Cell], study: StudyFolder, *, anew: bool = False) -> dict[str, Any]:
    """Judges the recipe's effects on the runs that are done and keeps them in effects.json, which is returned.

    `effects`, `scales` and `retentions` have them in full, `sentences` in a line each, `missing` a line for each that
    cannot be estimated yet. `judged_by` names the metric where it is not exact match, and `sentences` begin with what
    must then be known. What is there already for the same runs is taken as it is unless `anew`: judging imports
    statsmodels, which takes seconds. What is written for others is judged anew, as a file can have been edited.
    """
    done = sorted(cell.run_id for cell in cells if study.run(cell.run_id).done)
    if not recipe.effects or not done:
        return {"effects": [], "scales": [], "retentions": [], "missing": [], "sentences": []}
    failed = sorted((cell.run_id, study.run(cell.run_id).status()) for cell in cells if cell.run_id not in set(done))
    asked = [effect if isinstance(effect, str) else effect.model_dump() for effect in recipe.effects]
    seen = [JUDGED_VERSION, asked, recipe.margin, done, failed, _elsewhere(recipe, study)]
    seen += [] if recipe.judged_by == EXACT_MATCH else [recipe.judged_by]  # so that digests of before are as they were
    digest = hashlib.sha256(json.dumps(seen).encode()).hexdigest()
    path = study.path / "effects.json"
    kept = None if anew else _read(path)
    if kept is None or kept.get("runs_sha256") != digest:
        content = {"runs_sha256": digest, **_judged(recipe, cells, study)}
        text = json.dumps(content, indent=1, allow_nan=False)
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text(text + "\n", encoding="utf-8")
        partial.replace(path)
        kept = json.loads(text)
    return kept


def demand(recipe: Recipe, cells: Sequence[Cell]) -> Demand:
    """How many effects the recipe's grid judges together, before any run: what decides how many seeds they need."""
    unpaired = paired = 0
    for split in dict.fromkeys(cell.split for cell in cells):
        trained = {(cell.arm, cell.method) for cell in cells if cell.split == split}
        for effect in wanted(recipe):
            if effect.kind == "methods":
                paired += sum({(arm, effect.left), (arm, effect.right)} <= trained for arm in effect.arms)
            elif effect.kind in ("arms", "scale"):
                unpaired += sum(arm == effect.left for arm, _ in trained)
    return Demand(unpaired + paired, len(recipe.seeds), unpaired, paired)


def _elsewhere(recipe: Recipe, study: StudyFolder) -> list[list[str]]:
    """The runs that are done of the other studies that effects refer to."""
    names = {effect.study for effect in wanted(recipe) if effect.study}
    if not names:
        return []
    from petransfer.effects.runs import runs_of

    others = [runs_of(name, study.path) for name in sorted(names)]
    return [
        sorted(cell.run_id for cell in other.cells if other.folder.run(cell.run_id).done) if other else []
        for other in others
    ]


def _judged(recipe: Recipe, cells: Sequence[Cell], study: StudyFolder) -> dict[str, Any]:
    from petransfer.effects import sentences
    from petransfer.effects.ratios import judge_scales, retention, scale_p
    from petransfer.effects.verdict import judge, raw_p

    found = collect(recipe, cells, study)
    margin, metric = recipe.margin, recipe.judged_by
    criterion = CRITERIA[metric]
    effects = judge(found.contrasts, margin, beside=[scale_p(two) for two in found.scales])
    scales = judge_scales(found.scales, [raw_p(contrast) for contrast in found.contrasts], margin)
    retentions = [retention(two) for two in found.retentions]
    return {
        **({} if metric == EXACT_MATCH else {"judged_by": metric}),
        "tests": len(effects) + len(scales),
        "effects": [asdict(effect) | {"paper": _paper(effect, recipe)} for effect in effects],
        "scales": [asdict(scale) for scale in scales],
        "retentions": [asdict(one) for one in retentions],
        "missing": found.missing,
        "sentences": [
            *([criterion.note] if criterion.note else []),
            *(sentences.of_effect(effect, criterion) for effect in effects),
            *(sentences.of_scale(scale, criterion) for scale in scales),
            *map(sentences.of_retention, retentions),
        ],
    }


def _paper(effect: Effect, recipe: Recipe) -> dict[str, Any] | None:
    """The same contrast in the paper, judged alone on its seeds' figures; None where it has not both arms.

    It has exact match alone, beside which no other metric is set.
    """
    from petransfer.effects.reference import family_beside, published_contrast
    from petransfer.effects.verdict import judge

    if effect.arm or recipe.judged_by != EXACT_MATCH:
        return None
    family = family_beside(family_name(recipe))
    names = (effect.left_name, effect.right_name)
    contrast = published_contrast(family, *names, recipe.task.name, effect.split)
    if contrast is None:
        return None
    (found,) = judge([contrast], recipe.margin)
    keys = ("difference", "interval", "left", "right", "seeds", "p", "smallest_p", "verdict")
    return {"family": family} | {key: value for key, value in asdict(found).items() if key in keys}


def collect(recipe: Recipe, cells: Sequence[Cell], study: StudyFolder) -> Collected:
    """The recipe's effects on every split: of arms under every method of the left one, of methods in every arm.

    The right arm is taken under the same method where it has it, or else under its only one: `scratch` is trained whole
    whatever the method.
    """
    from petransfer.effects.runs import Runs

    runs, found = Runs(recipe, cells, study, recipe.judged_by), Collected()
    for split in runs.splits:
        for effect in wanted(recipe):
            _COLLECT[effect.kind](effect, split, runs, found)
    return found


def _of_arms(effect: Wanted, split: str, runs: Runs, found: Collected) -> None:
    for method in runs.methods(effect.left, split):
        contrast = _arms_under(effect, split, method, runs, found)
        if contrast:
            found.contrasts.append(contrast)


def _of_methods(effect: Wanted, split: str, runs: Runs, found: Collected) -> None:
    from petransfer.effects.runs import compared

    for arm in effect.arms:
        if not {effect.left, effect.right} <= set(runs.methods(arm, split)):
            continue  # the grid does not train this arm both ways: scratch has its own
        both = [runs.scored(arm, method, split) for method in (effect.left, effect.right)]
        if both[0] and both[1]:
            names = {"method": "", "arm": arm, "left_name": effect.left, "right_name": effect.right}
            contrast = compared(effect.name, split, both[0], both[1], paired=True, **names)
            if len(contrast.left):
                found.contrasts.append(contrast)
                continue
            why = "no seed was run under both"
        else:
            lacking = next(method for method, one in zip((effect.left, effect.right), both, strict=True) if not one)
            why = runs.why_none(arm, lacking, split)
        found.missing.append(f"{effect.name} on {split} ({arm}): not estimated, {why}")


def _of_scale(effect: Wanted, split: str, runs: Runs, found: Collected) -> None:
    from petransfer.effects.ratios import Two

    other = _other(effect, split, runs, found)
    if other is None:
        return
    for method in runs.methods(effect.left, split):
        here = _arms_under(effect, split, method, runs, found)
        there = here and _arms_under(effect, split, _like(method, effect.left, split, other), other, found)
        if here and there:
            found.scales.append(Two(here, there, family_name(runs.recipe), family_name(other.recipe)))


def _of_retention(effect: Wanted, split: str, runs: Runs, found: Collected) -> None:
    from petransfer.effects.ratios import Two

    other = _other(effect, split, runs, found)
    if other is None:
        return
    labels = matching(effect.over, other.methods(effect.left, split))
    over = labels[0] if len(labels) == 1 else effect.over
    here = _arms_under(effect, split, effect.under, runs, found)
    there = here and _arms_under(effect, split, over, other, found)
    if here and there:
        found.retentions.append(Two(here, there, effect.under, over))


_COLLECT = {"arms": _of_arms, "methods": _of_methods, "scale": _of_scale, "retention": _of_retention}


def _arms_under(effect: Wanted, split: str, method: str, runs: Runs, found: Collected) -> Contrast | None:
    from petransfer.effects.runs import compared

    partner = runs.partner(effect.right, method, split)
    left, right = runs.scored(effect.left, method, split), runs.scored(effect.right, partner, split)
    if left and right:
        names = {"method": method, "left_name": effect.left, "right_name": effect.right}
        return compared(effect.name, split, left, right, **names)
    lacking = (effect.left, method) if not left else (effect.right, partner)
    kind = f"{effect.kind} of " if effect.kind in ("scale", "retention") else ""
    found.missing.append(f"{kind}{effect.name} on {split} ({method}): not estimated, {runs.why_none(*lacking, split)}")
    return None


def _other(effect: Wanted, split: str, runs: Runs, found: Collected) -> Runs | None:
    """The study that an effect refers to, scored alike: this one unless it names another."""
    from petransfer.effects.runs import runs_of

    if not effect.study:
        return runs
    other = runs_of(effect.study, runs.folder.path, runs.metric)
    if other and runs.metric in {EXACT_MATCH, *other.cells[0].spec.task.metrics}:
        return other
    why = f"the study {effect.study} did not measure {runs.metric}" if other else f"no study {effect.study}"
    found.missing.append(f"{effect.kind} of {effect.name} on {split}: not estimated, {why}")
    return None


def _like(method: str, arm: str, split: str, other: Runs) -> str:
    """The other study's method of this name, or its only one."""
    theirs = other.methods(arm, split)
    return theirs[0] if method not in theirs and len(theirs) == 1 else method


def family_name(recipe: Recipe) -> str:
    """What the recipe calls its family."""
    return recipe.family if isinstance(recipe.family, str) else recipe.family.name


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if "sentences" in content else None
