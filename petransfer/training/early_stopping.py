"""Early stopping: end training when the scores on dev no longer improve, and keep the best weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from petransfer.recipe.run_spec import EarlyStopping

StopReason = Literal["", "no_improvement", "max_minutes", "max_steps"]

# Names of the dev scores: exact match in percent, and loss in nats per target token.
EXACT_MATCH, LOSS = "dev_em", "dev_loss"
# If exact match is at least this value, in percent, exact match alone decides whether there is an improvement. Below
# it, only few rows are right, and a falling loss shows progress earlier. Above it, the loss often continues to fall
# long after the last improvement of exact match: on the everyday task of text commands, for 1,000 more steps.
INFORMATIVE = 20.0


@dataclass
class StoppingState:
    """The state of early stopping, which is saved with the training state.

    A score is None before the first evaluation. A loss that is not finite is also None.

    Attributes:
        best_step: step with the best weights. 0 before the first evaluation.
        best_exact_match: exact match on dev at `best_step`, in percent.
        best_loss: loss on dev at `best_step`, in nats per target token.
        level_exact_match: exact match at its last improvement, that is, a rise by at least `min_delta` percentage
            points.
        level_loss: loss at its last improvement, that is, a fall by at least `min_delta` per cent.
        evaluations: number of evaluations on dev.
        stale: number of evaluations since the last improvement.
        cooldown_from: first step of the cooldown, in which the learning rate falls to zero. 0 before the cooldown.
        stop_reason: why training ends. Empty while training continues.
    """

    best_step: int = 0
    best_exact_match: float | None = None
    best_loss: float | None = None
    level_exact_match: float | None = None
    level_loss: float | None = None
    evaluations: int = 0
    stale: int = 0
    cooldown_from: int = 0
    stop_reason: StopReason = ""

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> StoppingState:
        """Return the state that `as_dict` saved. An empty mapping gives a new state."""
        return cls(**content)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class EarlyStopper:
    """Decides after each evaluation on dev whether the weights are the best and whether training stops.

    A resumed run makes the decisions of an uninterrupted run, except with `max_minutes`.
    """

    def __init__(self, settings: EarlyStopping, state: StoppingState) -> None:
        self.settings, self.state = settings, state

    def record(self, step: int, scores: Mapping[str, float]) -> bool:
        """Record the dev scores after `step` steps, and return whether the scores are the best.

        Args:
            scores: `dev_em` in percent and `dev_loss` in nats per target token.
        """
        state = self.state
        exact_match, loss = scores[EXACT_MATCH], scores[LOSS]
        loss = loss if math.isfinite(loss) else math.inf
        is_best = self._rank(exact_match, loss) > self._rank(state.best_exact_match, state.best_loss)
        if is_best or not state.best_step:
            state.best_step, state.best_exact_match, state.best_loss = step, exact_match, _finite(loss)
            is_best = True
        state.evaluations += 1
        state.stale = 0 if self._improves(exact_match, loss) else state.stale + 1
        self._begin_or_end(step)
        return is_best

    def _begin_or_end(self, step: int) -> None:
        """Begin the cooldown after `patience` evaluations without an improvement. Stop after it."""
        state = self.state
        if state.cooldown_from:
            if step >= state.cooldown_from + self.cooldown_steps:
                state.stop_reason = "no_improvement"
        elif state.stale >= self.settings.patience:
            # Without cooldown steps in the settings, or at 100 % exact match, training stops without a cooldown.
            if self.cooldown_steps and (state.best_exact_match or 0) < 100:
                state.cooldown_from = step
            else:
                state.stop_reason = "no_improvement"

    @property
    def cooldown_steps(self) -> int:
        return self.settings.cooldown * self.settings.every

    def cooldown_factor(self, step: int, last: int) -> float:
        """Return the factor of a step's learning rate: 1 before the cooldown, then falling to 0.

        Args:
            step: the step, counted from 0.
            last: maximum number of steps of the run, at which the factor is 0 at the latest.
        """
        begin = self.state.cooldown_from
        if not begin or step <= begin:
            return 1.0
        return max(0.0, 1 - (step - begin) / min(self.cooldown_steps, last - begin))

    def is_out_of_time(self, seconds: float) -> bool:
        """Return whether a training time of `seconds` has reached the time limit. False without a limit."""
        return 0 < self.settings.max_minutes <= seconds / 60

    def _rank(self, exact_match: float | None, loss: float | None) -> tuple[float, ...]:
        lower_loss = -math.inf if loss is None else -loss
        if self.settings.metric == "loss":
            return (lower_loss,)
        return (-math.inf if exact_match is None else exact_match, lower_loss)

    def _improves(self, exact_match: float, loss: float) -> bool:
        """Return whether a score that counts improved, and update the levels of improved scores."""
        state, delta = self.state, self.settings.min_delta
        improved = False
        uses_exact_match = self.settings.metric == "exact_match"
        if uses_exact_match and (
            state.level_exact_match is None or _exceeds(exact_match - state.level_exact_match, delta)
        ):
            state.level_exact_match, improved = exact_match, True
        counts_loss = not uses_exact_match or (state.best_exact_match or 0) < INFORMATIVE
        if state.level_loss is None or _exceeds(state.level_loss - loss, state.level_loss * delta / 100):
            state.level_loss = _finite(loss)
            improved = improved or (counts_loss and state.level_loss is not None)
        return improved


def _exceeds(gain: float, least: float) -> bool:
    return gain > 0 and gain >= least


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
