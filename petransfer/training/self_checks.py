"""Checks that a run makes of itself in its first steps, so that training nothing is never silent."""

from __future__ import annotations

import torch

from petransfer.errors import RunError
from petransfer.training.distributed.collectives import agree
from petransfer.training.distributed.fsdp import is_split, part
from petransfer.training.state import trained_tensors

# LoRA's A gets its first gradient in the second step, once B has left zero; the third leaves room for a skipped one.
STEPS = 3


class SelfChecks:
    """After the first steps every trained tensor must have had a gradient and must have moved."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._parameters, self._split = trained_tensors(model), is_split(model)
        if not self._parameters:
            raise RunError("nothing is trained: the method left no tensor with requires_grad")
        self._start = {name: _fingerprint(value) for name, value in self._parameters.items()}
        self._without_gradient = set(self._parameters)

    def before_update(self, step: int) -> None:
        """Notes which tensors have a gradient other than zero."""
        if step >= STEPS or not self._without_gradient:
            return
        gradients = {name: self._parameters[name].grad for name in sorted(self._without_gradient)}
        found = {name: value is not None and bool(torch.any(part(value) != 0)) for name, value in gradients.items()}
        self._without_gradient -= self._anywhere(found)

    def after_step(self, step: int) -> None:
        """Judges once, after the first steps of this process.

        Raises:
            RunError: a trained tensor got no gradient, did not move, or a LoRA B is still zero.
        """
        if step != STEPS - 1:
            return
        if self._without_gradient:
            raise RunError(_message("got no gradient", sorted(self._without_gradient), len(self._parameters)))
        moved = {name: _fingerprint(value) != self._start[name] for name, value in self._parameters.items()}
        still = self._parameters.keys() - self._anywhere(moved)
        if still:
            raise RunError(_message("did not move", sorted(still), len(self._parameters)))

    def _anywhere(self, found: dict[str, bool]) -> set[str]:
        """The names of which it is true in some process, where each has a part of every tensor."""
        counts: list[float] = list(found.values())
        if self._split and found:
            counts = agree(counts, next(iter(self._parameters.values())).device)
        return {name for name, count in zip(found, counts, strict=True) if count}


def _fingerprint(value: torch.Tensor) -> tuple[float, float]:
    wide = part(value.detach()).double()
    return float(wide.sum()), float(wide.square().sum())


def _message(what: str, names: list[str], total: int) -> str:
    return f"{len(names)} of {total} trained tensors {what} in the first {STEPS} steps, {names[0]} among them"
