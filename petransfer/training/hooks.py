"""Functions through which a study follows and steers the training loop."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any


@dataclass
class Hooks:
    """Functions that the training loop calls.

    progress: called after every step with the number of steps taken, the mean loss and the training time in seconds.
    should_stop: called after every step. True means: save the state and raise `Interrupted`.
    evaluate_at: numbers of steps after which `evaluate` is called.
    evaluate: called with a micro-batch size that fits in memory. Returns the scores on dev for metrics.jsonl.
    log: called with every line of metrics, in the first process only.
    """

    progress: Callable[[int, float, float], None] = lambda step, loss, seconds: None
    should_stop: Callable[[], bool] = lambda: False
    evaluate_at: Collection[int] = ()
    evaluate: Callable[[int], dict[str, Any]] = lambda micro_batch: {}
    log: Callable[[dict[str, Any]], None] = lambda line: None
