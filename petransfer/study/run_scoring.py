"""What a trained model is scored on: dev as it goes, then dev and test, by all processes where the model is split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from petransfer.data import TASKS, Example
from petransfer.data.encoding import Encoded
from petransfer.errors import RunError
from petransfer.evaluation.distributed import evaluate_together
from petransfer.evaluation.exact_match import Evaluation, score
from petransfer.evaluation.run_metrics import Measured, measure
from petransfer.models.loading import Loaded
from petransfer.training.distributed.fsdp import is_split, with_root_gathered
from petransfer.training.out_of_memory import is_out_of_memory

if TYPE_CHECKING:
    from petransfer.study.single_run import Base, Prepared

# A learning curve has at most so many points, on at most so many dev examples.
CURVE_POINTS, CURVE_EXAMPLES = 10, 200


def curve_steps(steps: int) -> range:
    """The steps after which a learning curve has a point."""
    return range(0, steps + 1, -(-steps // CURVE_POINTS))[1:]


def dev_curve(
    model: torch.nn.Module,
    loaded: Loaded,
    examples: Sequence[Example],
    encoded: Sequence[Encoded],
    at_once: Callable[[], int] | None,
) -> Callable[[], dict[str, Any]]:
    """Exact match in % on dev examples evenly spread, by one forward pass: what metrics.jsonl has as `dev_em`.

    at_once: the examples of a pass; all of them in one unless given.
    """
    chosen = range(0, len(examples), -(-len(examples) // CURVE_EXAMPLES))

    def measure() -> dict[str, Any]:
        model.eval()
        size = at_once() if at_once else len(chosen)
        with with_root_gathered(model):
            scored = score(model, loaded, [examples[at] for at in chosen], [encoded[at] for at in chosen], size)
        model.train()
        return {"dev_em": 100 * sum(row.margin > 0 for row in scored) / len(scored)}

    return measure


def judged(
    prepared: Prepared, base: Base, at_once: int, leads: bool
) -> tuple[dict[str, Evaluation], dict[str, Measured]]:
    """Exact match of the parts that are scored, and what the recipe's metrics ask for beside it.

    The leading process measures the latter; where the model is split all do, and `at_once` examples are known to fit.

    Raises:
        RunError: a process that others wait for ran out of memory.
    """
    model, loaded, parts, task = prepared.model, prepared.loaded, prepared.parts, prepared.spec.task
    data = base.data
    options: dict[str, Any] = {"batch_size": at_once} if is_split(model) else {}
    options["semantics"] = TASKS.lookup(task.name).semantics
    try:
        with with_root_gathered(model):
            evaluations = {
                part: evaluate_together(
                    model,
                    loaded,
                    getattr(data, part),
                    parts[part],
                    by_generation=base.settings.by_generation and part == "test",
                    **options,
                )
                for part in base.settings.scored_parts
            }
            judges = [*evaluations] if leads or is_split(model) else []
            measured = {part: measure(model, loaded, task, data, part, parts[part]) for part in judges}
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if is_split(model) and is_out_of_memory(error):
            raise RunError(
                "out of memory in the evaluation; run the same command again with a smaller --micro-batch"
            ) from error
        raise
    return evaluations, measured
