"""Three real training steps, and the most memory that PyTorch's allocator gave out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from petransfer.checkpoints.load import Loaded, load
from petransfer.checkpoints.quantise import check_optimizer, inventory
from petransfer.fit.simulate import Demand, meta_batch
from petransfer.methods import APPLY, weights_bits
from petransfer.recipe.spec import CheckpointSpec, TrainSpec
from petransfer.train.loop import make_optimizer
from petransfer.train.losses import token_loss
from petransfer.train.memory import checkpoint_activations

STEPS = 3


@dataclass(frozen=True)
class Measured:
    """Bytes. fixed: weights, what the method adds, and the optimiser's state. peak: those and all else at the peak."""

    weights: dict[str, int]
    fixed: int
    peak: int


def measure(checkpoint: CheckpointSpec, demand: Demand) -> Measured:
    """Trains on made-up pieces: memory does not depend on which they are."""
    check_optimizer(demand.optimizer)
    device = torch.device(demand.device)
    loaded = load(checkpoint, weights_bits(demand.method), device=device, keep_wide=demand.method.keep_wide)
    weights = inventory(loaded.model).bytes
    model = _apply(loaded, demand)
    optimizer = make_optimizer(model, TrainSpec(STEPS, demand.batch, 1e-5, optimizer=demand.optimizer))
    batch = {
        name: torch.full(tensor.shape, 1, dtype=torch.long, device=device)
        for name, tensor in meta_batch(demand, loaded.layout).items()
    }
    batch["attention_mask"][0, -1] = 0  # as in any batch of several lengths

    def step() -> None:
        if demand.accumulates:
            torch.autograd.backward(token_loss(model, batch))
        torch.autograd.backward(token_loss(model, batch))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    for _ in range(STEPS - 1):
        step()
    states = sum(_bytes(value) for state in optimizer.state.values() for value in state.values())
    trained = sum(_bytes(value) for value in model.parameters() if value.requires_grad)
    added = trained if demand.method.name != "full" else 0
    fixed = sum(weights.values()) + added + states
    return Measured(weights, fixed, peak_of(step, fixed, device))


def peak_of(step: Callable[[], None], fixed: int, device: torch.device) -> int:
    """The most bytes that are out at once while `step` runs, the `fixed` ones of before among them."""
    return _peak_on_card(step) if device.type == "cuda" else fixed + _peak_on_cpu(step)


def _apply(loaded: Loaded, demand: Demand) -> torch.nn.Module:
    model = APPLY[demand.method.name](loaded, demand.method, 0)
    if demand.checkpointing:
        checkpoint_activations(model)
    return model.train()


def _bytes(value: Any) -> int:
    return value.numel() * value.element_size() if isinstance(value, torch.Tensor) else 0


def _peak_on_card(step: Any) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


def _peak_on_cpu(step: Any) -> int:
    """The largest sum of what the allocator gave out and took back during the step, as the profiler saw it."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    seen: Any = profile.profiler
    events = [event for event in seen.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak
