"""The output of `train` at 60, 80 and 120 columns: whole words, no repetition, and the next commands at the end."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from petransfer.cli import table_layout, terminal_text, train_output
from petransfer.cli.train_output import (
    describe,
    next_commands,
    print_summaries,
    progress_text,
    samples_table,
    train_hooks,
)
from petransfer.data.rows.folds import ALL
from petransfer.data.templates import render_text
from petransfer.errors import UserError
from petransfer.recipe.run_spec import Options
from petransfer.report.run_table import RunRow
from petransfer.study.cross_validation import cross_validation
from petransfer.study.folders import RunFolder
from petransfer.study.train_estimate import estimate_lines
from petransfer.study.train_request import TrainRequest
from petransfer.study.train_study import (
    TrainStudy,
    memory_if_predictable,
    memory_of,
    refuse_too_large,
    train_study,
    trained_tokens_of,
)
from petransfer.study.train_summary import Sample, TrainSummary

WIDTHS = (60, 80, 120)
SAMPLES = (
    Sample("the fifteenth of February in the year two thousand and one, a Thursday", "2001-02-15", "2001-02-15", True),
    Sample("3 March\n2021", "2021-03-03", "", False),
    Sample("[bold]14 July 1999[/bold]", "1999-07-14", "1999-07-17", False),
)


@pytest.fixture
def training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainStudy:
    """A training on 60 rows that has not started."""
    monkeypatch.chdir(tmp_path)
    Path("dates.tsv").write_text("".join(f"day number {at}\t{at}\n" for at in range(60)))
    return train_study("nano/english", "dates.tsv", TrainRequest(), [], None, False)


@pytest.fixture
def summary(training: TrainStudy) -> TrainSummary:
    cell = training.grid.cells[0]
    folder = RunFolder(training.grid.folder.path / "runs" / cell.run_id)
    metrics = {"accuracy %": 40.0, "ROUGE-1": 55.5}
    return TrainSummary(
        cell, folder, 50.0, 40.0, 950, 650, "no_improvement", "", SAMPLES, metrics=metrics, rows=48, test_rows=6
    )


def printed(
    width: int, training: TrainStudy, found: list[TrainSummary], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> str:  # fmt: skip
    """Return the text that is printed at the end of a training in a terminal of a given width."""
    monkeypatch.setattr(terminal_text, "width_of", lambda stream: width)
    monkeypatch.setattr(table_layout, "UNLIMITED", width)
    monkeypatch.setattr(train_output, "summaries", lambda grid: found)
    capsys.readouterr()
    print_summaries(training)
    return capsys.readouterr().out


@pytest.mark.parametrize("width", WIDTHS)
def test_the_final_output_is_complete_in_order_and_without_repetition(
    width: int, training: TrainStudy, summary: TrainSummary, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    text = printed(width, training, [summary], monkeypatch, capsys)
    assert max(map(len, text.splitlines())) <= width
    flat = " ".join(text.split())
    parts = [
        "exact match: 50.0 % on dev, 40.0 % on test; also on test: accuracy 40.0 %, ROUGE-1 55.5",
        "training stopped at step 950, because exact match on dev had not risen in 6 evaluations",
        "the adapter has the weights of step 650, the best on dev",
        "exact match on dev is low; try more rows, or --method full, or --rank 64, or --learning-rate 0.006",
        "3 of the 6 test rows",
        "next steps:",
        "petransfer predict ",
        "petransfer report ",
        "petransfer run ",
    ]
    places = [flat.index(part) for part in parts]
    assert places == sorted(places)
    lines = [line.strip() for line in text.splitlines()]
    assert not {line for line in lines if lines.count(line) > 1}, "a line is printed twice"
    assert flat.count("50.0 %") == flat.count("650") == 1, "a score or a step is printed twice"
    for word in ("2001-02-15", "1999-07-17", "(empty)", "fifteenth", "thousand", "[bold]14"):
        assert word in text, word


def test_without_early_stopping_no_rows_are_said_to_choose_the_best_step(training: TrainStudy) -> None:
    fixed = TrainRequest(steps=20)
    plain = train_study("nano/english", "dates.tsv", fixed, [], None, False)
    assert "6 dev rows to score during the training" in describe(plain)[0]
    for request, chosen in ((replace(fixed, folds=3), False), (TrainRequest(folds=3), True)):
        folds = cross_validation("nano/english", "dates.tsv", request, [], None, False)
        line = describe(folds.folds[0], folds)[0]
        assert line.startswith("data: 60 rows in 3 folds. Each fold is scored by a model that was trained on the other")
        assert ("chooses the best step" in line) is chosen


@pytest.mark.parametrize("width", WIDTHS)
def test_the_description_before_a_training_is_broken_between_words(width: int, training: TrainStudy) -> None:
    fit = memory_of(training.grid, None, False)
    lines = [*describe(training), *estimate_lines(training.grid.cells[0], training.rows, fit, True)]
    text = "\n".join(lines)
    shown = terminal_text.fitted(text, width)
    assert shown.split() == text.split()
    assert max(map(len, shown.splitlines())) <= width
    assert "data: 48 training rows, 6 dev rows to choose the best step, 6 test rows for the final score" in lines
    number = len(trained_tokens_of(training.grid.cells[0].spec))
    assert number > 1
    assert f"LoRA of rank 16, and the embeddings of {number} tokens that occur in the rows but not in pretrain" in text
    (stop,) = (line for line in lines if line.startswith("stop: "))
    assert stop.startswith("stop: when exact match on dev has not risen in 6 evaluations, or after 2,000 steps of 16")
    assert stop.endswith(
        "There is an evaluation every 50 steps. As long as exact match is below 20 %, a lower loss on dev also counts "
        "as a rise"
    )


@pytest.mark.parametrize(("template", "text", "argument"), [
    ("", "who is it", "who is it"),
    ("answer: {q}!", "answer: who?!", "who?"),
    ("{q}: {café} {q}", "who: in: the bar who", '{"q": "who", "café": "in: the bar"}'),
    ("{q}: {c}", "x" * 70 + ": y", '{"q": "the q", "c": "the c"}'),
])  # fmt: skip
def test_the_printed_predict_command_has_only_the_input_of_the_template(
    template: str, text: str, argument: str, training: TrainStudy, summary: TrainSummary
) -> None:
    task = replace(summary.cell.spec.task, options=Options({"template": template} if template else {}))
    cell = replace(summary.cell, spec=replace(summary.cell.spec, task=task))
    sample = replace(summary.samples[0], input=text)
    lines = next_commands(replace(summary, cell=cell, samples=[sample]), training)
    (command,) = (line for line in lines if "petransfer predict " in line)
    assert shlex.split(command)[-1] == argument
    if len(text) <= 60:
        assert render_text(template, argument) == text


def test_scores_of_several_seeds_are_labelled(
    training: TrainStudy, summary: TrainSummary, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = replace(summary, cell=replace(summary.cell, seed=1), dev=40.0)
    text = printed(120, training, [summary, other], monkeypatch, capsys)
    assert "seed 0: exact match: 50.0 % on dev" in text
    assert "seed 1: exact match: 40.0 % on dev" in text


def test_progress_text_for_output_that_is_not_a_terminal(training: TrainStudy) -> None:
    cell = training.grid.cells[0]
    row = RunRow(cell, "running", step=1200, loss=0.1234, dev_so_far=45.6, seconds_left=741)
    assert progress_text(row, "") == "step 1,200 of 2,000, loss 0.123, exact match on dev 46 %, at most 12 min left"
    assert progress_text(replace(row, loss=None), "fold 2: ") == "fold 2: running"
    assert train_hooks(training.grid).line(replace(row, status="done")) == "", "the summary has its scores"


@pytest.mark.parametrize(
    ("shown", "test_rows", "on_all", "title"),
    [
        (3, 20, False, "3 of the 20 test rows"),
        (3, 3, False, "the 3 test rows"),
        (1, 1, False, "the test row"),
        (3, 0, True, "3 of the 48 rows that the model was trained on"),
    ],
)
def test_the_title_of_the_samples_gives_the_number_of_rows(
    shown: int, test_rows: int, on_all: bool, title: str, summary: TrainSummary
) -> None:
    one = replace(summary, samples=SAMPLES[:shown], test_rows=test_rows)
    if on_all:
        task = replace(one.cell.spec.task, source=Options({**one.cell.spec.task.source, "fold": ALL}))
        one = replace(one, cell=replace(one.cell, spec=replace(one.cell.spec, task=task)))
    assert samples_table(one).title == title


def test_the_description_names_trained_embeddings_only_for_new_tokens(
    training: TrainStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without new tokens, the line about the method does not mention embeddings."""
    monkeypatch.setattr(train_output, "trained_tokens_of", lambda spec: ())
    assert "method: LoRA of rank 16; learning rate 0.002" in describe(training)
    monkeypatch.setattr(train_output, "trained_tokens_of", lambda spec: (7,))
    assert "and the embeddings of 1 token that occurs in the rows but not in pretraining; " in "\n".join(
        describe(training)
    )


