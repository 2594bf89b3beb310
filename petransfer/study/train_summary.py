"""The summary at the end of a training: scores, why it stopped, sample predictions and advice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from petransfer.study.folders import RunFolder
from petransfer.study.grid import Cell
from petransfer.study.study import StudyGrid
from petransfer.training.metrics_file import read_metrics

SAMPLES = 3
# Below this exact match on dev, in per cent, a training is reported as not having learnt its task.
LEARNT = 80.0


@dataclass(frozen=True)
class Sample:
    """A test row with the text that the trained model generated for it."""

    input: str
    target: str
    prediction: str
    correct: bool


@dataclass(frozen=True)
class TrainSummary:
    """The results of one training.

    Attributes:
        cell, folder: The run.
        dev, test: Exact match in per cent.
        steps: Optimiser steps taken.
        best_step: The step of the saved weights; the last step without early stopping.
        stop_reason: `no_improvement`, `max_steps`, `max_minutes`, or empty without early stopping.
        still_improving: Whether the last evaluation on dev was the best one.
        samples: Test rows with their generated texts.
    """

    cell: Cell
    folder: RunFolder
    dev: float
    test: float
    steps: int
    best_step: int
    stop_reason: str
    still_improving: bool
    samples: tuple[Sample, ...]

    @property
    def scores(self) -> str:
        """The scores in one line."""
        return f"exact match: {self.dev:.1f} % on dev, {self.test:.1f} % on test"

    @property
    def stopped(self) -> str:
        """Why the training stopped, as a sentence."""
        best = f"the best step was {self.best_step:,}, whose weights are saved"
        stopping = self.cell.spec.train.early_stopping
        if self.stop_reason == "no_improvement" and stopping:
            return f"stopped at step {self.steps:,}: no improvement in {stopping.patience} evaluations on dev; {best}"
        if self.stop_reason == "max_minutes" and stopping:
            return f"stopped at step {self.steps:,} after {stopping.max_minutes:g} minutes; {best}"
        if self.stop_reason:
            return f"stopped at the largest number of steps, {self.steps:,}; {best}"
        return f"trained {self.steps:,} steps, as asked"

    @property
    def advice(self) -> str:
        """What to try if the model has not learnt its task; empty if it has."""
        if self.dev >= LEARNT and not (self.still_improving and self.stop_reason == "max_steps"):
            return ""
        train, method = self.cell.spec.train, self.cell.spec.method
        tries = []
        if self.still_improving:
            option = "--max-steps" if train.early_stopping else "--steps"
            tries.append(f"{option} {2 * train.steps}")
        if self.dev < LEARNT:
            if method.name != "full" and method.bits >= 16:
                tries.append("--method full")
            if method.rank:
                tries.append(f"--rank {4 * method.rank}")
            tries.append(f"--learning-rate {float(f'{3 * train.learning_rate:.1g}'):g}")
        reason = "dev was still improving when training ended" if self.still_improving else "the dev score is low"
        return f"{reason}; try: {', or '.join(tries)}"


def summaries(grid: StudyGrid) -> list[TrainSummary]:
    """Return the summary of each finished training of a study, the best one on dev first."""
    done = [cell for cell in grid.cells if grid.folder.run(cell.run_id).done]
    found = [summary for cell in done if (summary := _summary(cell, grid.folder.run(cell.run_id)))]
    return sorted(found, key=lambda one: -one.dev)


def _summary(cell: Cell, folder: RunFolder) -> TrainSummary | None:
    result = folder.result()
    if result is None:
        return None
    curve = [line for line in read_metrics(folder.path / "metrics.jsonl") if "dev_em" in line]
    return TrainSummary(
        cell,
        folder,
        float(result["dev"]["exact_match"]),
        float(result["test"]["exact_match"]),
        int(result["steps"]),
        int(result.get("best_step") or result["steps"]),
        str(result.get("stop_reason") or ""),
        _still_improving(curve),
        _samples(folder),
    )


def _still_improving(curve: list[dict[str, Any]]) -> bool:
    """Return whether the last evaluation on dev is better than all earlier ones, by exact match, then by loss."""
    if len(curve) < 2:
        return False
    *before, last = [(line["dev_em"], -line.get("dev_loss", line["loss"])) for line in curve]
    return last[0] < 100 and last > max(before)


def _samples(folder: RunFolder) -> tuple[Sample, ...]:
    """Return evenly spaced test rows whose generated text was saved."""
    import pyarrow.parquet  # takes time to import

    path = folder.path / "examples.parquet"
    names = {"said", "input", "target", "correct"}
    if not path.is_file() or not names <= set(pyarrow.parquet.read_schema(path).names):
        return ()
    rows = pyarrow.parquet.read_table(path, columns=sorted(names)).to_pylist()
    kept = [row for row in rows if row["said"] is not None]
    chosen = kept[:: max(1, len(kept) // SAMPLES)][:SAMPLES]
    return tuple(Sample(row["input"], row["target"], row["said"], bool(row["correct"])) for row in chosen)
