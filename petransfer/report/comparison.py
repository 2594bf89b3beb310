"""Compare two studies: their scores, their effects, and the differences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from petransfer.effects.criteria import CRITERIA
from petransfer.effects.kind import Thresholds
from petransfer.effects.kinds.contrast import Effect, judge
from petransfer.effects.kinds.scale import Scale
from petransfer.effects.kinds.scale import judge as judge_scales
from petransfer.effects.pairs import Contrast, ContrastPair, compared
from petransfer.effects.reference import nearest_paper_family, paper_contrast, paper_note, paper_score
from petransfer.effects.runs import Runs
from petransfer.effects.wording import p_value, unpaired
from petransfer.errors import UserError, shortened
from petransfer.plurals import count
from petransfer.recipe.effect_requests import requested_effects
from petransfer.recipe.metrics import EXACT_MATCH
from petransfer.recipe.schema import Recipe
from petransfer.report.run_groups import points
from petransfer.report.tables import Table, markdown, markdown_text, table_of_text, write_page
from petransfer.study.deleted_weights import run_command
from petransfer.study.setting_changes import differing_values


@dataclass(frozen=True)
class StudyComparison:
    """The comparison of two studies, A and B. P values are adjusted (Holm) within `cells` and within `effects`.

    Attributes:
        names: names of A and B.
        families: families of the checkpoints of A and B.
        margin: equivalence margin in percentage points.
        judged_by: name of the metric.
        by_note: a note on the metric, or ''.
        data_note: a note that A and B have different data, or ''.
        differences: a line for each setting that differs.
        cells: difference in score, B minus A, for each arm, method and split.
        effects: difference B minus A of each effect.
        same_runs: scores and effects that are not compared, because A and B share runs.
        one_sided: effects that are not compared, because A and B share the runs of one arm.
        paper_cells: mean exact match in Orhan (2021) for each of `cells`, in percent, by the paper's family.
        paper_effects: effect in Orhan (2021) for each of `effects`, by the paper's family.
        paper_note: a note on `paper_cells` and `paper_effects`, or ''.
    """

    names: tuple[str, str]
    families: tuple[str, str]
    margin: float
    judged_by: str
    by_note: str
    data_note: str
    differences: list[str]
    cells: list[Effect]
    effects: list[Scale]
    same_runs: list[str]
    one_sided: list[str]
    paper_cells: list[dict[str, float]]
    paper_effects: list[dict[str, Effect]]
    paper_note: str


def metric_of(first: Recipe, second: Recipe) -> str:
    """Return the metric of two studies. If the metrics differ, return exact match."""
    # All runs have a value of exact match.
    return first.judged_by if first.judged_by == second.judged_by else EXACT_MATCH


def compare(first: Runs, second: Runs, names: tuple[str, str]) -> StudyComparison:
    """Return the differences in scores and effects between two studies, B minus A.

    Scores are compared for each arm, method and split. An arm with one method in each study is compared even if the two
    methods differ. `first` is study A, and `second` is study B.

    Raises:
        UserError: no arm and split has finished runs in both studies, or the test examples differ.
    """
    cells, same = _cells(first, second)
    if not cells and not same:
        raise UserError(
            f"{names[0]} and {names[1]} cannot be compared: no arm and split has finished runs in both studies"
            f"{_damaged_note(first) or _damaged_note(second)}"
        )
    effects, same_effects, one_sided = _effects(first, second)
    families = (first.recipe.family_name, second.recipe.family_name)
    margin = min(first.recipe.margin, second.recipe.margin)
    task, exact = first.recipe.task.name, first.metric == EXACT_MATCH
    paper_cells = [_paper_cell(families, cell.name, task, cell.split) if exact else {} for cell in cells]
    paper_effects = [_paper_effect(families, two.here, task) if exact else {} for two in effects]
    arms, splits = {cell.name for cell in cells}, dict.fromkeys(cell.split for cell in cells)
    note = paper_note(families, task, splits, arms) if any([*paper_cells, *paper_effects]) else ""
    limits = Thresholds(
        margin,
        max(first.recipe.smallest_effect, second.recipe.smallest_effect),
        min(first.recipe.learnt, second.recipe.learnt),
    )
    judged = judge(cells, limits), judge_scales(effects, limits)
    same += same_effects
    by = first.metric, _by_note(first, second), _data_note(first, second), differences(first.recipe, second.recipe)
    return StudyComparison(names, families, margin, *by, *judged, same, one_sided, paper_cells, paper_effects, note)


# The parts of a recipe that change scores.
_SETTINGS = ("task", "family", "arms", "methods", "seeds", "more_seeds", "train")


def differences(first: Recipe, second: Recipe) -> list[str]:
    """Return a line for each setting in which two studies differ, with the values in A and B."""
    one, other = (recipe.model_dump(mode="json", include=set(_SETTINGS)) for recipe in (first, second))
    if len(first.methods) != len(second.methods):
        one["methods"], other["methods"] = ([method.label for method in recipe.methods] for recipe in (first, second))
    for content in (one, other):
        content["seeds"], content["arms"] = _value(content["seeds"]), _value(content["arms"])
    return [f"{key}: {_difference(old, new)}" for key, old, new in differing_values(one, other)]


def _damaged_note(runs: Runs) -> str:
    """Return which run of a study is damaged, and how to repeat the damaged runs. Empty if none is damaged."""
    found = [damage for cell in runs.cells if (damage := runs.folder.run(cell.run_id).damage())]
    command = f"`{run_command(runs.folder.path)} --repair`"
    return f"; {count(len(found), 'damaged run')} ({found[0]}); repeat with {command}" if found else ""


def _difference(old: Any, new: Any) -> str:
    """Return a text with two different values. Of two lists, it has only the entries that the other list lacks."""
    if isinstance(old, list) and isinstance(new, list):
        only = {"A": [one for one in old if one not in new], "B": [one for one in new if one not in old]}
        found = [f"only in {name} {', '.join(map(str, values))}" for name, values in only.items() if values]
        return "; ".join(found) or "the same in another order"
    return f"{_value(old)} in A and {_value(new)} in B"


def _value(value: Any) -> str:
    text = f"[{', '.join(map(str, value))}]" if isinstance(value, list) else str(value)
    return "not set" if value is None else shortened(text, 100)


def _by_note(first: Runs, second: Runs) -> str:
    if first.recipe.judged_by == second.recipe.judged_by:
        return CRITERIA[first.metric].note
    both = ", ".join(CRITERIA[runs.recipe.judged_by].word for runs in (first, second))
    return f"Exact match is compared, because A and B use different metrics: {both}"


def _data_note(first: Runs, second: Runs) -> str:
    """Return a note if A and B have different tasks, or options that change the rows. '' otherwise."""
    data = [{(cell.spec.task.name, cell.spec.task.options) for cell in runs.cells} for runs in (first, second)]
    if data[0] == data[1]:
        return ""
    names = [runs.recipe.task.name for runs in (first, second)]
    what = "tasks, " + " and ".join(names) if names[0] != names[1] else f"rows or options of the task {names[0]}"
    return f"A and B have different {what}: their scores can only be compared if the test rows are the same"


def _paper_cell(families: Sequence[str], arm: str, task: str, split: str) -> dict[str, float]:
    """Return the mean exact match in Orhan (2021), in percent, by the paper's family."""
    found = {nearest_paper_family(family): paper_score(family, arm, task, split) for family in families}
    return {family: one.mean for family, one in found.items() if one}


