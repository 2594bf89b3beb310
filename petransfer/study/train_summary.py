"""The summary of a training: scores, reason for stopping, sample predictions and advice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from petransfer.data.rows.folds import ALL
from petransfer.plurals import count
from petransfer.recipe.method_part import LARGEST_RANK
from petransfer.recipe.methods import METHODS
from petransfer.recipe.metrics import HEADINGS
from petransfer.recipe.run_spec import EarlyStopping
from petransfer.recipe.schema import LEARNING_RATE_LIMIT
from petransfer.study.folders import RunFolder
from petransfer.study.grid import Cell
from petransfer.study.study import StudyGrid
from petransfer.training.early_stopping import INFORMATIVE
from petransfer.training.metrics_file import read_metrics

SAMPLES = 3
# Below this exact match on dev, in per cent, a training is reported as not having learnt its task.
LEARNT = 80.0
# With fewer training rows than this, more rows are the first thing to try.
FEW_ROWS = 200
# Below this training loss, in nats per token, the training rows are learnt by heart: a target of ten tokens is then
# generated correctly with a probability of at least 82 %.
MEMORISED = 0.02
_REASONS = {
    "exact_match": "exact match on dev was still rising when training ended",
    "loss": "no dev row is right yet, but the loss on dev was still falling when training ended",
    "": "exact match on dev is low",
}


@dataclass(frozen=True)
class Sample:
    """A test row with the text that the trained model generated."""

    input: str
    target: str
    prediction: str
    correct: bool


@dataclass(frozen=True)
class TrainSummary:
    """The results of one training.

    Attributes:
        cell, folder: The run and the run's folder.
        dev, test: Exact match in per cent.
        steps: Optimiser steps taken.
        best_step: The step of the saved weights.
        stop_reason: `no_improvement`, `max_steps` or `max_minutes`. Empty without early stopping.
        still_improving: `exact_match` or `loss`, if this dev score was still improving at the end. Otherwise empty.
        samples: Test rows with their generated texts.
        diverged: Whether the final training loss is over 1.5 times the first one.
        metrics: The other metrics of the test rows, by their heading in tables.
        rows: Number of training rows. 0: not known.
        test_rows: Number of test rows. 0: not known.
        train_loss: The last training loss, in nats per token. None: not known.
        equal_step: An earlier step with the exact match of `best_step` on dev, but with a higher loss. 0: none.
    """

    cell: Cell
    folder: RunFolder
    dev: float
    test: float
    steps: int
    best_step: int
    stop_reason: str
    still_improving: str
    samples: tuple[Sample, ...]
    diverged: bool = False
    metrics: Mapping[str, float] = field(default_factory=dict)
    rows: int = 0
    test_rows: int = 0
    train_loss: float | None = None
    equal_step: int = 0

    @property
    def trained_on_all(self) -> bool:
        """Whether the model was trained on the rows of all folds."""
        return self.cell.spec.task.source.get("fold") == ALL

    @property
    def scores(self) -> str:
        """The scores in one line."""
        if self.trained_on_all:
            few = "" if self.dev >= LEARNT else " (more steps would learn them better, but not help on new rows)"
            return f"exact match: {self.dev:.1f} % on its training rows{few}; for new rows see the folds' scores"
        others = [_figure(heading, value) for heading, value in self.metrics.items()]
        other = f"; also on test: {', '.join(others)}" if others else ""
        return f"exact match: {self.dev:.1f} % on dev, {self.test:.1f} % on test{other}"

    @property
    def stopped(self) -> str:
        """Why the training stopped, as a sentence."""
        stopping = self.cell.spec.train.early_stopping
        at = f"training stopped at step {self.steps:,}"
        if self.stop_reason == "no_improvement" and stopping:
            return f"{at}, because {self._standstill(stopping)} in {count(stopping.patience, 'evaluation')}"
        if self.stop_reason == "max_minutes" and stopping:
            return f"{at}, because the time limit was reached (--max-minutes {stopping.max_minutes:g})"
        if self.stop_reason:
            return f"{at}, the largest number of steps (--max-steps)"
        if self.trained_on_all:
            return f"trained for {count(self.steps, 'step')}, the median over the folds"
        return f"trained for {count(self.steps, 'step')}"

    def _standstill(self, stopping: EarlyStopping) -> str:
        if stopping.metric == "loss":
            return "the loss on dev had not fallen"
        if self.dev < INFORMATIVE:
            return "neither exact match nor the loss on dev had improved"
        recent = self.best_step > self.steps - stopping.patience * stopping.every
        if recent and not self.equal_step:
            return f"exact match on dev had risen by less than {stopping.min_delta:g} points"
        return "exact match on dev had not risen"

    @property
    def saved(self) -> str:
        """Which step's weights are saved, and why, as a sentence. Empty if these are the weights of the last step."""
        if not self.stop_reason:
            return ""
        what = "model" if METHODS.lookup(self.cell.spec.method.name).trains_all_weights else "adapter"
        best = f"the {what} has the weights of step {self.best_step:,}, the best on dev"
        stopping = self.cell.spec.train.early_stopping
        if not self.equal_step or (stopping and stopping.metric == "loss"):
            return best
        weights = f"the {what} has the weights of step {self.best_step:,}, where the loss on dev was"
        if self.dev == 0:
            return f"exact match on dev was always 0 %; {weights} lowest"
        return (
            f"exact match on dev was equally high at steps {self.equal_step:,} and {self.best_step:,}; {weights} lower"
        )

    @property
    def memorised(self) -> bool:
        """Whether the model has learnt the training rows, but not the dev rows."""
        return self.dev < LEARNT and self.train_loss is not None and self.train_loss < MEMORISED

    @property
    def advice(self) -> str:
        """Settings to try after an unsuccessful training. Empty after a successful one."""
        # early stopping has found that more steps bring little
        improving = "" if self.stop_reason == "no_improvement" else self.still_improving
        ended_early = bool(improving and self.stop_reason)
        if self.trained_on_all or (self.dev >= LEARNT and not ended_early):
            return ""
        train = self.cell.spec.train
        if self.diverged:
            return f"the loss rose during training; try --learning-rate {train.learning_rate / 10:.1g}"
        if self.memorised and not improving:
            return memorised_line(self.train_loss or 0.0, self.dev)
        tries = []
        if improving:
            tries.append(self._longer_training)
        if self.dev < LEARNT:
            tries += ["more rows"] if self.memorised else settings_to_try(self.cell, self.rows)
        return f"{_REASONS[improving]}; try {', or '.join(tries)}"

    @property
    def _longer_training(self) -> str:
        """The option that doubles the limit at which training ended."""
        train = self.cell.spec.train
        if self.stop_reason == "max_minutes" and train.early_stopping:
            return f"--max-minutes {2 * train.early_stopping.max_minutes:g}"
        return f"{'--max-steps' if train.early_stopping else '--steps'} {2 * train.steps}"


