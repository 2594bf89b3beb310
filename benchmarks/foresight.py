"""Compare the memory that the planner predicts with the memory that PyTorch allocates in real training steps.

The comparison covers several checkpoint shapes, methods, bits and batch sizes.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.shapes import write_random
from benchmarks.sides import hardware
from petransfer.memory.measured import capability, measure
from petransfer.memory.step_memory import StepSpec, simulate
from petransfer.models.architecture import configuration
from petransfer.models.registry import checkpoint_spec
from petransfer.recipe.run_spec import Bits, MethodSpec

METHODS: tuple[tuple[str, Bits], ...] = (("lora", 4), ("lora", 8), ("lora", 16), ("full", 32))
# (examples in a batch, tokens of each input, tokens of each target): about the lengths of SCAN and of COGS
SIZES = ((2, 60, 60), (8, 40, 120))


def rows(checkpoints: list[str], layers: int | None, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Return one row for each checkpoint, method and batch size: predicted and measured bytes, and their ratios.

    A row compares the peak, and the fixed part (weights, adapter and optimiser state).

    Args:
        checkpoints: hub ids of registered checkpoints. Only their shapes are used; the weights are random.
        layers: number of layers of the encoder and of the decoder; None for as many as the checkpoint has.
        say: function that is called with one line of text after each measurement.
    """
    found = []
    device = "cuda" if torch.cuda.is_available() else "cpu"
    where = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    about = hardware(torch.device(device))
    for name in checkpoints:
        with tempfile.TemporaryDirectory() as folder:
            write_random(name, Path(folder), layers)
            spec = checkpoint_spec(folder)
            config, own_head = configuration(spec)
            for (kind, bits), sizes in itertools.product(METHODS, SIZES):
                lora = {"rank": 16, "alpha": 32.0} if kind == "lora" else {}
                step_spec = StepSpec(MethodSpec(kind, bits, **lora), *sizes, device, capability=capability())  # type: ignore[arg-type]
                foreseen, taken = simulate(config, name, step_spec, own_head), measure(spec, step_spec)
                row = {
                    "checkpoint": name, "layers": layers, "method": kind, "bits": bits, "batch": sizes[0],
                    "lengths": sizes[1:], "device": where, "foreseen": foreseen.peak, "measured": taken.peak,
                    "ratio": foreseen.peak / taken.peak, "foreseen_fixed": foreseen.fixed,
                    "measured_fixed": taken.fixed, "ratio_fixed": foreseen.fixed / taken.fixed,
                    "parts": asdict(foreseen), "hardware": about,
                }  # fmt: skip
                found.append(row)
                say(f"{name} {kind} {bits} bits, {sizes[0]} at once: {row['ratio']:.3f}")
    return found
