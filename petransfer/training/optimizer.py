"""The optimiser of a run and the learning rate of each of its steps."""

from __future__ import annotations

import math
from typing import Any

import torch

from petransfer.recipe.run_spec import TrainSpec
from petransfer.training.state import trained_tensors


def learning_rate_factor(spec: TrainSpec, step: int) -> float:
    """Return a step's learning rate divided by the highest one, from 0 to 1: linear warm-up, then `spec.schedule`.

    Args:
        step: the step, counted from 0.
    """
    warmup_steps = max(1, round(spec.warmup * spec.steps))
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(1, spec.steps - warmup_steps)
    if spec.schedule == "constant":
        return 1.0
    left = 1 - done if spec.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return spec.final + (1 - spec.final) * left


def make_optimizer(model: torch.nn.Module, spec: TrainSpec) -> torch.optim.Optimizer:
    """Make AdamW for the trained tensors. The learning rate of a parameter group is multiplied by the group's `scale`.

    With `rate_scaling: rms` each tensor is a group of its own. The tensor's learning rate is multiplied by the root
    mean square of its values at the start, and its weight decay is divided by the same number.
    """
    groups = _scaled_groups(model, spec) if spec.rate_scaling == "rms" else _groups_by_factor(model, spec)
    if spec.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=spec.learning_rate, betas=spec.betas, fused=True)
    from bitsandbytes.optim import AdamW8bit, PagedAdamW8bit  # not available on every platform

    eight_bit = PagedAdamW8bit if spec.optimizer == "paged-adamw-8bit" and torch.cuda.is_available() else AdamW8bit
    optimizer: torch.optim.Optimizer = eight_bit(groups, lr=spec.learning_rate, betas=spec.betas)
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set the learning rate of every parameter group to `learning_rate` times the group's `scale`."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["scale"]


def _scaled_groups(model: torch.nn.Module, spec: TrainSpec) -> list[dict[str, Any]]:
    parameters = list(trained_tensors(model).values())
    sizes = [max(float(value.detach().float().square().mean().sqrt()), 1e-3) for value in parameters]
    return [
        {"params": [value], "scale": size * _factor(value), "weight_decay": spec.weight_decay / size}
        for value, size in zip(parameters, sizes, strict=True)
    ]


def _groups_by_factor(model: torch.nn.Module, spec: TrainSpec) -> list[dict[str, Any]]:
    parameters = list(trained_tensors(model).values())
    return [
        {
            "params": [value for value in parameters if _factor(value) == factor],
            "scale": factor,
            "weight_decay": spec.weight_decay,
        }
        for factor in dict.fromkeys(map(_factor, parameters))
    ]


def _factor(parameter: torch.nn.Parameter) -> float:
    """Return the factor of a tensor's learning rate: its attribute `rate_factor`, 1 if the method has not set it."""
    return float(getattr(parameter, "rate_factor", 1.0))
