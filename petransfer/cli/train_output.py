"""What `train` prints: the settings before training, the progress, and at the end the results and next commands."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.table import Table

from petransfer.api import write_results
from petransfer.cli.run import CommandHooks
from petransfer.cli.table_layout import print_table
from petransfer.cli.terminal_text import print_text
from petransfer.data.rows.chat_rows import readable_input
from petransfer.data.templates import given_text
from petransfer.errors import shortened
from petransfer.memory.study_memory import method_title
from petransfer.plurals import count
from petransfer.recipe.methods import METHODS
from petransfer.recipe.run_spec import RunSpec, TrainSpec
from petransfer.report import run_table
from petransfer.study.cross_validation import CrossValidation
from petransfer.study.durations import remaining_time
from petransfer.study.study import StudyGrid
from petransfer.study.train_study import TrainStudy, small_data_note, trained_tokens_of
from petransfer.study.train_summary import LEARNT, TrainSummary, summaries
from petransfer.study.used_rows import labels_of
from petransfer.training.early_stopping import INFORMATIVE
from petransfer.visible_text import visible

# The largest number of labels that are named before training.
SHOWN_LABELS = 3


def describe(training: TrainStudy, folds: CrossValidation | None = None) -> list[str]:
    """Describe the data, the model, the training length and the output folder in a few lines."""
    grid, rows = training.grid, training.rows
    spec = grid.cells[0].spec
    # Without early stopping, the weights of the last step are saved, and dev only shows the progress.
    use = "to choose the best step" if spec.train.early_stopping else "to score during the training"
    data = (
        f"data: {count(rows['train'], 'training row')}, {count(rows['dev'], 'dev row')} {use}, "
        f"{count(rows['test'], 'test row')} for the final score"
    )
    lines = [
        _describe_folds(folds) if folds else data,
        *_describe_labels(labels_of(grid), spec),
        f"model: {spec.checkpoint.name}, {spec.method.bits} bits per weight",
        f"method: {_method(spec, several=bool(folds))}; learning rate {spec.train.learning_rate:g}",
        _length(spec.train, rows["train"], "the fold" if folds else "dev"),
        f"folder: {folds.folder if folds else grid.folder.path}",
    ]
    note = "" if folds else small_data_note(rows)
    return [*lines, note] if note else lines


def _describe_labels(labels: Sequence[str], spec: RunSpec) -> list[str]:
    """Return a line about the labels if the targets are labels and accuracy is computed. Otherwise an empty list."""
    if not labels or "accuracy" not in spec.task.metrics:
        return []
    named = ", ".join(f"'{shortened(label, 20)}'" for label in labels[:SHOWN_LABELS])
    more = ", ..." if len(labels) > SHOWN_LABELS else ""
    return [
        f"labels: the targets are {count(len(labels), 'label')} ({named}{more}), so two more scores are computed: "
        "accuracy, the share of rightly chosen labels, and macro-F1, the mean of the labels' F1 scores"
    ]


def _describe_folds(found: CrossValidation) -> str:
    rows = found.folds[0].rows
    total = count(rows["train"] + rows["dev"], "row")
    chosen = ". The same fold also chooses the best step of this model, so the scores are a little too high"
    return (
        f"data: {total} in {len(found.folds)} folds. Each fold is scored by a model that was trained on the other folds"
        f"{chosen if found.folds[0].grid.cells[0].spec.train.early_stopping else ''}"
    )


def _method(spec: RunSpec, several: bool) -> str:
    """Describe a run's method. `several`: whether there are more runs, which have other training rows."""
    method = spec.method
    title = method_title(method)
    if METHODS.lookup(method.name).trains_all_weights or method.embeddings == "frozen":
        return title
    if method.embeddings == "trained":
        return f"{title}, and all embeddings"
    number = len(trained_tokens_of(spec))
    if not number:
        return title
    occur = "occurs" if number == 1 else "occur"
    about = "about " if several else ""  # the number depends on the training rows
    limit = " but not in pretraining" if method.embeddings == "new" else ""
    tokens = f"{about}{count(number, 'token')} that {occur} in the rows{limit}"
    return f"{title}, and the embeddings of {tokens}"


def _length(train: TrainSpec, rows: int, scored: str) -> str:
    """Describe when training ends. scored: the rows that are scored during training."""
    number = train.steps * train.batch_size / max(1, rows)
    shown = f"{number:,.0f}" if number >= 100 else f"{number:.3g}"
    steps = f"{count(train.steps, 'step')} of {count(train.batch_size, 'example')}"
    epochs = f"{shown} {'epoch' if shown == '1' else 'epochs'}"
    stopping = train.early_stopping
    if stopping is None:
        return f"length: {steps} ({epochs})"
    score = f"exact match on {scored} has not risen"
    if stopping.metric != "exact_match":
        score = f"the loss on {scored} has not fallen"
    patience = count(stopping.patience, "evaluation")
    minutes = f", after {stopping.max_minutes:g} min" if stopping.max_minutes else ""
    every = f"There is an evaluation every {count(stopping.every, 'step')}"
    if stopping.metric == "exact_match":
        every += f". As long as exact match is below {INFORMATIVE:g} %, a lower loss on {scored} also counts as a rise"
    return f"stop: when {score} in {patience}{minutes}, or after {steps} ({epochs}). {every}"