def memorised_line(loss: float, exact_match: float, scored: str = "dev") -> str:
    """Return the advice for a training that learnt the training rows, but not the dev rows.

    Args:
        loss: The training loss at the end, in nats per token.
        exact_match: Exact match on dev, in per cent.
        scored: The rows of `exact_match`.
    """
    small = f"only {loss:.3f}" if loss >= 0.0005 else "below 0.001"
    return (
        f"at the last step, the training loss was {small}, but exact match on {scored} is {exact_match:.0f} %: "
        "the model has memorised the training rows. Add rows; a higher rank or more steps would not help"
    )


def final_loss(folder: RunFolder) -> float | None:
    """Return the last training loss of a run, in nats per token. None if there is none."""
    lines = read_metrics(folder.path / "metrics.jsonl")
    return float(lines[-1]["loss"]) if lines else None


def settings_to_try(cell: Cell, rows: int) -> list[str]:
    """Return what to try after a training with low scores. rows: number of training rows; 0 if not known."""
    train, method = cell.spec.train, cell.spec.method
    tries = ["more rows"] if 0 < rows < FEW_ROWS else []
    if not METHODS.lookup(method.name).trains_all_weights and method.bits >= 16:
        tries.append("--method full")
    if 0 < 4 * method.rank <= LARGEST_RANK:
        tries.append(f"--rank {4 * method.rank}")
    # The default learning rate of prompt tuning is so high that no value three times as high is allowed.
    higher, lower = (float(f"{factor * train.learning_rate:.1g}") for factor in (3, 1 / 3))
    return [*tries, f"--learning-rate {higher if higher < LEARNING_RATE_LIMIT else lower:g}"]


