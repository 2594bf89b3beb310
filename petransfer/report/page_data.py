"""Read the data of a report's page from run folders: categories, wrong answers, machines, checkpoints."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from petransfer.effects.reference import paper_score
from petransfer.plurals import count
from petransfer.recipe.effect_requests import short_label
from petransfer.report.heat_map import Heat
from petransfer.report.parameter_plot import EffectPoint
from petransfer.report.run_groups import RunGroup
from petransfer.study.folders import StudyFolder

MOST_ERRORS = 3


def heats(groups: Sequence[RunGroup], study: StudyFolder) -> list[Heat]:
    """Return the exact match of each category of test examples, in percent, averaged over seeds."""
    found = []
    for split in dict.fromkeys(group.split for group in groups):
        members = [group for group in groups if group.split == split and group.done]
        columns = [_categories(group, study) for group in members]
        rows = tuple(dict.fromkeys(name for column in columns for name in column))
        if len(rows) > 1:
            methods = {group.method for group in members}
            names = tuple(
                f"{group.arm}, {short_label(group.method, methods)}" if len(methods) > 1 else group.arm
                for group in members
            )
            values = tuple(tuple(column.get(row) for column in columns) for row in rows)
            paper = tuple(tuple(_paper(group, row) for group in members) for row in rows)
            known = any(figure is not None for line in paper for figure in line)
            family = next(group.paper.family for group in members if group.paper) if known else ""
            found.append(Heat(split, rows, names, values, paper, family))
    return found


def _paper(group: RunGroup, category: str) -> float | None:
    whole = group.paper
    part = whole and paper_score(whole.family, whole.arm, whole.task, whole.split, category)
    return part.mean if part else None


def _categories(group: RunGroup, study: StudyFolder) -> dict[str, float]:
    results = [study.run(row.cell.run_id).result() or {} for row in group.done]
    parts = [result.get("test", {}).get("categories", {}) for result in results]
    names = dict.fromkeys(name for part in parts for name in part)
    found = {}
    for name in names:
        values = [part[name]["exact_match"] for part in parts if name in part]
        found[name] = sum(values) / len(values)
    return found


def trained(effects: Sequence[dict[str, Any]], groups: Sequence[RunGroup]) -> list[EffectPoint]:
    """Return effects under methods with different numbers of trained parameters."""
    # The number of trained parameters is taken from the left arm's runs.
    counts = {(group.split, group.arm, group.method): group.done[0].trained for group in groups if group.done}
    found = []
    for effect in effects:
        parameters = counts.get((effect["split"], effect["left_name"], effect["method"]))
        if parameters and not effect["arm"]:
            found.append(EffectPoint(effect["name"], effect["split"], effect["method"], parameters, effect))
    several = Counter(
        (one.name, one.split) for one in {(one.name, one.split, one.parameters): one for one in found}.values()
    )
    # Effects with one number of parameters under all methods are left out.
    return [one for one in found if several[one.name, one.split] > 1]


@dataclass(frozen=True)
class WrongAnswer:
    """A wrong answer of a run: the input, the target and the generated text."""

    group: RunGroup
    seed: int
    category: str
    input: str
    target: str
    generated: str


def wrong_answers(groups: Sequence[RunGroup], study: StudyFolder) -> list[WrongAnswer]:
    """Return up to three wrong answers of each arm, method and split."""
    return [error for group in groups for error in _errors(group, study)]


def _errors(group: RunGroup, study: StudyFolder) -> Iterator[WrongAnswer]:
    import pyarrow.parquet

    from petransfer.effects.runs import examples_of

    scored = [row.cell for row in group.done if study.run(row.cell.run_id).scored]
    if not scored:
        return
    cell = scored[0]
    columns = ["category", "correct", "prediction", "input", "target"]
    with examples_of(study, cell.run_id) as path:
        if not set(columns) <= set(pyarrow.parquet.read_schema(path).names):
            return
        rows = pyarrow.parquet.read_table(path, columns=columns).to_pylist()
    wrong = [row for row in rows if row["prediction"] is not None and not row["correct"]]
    for row in wrong[:MOST_ERRORS]:
        yield WrongAnswer(group, cell.seed, row["category"], row["input"], row["target"], row["prediction"])


def environments(groups: Sequence[RunGroup], study: StudyFolder) -> list[str]:
    """Return a line for each combination of device, threads and package versions, with the number of finished runs."""
    found: Counter[str] = Counter()
    for group in groups:
        for row in group.done:
            made = (study.run(row.cell.run_id).result() or {}).get("environment")
            if made:
                versions = ", ".join(f"{name} {version}" for name, version in made["packages"].items())
                threads = count(made["threads"], "thread")
                device = f"{made['device']}, {made['cpu']}" if made.get("cpu") else made["device"]
                found[f"{device}, {threads} a run, Python {made['python']}, {versions}"] += 1
    return [f"{count(number, 'run')}: {line}" for line, number in sorted(found.items())]


def checkpoints(groups: Sequence[RunGroup]) -> list[tuple[str, str, str]]:
    """Return (arm, checkpoint, first 12 characters of the revision or sha256) for each checkpoint of every arm.

    If an arm has several checkpoints, the seeds of a checkpoint's runs follow its name.
    """
    seeds: dict[tuple[str, str, str], dict[int, None]] = {}
    for group in groups:
        for cell in (row.cell for row in group.runs):
            spec = cell.spec.checkpoint
            key = group.arm, _with_reinit(spec.name, spec.reinit), spec.weights[:12]
            seeds.setdefault(key, {})[cell.seed] = None
    several = Counter(arm for arm, _, _ in seeds)
    return [
        (arm, f"{name} (seed{'s' * (len(found) > 1)} {', '.join(map(str, found))})" if several[arm] > 1 else name, sha)
        for (arm, name, sha), found in seeds.items()
    ]


def _with_reinit(name: str, reinit: str) -> str:
    new = {"none": "", "all": ", all weights random", "embeddings": ", embeddings random", "body": ", body random"}
    return name + new[reinit]


def run_ids(groups: Sequence[RunGroup]) -> str:
    """Return the ids of the finished runs as JSON, by split, arm and method. A repeated study has equal ids."""
    lines = {f"{group.split}, {group.arm}, {group.method}": [row.cell.run_id for row in group.done] for group in groups}
    return json.dumps({name: ids for name, ids in lines.items() if ids}, indent=1)
