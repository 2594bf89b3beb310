"""Compare petransfer's training speed with transformers' Trainer and peft, set up as a careful user would do it."""

from __future__ import annotations

import copy
import itertools
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    DataCollatorForSeq2Seq,
    PrinterCallback,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainerCallback,
)
from transformers.trainer_pt_utils import get_length_grouped_indices

from benchmarks.prepared import Prepared
from benchmarks.sides import alternating, clock, hardware, linear_flops, matmul_rate, medians
from petransfer.data.encoding import Encoded
from petransfer.methods import computes_in_bf16
from petransfer.models.loading import Loaded
from petransfer.recipe.run_spec import MethodSpec, TrainSpec
from petransfer.training.batches import IGNORED, ShuffledExamples, collate
from petransfer.training.losses import token_loss

# Steps that are not timed at the beginning of a turn, because the first step creates AdamW's state.
WARM = 2

# Number of batches that `group_by_length` sorts together if the data have at least two hundred batches.
BLOCK = 50

Order = Callable[[Sequence[Sequence[Encoded]]], Sequence[Encoded]]


def row(prepared: Prepared, steps: int, repeats: int) -> dict[str, Any]:
    """Measure the examples per second of petransfer and of Trainer, and check petransfer's gradient on one batch.

    Args:
        prepared: the cell to train.
        steps: timed steps in a turn.
        repeats: turns of each side; the median counts.
    """
    bits = prepared.spec.method.bits
    with tempfile.TemporaryDirectory() as folder:
        sides = turns(prepared, Path(folder), steps)
        rate_before = matmul_rate(prepared.device, bits)
        found = alternating(sides, repeats)
    rates = medians(found)
    rate = (rate_before + matmul_rate(prepared.device, bits)) / 2
    work = _work(prepared)
    return {
        "task": f"{prepared.spec.task.name}/{prepared.spec.task.split}",
        "checkpoint": prepared.spec.checkpoint.name,
        "bits": bits,
        "batch": prepared.spec.train.batch_size,
        "steps": steps,
        "repeats": repeats,
        "examples_per_second": {name: round(value, 2) for name, value in rates.items()},
        "all": {name: [round(value, 2) for value in values] for name, values in found.items()},
        "ratio": round(rates["petransfer"] / rates["trainer"], 3),
        "ratio_grouped": round(rates["petransfer"] / rates["trainer, grouped by length"], 3),
        "matmul_flops_per_second": round(rate),
        "model_flops_per_example": round(work),
        "share_of_matmul_rate": {name: round(value * work / rate, 4) for name, value in rates.items()},
        "gradient_difference": gradient_difference(prepared),
        "hardware": hardware(prepared.device),
    }


def turns(prepared: Prepared, folder: Path, steps: int) -> dict[str, Callable[[], float]]:
    """Return functions that train for `steps` timed steps and return the examples per second, one for each side.

    The sides are petransfer, Trainer, and Trainer with grouping by length. In a turn, all of them train on the same
    examples. Otherwise, grouping by length would put the longest examples of a block first, and only these would be
    timed if a turn is shorter than a block. If `steps` is smaller than `BLOCK`, grouping leaves more padding here than
    it does for a user, because it sorts fewer batches together.
    """
    return {
        "petransfer": _ours(prepared, folder, steps),
        "trainer": _trainer(prepared, folder, steps, in_turn),
        "trainer, grouped by length": _trainer(prepared, folder, steps, grouped_by_length),
    }


def _ours(prepared: Prepared, folder: Path, steps: int) -> Callable[[], float]:
    loop = prepared.loop(folder / "ours")
    loop.model.train()
    done = 0

    def turn() -> float:
        nonlocal done
        started = 0.0
        for count in range(WARM + steps):
            if count == WARM:
                started = clock(prepared.device)
            loop.take_step(done)
            done += 1
        return prepared.spec.train.batch_size * steps / (clock(prepared.device) - started)

    return turn


