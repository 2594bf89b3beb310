"""Write report.html of a study with a single run: results, generated texts and next steps."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass
from shlex import quote
from typing import Any

from petransfer.data.rows.chat_rows import readable_input
from petransfer.data.rows.folds import ALL
from petransfer.data.templates import given_text
from petransfer.effects.runs import examples_of
from petransfer.errors import UserError
from petransfer.evaluation.metric_checks import declared
from petransfer.memory.study_memory import method_title
from petransfer.plurals import count
from petransfer.recipe.metrics import HEADINGS
from petransfer.report import plots
from petransfer.report.html_parts import MarkedAnswer, embed_plot, marked
from petransfer.report.page import ReportData, folder_name, repetition, status_of
from petransfer.report.run_table import LOSS, RunRow
from petransfer.report.tables import Table, table_of_text, write_page
from petransfer.study.durations import duration
from petransfer.study.folders import StudyFolder

MOST_SAMPLES = 8
# If there are more labels than this, the page has no confusion matrix.
MOST_LABELS = 50


def is_single_run(findings: ReportData) -> bool:
    """Return whether the study is one finished run without effects."""
    rows = [row for group in findings.groups for row in group.runs]
    return len(rows) == 1 and rows[0].status == "done" and not findings.recipe.effects


def run_page(findings: ReportData) -> str:
    """Return the HTML page of a study with one finished run."""
    (row,) = (row for group in findings.groups for row in group.runs)
    run = findings.study.run(row.cell.run_id)
    result = run.result() or {}
    texts = _texts(findings, row)
    samples = _samples(texts)
    wrong = sum(not text["correct"] for text in texts)
    folder = folder_name(findings.study)
    adapter = next((part for part in ("adapter", "model") if (run.path / part).is_dir()), "")
    place = f"results/{folder}/runs/{row.cell.run_id}/{adapter or 'adapter'}"
    what = {"adapter": f"The adapter is in {place}.", "model": f"The model is in {place}."}
    return write_page(
        "run.html.jinja",
        f"{findings.recipe.name}: report",
        name=findings.recipe.name,
        description=findings.recipe.description,
        status=f"{title_of(row)}. {status_of(findings.groups)}",
        figures=figures_of(row, result),
        notes=[*filter(None, [folds_note(row, findings.study)]), *_notes(row, result)],
        curves=[
            embed_plot(figure, f"curve{at}", f"{label} over optimiser steps")
            for at, (label, figure) in enumerate(plots.run_curves(findings.study, row.cell.run_id))
        ],
        samples=samples,
        samples_text=f"Texts were generated for {count(len(texts), 'test example')}, drawn at random; wrong texts: "
        f"{wrong:,}. Words that differ from the expected answer are marked.",
        confusion=_confusion(findings, row, texts),
        tables=[table for table in (_splits(result), _categories(result)) if table],
        adapter_text=what.get(adapter, "The adapter was not kept."),
        next_steps=_next_steps(place, adapter == "model", str(row.cell.spec.task.options.get("template", ""))),
        **repetition(findings),
    )


def figures_of(row: RunRow, result: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the scores, the length and the size of a finished run, each as a name and a text."""
    # the last training of a cross-validation includes the dev rows, and the test rows if there is no test file
    whole = trained_on_all(row)
    found = [] if whole else [("dev exact match", _percent(row.dev))]
    whole = whole and not row.cell.spec.task.source.get("test")
    found.append((_of_part("exact match", whole), _percent(row.test)))
    for name, value in row.scores.items():
        title = HEADINGS[name].removesuffix(" %")
        found.append((_of_part(title, whole), _percent(value) if title != HEADINGS[name] else f"{value:.1f}"))
    if row.test_loss is not None and math.isfinite(row.test_loss):
        found.append((_of_part(LOSS.removeprefix("test "), whole), f"{row.test_loss:.3f}"))
    found.append(("learning rate", f"{row.cell.spec.train.learning_rate:g}"))
    found.append(("steps", f"{row.step:,}"))
    if result.get("seconds"):
        found.append(("trained and scored in", duration(float(result["seconds"]))))
    if row.trained:
        share = f" ({100 * row.trained / result['parameters']:.1f} % of all)" if result.get("parameters") else ""
        found.append(("trained parameters", f"{row.trained:,}{share}"))
    return [(name, value) for name, value in found if value]


def _of_part(score: str, whole: bool) -> str:
    return f"{score} on its training rows" if whole else f"test {score}"


def trained_on_all(row: RunRow) -> bool:
    """Return whether a run is the last training of a cross-validation, which has all rows."""
    return row.cell.spec.task.source.get("fold") == ALL


def folds_note(row: RunRow, study: StudyFolder) -> str:
    """Return the scores of the folds of a cross-validation in a sentence. '' for other runs."""
    if not trained_on_all(row):
        return ""
    try:
        found = json.loads((study.path / "folds.json").read_text(encoding="utf-8"))
        scores = f"{found['exact_match']:.1f} % (standard deviation {found['standard_deviation']:.1f} points)"
        folds = len(found["folds"])
    except (OSError, ValueError, KeyError, TypeError):
        return "The model was trained on all rows. For new rows, the scores of the folds count; folds.json lacks them."
    return f"The model was trained on all rows. For new rows, the {folds} folds count: exact match {scores}."


def title_of(row: RunRow) -> str:
    """Return the model, the method and the bits of a run."""
    method = row.cell.spec.method
    return f"{row.cell.spec.checkpoint.name}, {method_title(method)}, {method.bits} bits per weight"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1f} %"


