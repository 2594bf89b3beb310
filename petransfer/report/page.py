"""Write report.html of a study: one file that needs no network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from shlex import quote
from typing import Any

from petransfer.data.rows.chat_rows import readable_input
from petransfer.effects.criteria import Criterion, criterion_of
from petransfer.effects.drawing import ONE_COLUMN, labels_of
from petransfer.effects.kind import EffectKind, kinds_in_order
from petransfer.effects.reference import CITATION
from petransfer.effects.wording import signed
from petransfer.recipe.effect_requests import short_label
from petransfer.recipe.loading import recipe_yaml
from petransfer.recipe.schema import Recipe
from petransfer.report import page_data as gather
from petransfer.report import plots, sweep
from petransfer.report.headline import headline
from petransfer.report.heat_map import Heat
from petransfer.report.html_parts import EmbeddedPlot, MarkedAnswer, embed_plot, marked
from petransfer.report.parameter_plot import parameters_and_effect
from petransfer.report.run_groups import (
    RunGroup,
    effects_as_table,
    incomplete_note,
    metrics_table,
    paper_note,
    results_table,
)
from petransfer.report.tables import Table, table_of_text, write_page
from petransfer.study.folders import StudyFolder
from petransfer.study.grid import Cell


@dataclass(frozen=True)
class ReportData:
    """The inputs of a report. `effects`: the content of effects.json."""

    recipe: Recipe
    cells: Sequence[Cell]
    study: StudyFolder
    groups: Sequence[RunGroup]
    effects: dict[str, Any]


@dataclass(frozen=True)
class Section:
    """A folded section of the page.

    Attributes:
        text: text below the title.
        effects: (verdict, sentence, details) of each effect.
        heats: heat maps as data for the template.
        answers: wrong answers (`AnswersOf`) for each arm and method.
        open: whether the section is unfolded at first.
    """

    title: str
    text: str = ""
    effects: Sequence[tuple[str, str, str]] = ()
    figures: Sequence[EmbeddedPlot] = ()
    tables: Sequence[Table] = ()
    heats: Sequence[Any] = ()
    notes: Sequence[str] = ()
    answers: Sequence[Any] = ()
    open: bool = False


@dataclass(frozen=True)
class AnswersOf:
    """The wrong answers of one run. `name`: split, arm, method and seed."""

    name: str
    rows: list[MarkedAnswer] = field(default_factory=list)


def page(findings: ReportData) -> str:
    """Return the HTML page of a study. Sections without data are left out."""
    effects, recipe = findings.effects, findings.recipe
    any_done = any(group.done for group in findings.groups)
    digest = effects.get("runs_sha256")
    return write_page(
        "study.html.jinja",
        f"{recipe.name}: report",
        name=recipe.name,
        description=recipe.description,
        status=status_of(findings.groups),
        headline=headline(effects),
        notes=effects.get("notes", ()),
        forest=_forest(effects),
        sections=[section for section in _sections(findings) if section] if any_done else _sweep_alone(findings),
        digest=digest[:16] if digest else "",
        **repetition(findings),
    )


def repetition(findings: ReportData) -> dict[str, Any]:
    """Return the data for repeating a study: commands, checkpoints, machines, recipe and run ids."""
    folder = folder_name(findings.study)
    columns = ("arm", "checkpoint", "revision or sha256")
    return {
        "commands": f"petransfer run --recipe {quote(f'results/{folder}/recipe.yaml')} --out "
        f"{quote(f'results/{folder}')}\npetransfer report {quote(f'results/{folder}')}",
        "checkpoints": table_of_text(columns, gather.checkpoints(findings.groups), names=3, label="Checkpoints"),
        "environments": gather.environments(findings.groups, findings.study),
        "recipe": recipe_text(findings.recipe, findings.study),
        "run_ids": gather.run_ids(findings.groups),
    }


def recipe_text(recipe: Recipe, study: StudyFolder) -> str:
    """Return a recipe as YAML, with relative paths in the study's folder, so that the page does not depend on it."""
    return recipe_yaml(recipe).replace(f"{study.path.resolve()}/", "./")


def folder_name(study: StudyFolder) -> str:
    """Return the name of a study's folder, so that a page does not depend on where the folder is."""
    return study.path.name or study.path.resolve().name  # the path `.` has no name