class _Clock(TrainerCallback):  # type: ignore[misc]
    """A callback that notes when the timed steps begin and end. The first `WARM` steps are not timed."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.started, self.ended = device, 0.0, 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == WARM:
            self.started = clock(self.device)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == args.max_steps:
            self.ended = clock(self.device)


@dataclass(frozen=True)
class Plain:
    """The inputs of a training by Trainer: a model with its adapter, the source of its batches, and settings."""

    model: torch.nn.Module
    loaded: Loaded
    source: ShuffledExamples
    method: MethodSpec
    train: TrainSpec
    device: torch.device


def _trainer(prepared: Prepared, folder: Path, steps: int, ordered: Order) -> Callable[[], float]:
    model, loaded = prepared.model()
    spec = prepared.spec
    plain = Plain(model, loaded, prepared.source(loaded.layout), spec.method, spec.train, prepared.device)
    return trainer_turn(plain, folder, steps, ordered)


def trainer_turn(plain: Plain, folder: Path, steps: int, ordered: Order) -> Callable[[], float]:
    """Return a function that trains with transformers' Trainer and returns the examples per second.

    Each call of the function trains on new batches. Encoder-decoders are trained with Seq2SeqTrainer. Decoder-only
    models get the input and the target as one text, with a loss on the target only, as in supervised fine-tuning.

    Args:
        plain: the model, the batches and the settings.
        folder: the folder for Trainer's files.
        steps: timed steps of each call.
        ordered: a function that puts the examples of the timed batches into the order of training.
    """
    train, on_cpu = plain.train, plain.device.type == "cpu"
    settings = Seq2SeqTrainingArguments(
        output_dir=str(folder / "trainer"), per_device_train_batch_size=train.batch_size, max_steps=WARM + steps,
        learning_rate=train.learning_rate, lr_scheduler_type="constant", optim="adamw_torch_fused", use_cpu=on_cpu,
        bf16=computes_in_bf16(plain.method), train_sampling_strategy="sequential", report_to="none",
        save_strategy="no", logging_strategy="no", disable_tqdm=True, dataloader_pin_memory=not on_cpu,
    )  # fmt: skip
    encoder_decoder = plain.loaded.layout.encoder_decoder
    collator, turns = _collator(plain), itertools.count()
    trainer_class = Seq2SeqTrainer if encoder_decoder else Trainer

    def turn() -> float:
        first = (WARM + steps) * next(turns)
        warm, timed = (
            [plain.source.batch(step, 0, 1).examples for step in range(first + start, first + end)]
            for start, end in ((0, WARM), (WARM, WARM + steps))
        )
        rows: Any = [_fields(one, encoder_decoder) for one in (*in_turn(warm), *ordered(timed))]
        taken = _Clock(plain.device)
        trainer = trainer_class(
            model=plain.model, args=settings, train_dataset=rows, data_collator=collator, callbacks=[taken]
        )
        trainer.remove_callback(PrinterCallback)  # it would print a line in every turn
        trainer.train()
        return train.batch_size * steps / (taken.ended - taken.started)

    return turn


def in_turn(batches: Sequence[Sequence[Encoded]]) -> list[Encoded]:
    """Return the examples of the batches in the order of the batches, without sorting."""
    return list(itertools.chain.from_iterable(batches))


def grouped_by_length(batches: Sequence[Sequence[Encoded]]) -> list[Encoded]:
    """Return the examples in the order of Trainer's `group_by_length`: in each block, the longest inputs come first."""
    rows = in_turn(batches)
    lengths = [len(row.input_ids) for row in rows]
    drawn = torch.Generator().manual_seed(0)
    return [rows[at] for at in get_length_grouped_indices(lengths, len(batches[0]), BLOCK, drawn)]


def _collator(plain: Plain) -> DataCollatorForSeq2Seq:
    """Return a collator that pads inputs with the tokenizer's padding token, and labels with -100."""
    tokenizer = plain.loaded.tokenizer
    if tokenizer.pad_token is None:
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.pad_token = tokenizer.eos_token
    # With a model, the collator also makes the decoder_input_ids from the labels.
    model = plain.model if plain.loaded.layout.encoder_decoder else None
    return DataCollatorForSeq2Seq(tokenizer, model=model)


def _fields(row: Encoded, encoder_decoder: bool) -> dict[str, list[int]]:
    """Return an example in the form that Trainer needs. Labels are not shifted, because the model shifts them."""
    source, target = list(row.input_ids), list(row.target_ids)
    if encoder_decoder:
        return {"input_ids": source, "attention_mask": [1] * len(source), "labels": target}
    whole = source + target
    return {"input_ids": whole, "attention_mask": [1] * len(whole), "labels": [IGNORED] * len(source) + target}


def gradient_difference(prepared: Prepared) -> float:
    """Return the largest difference between two gradients of the same batch, after two optimiser steps.

    One gradient comes from petransfer's micro-batches, the other from the whole padded batch. The difference is
    relative to the largest entry of a tensor's gradient.
    """
    with tempfile.TemporaryDirectory() as folder:
        loop = prepared.loop(Path(folder))
        loop.model.train()
        for step in range(2):
            loop.take_step(step)
        batch, cuts = loop.feed.take(2, loop.progress.micro_batch, loop.progress.token_budget)
        loop.accumulate(batch, cuts)
        trained = {name: value for name, value in loop.model.named_parameters() if value.requires_grad}
        ours = {name: value.grad.clone() for name, value in trained.items() if value.grad is not None}
        loop.optimizer.zero_grad()
        padded = {name: value.to(prepared.device) for name, value in collate(batch.examples, batch.layout).items()}
        torch.autograd.backward(token_loss(loop.model, padded) / batch.target_tokens)
        shares = [_relative_difference(value, trained[name].grad) for name, value in ours.items()]
    return float(f"{max(shares):.2g}")


def _relative_difference(one: torch.Tensor, other: Any) -> float:
    return float((one - other).abs().max() / other.abs().max().clamp(min=1e-12))


def _work(prepared: Prepared) -> float:
    """Return the floating-point operations of the linear layers for an example of mean length, without padding.

    Per token and weight: 2 for the forward pass, 2 for the gradient of the input, and 2 more if the weight is trained.
    """
    model, loaded = prepared.model()
    rows = prepared.parts["train"]
    source = sum(len(row.input_ids) for row in rows) / len(rows)
    target = sum(len(row.target_ids) for row in rows) / len(rows)
    return linear_flops(model, loaded.layout, source, target, 4, 6)
