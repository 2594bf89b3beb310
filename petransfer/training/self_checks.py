"""Checks that a run makes of itself in its first steps, so that training nothing is never silent."""

from __future__ import annotations

import torch

from petransfer.errors import RunError
from petransfer.training.distributed.fsdp import local_part
from petransfer.training.distributed.processes import SingleProcess
from petransfer.training.state import trained_tensors

# LoRA's A gets its first gradient in the second step, once B has left zero; the third leaves room for a skipped one.
STEPS = 3


class SelfChecks:
    """After the first steps every trained tensor must have had a gradient and must have changed."""

    def __init__(self, model: torch.nn.Module, processes: SingleProcess | None = None) -> None:
        self._parameters = trained_tensors(model)
        if not self._parameters:
            raise RunError("nothing is trained: the method left no tensor with requires_grad")
        self._processes = processes or SingleProcess(torch.device("cpu"))
        self._start = {name: _fingerprint(value) for name, value in self._parameters.items()}
        self._without_gradient = set(self._parameters)

    def before_update(self, step: int) -> None:
        """Note which tensors have a gradient other than zero."""
        if step >= STEPS or not self._without_gradient:
            return
        gradients = {name: self._parameters[name].grad for name in sorted(self._without_gradient)}
        nonzero = {
            name: value is not None and bool(torch.any(local_part(value) != 0)) for name, value in gradients.items()
        }
        self._without_gradient -= self._processes.anywhere(nonzero)

    def after_step(self, step: int) -> None:
        """Check once, after the first steps of this process.

        Raises:
            RunError: a trained tensor got no gradient or did not change; LoRA's B still being zero is one case.
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
    return f"{len(names)} of {total} trained tensors {problem} in the first {STEPS} steps, {names[0]} among them"