def status_of(groups: Sequence[RunGroup]) -> str:
    """Return the number of finished runs, with a note on runs without a test score and on failed runs."""
    rows = [row for group in groups for row in group.runs]
    done = sum(row.status == "done" for row in rows)
    if done == len(rows):
        text = f"All {done} runs are finished." if done > 1 else "The run is finished."
    else:
        text = f"{done} of {len(rows)} runs are finished." if len(rows) > 1 else "The run is not finished."
    note = incomplete_note(groups)
    return f"{text} {note}" if note else text


def _sweep_alone(findings: ReportData) -> list[Section]:
    section = _learning_rates(findings, unfolded=True)
    return [section] if section else []


def _sections(findings: ReportData) -> Iterator[Section | None]:
    for kind in kinds_in_order():
        yield _kind(kind, findings.effects)
    yield _results(findings)
    yield _metrics(findings.groups)
    yield _categories(findings)
    yield _curves(findings)
    yield _learning_rates(findings)
    yield _parameters(findings)
    yield _errors(findings)


def _forest(effects: dict[str, Any]) -> dict[str, EmbeddedPlot] | None:
    from petransfer.effects.kinds.contrast import plot

    found, criterion = effects["effects"], criterion_of(effects)
    wide, narrow = plot(found, criterion, 5.2), plot(found, criterion, ONE_COLUMN)
    if wide is None or narrow is None:
        return None
    alt = "Forest plot. " + "; ".join(
        f"{label} on {one['split']}: {signed(one['difference'])} points, {one['verdict']}"
        for label, one in zip(labels_of(found), found, strict=True)
    )
    over = "seeds and examples" if criterion.by_example else "seeds alone"
    caption = f"Differences in test {criterion.word} with 95 % intervals over {over}."
    return {"wide": embed_plot(wide, "forest", alt, caption), "narrow": embed_plot(narrow, "forest1", alt, caption)}


def _kind(kind: EffectKind, effects: dict[str, Any]) -> Section | None:
    """Return the section of one kind of effect. None if there are no effects."""
    found, criterion = effects.get(kind.key, []), criterion_of(effects)
    # Contrasts have a table instead of a plot, and a sentence for each effect that cannot be estimated.
    missing = effects.get("missing", []) if kind.name == "contrast" else []
    if not found and not missing:
        return None
    lines = [(one.get("verdict", ""), kind.sentence(one, criterion), kind.details(one, criterion)) for one in found]
    lines += [("missing", f"{line}.", "") for line in missing]
    tables = [effects_as_table(effects).condensed(first="effect")] if kind.name == "contrast" and found else []
    return Section(
        kind.heading, kind.about, effects=lines, figures=_kind_figures(kind, found, criterion), tables=tables
    )


def _kind_figures(kind: EffectKind, found: Sequence[dict[str, Any]], criterion: Criterion) -> list[EmbeddedPlot]:
    if kind.name == "contrast":
        return []  # the forest plot is at the top of the page
    figure = kind.plot(found, criterion, ONE_COLUMN + 1)
    alt = " ".join(kind.sentence(one, criterion) for one in found)
    return [embed_plot(figure, kind.name, alt)] if figure else []


def _results(findings: ReportData) -> Section:
    groups = findings.groups
    drawn = []
    for at, split in enumerate(dict.fromkeys(group.split for group in groups)):
        figure = plots.by_arm(groups, ONE_COLUMN + 0.6, split)
        if figure:
            drawn.append(embed_plot(figure, f"arms{at}", _alt([one for one in groups if one.split == split]), split))
    note = paper_note(groups, findings.recipe.family_name)
    swept = sweep.groups_of(findings.cells, findings.study)
    notes = [note[:1].upper() + note[1:], "" if swept else sweep.unswept_note(findings.cells, swept)]
    text = (
        "Means over seeds; the lowest and the highest seed in brackets. In the plot, a dot is a seed and a bar a mean."
    )
    return Section(
        "Exact match", text, figures=drawn, tables=[results_table(groups).condensed(first="arm")], notes=notes
    )


def _alt(members: Sequence[RunGroup]) -> str:
    methods = {group.method for group in members}
    parts = [
        f"{group.arm}, {short_label(group.method, methods)}: {sum(group.test) / len(group.test):.1f} %"
        for group in members
        if group.test
    ]
    return f"Test exact match on {members[0].split}. {'; '.join(parts)}"


