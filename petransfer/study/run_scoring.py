"""Score a model on dev during training, and on dev and test after training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from petransfer.data import TASKS, Example
from petransfer.data.encoding import Encoded
from petransfer.errors import RunError
from petransfer.evaluation.distributed import evaluate_distributed
from petransfer.evaluation.exact_match import Evaluation
from petransfer.evaluation.one_pass import score
from petransfer.evaluation.run_metrics import MetricScores, compute_metrics
from petransfer.models.loading import Loaded
from petransfer.recipe.run_spec import TrainSpec
from petransfer.study.prepared_run import LoadedBase, PreparedRun
from petransfer.training.distributed import needs_all_processes, with_root_gathered
from petransfer.training.early_stopping import EXACT_MATCH, LOSS
from petransfer.training.out_of_memory import OutOfMemory, raising_out_of_memory

# The largest number of points on a learning curve, and of dev examples that are scored for each point.
CURVE_POINTS, CURVE_EXAMPLES = 10, 200
# The largest number of dev examples for early stopping.
STOPPING_EXAMPLES = 500


def evaluation_steps(train: TrainSpec) -> set[int]:
    """Return the steps after which a run is evaluated on dev."""
    if train.early_stopping is None:
        return set(range(0, train.steps + 1, -(-train.steps // CURVE_POINTS))[1:])
    return {*range(train.early_stopping.every, train.steps, train.early_stopping.every), train.steps}


def dev_curve(
    model: torch.nn.Module,
    loaded: Loaded,
    examples: Sequence[Example],
    encoded: Sequence[Encoded],
    most: int = CURVE_EXAMPLES,
) -> Callable[[int], dict[str, Any]]:
    """Return a function that scores the model on evenly spaced dev examples.

    The returned function takes the number of examples per batch, which only a sharded model uses. The result has
    `dev_em` (exact match in per cent) and `dev_loss` (nats per target token).

    Args:
        examples: The dev examples.
        encoded: The token ids of the dev examples.
        most: The largest number of dev examples to score.
    """
    chosen = range(0, len(examples), -(-len(examples) // most))

    def measure(micro_batch: int) -> dict[str, Any]:
        model.eval()
        size = micro_batch if needs_all_processes(model) else len(chosen)
        with with_root_gathered(model):
            scored = score(model, loaded, [examples[at] for at in chosen], [encoded[at] for at in chosen], size)
        model.train()
        tokens = sum(row.tokens for row in scored)
        return {
            EXACT_MATCH: 100 * sum(row.margin > 0 for row in scored) / len(scored),
            LOSS: -sum(row.log_prob for row in scored) / tokens,
        }

    return measure


def evaluate_trained(
    prepared: PreparedRun, base: LoadedBase, at_once: int, leads: bool
) -> tuple[dict[str, Evaluation], dict[str, MetricScores]]:
    """Evaluate a trained model. Return exact match and the other metrics, by part (`dev`, `test`).

    Only the leading process computes the other metrics, except for a sharded model.

    Args:
        at_once: Examples per forward pass of a sharded model. This number must fit into memory.
        leads: Whether this is the leading process.

    Raises:
        RunError: The evaluation of a sharded model ran out of memory.
        OutOfMemory: The evaluation of another model ran out of memory.
    """
    model, loaded, parts, task = prepared.model, prepared.loaded, prepared.parts, prepared.spec.task
    data = base.data
    options: dict[str, Any] = {"batch_size": at_once} if needs_all_processes(model) else {}
    options["semantics"] = TASKS.lookup(task.name).semantics
    try:
        with raising_out_of_memory(), with_root_gathered(model):
            evaluations = {
                part: evaluate_distributed(
                    model,
                    loaded,
                    getattr(data, part),
                    parts[part],
                    by_generation=base.settings.by_generation and part == "test",
                    **options,
                )
                for part in base.settings.scored_parts
            }
            judges = [*evaluations] if leads or needs_all_processes(model) else []
            measured = {part: compute_metrics(model, loaded, task, data, part, parts[part]) for part in judges}
    except OutOfMemory as error:
        if needs_all_processes(model):
            raise RunError(
                "out of memory in the evaluation; run the same command again with a smaller --micro-batch-size"
            ) from error
        raise
    return evaluations, measured
