"""Check in the first steps of a run that every trained tensor gets a gradient and changes."""

from __future__ import annotations

import itertools
import math

import torch

from petransfer.errors import RunError
from petransfer.models.quantization import without_adapters
from petransfer.training.distributed import SingleProcess, local_part
from petransfer.training.state import trained_tensors

# Two steps are needed: in the first step LoRA's B is still zero, so the gradient of A is zero too. The third step is
# there in case one step changes nothing.
STEPS = 3
# Part of the names of an expert's tensors.
_EXPERT = ".experts."
# The number of elements whose fp64 copies are made at once.
_PART = 2**22


class SelfChecks:
    """Checks that every trained tensor got a gradient and changed during the first `STEPS` steps.

    Attributes:
        not_finite_at_start: name of a trained tensor that held NaN or infinity before the first step. None if all were
            finite.
    """

    def __init__(self, model: torch.nn.Module, processes: SingleProcess | None = None) -> None:
        self._parameters = trained_tensors(model)
        if not self._parameters:
            raise RunError("nothing is trained: the method left no tensor with requires_grad")
        self._processes = processes or SingleProcess(torch.device("cpu"))
        # the first steps can have no token for an expert that is chosen by a router
        self._parameters = {name: value for name, value in self._parameters.items() if _EXPERT not in name}
        self._start = {name: _fingerprint(value) for name, value in self._parameters.items()}
        # A trained tensor must be checked before the first step, because a NaN in the loss spreads to all of them.
        broken = (name for name, sums in self._start.items() if not all(map(math.isfinite, sums)))
        self.not_finite_at_start = next(broken, None)
        self._without_gradient = set(self._parameters)

    def before_update(self, step: int) -> None:
        """Record which tensors have a nonzero gradient in this step. Call this before the optimiser's update."""
        if step >= STEPS or not self._without_gradient:
            return
        gradients = {name: self._parameters[name].grad for name in sorted(self._without_gradient)}
        nonzero = {
            name: value is not None and bool(torch.any(local_part(value) != 0)) for name, value in gradients.items()
        }
        self._without_gradient -= self._processes.anywhere(nonzero)

    def after_step(self, step: int, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Check all trained tensors after the last of the first `STEPS` steps. Do nothing after other steps.

        A tensor need not change if the optimiser's learning rate is too small to change its numbers.

        Raises:
            RunError: a trained tensor got no gradient or did not change, for example LoRA's B is still zero.
        """
        if step != STEPS - 1:
            return
        if self._without_gradient:
            raise RunError(_message("got no gradient", sorted(self._without_gradient), len(self._parameters)))
        changed = {name: _fingerprint(value) != self._start[name] for name, value in self._parameters.items()}
        unchanged = self._parameters.keys() - self._processes.anywhere(changed)
        if optimizer is not None:
            too_small = _ids_with_too_small_learning_rate(optimizer)
            unchanged = {name for name in unchanged if id(self._parameters[name]) not in too_small}
        if unchanged:
            raise RunError(_message("did not change", sorted(unchanged), len(self._parameters)))


def _ids_with_too_small_learning_rate(optimizer: torch.optim.Optimizer) -> set[int]:
    """Return the `id` of each tensor that a step of AdamW may not change, because the change is lost in rounding."""
    # At first, AdamW changes each number by about the learning rate. At the beginning of a long warm-up, this can be
    # less than the distance to the next number in fp32, for example for the scale 1.0 of a normalisation layer.
    found = set()
    for group in optimizer.param_groups:
        rate = float(group["lr"])
        for value in group["params"]:
            part = local_part(value.detach())
            if rate > 0 and part.numel() and rate < torch.finfo(part.dtype).eps * float(part.abs().min()):
                found.add(id(value))
    return found


def _fingerprint(value: torch.Tensor) -> tuple[float, float]:
    """Return the sums of a tensor's numbers and of their squares, in fp64."""
    # in parts, because the fp64 copy of a large embedding table can be too large for an almost full GPU
    wide = (part.double() for part in torch.split(local_part(value.detach()).flatten(), _PART))
    sums = torch.stack([torch.stack([part.sum(), part.square().sum()]) for part in wide])
    first, second = sums.sum(0).tolist()
    return first, second


def _message(problem: str, names: list[str], total: int) -> str:
    return (
        f"{len(names)} of {total} trained tensors {problem} in the first {STEPS} steps, {names[0]} among them; choose "
        "another method, or exclude these layers if the method has the settings targets and layers (LoRA and its "
        "variants, IA3, OFT, VeRA): --set 'methods.0.targets=[LAYER, ...]' or --set 'methods.0.layers=[NUMBER, ...]'"
    )


def refuse_not_finite(
    loss: float, norm: float, step: int, model: torch.nn.Module, not_finite_at_start: str | None = None
) -> None:
    """Raise RunError if the loss or the gradient's norm of a step is NaN or infinite.

    Args:
        step: the step, counted from 0. In step 0, the cause can be a tensor of the base.
        not_finite_at_start: name of a trained tensor that held NaN or infinity before the first step.
    """
    for name, value in (("loss", loss), ("gradient's norm", norm)):
        if not math.isfinite(value):
            broken = None if step else (not_finite_at_start or _not_finite(model))
            raise RunError(f"the {name} is {value} at step {step + 1}; {_advice(step, broken)}")


def _advice(step: int, broken: str | None) -> str:
    """Return what to do about a loss or a gradient that is not finite. `broken`: a tensor with NaN or infinity."""
    if broken:
        return (
            f"{without_adapters(broken)} of the base holds NaN or infinity; get the checkpoint again, or correct its "
            "config.json"
        )
    if not step:
        return (
            "no weight has changed yet, so a lower learning rate does not help; use bits: 32, or check the checkpoint "
            "and its config.json"
        )
    return "use a lower learning rate or bits: 32"


def _not_finite(model: torch.nn.Module) -> str | None:
    """Return the name of a frozen tensor, or of rotary frequencies, with NaN or infinity. None if all are finite."""
    frozen = ((name, value) for name, value in model.named_parameters() if not value.requires_grad)
    frequencies = ((name, value) for name, value in model.named_buffers() if "inv_freq" in name)
    tensors = itertools.chain(frozen, frequencies)
    return next((name for name, value in tensors if value.is_floating_point() and not value.isfinite().all()), None)