def _metrics(groups: Sequence[RunGroup]) -> Section | None:
    tables = []
    for split in dict.fromkeys(group.split for group in groups):
        columns, lines = metrics_table([group for group in groups if group.split == split])
        if lines:
            tables.append(table_of_text(columns, lines, names=2, label=f"Other metrics on {split}", heading=split))
    text = "On test, from 0 to 100: means over seeds; the lowest and the highest seed in brackets."
    return Section("Other metrics", text, tables=tables) if tables else None


def _categories(findings: ReportData) -> Section | None:
    heats = gather.heats(findings.groups, findings.study)
    if not heats:
        return None
    text = "Test exact match in %, means over seeds."
    families = ", ".join(dict.fromkeys(heat.family for heat in heats if heat.family))
    if families:
        text += f" In small type: the same arm and category in {CITATION} ({families}, all weights trained)."
    return Section("By category", text, heats=[_heat(heat) for heat in heats])


def _heat(heat: Heat) -> dict[str, Any]:
    heat = heat.upright()
    lines = [
        {"name": name, "cells": [{"value": v, "paper": p} for v, p in zip(values, paper, strict=True)]}
        for name, values, paper in zip(heat.rows, heat.values, heat.paper, strict=True)
    ]
    return {"split": heat.split, "columns": heat.columns, "lines": lines}


def _curves(findings: ReportData) -> Section | None:
    drawn = []
    for at, (place, members) in enumerate(plots.panels_of(findings.groups).items()):
        figure = plots.learning_curves(findings.groups, findings.study, place)
        if figure:
            split, method = place
            names = ", ".join(dict.fromkeys(group.arm for group in members))
            alt = f"Dev exact match over optimiser steps on {split}, {method}, for {names}"
            drawn.append(embed_plot(figure, f"curves{at}", alt, f"{split}, {method}"))
    text = "Exact match on dev during training. A thin line is a seed, a thick line the mean of the seeds."
    return Section("Learning curves", text, figures=drawn) if drawn else None


def _learning_rates(findings: ReportData, unfolded: bool = False) -> Section | None:
    groups = sweep.groups_of(findings.cells, findings.study)
    if not groups:
        return None
    drawn = [
        embed_plot(sweep.plot(groups, method), f"rates{at}", sweep.alt(method, members), sweep.caption(method, members))
        for at, (method, members) in enumerate(sweep.by_method(groups).items())
    ]
    text = (
        "Each arm and method was trained at several learning rates and scored on dev, never on test. A dot is a run. "
        "Lines go through the means over seeds and splits. A ring marks the chosen learning rate."
    )
    notes = [*sweep.sentences(groups), sweep.unswept_note(findings.cells, groups)]
    table = table_of_text(sweep.COLUMNS, sweep.lines_of(groups), names=3, label="Learning rates")
    return Section("Learning rates", text, figures=drawn, tables=[table], notes=notes, open=unfolded)


def _parameters(findings: ReportData) -> Section | None:
    points = gather.trained(findings.effects["effects"], findings.groups)
    if not points:
        return None
    alt = "; ".join(
        f"{one.name} on {one.split}: {signed(one.effect['difference'])} points with {one.parameters:,} parameters"
        for one in points
    )
    caption = "Parameters that the pretrained arm trains, and the effect with its 95 % interval."
    figure = parameters_and_effect(points, criterion_of(findings.effects).word, ONE_COLUMN + 1.3)
    return Section("Trained parameters and effect", figures=[embed_plot(figure, "trained", alt, caption)])


def _errors(findings: ReportData) -> Section | None:
    by_group: dict[str, AnswersOf] = {}
    for error in gather.wrong_answers(findings.groups, findings.study):
        group = error.group
        name = f"{group.split}, {group.arm}, {group.method}, seed {error.seed}"
        label = f"category {error.category}" if error.category not in ("", "all") else ""
        answers = by_group.setdefault(name, AnswersOf(name)).rows
        answers.append(
            MarkedAnswer(label, readable_input(error.input), error.target, marked(error.target, error.generated))
        )
    text = (
        "The first wrong answers among test examples that were drawn at random. Words that differ from the expected "
        "answer are marked."
    )
    return Section("Wrong answers", text, answers=list(by_group.values())) if by_group else None
