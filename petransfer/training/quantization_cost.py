"""What quantising a checkpoint costs before it is trained: the loss of a few examples at 16 bits and as loaded."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from petransfer.data.encoding import Encoded
from petransfer.errors import RunError
from petransfer.models.loading import Loaded, load_checkpoint, load_on_disk
from petransfer.recipe.run_spec import CheckpointSpec
from petransfer.training.batches import collate
from petransfer.training.losses import token_loss
from petransfer.training.out_of_memory import is_out_of_memory

EXAMPLES = 16
# Quantisation that works moved the loss of the embedded checkpoints on SCAN by at most 1.5 %; activations cut to whole
# numbers moved it by 6.5 % and more.
BOUND = 0.05


@dataclass(frozen=True)
class QuantisationCost:
    """Nats a target token, over the same examples, before training."""

    loss_at_16_bits: float
    loss: float

    @property
    def change(self) -> float:
        """Relative."""
        return self.loss / self.loss_at_16_bits - 1


def quantisation_cost(
    checkpoint: CheckpointSpec, seed: int, loaded: Loaded, examples: Sequence[Encoded]
) -> QuantisationCost:
    """The loss of `examples` under the quantised model and under the checkpoint at 16 bits.

    That one is put on the same device if there is room beside the quantised one, or else read from the disk as it goes.

    Raises:
        RunError: not even that can be done in the memory that there is.
    """
    device = next(loaded.model.parameters()).device
    try:
        after = _loss(loaded, examples, device)
        wide = _loss_at_16_bits(checkpoint, seed, loaded, examples, device)
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise RunError(
            f"out of memory while {checkpoint.name} was compared with its 16 bits on {EXAMPLES} examples; free memory"
        ) from error
    return QuantisationCost(wide, after)


def _loss_at_16_bits(
    checkpoint: CheckpointSpec, seed: int, loaded: Loaded, examples: Sequence[Encoded], device: torch.device
) -> float:
    weights = sum(_numel(value) for value in loaded.model.parameters())
    fits = 2 * weights < 0.8 * _room(device)
    if checkpoint.reinit != "none":  # drawn in fp32 on the host
        fits = fits and 6 * weights < 0.8 * _room(torch.device("cpu"))
    if fits:
        try:
            return _loss(load_checkpoint(checkpoint, 16, seed=seed, device=device), examples, device)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
    with tempfile.TemporaryDirectory() as folder:
        return _loss(load_on_disk(checkpoint, folder, seed), examples, torch.device("cpu"))


def check(cost: QuantisationCost, name: str) -> None:
    """Stops where quantising did more than rounding does.

    Raises:
        RunError: the loss moved by more than BOUND.
    """
    if not abs(cost.change) <= BOUND:
        raise RunError(
            f"quantising {name} moved its loss from {cost.loss_at_16_bits:.3f} to {cost.loss:.3f} nats a token, "
            f"more than {BOUND:.0%}; take more bits, or --force"
        )


@torch.no_grad()
def _loss(loaded: Loaded, examples: Sequence[Encoded], device: torch.device) -> float:
    training = loaded.model.training
    loaded.model.eval()
    total, tokens = 0.0, 0
    for example in examples[:EXAMPLES]:
        batch = {name: tensor.to(device) for name, tensor in collate([example], loaded.layout).items()}
        total += float(token_loss(loaded.model, batch))
        tokens += len(example.target_ids)
    loaded.model.train(training)
    return total / tokens


def _numel(value: torch.Tensor) -> int:
    state = getattr(value, "quant_state", None)
    return int(value.numel() if state is None else state.shape.numel())


def _room(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    return int(psutil.virtual_memory().available)