def _paper_effect(families: Sequence[str], effect: Contrast, task: str) -> dict[str, Effect]:
    paper_families = dict.fromkeys(map(nearest_paper_family, families))
    names = (effect.left_name, effect.right_name)
    found = {family: paper_contrast(family, *names, task, effect.split) for family in paper_families}
    return {family: judge([contrast])[0] for family, contrast in found.items() if contrast}


def _matched(first: Runs, second: Runs, arm: str, split: str) -> list[tuple[str, str]]:
    """Return the pairs (method in A, method in B) to compare for an arm on a split."""
    in_a, in_b = first.methods(arm, split), second.methods(arm, split)
    # If each study has a single method for the arm, the two methods are compared, even if they differ.
    both = [(method, method) for method in in_a if method in in_b]
    return both or ([(in_a[0], in_b[0])] if len(in_a) == len(in_b) == 1 else [])


def _cells(first: Runs, second: Runs) -> tuple[list[Contrast], list[str]]:
    found, same = [], []
    for split in first.splits:
        for arm in dict.fromkeys(cell.arm for cell in first.cells):
            for in_a, in_b in _matched(first, second, arm, split):
                left, right = second.scored(arm, in_b, split), first.scored(arm, in_a, split)
                if not left or not right:
                    continue
                shared = _shared(first, second, arm, in_a, in_b, split)
                if shared:
                    same.append(f"{arm} on {split} ({_label(in_a, in_b)}{shared})")
                    continue
                names = {"method": _label(in_a, in_b), "left_name": in_b, "right_name": in_a}
                paired = in_a != in_b and _pairs(first, second, arm, in_a, in_b, split)
                found.append(compared(arm, split, left, right, paired=paired, **names))
    return found, same


