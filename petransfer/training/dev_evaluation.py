"""Evaluation on dev during training, and the use of the scores for early stopping."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from petransfer.recipe.run_spec import TrainSpec
from petransfer.training.distributed import SingleProcess
from petransfer.training.early_stopping import EarlyStopper, StoppingState
from petransfer.training.hooks import Hooks
from petransfer.training.state import Progress, load_best, remove_other_bests, save_best


class DevEvaluation:
    """Evaluates a run on dev. With early stopping, keeps the best weights and decides whether the run ends.

    Args:
        processes: the processes of the run.
        folder: folder of the training states, in which the best weights are saved.
        writes: whether this process writes the files of the run.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        spec: TrainSpec,
        progress: Progress,
        processes: SingleProcess,
        hooks: Hooks,
        folder: Path,
        *,
        writes: bool,
    ) -> None:
        self.model, self.processes, self.hooks = model, processes, hooks
        self.folder, self.writes, self.steps = folder, writes, spec.steps
        self.stopper: EarlyStopper | None = None
        if spec.early_stopping is not None:
            self.stopper = EarlyStopper(spec.early_stopping, StoppingState.from_dict(progress.early_stopping))

    @property
    def ended(self) -> bool:
        """Whether early stopping ended the run."""
        return self.stopper is not None and self.stopper.state.stop_reason != ""

    def is_due(self, done: int, *, out_of_time: bool) -> bool:
        """Return whether the model is evaluated after `done` steps."""
        return done in self.hooks.evaluate_at or out_of_time

    def is_out_of_time(self, seconds: float) -> bool:
        """Return whether a training time of `seconds` has reached the time limit. False without early stopping."""
        return self.stopper is not None and self.stopper.is_out_of_time(seconds)

    def cooldown_factor(self, step: int) -> float:
        """Return the factor of a step's learning rate. 1 without early stopping. `step` is counted from 0."""
        return self.stopper.cooldown_factor(step, self.steps) if self.stopper else 1.0

    def run(self, progress: Progress, *, out_of_time: bool) -> dict[str, Any]:
        """Return the scores on dev. With early stopping, also save the best weights and decide about stopping.

        Args:
            progress: progress of the run, in which the state of early stopping is recorded.
            out_of_time: whether the run has reached its time limit.
        """
        scores = self.hooks.evaluate(progress.micro_batch)
        if self.stopper is None:
            return scores
        # All processes use the scores of the first process. Otherwise rounding could make them decide differently.
        if self.processes.shared:
            own = [score if self.writes else 0.0 for score in scores.values()]
            scores = dict(zip(scores, self.processes.agree(own), strict=True))
        if self.stopper.record(progress.step, scores):
            save_best(self.folder, self.model, progress.step, writes=self.writes)
        state = self.stopper.state
        if not state.stop_reason:
            last = progress.step == self.steps
            state.stop_reason = "max_minutes" if out_of_time else "max_steps" if last else ""
        progress.early_stopping = state.as_dict()
        return scores

    def remove_other_bests(self) -> None:
        """Remove the saved weights of all steps except the best. Only the process that writes removes files."""
        if self.writes and self.stopper is not None:
            remove_other_bests(self.folder, self.stopper.state.best_step)

    def restore_best(self) -> None:
        """With early stopping, load the weights of the best step into the model."""
        best = self.stopper.state.best_step if self.stopper else 0
        if best:
            self._wait_for_others()  # the first process must have written the best weights
            load_best(self.folder, self.model, best)
            self._wait_for_others()  # all must have loaded them, because the first process later removes the files

    def _wait_for_others(self) -> None:
        if self.processes.shared:
            self.processes.agree([0.0])
