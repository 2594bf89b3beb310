"""The optimiser of a run, and the learning rate of each step."""

from __future__ import annotations

import math
from typing import Any

import torch

from petransfer.recipe.run_spec import TrainSpec
from petransfer.training.state import trained_tensors


def schedule_factor(spec: TrainSpec, step: int) -> float:
    """Return the learning rate of `step` (counted from 0) as a share, 0 to 1, of the highest learning rate.

    The factor rises linearly in the warm-up and then follows `spec.schedule`.
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
    """Make AdamW for the trained tensors. `scale` in a parameter group multiplies the group's learning rate.

    With `rate_scaling: rms`, each tensor is a group. The root mean square of the tensor's initial values multiplies
    `scale` and divides the weight decay.
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
    """Return the attribute `learning_rate_scale` of a tensor, which multiplies its learning rate. Default: 1."""
    return float(getattr(parameter, "learning_rate_scale", 1.0))