def test_a_failed_memory_prediction_is_only_logged_before_a_training(
    training: TrainStudy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise NotImplementedError("torch.nonzero() raises unimplemented")

    monkeypatch.setattr("petransfer.memory.step_memory.token_loss", fail)
    assert memory_if_predictable(training.grid, None, False) is None
    assert "cannot be predicted: " in caplog.text
    assert "the training starts without this check" in caplog.text
    with pytest.raises(UserError, match=r"cannot be predicted: .*; train a few steps to measure it$"):
        memory_of(training.grid, None, False)


def test_a_training_that_does_not_fit_is_refused_with_its_longest_example(
    training: TrainStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("petransfer.study.train_study.host_bytes", lambda: 10**8)
    fit = memory_of(training.grid, None, False)
    with pytest.raises(UserError) as error:
        refuse_too_large(training.grid, fit, False)
    lengths = r"one example of \d+ input tokens and \d+ target tokens needs 1 GB"
    assert re.match(f"nano/english does not fit into the 0.1 GB of this machine: {lengths}; ", str(error.value))
    assert "--max-length" not in str(error.value)
    long = replace(fit, step_spec=replace(fit.step_spec, target_length=4000))
    with pytest.raises(UserError, match=r"4,000 target tokens .*; --max-length 1024 --skip-bad-rows leaves out longer"):
        refuse_too_large(training.grid, long, False)
    refuse_too_large(training.grid, fit, True)


def test_targets_that_are_labels_are_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("bad", "good", "mixed", "unclear")
    Path("labels.tsv").write_text("".join(f"review number {at}\t{words[at % 4]}\n" for at in range(60)))
    lines = describe(train_study("nano/english", "labels.tsv", TrainRequest(), [], None, False))
    (line,) = (line for line in lines if line.startswith("labels: "))
    assert "the targets are 4 labels ('bad', 'good', 'mixed', ...)" in line
    assert "accuracy" in line
    assert "macro-F1" in line


def test_the_description_of_folds_says_which_rows_choose_the_best_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("dates.tsv").write_text("".join(f"day number {at}\t{at}\n" for at in range(60)))
    found = cross_validation("nano/english", "dates.tsv", TrainRequest(folds=5), [], None, False)
    (data,) = (line for line in describe(found.folds[0], found) if line.startswith("data: "))
    assert "60 rows in 5 folds" in data
    assert "The same fold also chooses the best step" in data
