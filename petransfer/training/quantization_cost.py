"""Measure how much quantisation changes the loss of a checkpoint before training."""

from __future__ import annotations

import contextlib
import logging
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from petransfer.data.encoding import Encoded
from petransfer.errors import RunError
from petransfer.models.loading import Loaded, load_checkpoint, load_on_disk
from petransfer.models.quantization import weight_count
from petransfer.models.wrappers import evaluating
from petransfer.recipe.run_spec import CheckpointSpec
from petransfer.training.batches import collate
from petransfer.training.losses import token_loss
from petransfer.training.out_of_memory import OutOfMemory, raising_out_of_memory

logger = logging.getLogger(__name__)

EXAMPLES = 16
# Relative change of the loss above which a warning is given. The changes measured before training (results/bench/) are
# at most 1.5 % on the embedded checkpoints, and 5 to 10 % on small real checkpoints, which nevertheless train well.
WARN_ABOVE = 0.05
# Training is refused if the loss changed by more than both limits, because quantisation then broke the checkpoint. The
# first limit is relative, the second in nats. The second limit is needed because a loss near zero can change by more
# than the first limit although the checkpoint still works.
REFUSE_ABOVE, REFUSE_NATS = 0.5, 0.1


@dataclass(frozen=True)
class QuantisationCost:
    """The loss of a checkpoint before training, in nats per target token.

    loss_at_16_bits: loss of the checkpoint at 16 bits.
    loss: loss of the quantised checkpoint on the same examples.
    """

    loss_at_16_bits: float
    loss: float

    @property
    def change(self) -> float:
        """Relative change of the loss: 0.05 is 5 % more. Infinite if only the loss at 16 bits is zero."""
        if self.loss == self.loss_at_16_bits:
            return 0.0
        return self.loss / self.loss_at_16_bits - 1 if self.loss_at_16_bits else math.inf


def quantisation_cost(
    checkpoint: CheckpointSpec, seed: int, loaded: Loaded, examples: Sequence[Encoded]
) -> QuantisationCost:
    """Compute the loss of the first `EXAMPLES` examples with the quantised model and with the checkpoint at 16 bits.

    Raises:
        RunError: memory ran out.
    """
    device = next(loaded.model.parameters()).device
    try:
        with raising_out_of_memory():
            after = _loss(loaded, examples, device)
            wide = _loss_at_16_bits(checkpoint, seed, loaded, examples, device)
    except OutOfMemory as error:
        raise RunError(
            f"out of memory while the quantised {checkpoint.name} was compared with the 16-bit model on {EXAMPLES} "
            "examples; free memory"
        ) from error
    return QuantisationCost(wide, after)


def _loss_at_16_bits(
    checkpoint: CheckpointSpec, seed: int, loaded: Loaded, examples: Sequence[Encoded], device: torch.device
) -> float:
    weights = sum(weight_count(value) for value in loaded.model.parameters())
    fits = 2 * weights < 0.8 * _room(device)
    if checkpoint.reinit != "none":  # random weights are drawn in fp32 in the host's memory
        fits = fits and 6 * weights < 0.8 * _room(torch.device("cpu"))
    if fits:
        with contextlib.suppress(OutOfMemory), raising_out_of_memory():
            return _loss(load_checkpoint(checkpoint, 16, seed=seed, device=device), examples, device)
    # There is no room on the device: compute on the CPU, and read each weight from disk when it is needed.
    with tempfile.TemporaryDirectory() as folder:
        return _loss(load_on_disk(checkpoint, folder, seed), examples, torch.device("cpu"))


def check_quantization_cost(cost: QuantisationCost, name: str) -> None:
    """Warn if quantisation changed the loss noticeably.

    Raises:
        RunError: a loss is not finite, or the loss changed by more than both `REFUSE_ABOVE` and `REFUSE_NATS`.
    """
    moved = f"quantising {name} changed its loss on {EXAMPLES} dev examples from {cost.loss_at_16_bits:.3f} to "
    moved += f"{cost.loss:.3f} nats per target token"
    if not math.isfinite(cost.loss_at_16_bits):
        raise RunError(
            f"{name} computes no finite loss at 16 bits on {EXAMPLES} dev examples, before it is quantised; check its "
            "weights and its dtype, or --force to train anyway"
        )
    help_ = "use more bits, or name the sensitive layers in the method's keep_wide"
    if not math.isfinite(cost.loss):
        raise RunError(f"{moved}: the quantised model computes no finite numbers; {help_}")
    change = f" ({cost.change:+.1%})".replace("%)", " %)") if math.isfinite(cost.change) else ""
    if abs(cost.change) > REFUSE_ABOVE and abs(cost.loss - cost.loss_at_16_bits) > REFUSE_NATS:
        raise RunError(f"{moved}{change}, more than {REFUSE_ABOVE:.0%}; {help_}, or --force to train anyway")
    if abs(cost.change) > WARN_ABOVE:
        logger.warning("%s%s. Training usually recovers most of it; otherwise %s", moved, change, help_)


@torch.no_grad()
def _loss(loaded: Loaded, examples: Sequence[Encoded], device: torch.device) -> float:
    total, tokens = 0.0, 0
    with evaluating(loaded.model):
        for example in examples[:EXAMPLES]:
            batch = {name: tensor.to(device) for name, tensor in collate([example], loaded.layout).items()}
            total += float(token_loss(loaded.model, batch))
            tokens += len(example.target_ids)
    return total / tokens


def _room(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    return int(psutil.virtual_memory().available)
