"""Training steps that are replayed as CUDA graphs, for workloads without a training loop.

On a CPU the same functions are called directly; the tests compare them with the training loop in this way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from petransfer.recipe.run_spec import TrainSpec
from petransfer.training.batches import Batch, Tensors
from petransfer.training.graphs import WIDTH, GraphedStep
from petransfer.training.losses import LossFunction, token_loss
from petransfer.training.optimizer import make_optimizer, schedule_factor


@dataclass(frozen=True)
class Options:
    """The way in which a step is computed.

    Attributes:
        multiple: Inputs and targets are padded to a width that is a multiple of this, so that few shapes occur.
        replay: Whether the step is replayed as a CUDA graph.
        compile: The backend of torch.compile for the forward and backward pass, such as `inductor`; '' for none.
    """

    multiple: int = WIDTH
    replay: bool = True
    compile: str = ""


class StaticStep(GraphedStep):
    """Trains one model step by step. The class makes the optimiser itself.

    Args:
        model: The model with its trained tensors on `device`.
        spec: Learning rate, schedule, clipping and AdamW's settings. Only `optimizer: adamw` can be replayed.
        device: The device of the model.
        options: The way in which the step is computed.
        loss_function: Computes the summed loss of a micro-batch in nats.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        spec: TrainSpec,
        device: torch.device,
        options: Options = Options(),
        loss_function: LossFunction = token_loss,
    ) -> None:
        self.spec = spec
        if options.compile:
            loss_function = torch.compile(loss_function, dynamic=False, backend=options.compile)
        optimizer, most = make_optimizer(model.train(), spec), spec.max_grad_norm
        super().__init__(model, optimizer, device, loss_function, most, width=options.multiple, replay=options.replay)

    def step(self, step: int, batch: Batch, cuts: Sequence[Tensors]) -> torch.Tensor:
        """Take one optimiser step and return the loss per target token in nats, as a tensor on the device.

        Args:
            step: The step's number, from 0. It determines the learning rate.
            batch: The whole batch, from which the number of target tokens is taken.
            cuts: The micro-batches of the batch, as `Batch.micro_batches` makes them.
        """
        total = self.accumulate(batch, cuts)
        self.update(self.spec.learning_rate * schedule_factor(self.spec, step))
        return total / batch.target_tokens