def _pairs(first: Runs, second: Runs, arm: str, in_a: str, in_b: str, split: str) -> bool:
    """Return whether runs in A and B with equal seeds form pairs."""
    cells_a, cells_b = first.cells_of(arm, in_a, split), second.cells_of(arm, in_b, split)
    seeds = [
        {cell.seed for cell in cells if runs.folder.run(cell.run_id).done}
        for runs, cells in ((first, cells_a), (second, cells_b))
    ]
    # The seeds of one study must include the seeds of the other. Otherwise pairs would leave out runs of the two
    # studies.
    return cells_a[0].spec.checkpoint == cells_b[0].spec.checkpoint and (seeds[0] <= seeds[1] or seeds[1] <= seeds[0])


def _label(in_a: str, in_b: str) -> str:
    return in_a if in_a == in_b else f"{in_b} less {in_a}"


def _shared(first: Runs, second: Runs, arm: str, in_a: str, in_b: str, split: str) -> str:
    """Return a text with the number of runs that A and B share. '' if there are none."""
    runs_a, runs_b = _ids(first, arm, in_a, split), _ids(second, arm, in_b, split)
    # A run's id is a hash of all its settings, so a shared run means that the settings are equal.
    common = len(runs_a & runs_b)
    if not common:
        return ""
    counts = f"{common} of {len(runs_a)} in A and of {len(runs_b)} in B" if runs_a != runs_b else f"all {common}"
    return f": {counts}"


def _ids(runs: Runs, arm: str, method: str, split: str) -> set[str]:
    return {cell.run_id for cell in runs.cells_of(arm, method, split) if runs.folder.run(cell.run_id).done}


def _effects(first: Runs, second: Runs) -> tuple[list[ContrastPair], list[str], list[str]]:
    """Return the effects to compare, and two lists of effects that are not compared."""
    effects_a = {(effect.left, effect.right) for effect in requested_effects(first.recipe) if effect.kind == "arms"}
    effects_b = {(effect.left, effect.right) for effect in requested_effects(second.recipe) if effect.kind == "arms"}
    found: list[ContrastPair] = []
    same, one_sided = [], []
    for split in first.splits:
        for left, right in sorted(effects_a | effects_b):
            for in_a, in_b in _matched(first, second, left, split):
                there, here = _contrast(first, left, right, in_a, split), _contrast(second, left, right, in_b, split)
                if not (here and there):
                    continue
                controls = first.partner(right, in_a, split), second.partner(right, in_b, split)
                shared = [
                    bool(_shared(first, second, arm, *methods, split))
                    for arm, methods in ((left, (in_a, in_b)), (right, controls))
                ]
                place = f"{left}-{right} on {split} ({_label(in_a, in_b)})"
                if all(shared):
                    same.append(place)
                elif any(shared):
                    one_sided.append(f"{place}: {right if shared[0] else left}")
                else:
                    found.append(ContrastPair(here, there, "B", "A"))
    return found, same, one_sided


def _contrast(runs: Runs, left: str, right: str, method: str, split: str) -> Contrast | None:
    both = runs.scored(left, method, split), runs.scored(right, runs.partner(right, method, split), split)
    if both[0] is None or both[1] is None:
        return None
    names = {"method": method, "left_name": left, "right_name": right}
    return compared(f"{left}-{right}", split, both[0], both[1], **names)


_EFFECT_COLUMNS = ("split", "effect", "method", "points in A", "points in B", "B minus A", "p (Holm)", "verdict")


def cell_columns(found: StudyComparison) -> tuple[str, ...]:
    criterion = CRITERIA[found.judged_by]
    sides = [f"test {criterion.short}{criterion.unit} in {study}" for study in "AB"]
    columns = ("split", "arm", "method", *sides, "B minus A", "p (Holm)", "verdict")
    return (*columns, "paper: EM %") if any(found.paper_cells) else columns


