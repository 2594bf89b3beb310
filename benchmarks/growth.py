"""Measure how the time of a LoRA step and of scoring grows with the model and the texts.

The models are T5 shapes with random weights.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedTokenizerBase

from benchmarks.sides import alternating, clock, hardware, linear_flops, matmul_rate, medians
from petransfer.data import Example
from petransfer.data.encoding import Encoded, Layout
from petransfer.errors import UserError
from petransfer.evaluation.exact_match import score
from petransfer.methods import apply_method
from petransfer.models.architecture import configuration
from petransfer.models.control_arms import randomly_initialized
from petransfer.models.loading import DTYPES, Loaded, load_checkpoint
from petransfer.models.registry import checkpoint_spec
from petransfer.models.support import supported_class
from petransfer.pretraining.pretrain import SIZES, make_model
from petransfer.recipe.run_spec import MethodSpec, TrainSpec
from petransfer.training.batches import ShuffledExamples
from petransfer.training.distributed import Process
from petransfer.training.execution import Execution
from petransfer.training.hooks import Hooks
from petransfer.training.loop import Loop

LORA = MethodSpec("lora", rank=16, alpha=32.0)

# Floating-point operations per token for a frozen weight and for a trained weight, and a factor for the cost of
# attention's matrix products in a forward pass. A training step computes the forward pass, the gradient of each layer's
# input and, for trained weights, the gradient of the weights.
WORK = {"training": (4, 6, 3), "scoring": (2, 2, 1)}


@dataclass(frozen=True)
class Point:
    """A model size and a text length to measure.

    size: a key of `SIZES` or a T5 of the registry. length: tokens of each input and of each target.
    """

    size: str
    length: int


def points(sizes: Sequence[str], lengths: Sequence[int], at_size: str, at_length: int) -> list[Point]:
    """Return the points to measure: all lengths at the size `at_size`, then all sizes at the length `at_length`."""
    found = [Point(at_size, length) for length in lengths] + [Point(size, at_length) for size in sizes]
    return list(dict.fromkeys(found))


def rows(
    chosen: Sequence[Point], batch: int, repeats: int, device: torch.device, bits: Literal[16, 32] = 32
) -> list[dict[str, Any]]:
    """Measure the seconds per batch at each point, and count the floating-point operations of a batch.

    The points take turns, so that a slow minute of the machine affects all of them.

    Args:
        chosen: the points.
        batch: examples in a batch.
        repeats: measurements of each point; the median counts.
        device: the device to measure on.
        bits: 32 for fp32, 16 for bf16.

    Raises:
        UserError: A size is not that of a T5.
    """
    tokenizer = load_checkpoint(checkpoint_spec("nano/english"), 32).tokenizer
    with tempfile.TemporaryDirectory() as folder:
        sides = {
            point: _Side(point, tokenizer, batch, Path(folder) / str(at), device, bits)
            for at, point in enumerate(chosen)
        }
        turns: dict[tuple[Point, str], Callable[[], float]] = {}
        for point, side in sides.items():
            turns |= {(point, "training"): side.train, (point, "scoring"): side.score}
        for turn in turns.values():  # not measured, because the first step also makes AdamW's state
            turn()
        before = matmul_rate(device, bits)
        found = alternating(turns, repeats)
    rate = (before + matmul_rate(device, bits)) / 2
    return [
        _row(sides[point], what, seconds, found[point, what], rate) for (point, what), seconds in medians(found).items()
    ]


class _Side:
    """A model with LoRA of rank 16, and one batch of random tokens. All texts have one length, so nothing is padded."""

    def __init__(
        self,
        point: Point,
        tokenizer: PreTrainedTokenizerBase,
        batch: int,
        folder: Path,
        device: torch.device,
        bits: Literal[16, 32],
    ) -> None:
        self.point, self.batch, self.device, self.bits = point, batch, device, bits
        base = _random_model(point.size, tokenizer).to(device, DTYPES[bits])
        self.config: Any = base.config
        self.parameters = sum(value.numel() for value in base.parameters())
        self.layout = Layout(True, self.config.pad_token_id, self.config.eos_token_id)
        self.loaded = Loaded(base, tokenizer, self.layout, None, ())
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(10, len(tokenizer), (batch, 2, point.length), generator=generator).tolist()
        self.encoded = [Encoded(tuple(source), tuple(target)) for source, target in tokens]
        self.examples = [Example(at, "", "", "") for at in range(batch)]
        model = apply_method(self.loaded, replace(LORA, bits=bits), 0).to(device)
        self.loop = Loop(
            model, ShuffledExamples(self.encoded, batch, 0, self.layout),
            TrainSpec(10**6, batch, 1e-3), Process(device), folder,
            identity="", seed=0, execution=Execution(), hooks=Hooks(),
        )  # fmt: skip
        self.steps = 0

    def train(self) -> float:
        """Take one optimiser step and return its seconds."""
        self.loop.model.train()
        started = clock(self.device)
        self.loop.take_step(self.steps)
        self.steps += 1
        return clock(self.device) - started

    def score(self) -> float:
        """Score one batch with one forward pass and return the seconds."""
        self.loop.model.eval()
        started = clock(self.device)
        score(self.loop.model, self.loaded, self.examples, self.encoded, self.batch)
        return clock(self.device) - started

    def flops(self, what: str) -> float:
        """Return the floating-point operations of an example.

        Counted are the linear layers and the two matrix products of each attention. what: a key of `WORK`.
        """
        frozen, trained, passes = WORK[what]
        length, config = self.point.length, self.config
        attentions = config.num_layers + 2 * config.num_decoder_layers
        attended: float = 2 * 2 * attentions * config.num_heads * config.d_kv * length * length
        linear = linear_flops(self.loop.model, self.layout, length, length, frozen, trained)
        return linear + passes * attended


def _random_model(size: str, tokenizer: PreTrainedTokenizerBase) -> Any:
    if size in SIZES:
        return make_model(SIZES[size], tokenizer, 0)
    config, own_head = configuration(checkpoint_spec(size))
    if not hasattr(config, "d_kv"):
        raise UserError(
            f"{size} is not a T5; use {', '.join(SIZES)} or a T5 of the registry such as google-t5/t5-small"
        )
    torch.manual_seed(0)
    return randomly_initialized(supported_class(config, size), config, own_head)


def _row(side: _Side, what: str, seconds: float, every: Sequence[float], rate: float) -> dict[str, Any]:
    tokens = 2 * side.point.length
    work = side.flops(what)
    return {
        "size": side.point.size,
        "parameters": side.parameters,
        "length": side.point.length,
        "bits": side.bits,
        "batch": side.batch,
        "what": what,
        "seconds": round(seconds, 4),
        "all": [round(one, 4) for one in every],
        "tokens_per_second": round(side.batch * tokens / seconds, 1),
        "flops_per_token": round(work / tokens),
        "matmul_flops_per_second": round(rate),
        "share_of_matmul_rate": round(side.batch * work / seconds / rate, 4),
        "hardware": hardware(side.device),
    }
