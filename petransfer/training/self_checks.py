"""Check in the first steps of a run that every trained tensor gets a gradient and changes."""

from __future__ import annotations

import torch

from petransfer.errors import RunError
from petransfer.training.distributed import SingleProcess, local_part
from petransfer.training.state import trained_tensors

# Two steps are needed: in the first step LoRA's B is still zero, so the gradient of A is zero too. The third step is
# there in case one step changes nothing.
STEPS = 3


class SelfChecks:
    """Checks that every trained tensor got a gradient and changed during the first `STEPS` steps."""

    def __init__(self, model: torch.nn.Module, processes: SingleProcess | None = None) -> None:
        self._parameters = trained_tensors(model)
        if not self._parameters:
            raise RunError("nothing is trained: the method left no tensor with requires_grad")
        self._processes = processes or SingleProcess(torch.device("cpu"))
        self._start = {name: _fingerprint(value) for name, value in self._parameters.items()}
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

    def after_step(self, step: int) -> None:
        """Check all trained tensors after the last of the first `STEPS` steps. Do nothing after other steps.

        Raises:
            RunError: a trained tensor got no gradient or did not change, for example LoRA's B is still zero.
        """
        if step != STEPS - 1:
            return
        if self._without_gradient:
            raise RunError(_message("got no gradient", sorted(self._without_gradient), len(self._parameters)))
        changed = {name: _fingerprint(value) != self._start[name] for name, value in self._parameters.items()}
        unchanged = self._parameters.keys() - self._processes.anywhere(changed)
        if unchanged:
            raise RunError(_message("did not change", sorted(unchanged), len(self._parameters)))


def _fingerprint(value: torch.Tensor) -> tuple[float, float]:
    wide = local_part(value.detach()).double()
    return float(wide.sum()), float(wide.square().sum())


def _message(problem: str, names: list[str], total: int) -> str:
    return (
        f"{len(names)} of {total} trained tensors {problem} in the first {STEPS} steps, {names[0]} among them; leave "
        "such layers out with --set 'methods.0.targets=[LAYER, ...]', or choose another method"
    )