def train_hooks(grid: StudyGrid, begin: Callable[[], None] = lambda: None) -> CommandHooks:
    """Return the hooks of `train`. At the end, they write the study's files and print JSON if requested.

    Args:
        begin: Prints a description of the training.
    """

    def end(as_json: bool) -> None:
        effects = write_results(grid)
        if as_json:
            rows = run_table.as_json(run_table.rows_of(grid.cells, grid.folder))
            print(json.dumps({"study": grid.recipe.name, "runs": rows, "effects": effects["effects"]}, indent=1))

    return CommandHooks(
        lambda: grid.folder.open(grid.recipe),
        end,
        lambda row: progress_text(row, f"seed {row.cell.seed}: " if len(grid.cells) > 1 else ""),
        lambda took: f"trained and scored in {took}",
        "this run was already finished; nothing was trained again",
        begin,
    )


def fold_hooks(grid: StudyGrid, name: str, begin: Callable[[], None] = lambda: None) -> CommandHooks:
    """Return the hooks of a run that is a part of a cross-validation. Nothing is printed at the end.

    Args:
        name: Name of the run in the lines of progress, such as `fold 2`.
        begin: Prints a description of the training.
    """
    return CommandHooks(
        lambda: grid.folder.open(grid.recipe),
        lambda as_json: None,
        lambda row: progress_text(row, f"{name}: ", "the fold"),
        lambda took: "",
        "",
        begin,
        name,
        "exact match on the fold",
    )


def progress_text(row: run_table.RunRow, head: str, scored: str = "dev") -> str:
    """Return the progress of a run as a line of text, for output that is not a terminal; empty if the run is done.

    Args:
        head: The beginning of the line.
        scored: Name of the rows that are scored during the training.
    """
    if row.status == "done":
        return ""
    if row.loss is None:
        return f"{head}{row.status}"
    dev = "" if row.dev_so_far is None else f", exact match on {scored} {row.dev_so_far:.0f} %"
    stops_early = bool(row.cell.spec.train.early_stopping)
    left = f", {remaining_time(row.seconds_left, stops_early)}" if row.seconds_left else ""
    return f"{head}step {row.step:,} of {row.cell.spec.train.steps:,}, loss {row.loss:.3f}{dev}{left}"


def print_summaries(training: TrainStudy) -> None:
    """Print scores, reason for stopping, sample predictions and next commands."""
    found = summaries(training.grid)
    for one in found:
        head = f"seed {one.cell.seed}: " if len(found) > 1 else ""
        lines = (one.stopped, one.scores) if one.trained_on_all else (one.scores, one.stopped, one.saved, one.advice)
        print_text(*(f"{head}{line}" for line in lines if line))
    if training.out_given and any(one.advice for one in found):
        print_text(new_out(training.grid.folder.path))
    if not found:
        return
    print_text(*run_table.weight_lines(run_table.rows_of(training.grid.cells, training.grid.folder)))
    if found[0].samples:
        print_table(samples_table(found[0]))
    print_text(*next_commands(found[0], training))


def new_out(folder: Path) -> str:
    """Return a line after advice on other settings: a given --out accepts no training run with other settings."""
    return f"to train with other settings, give another folder with --out; {folder} already has this training run"


def samples_table(summary: TrainSummary) -> Table:
    """Return a table with test rows, one per line: input, generated text, target, and whether the text is correct."""
    table = Table(title=_samples_title(summary), title_justify="left")
    for name in ("input", "generated", "target", "correct"):
        table.add_column(name)
    for sample in summary.samples:
        texts = (readable_input(sample.input, only_last=True), sample.prediction, sample.target)
        table.add_row(*(_one_line(text) for text in texts), "yes" if sample.correct else "no")
    return table


def _samples_title(summary: TrainSummary) -> str:
    shown, most = len(summary.samples), summary.rows if summary.trained_on_all else summary.test_rows
    kind = "row that the model was trained on" if summary.trained_on_all else "test row"
    kinds = kind.replace("row", "rows", 1)
    if shown < most:
        return f"{shown} of the {most:,} {kinds}"
    return f"the {kind}" if shown == 1 else f"the {shown} {kinds}"


def next_commands(best: TrainSummary, training: TrainStudy) -> list[str]:
    """Return lines with the commands that usually follow a training run."""
    study = training.grid.folder.path
    alone = sum(training.grid.folder.run(name).done for name in training.grid.folder.names()) == 1
    # the commands accept a study's folder in place of its only run
    run = _argument(study if alone else best.folder.path)
    template = str(best.cell.spec.task.options.get("template", ""))
    text = given_text(template, readable_input(best.samples[0].input) if best.samples else "")
    kind = "adapter" if (best.folder.path / "adapter").is_dir() else "model"
    usable = len(text) <= 60 and text.isprintable() and not text.startswith("-")
    example = shlex.quote(text if usable else given_text(template))
    lines = [
        f"{kind}: {best.folder.path / kind}",
        "next steps:",
        f"  petransfer predict {run} {example}",
        f"  petransfer report {_argument(study)}",
    ]
    if kind == "adapter" and (best.trained_on_all or best.dev >= LEARNT):
        lines.append(f"  petransfer adapter push {run} USER/NAME")
    return [
        *lines,
        "to repeat this run in another folder:",
        f"  petransfer run {_argument(study / 'recipe.yaml')} --out {_argument(Path(f'{study}-again'))}",
    ]


def _argument(path: Path) -> str:
    """Return a path as an argument in a shell; one that begins with a hyphen would be read as an option."""
    return shlex.quote(f"./{path}" if str(path).startswith("-") else str(path))


def _one_line(text: str) -> str:
    """Return a text on one line, shortened to about 60 characters; `(empty)` if there is no text."""
    return shortened(" ".join(visible(text).split()), 60) or "(empty)"