def _notes(row: RunRow, result: dict[str, Any]) -> list[str]:
    notes = []
    if row.disagreements:
        notes.append(f"Generation and the one-pass scores disagree on {count(row.disagreements, 'audited example')}.")
    if result.get("out_of_memory"):
        times = count(result["out_of_memory"], "time")
        notes.append(f"Memory ran out {times}; the micro-batch was made smaller each time.")
    return notes


def _splits(result: dict[str, Any]) -> Table | None:
    """Return a table of train, dev and test, with numbers of examples and scores."""
    lines = []
    if result.get("train_examples"):
        lines.append(("train", f"{result['train_examples']:,}", "", ""))
    for part in ("dev", "test"):
        scores = result.get(part) or {}
        if "examples" in scores:
            loss = scores.get("log_prob_per_token")
            shown_loss = f"{-loss:.3f}" if loss is not None and math.isfinite(loss) else ""
            lines.append((part, f"{scores['examples']:,}", f"{scores['exact_match']:.1f}", shown_loss))
    columns = ("split", "rows", "exact match %", "loss per token")
    return table_of_text(columns, lines, names=1, label="Splits", heading="Splits") if lines else None


def _categories(result: dict[str, Any]) -> Table | None:
    found = (result.get("test") or {}).get("categories") or {}
    if len(found) < 2:
        return None
    lines = [(name, f"{one['examples']:,}", f"{one['exact_match']:.1f}") for name, one in found.items()]
    columns = ("category", "rows", "exact match %")
    return table_of_text(columns, lines, names=1, label="By category", heading="By category")


def _texts(findings: ReportData, row: RunRow) -> list[dict[str, Any]]:
    import pyarrow.parquet

    if not findings.study.run(row.cell.run_id).scored:
        return []
    wanted = ["category", "correct", "prediction", "input", "target"]
    with examples_of(findings.study, row.cell.run_id) as path:
        names = pyarrow.parquet.read_schema(path).names
        if not set(wanted) <= set(names):
            return []
        rows = pyarrow.parquet.read_table(path, columns=wanted).to_pylist()
    return [one for one in rows if one["prediction"] is not None and one["target"] is not None]


def _samples(texts: list[dict[str, Any]]) -> list[MarkedAnswer]:
    """Return at most eight answers. Wrong answers come first."""
    # If there are at least two correct answers, two correct answers are shown.
    wrong, right = ([one for one in texts if one["correct"] is which] for which in (False, True))
    few = [*wrong[: MOST_SAMPLES - 2], *right[:2]] if len(right) >= 2 else [*wrong, *right][:MOST_SAMPLES]
    few = few or texts[:MOST_SAMPLES]
    return [
        MarkedAnswer(
            "right" if one["correct"] else "wrong",
            readable_input(one["input"] or ""),
            one["target"],
            marked(one["target"], one["prediction"]),
        )
        for one in few
    ]


@dataclass(frozen=True)
class Confusion:
    """A confusion matrix.

    Attributes:
        text: explanation of the matrix.
        labels: names of the columns.
        rows: counts of the predicted labels, for each expected label.
    """

    text: str
    labels: list[str]
    rows: list[dict[str, Any]]


def _confusion(findings: ReportData, row: RunRow, texts: list[dict[str, Any]]) -> Confusion | None:
    """Return the confusion matrix of labels. None if the targets are not labels, or too many."""
    found = _label_pairs(findings, row)
    are_labels = bool(found)
    pairs = found or [(one["target"], one["prediction"]) for one in texts]
    targets = Counter(target for target, _ in pairs)
    labels = sorted(targets)
    # Without a metric of labels, targets are labels if there are at least three times as many examples as targets.
    if not 2 <= len(labels) <= MOST_LABELS or not (are_labels or len(pairs) >= 3 * len(labels)):
        return None
    counts = Counter(pairs)
    other = any(prediction not in targets for _, prediction in counts)
    columns = [*labels, *(["other"] if other else [])]
    rows = []
    for label in labels:
        line = [counts[label, prediction] for prediction in labels]
        line += [targets[label] - sum(line)] if other else []
        cells = [{"count": number, "share": round(100 * number / targets[label])} for number in line]
        rows.append({"name": label, "cells": cells})
    text = f"Rows are the expected labels, columns the predicted ones, of {count(len(pairs), 'test example')}."
    return Confusion(text, columns, rows)


def _label_pairs(findings: ReportData, row: RunRow) -> list[tuple[str, str]]:
    """Return the target and the predicted label of every test example.

    Empty without a metric of labels, without a test score, and for files of older versions, which do not have every
    target.
    """
    import pyarrow.parquet

    try:
        of_labels = any(metric.of_labels for metric in declared(row.cell.spec.task.metrics))
    except UserError:  # the package of a metric is not installed
        return []
    if not of_labels or not findings.study.run(row.cell.run_id).scored:
        return []
    with examples_of(findings.study, row.cell.run_id) as path:
        if not {"target", "answer"} <= set(pyarrow.parquet.read_schema(path).names):
            return []
        table = pyarrow.parquet.read_table(path, columns=["target", "answer"])
    targets, answers = (table[name].to_pylist() for name in ("target", "answer"))
    return [] if None in targets or None in answers else list(zip(targets, answers, strict=True))


def _next_steps(place: str, whole: bool, template: str) -> str:
    """Return commands for the user's next steps. `place`: folder of the adapter or model."""
    place = quote(place)
    example = quote(given_text(template)) if template else '"an input"'
    use = [f"petransfer predict {place} {example}", f"petransfer eval {place} --data test.csv"]
    share = [f"petransfer adapter merge {place} merged", f"petransfer adapter push {place} user/name"]
    return "\n".join(use if whole else [*use, *share])
