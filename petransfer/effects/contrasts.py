"""From a study's run folders to its effects, and effects.json."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from petransfer.recipe.schema import Recipe, sides
from petransfer.study.grid import Cell
from petransfer.study.ledger import StudyFolder

if TYPE_CHECKING:
    from petransfer.effects.verdict import Contrast


def update_effects(recipe: Recipe, cells: Sequence[Cell], study: StudyFolder) -> dict[str, Any]:
    """Judges the recipe's effects on the runs that are done and keeps them in effects.json, which is returned.

    `effects` has them in full, `sentences` in a line each. What is there already for the same runs is taken as it is:
    judging imports statsmodels, which takes seconds.
    """
    done = [cell for cell in cells if study.run(cell.run_id).done]
    if not recipe.effects or not done:
        return {"effects": [], "sentences": []}
    digest = hashlib.sha256(json.dumps([recipe.effects, sorted(cell.run_id for cell in done)]).encode()).hexdigest()
    path = study.path / "effects.json"
    kept = _read(path)
    if kept is None or kept.get("runs_sha256") != digest:
        text = json.dumps({"runs_sha256": digest, **_judged(recipe, done, study)}, indent=1)
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text(text + "\n", encoding="utf-8")
        partial.replace(path)
        kept = json.loads(text)
    return kept


def _judged(recipe: Recipe, done: Sequence[Cell], study: StudyFolder) -> dict[str, Any]:
    from petransfer.effects.verdict import judge, sentence

    effects = judge(contrasts(recipe, done, study))
    return {"effects": [asdict(effect) for effect in effects], "sentences": [sentence(effect) for effect in effects]}


def contrasts(recipe: Recipe, done: Sequence[Cell], study: StudyFolder) -> list[Contrast]:
    """The recipe's effects, on every split, under every method of the left arm.

    The right arm is taken under the same method where it has it, or else under its only one: `scratch` is trained whole
    whatever the method. Of an effect without runs on both sides there is none.
    """
    found = []
    for split in dict.fromkeys(cell.split for cell in done):
        here = [cell for cell in done if cell.split == split]
        arms = {cell.arm for cell in here}
        for effect in recipe.effects:
            pair = sides(effect, arms)
            if not pair:
                continue
            left = [cell for cell in here if cell.arm == pair[0]]
            right = [cell for cell in here if cell.arm == pair[1]]
            for method in dict.fromkeys(cell.method for cell in left):
                like = [cell for cell in right if cell.method == method]
                only = right if len({cell.method for cell in right}) == 1 else []
                if like or only:
                    mine = [cell for cell in left if cell.method == method]
                    found.append(_contrast(effect, split, method, mine, like or only, study))
    return found


def _contrast(
    name: str, split: str, method: str, left: Sequence[Cell], right: Sequence[Cell], study: StudyFolder
) -> Contrast:
    import numpy as np

    from petransfer.effects.verdict import Contrast

    groups = [[_examples(cell, study) for cell in side] for side in (left, right)]
    index = groups[0][0]["index"]
    for run in (*groups[0], *groups[1]):
        if not np.array_equal(run["index"], index):
            raise ValueError(f"the runs of {name} on {split} were not tested on the same examples")
    _, categories = np.unique(groups[0][0]["category"], return_inverse=True)
    scores = [np.array([run["correct"] for run in group], dtype=np.float64) for group in groups]
    log_probs = [np.array([run["log_prob"].sum() / run["tokens"].sum() for run in group]) for group in groups]
    return Contrast(name, split, method, scores[0], scores[1], log_probs[0], log_probs[1], categories)


def _examples(cell: Cell, study: StudyFolder) -> dict[str, Any]:
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(study.run(cell.run_id).path / "examples.parquet")
    return {name: table[name].to_numpy() for name in ("index", "category", "correct", "log_prob", "tokens")}


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if "sentences" in content else None