def summaries(grid: StudyGrid) -> list[TrainSummary]:
    """Return the summaries of a study's finished runs, best on dev first."""
    done = [cell for cell in grid.cells if grid.folder.run(cell.run_id).scored]
    found = [summary for cell in done if (summary := _summary(cell, grid.folder.run(cell.run_id)))]
    return sorted(found, key=lambda one: -one.dev)


def _summary(cell: Cell, folder: RunFolder) -> TrainSummary | None:
    result = folder.result()
    if result is None:
        return None
    lines = read_metrics(folder.path / "metrics.jsonl")
    curve = [line for line in lines if "dev_em" in line]
    return TrainSummary(
        cell,
        folder,
        float(result["dev"]["exact_match"]),
        float(result["test"]["exact_match"]),
        int(result["steps"]),
        int(result.get("best_step") or result["steps"]),
        str(result.get("stop_reason") or ""),
        improving_score(curve),
        _samples(folder),
        len(lines) > 1 and lines[-1]["loss"] > 1.5 * lines[0]["loss"],
        {heading: float(result["test"][name]) for name, heading in HEADINGS.items() if name in result["test"]},
        int(result.get("train_examples") or 0),
        int(result["test"].get("examples") or 0),
        float(lines[-1]["loss"]) if lines else None,
        _equal_step(curve, int(result.get("best_step") or 0)),
    )


def _equal_step(curve: list[dict[str, Any]], best_step: int) -> int:
    """Return the first step before `best_step` with the same exact match on dev. 0: there is none."""
    best = next((line["dev_em"] for line in curve if line["step"] == best_step), None)
    same = next((line["step"] for line in curve if line["dev_em"] == best), best_step)
    return int(same) if same < best_step else 0


def _figure(heading: str, value: float) -> str:
    """Return a score with its name, such as `accuracy 97.5 %`. heading: its heading in tables, such as `accuracy %`."""
    name = heading.removesuffix(" %")
    return f"{name} {value:.1f}{' %' if name != heading else ''}"


def improving_score(curve: list[dict[str, Any]]) -> str:
    """Return the dev score that was still improving at the end: `exact_match`, `loss` or neither (empty).

    `curve` has the lines of metrics.jsonl with dev scores.
    """
    if len(curve) < 2:
        return ""
    exact = [line["dev_em"] for line in curve]
    losses = [line.get("dev_loss", line["loss"]) for line in curve]
    recent = max(1, len(curve) // 5)
    # the loss counts only if exact match was always 0
    if max(exact) == 0:
        return "loss" if losses[-1] < min(losses[:-1]) else ""
    rising = max(exact[:-recent]) < max(exact[-recent:]) and max(exact) < 100
    return "exact_match" if rising else ""


def _samples(folder: RunFolder) -> tuple[Sample, ...]:
    import pyarrow.parquet  # imported here because it is slow to import

    path = folder.path / "examples.parquet"
    names = {"prediction", "input", "target", "correct"}
    if not path.is_file() or not names <= set(pyarrow.parquet.read_schema(path).names):
        return ()
    rows = pyarrow.parquet.read_table(path, columns=sorted(names)).to_pylist()
    kept = [row for row in rows if row["prediction"] is not None]
    chosen = kept[:: max(1, len(kept) // SAMPLES)][:SAMPLES]
    return tuple(Sample(row["input"], row["target"], row["prediction"], bool(row["correct"])) for row in chosen)
