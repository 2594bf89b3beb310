"""Run three real training steps and measure the largest memory that PyTorch allocates."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from petransfer.memory.cards import USUAL_CAPABILITY
from petransfer.memory.step_memory import StepSpec, meta_batch
from petransfer.methods import apply_method, computes_in_bf16, weights_bits
from petransfer.models.loading import Loaded, load_checkpoint
from petransfer.models.quantization import check_bf16, check_optimizer, inventory
from petransfer.recipe.run_spec import CheckpointSpec, TrainSpec
from petransfer.training.autocast import autocast_forward
from petransfer.training.batches import Tensors
from petransfer.training.cpu.cpu_step import CpuFastPath
from petransfer.training.losses import token_loss
from petransfer.training.optimizer import make_optimizer
from petransfer.training.out_of_memory import enable_gradient_checkpointing

STEPS = 3


@dataclass(frozen=True)
class MeasuredMemory:
    """Measured bytes of a training step.

    Attributes:
        weights: Bytes of the base model's weights, by dtype.
        fixed: Bytes of the weights, the method's tensors and the optimiser's state together.
        peak: Largest number of bytes of all tensors at one moment.
        loop: `peak` of the faster training step on a CPU (`CpuFastPath`). None: not measured, or not used in training.
        kept: Bytes that the faster step keeps in addition to the model, such as dequantised copies of weights.
    """

    weights: dict[str, int]
    fixed: int
    peak: int
    loop: int | None = None
    kept: int = 0


class Trial:
    """A loaded model with a method and an optimiser, for training steps on placeholder tokens.

    Args:
        loaded: The model, on the device and with the bits of `step_spec`.
        step_spec: The method, the batch and the optimiser.
    """

    def __init__(self, loaded: Loaded, step_spec: StepSpec) -> None:
        check_optimizer(step_spec.optimizer)
        self.step_spec, self.device = step_spec, torch.device(step_spec.device)
        self.weights, self.layout = inventory(loaded.model).bytes, loaded.layout
        self.model = _apply(loaded, step_spec)
        self.optimizer = make_optimizer(
            self.model, TrainSpec(STEPS, step_spec.batch, 1e-5, optimizer=step_spec.optimizer)
        )

    def batch(self, count: int) -> Tensors:
        """Return a batch of `count` examples with the longest input and target."""
        made = meta_batch(replace(self.step_spec, batch=count), self.layout)
        # every token has the id 1, because the memory does not depend on the ids
        batch = {name: torch.full(it.shape, 1, dtype=torch.long, device=self.device) for name, it in made.items()}
        if self.step_spec.packing:
            rows, width = batch["position_ids"].shape
            length = self.step_spec.input_length + self.step_spec.target_length - 1
            batch["position_ids"] = (torch.arange(width, device=self.device) % length).repeat(rows, 1)
        else:
            batch["attention_mask"][0, -1] = 0  # one padding token, because real batches have padding too
        return batch

    def checkpoint(self) -> None:
        """Turn on gradient checkpointing."""
        enable_gradient_checkpointing(self.model)

    def step(self, batch: Tensors, fast_path: CpuFastPath | None = None) -> None:
        """Run one optimiser step. `fast_path`: the faster step on a CPU. None: the plain step."""
        with fast_path.step() if fast_path else contextlib.nullcontext(token_loss) as loss:
            for _ in range(2 if self.step_spec.accumulates else 1):
                torch.autograd.backward(loss(self.model, batch))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def load_for(checkpoint: CheckpointSpec, step_spec: StepSpec) -> Loaded:
    """Load a checkpoint on the device and with the bits of `step_spec`."""
    method = step_spec.method
    device = torch.device(step_spec.device)
    check_bf16(method.bits, device)
    return load_checkpoint(checkpoint, weights_bits(method), device=device, keep_wide=method.keep_wide)


def measure(checkpoint: CheckpointSpec, step_spec: StepSpec, with_loop: bool = False) -> MeasuredMemory:
    """Run three training steps on placeholder tokens, and measure the memory of the last one.

    Args:
        with_loop: Also measure the faster step of the training loop on a CPU.
    """
    trial = Trial(load_for(checkpoint, step_spec), step_spec)
    batch, model = trial.batch(step_spec.batch), trial.model
    for _ in range(STEPS - 1):
        trial.step(batch)
    states = sum(_bytes(value) for state in trial.optimizer.state.values() for value in state.values())
    trained = sum(_bytes(value) for value in model.parameters() if value.requires_grad)
    added = trained if step_spec.method.name != "full" else 0
    fixed = sum(trial.weights.values()) + added + states
    found = MeasuredMemory(trial.weights, fixed, peak_of(lambda: trial.step(batch), fixed, trial.device))
    if not with_loop or trial.device.type != "cpu" or computes_in_bf16(step_spec.method):
        return found
    fast_path = CpuFastPath(model)
    if not fast_path.usable:
        return found
    peak = peak_of(lambda: trial.step(batch, fast_path), fixed + fast_path.kept, trial.device)
    return replace(found, loop=peak, kept=fast_path.kept)


def peak_of(step: Callable[[], None], fixed: int, device: torch.device) -> int:
    """Return the largest number of bytes allocated at one time while `step` runs. `fixed`: bytes before the step."""
    return _peak_on_card(step) if device.type == "cuda" else fixed + _peak_on_cpu(step)


def _apply(loaded: Loaded, step_spec: StepSpec) -> torch.nn.Module:
    model = apply_method(loaded, step_spec.method, 0)
    if step_spec.checkpointing:
        enable_gradient_checkpointing(model)
    if computes_in_bf16(step_spec.method):
        autocast_forward(model, torch.device(step_spec.device))
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
    """Return the largest number of bytes allocated in the step, from torch's profiler."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    seen: Any = profile.profiler
    events = [event for event in seen.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def capability() -> tuple[int, int]:
    """Return the compute capability of this machine's card. Without a card: that of usual cards."""
    return torch.cuda.get_device_capability() if torch.cuda.is_available() else USUAL_CAPABILITY
