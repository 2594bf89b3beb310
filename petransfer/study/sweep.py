"""Learning-rate sweeps: try learning rates on dev and choose the best. Imports no torch.

The runs are in `<study>/sweep/`, the results in `<study>/sweep.json`.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from petransfer.atomic_files import write_text
from petransfer.errors import UserError
from petransfer.recipe.effect_requests import labels_matching
from petransfer.recipe.run_spec import RunSpec, TrainSpec
from petransfer.recipe.schema import LEARNING_RATE_LIMIT, Recipe
from petransfer.study.damaged_runs import read_json
from petransfer.study.file_forms import SweepForm, wrong_part
from petransfer.study.folders import StudyFolder
from petransfer.study.grid import Cell

ArmAndMethod = tuple[str, str]


def sweep_cells(
    cells: Sequence[Cell], learning_rates: Sequence[float], factors: Sequence[float], steps: int
) -> list[Cell]:
    """Return each run once for every learning rate of the sweep. Equal runs are returned once.

    Args:
        learning_rates: The learning rates. Empty: use `factors`.
        factors: Multiples of the run's own learning rate.
        steps: The number of optimiser steps of each run. 0: as in the recipe.

    Raises:
        UserError: A learning rate is not between 0 and 10.
    """
    found: dict[str, Cell] = {}
    for cell in cells:
        train = cell.spec.train
        # rounded to six digits, so that 3 x 0.1 and 0.3 are one learning rate and one run
        for rate in learning_rates or [float(f"{factor * train.learning_rate:.6g}") for factor in factors]:
            if not 0 < rate < LEARNING_RATE_LIMIT:
                raise UserError(
                    f"the learning rate {rate:g} for {cell.arm}, {cell.method} must be between 0 and "
                    f"{LEARNING_RATE_LIMIT}; choose other values with --learning-rates or --factors, such as "
                    "--factors 0.25,0.5,1"
                )
            at = replace(train, learning_rate=rate, steps=steps or train.steps)
            swept = replace(cell, spec=replace(cell.spec, train=at))
            found.setdefault(swept.run_id, swept)
    return list(found.values())


def sweep_folder(study: StudyFolder) -> StudyFolder:
    return StudyFolder(study.path / "sweep")


def open_sweep(recipe: Recipe, study: StudyFolder) -> None:
    """Create the folders of a study and of the study's sweep, with recipe.yaml.

    Raises:
        UserError: The study's folder cannot be written to, or belongs to a recipe of another name.
    """
    study.refuse_other_than(recipe.name)
    other = (read_sweep(study) or {}).get("study", recipe.name)
    if other != recipe.name:
        raise UserError(f"{study.path} has a sweep of the recipe '{other}', not '{recipe.name}'; use another --out")
    if not (study.path / "recipe.yaml").exists():
        study.open(recipe)
    try:
        (sweep_folder(study).path / "runs").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{study.path} cannot be written to ({error.strerror}); use another --out") from None


def read_sweep(study: StudyFolder) -> dict[str, Any] | None:
    """Return the content of sweep.json. None if there was no sweep.

    Raises:
        UserError: The file is damaged.
    """
    path = study.path / "sweep.json"
    if not path.exists():
        return None
    content = read_json(path)
    wrong = wrong_part(SweepForm, content)
    if wrong:
        raise UserError(f"{path} is damaged ({wrong}); delete it, and `petransfer sweep` writes it again from its runs")
    return content


def update_sweep(recipe: Recipe, own: Sequence[Cell], asked: Sequence[Cell], study: StudyFolder) -> dict[str, Any]:
    """Write sweep.json and return its content.

    Learning rates of earlier sweeps are included. Other arms and methods keep their earlier results.

    Args:
        own: the runs of the study.
        asked: the runs of this sweep.
    """
    folder = sweep_folder(study)
    members: dict[ArmAndMethod, list[Cell]] = {}
    # Runs of earlier sweeps count if they differ only in the learning rate. A user can therefore extend a range by
    # sweeping only the missing values.
    for cell in [*asked, *_earlier_sweeps(asked, folder)]:
        members.setdefault((cell.arm, cell.method), []).append(cell)
    with study.locked():
        before = {(one["arm"], one["method"]): one for one in (read_sweep(study) or {}).get("groups", ())}
        found: list[dict[str, Any]] = []
        unswept: list[dict[str, Any]] = []
        for group, cell in {(cell.arm, cell.method): cell for cell in own}.items():
            if group in members:
                found.append(_group(members[group], cell.spec.train, folder))
            elif group in before:
                found.append(before[group])
            else:
                names = {"arm": cell.arm, "method": cell.method, "name": cell.spec.method.name}
                unswept.append({**names, "chosen": None, "own_rate": cell.spec.train.learning_rate})
        # the section replaces that of the recipe, so it also has the learning rates of arms that were not swept
        content = {"study": recipe.name, "learning_rate": recipe_learning_rates([*found, *unswept]), "groups": found}
        write_text(study.path / "sweep.json", json.dumps(content, indent=1, allow_nan=False) + "\n")
    return content


def _earlier_sweeps(asked: Sequence[Cell], folder: StudyFolder) -> Iterator[Cell]:
    known = {_without_learning_rate(cell.spec): cell for cell in asked}
    ids = {cell.run_id for cell in asked}
    for name in sorted(folder.names() - ids):
        run = folder.run(name)
        content = run.begun() if run.done else None
        spec = RunSpec.from_dict(content) if content else None
        cell = known.get(_without_learning_rate(spec)) if spec else None
        if spec and cell:
            yield replace(cell, spec=spec)


def _without_learning_rate(spec: RunSpec) -> str:
    """Return the settings of a run without the learning rate, for comparison with other runs."""
    return replace(spec, train=replace(spec.train, learning_rate=1.0)).canonical_json()


def _group(members: Sequence[Cell], own: TrainSpec, folder: StudyFolder) -> dict[str, Any]:
    """Return the scores of one arm and method at each learning rate, and the best learning rate."""
    pairs = {(cell.split, cell.seed) for cell in members}
    by_rate: dict[float, list[Cell]] = {}
    for cell in members:
        by_rate.setdefault(cell.spec.train.learning_rate, []).append(cell)
    rates = [_rate(rate, by_rate[rate], folder) for rate in sorted(by_rate) if len(by_rate[rate]) == len(pairs)]
    chosen = _best(rates)
    tried = [one["rate"] for one in rates]
    edges = {tried[-1]: "highest", tried[0]: "lowest"} if len(tried) > 1 else {tried[0]: "only"}
    first = members[0]
    return {
        "arm": first.arm,
        "method": first.method,
        "name": first.spec.method.name,
        "steps": first.spec.train.steps,
        "own_steps": own.steps,
        # `own` are the training settings of the study, not of the sweep
        "own_rate": own.learning_rate,
        # `edge` tells that `chosen` is at an end of the range; a learning rate outside the range can be better
        "chosen": chosen,
        "edge": edges.get(chosen) if chosen else None,
        "rates": rates,
    }


def _rate(rate: float, cells: Iterable[Cell], folder: StudyFolder) -> dict[str, Any]:
    """Return the dev scores of the runs at one learning rate, and their means."""
    runs = [_run(cell, folder) for cell in sorted(cells, key=lambda cell: (cell.split, cell.seed))]
    # exact match in per cent, and the loss in nats per target token; a mean is None if a run has no score
    means = {name: _mean([run[name] for run in runs]) for name in ("dev_em", "dev_loss")}
    return {"rate": rate, **means, "runs": runs}


def _run(cell: Cell, folder: StudyFolder) -> dict[str, Any]:
    run = folder.run(cell.run_id)
    result = run.result()
    dev = result["dev"] if result else None
    loss = -float(dev["log_prob_per_token"]) if dev else math.inf
    return {
        "run_id": cell.run_id,
        "split": cell.split,
        "seed": cell.seed,
        "status": run.status(),
        "dev_em": float(dev["exact_match"]) if dev else None,
        "dev_loss": loss if math.isfinite(loss) else None,
        "failure": run.failure(),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if len(known) == len(values) else None


def _best(rates: Sequence[dict[str, Any]]) -> float | None:
    """Return the learning rate with the best dev score. None while runs are unfinished."""
    if any(run["status"] not in ("done", "failed") for one in rates for run in one["runs"]):
        return None
    # learning rates with a failed run have no score and are left out
    whole = [one for one in rates if one["dev_em"] is not None]
    # highest exact match first; among equals the lowest loss, then the lowest learning rate
    order = [(-one["dev_em"], math.inf if one["dev_loss"] is None else one["dev_loss"], one["rate"]) for one in whole]
    return float(min(order)[-1]) if order else None


def recipe_learning_rates(groups: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return the learning rates that a sweep found, as the recipe's key `train.learning_rate`.

    A method's entry is the method's most frequent learning rate. An arm with another learning rate has a separate
    entry.

    groups: entries of sweep.json. Only `arm`, `method`, `name`, `chosen` and `own_rate` are used.
    """
    # without a chosen learning rate, the study's learning rate is used
    taken = [(one, one["chosen"] or one["own_rate"]) for one in groups]
    found: dict[str, float] = {}
    for name in dict.fromkeys(one["name"] for one in groups):
        members = [(one, rate) for one, rate in taken if one["name"] == name]
        most = found[name] = Counter(rate for _, rate in members).most_common(1)[0][0]
        alone = len({one["method"] for one, _ in members}) == 1
        for one, rate in members:
            # an entry for `lora r16 8-bit` would also apply to `lora r16 8-bit but wo`, which has the same words
            is_named = any(
                other["arm"] == one["arm"] and labels_matching(other["method"], [one["method"]])
                for other, theirs in members
                if theirs != most
            )
            if is_named:
                found[f"{one['arm']} {name if alone else one['method']}"] = rate
    return found