def effect_columns(found: StudyComparison) -> tuple[str, ...]:
    return (*_EFFECT_COLUMNS, "paper: points") if any(found.paper_effects) else _EFFECT_COLUMNS


def _paper_figures(figures: dict[str, str]) -> str:
    if len(figures) == 1:
        return next(iter(figures.values()))
    return ", ".join(f"{family}: {figure}" for family, figure in figures.items())


def cell_lines(found: StudyComparison) -> list[tuple[str, ...]]:
    """Return one table row for each arm, method and split: scores in A and B, and B minus A."""
    of_paper = [{name: f"{em:.1f}" for name, em in paper.items()} for paper in found.paper_cells]
    return [
        (
            one.split,
            one.name,
            one.method,
            f"{one.right:.1f} ({_seeds(one.seeds[1], one.paired)})",
            f"{one.left:.1f} ({_seeds(one.seeds[0], one.paired)})",
            points(asdict(one)),
            p_value(one.p_holm),
            _CELL[one.verdict],
            *([_paper_figures(paper)] if any(found.paper_cells) else []),
        )
        for one, paper in zip(found.cells, of_paper, strict=True)
    ]


def effect_lines(found: StudyComparison) -> list[tuple[str, ...]]:
    """Return one table row for each effect: the effect in A and B, and B minus A."""
    of_paper = [{name: points(asdict(one)) for name, one in paper.items()} for paper in found.paper_effects]
    return [
        (
            one.split,
            one.name,
            one.method,
            points(asdict(one.there)),
            points(asdict(one.here)),
            points(asdict(one)),
            p_value(one.p_holm),
            _EFFECT[one.verdict],
            *([_paper_figures(paper)] if any(found.paper_effects) else []),
        )
        for one, paper in zip(found.effects, of_paper, strict=True)
    ]


_CELL = {"holds": "B is higher", "reversed": "A is higher"} | {
    verdict: verdict for verdict in ("equivalent", "inconclusive", "saturated", "not learnt")
}
_EFFECT = {"holds": "larger in B", "reversed": "smaller in B"} | {
    verdict: verdict for verdict in ("equivalent", "inconclusive", "saturated", "not learnt")
}


def _seeds(number: int, paired: bool) -> str:
    return count(number, "pair" if paired else "seed")


def head(found: StudyComparison) -> list[str]:
    """Return the lines above the tables: the two studies, the metric and notes."""
    lines = [f"{letter}: {name}" for letter, name in zip("AB", found.names, strict=True)]
    lines.append("A and B differ in these settings:" if found.differences else "A and B have equal settings")
    lines += [f"  {line}" for line in found.differences]
    lines += filter(None, (found.by_note, found.data_note))
    if "equivalent" in {one.verdict for one in found.cells} | {one.verdict for one in found.effects}:
        lines.append(f"equivalent: the difference is within {found.margin:g} points")
    if found.same_runs:
        lines.append(f"not compared, because both studies have the same runs: {'; '.join(found.same_runs)}")
    if found.one_sided:
        effects = "; ".join(found.one_sided)
        lines.append(
            "In these effects, both studies share the runs of one arm. B minus A then shows only the difference of the "
            f"other arm, which is named here: {effects}"
        )
    lines += [f"{one.name} on {one.split}: {unpaired(one.left_out)}" for one in found.cells if one.left_out]
    return [*lines, found.paper_note] if found.paper_note else lines


def as_json(found: StudyComparison) -> dict[str, Any]:
    return asdict(found)


def as_html(found: StudyComparison) -> str:
    """Return the comparison as a self-contained HTML page."""
    title = f"{found.names[0]} and {found.names[1]}"
    tables = [table.condensed() for table in _tables(found)]
    return write_page(
        "compare.html.jinja", f"{title}: comparison", title_of_page=title, lines=head(found), tables=tables
    )


def as_markdown(found: StudyComparison) -> str:
    lines = "\n".join(f"- {markdown_text(line)}" for line in head(found))
    return "\n\n".join([lines, *map(markdown, _tables(found))]) + "\n"


def _tables(found: StudyComparison) -> list[Table]:
    cells = table_of_text(
        cell_columns(found), cell_lines(found), names=3, label="Scores", heading="Scores that both studies have"
    )
    effects = table_of_text(
        effect_columns(found), effect_lines(found), names=3, label="Effects", heading="Effects that both studies have"
    )
    return [table for table in (cells, effects) if table.rows]
