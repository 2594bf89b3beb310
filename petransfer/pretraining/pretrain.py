"""Pretrain one checkpoint on text by span corruption, with the common training loop."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch.nn import functional
from transformers import PreTrainedTokenizerBase, T5Config, T5ForConditionalGeneration

from petransfer.data.encoding import Layout
from petransfer.errors import UserError
from petransfer.pretraining.corpora import Corpus
from petransfer.pretraining.span_corruption import CorruptedWindows, Noise
from petransfer.recipe.run_spec import Bits, TrainSpec
from petransfer.training.batches import IGNORED, Tensors
from petransfer.training.distributed import this_process
from petransfer.training.execution import Execution
from petransfer.training.loop import Hooks, Loop


@dataclass(frozen=True)
class Size:
    """A T5 with `layers` encoder and `layers` decoder layers and heads of 32 dimensions."""

    d_model: int
    layers: int
    d_ff: int
    heads: int


# Tokens `<extra_id_0>`, `<extra_id_1>`, ... of the embedded tokenizer, which stand for the masked spans.
SENTINELS = 32
SIZES = {"nano": Size(128, 2, 512, 4), "micro": Size(256, 4, 1024, 8)}

# The learning rate of each tensor follows the tensor's initial size, and weight decay pulls the tensor back to this
# size. A common learning rate is wrong for either the embeddings (deviation 1) or the matrices (about 0.09). Training
# diverges if the learning rates follow the current size.
TRAINING = TrainSpec(
    steps=11_000, batch_size=32, learning_rate=6e-2, warmup=0.02, final=0.05, rate_scaling="rms", weight_decay=0.008
)

# Embeddings of unseen tokens and of tokens that occur less often than this collapse onto one direction. Both are
# redrawn after training.
RARE = 30


@dataclass(frozen=True)
class PretrainSpec:
    """All settings that determine the weights of a checkpoint. tokens: the length of the training text in tokens."""

    arm: str
    size: str
    corpus_sha256: str
    tokenizer_sha256: str
    tokens: int
    noise: Noise = field(default_factory=Noise)
    train: TrainSpec = TRAINING
    seed: int = 0
    bits: Bits = 32

    @property
    def identity(self) -> str:
        """An identifier of this training. Only a training with the same identity resumes from a saved state."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


def make_model(size: Size, tokenizer: PreTrainedTokenizerBase, seed: int) -> T5ForConditionalGeneration:
    """Return a T5 v1.0 with random weights: ReLU, tied embeddings, no dropout."""
    torch.manual_seed(seed)
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=size.d_model,
            d_kv=32,
            d_ff=size.d_ff,
            num_layers=size.layers,
            num_decoder_layers=size.layers,
            num_heads=size.heads,
            dropout_rate=0.0,
            feed_forward_proj="relu",
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            decoder_start_token_id=tokenizer.pad_token_id,
        )
    )


def pretrain(
    spec: PretrainSpec,
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    execution: Execution,
    hooks: Hooks,
    cpu: bool = False,
) -> dict[str, Any]:
    """Train or resume, write `folder/checkpoint`, and return the content of its card.

    Raises:
        UserError: the text is too short for two batches, or the disk is too small for the weights.
        Interrupted, RunError: see `Loop.run`.
    """
    _check_room(spec, corpus, folder)
    model = make_model(SIZES[spec.size], tokenizer, spec.seed)
    sentinels = [tokenizer.convert_tokens_to_ids(f"<extra_id_{index}>") for index in range(SENTINELS)]
    layout = Layout(True, model.config.pad_token_id, model.config.eos_token_id, model.config.decoder_start_token_id)

    def windows(ids: np.ndarray, seed: int) -> CorruptedWindows:
        return CorruptedWindows(ids, spec.noise, spec.train.batch_size, seed, layout, sentinels, layout.eos_id)

    counts = np.bincount(corpus.train, minlength=len(tokenizer))
    counts[sentinels[: spec.noise.spans]] = len(corpus.train) // spec.noise.window
    seen = torch.from_numpy(counts > 0)
    process = this_process(cpu)
    loop = Loop(
        model.to(process.device),
        windows(corpus.train, spec.seed),
        spec.train,
        process,
        folder,
        identity=spec.identity,
        seed=spec.seed,
        execution=execution,
        hooks=hooks,
        loss_function=_loss_over(seen.to(process.device)),  # copied once, not in every step
        autocast=spec.bits == 16,
    )

    def validate(micro_batch: int) -> dict[str, Any]:
        return {"valid_loss": validation_loss(loop, windows(corpus.valid, seed=12345), seen, micro_batch, batches=20)}

    steps = spec.train.steps
    hooks.evaluate_at = {*range(steps // 8, steps, max(1, steps // 8)), steps}
    hooks.evaluate = validate
    done = loop.run()
    card = {
        **asdict(spec),
        "parameters": sum(value.numel() for value in model.parameters()),
        "corpus_tokens": len(corpus.train),
        "seen_tokens": steps * spec.train.batch_size * spec.noise.window,
        "target_tokens": steps * spec.train.batch_size * spec.noise.target_length,
        "valid_loss": validate(done.micro_batch)["valid_loss"],
        "seconds": round(done.seconds),
        "new_pieces": np.flatnonzero(counts < RARE).tolist(),
    }
    learnt = torch.from_numpy(counts >= RARE)
    redraw_rows(model.shared.weight, learnt, keep=[layout.pad_id], seed=spec.seed)
    save_checkpoint(model, tokenizer, card, folder / "checkpoint")
    return card


def _check_room(spec: PretrainSpec, corpus: Corpus, folder: Path) -> None:
    shortest = spec.noise.window * spec.train.batch_size
    for part, ids, needed in (
        ("training", corpus.train, 2 * shortest),
        ("validation", corpus.valid, 4 * spec.noise.window),
    ):
        if len(ids) < needed:
            raise UserError(
                f"the {part} text of {spec.arm} has {len(ids):,} tokens but needs {needed:,}; give more text or a "
                "smaller train.batch_size"
            )
    size = SIZES[spec.size]
    layer = 6 * size.d_model * 32 * size.heads + 2 * size.d_model * size.d_ff  # an encoder's layer has 2/3 of that
    parameters = 2 * size.layers * layer + size.d_model * 10_000
    needed = parameters * (2 * 3 * 4 + 2)  # two states of weights and moments in fp32, and the checkpoint in bf16
    free = shutil.disk_usage(next(at for at in (folder, *folder.parents) if at.exists())).free
    if free < needed:
        raise UserError(
            f"{folder} has {free / 1e6:.0f} MB of free disk, {spec.arm} needs {needed / 1e6:.0f}; use another --out"
        )


def _loss_over(seen: torch.Tensor) -> Callable[[torch.nn.Module, Tensors], torch.Tensor]:
    """Return a cross-entropy over the tokens that occur in training; otherwise the other embeddings would collapse."""
    never = ~seen

    def loss(model: torch.nn.Module, batch: Tensors) -> torch.Tensor:
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        logits_btv = model(**inputs, use_cache=False).logits.float()
        logits_btv = logits_btv.masked_fill(never.to(logits_btv.device), -1e9)
        labels_bt = without_unseen(batch["labels"], seen.to(logits_btv.device))
        return functional.cross_entropy(
            logits_btv.flatten(0, 1), labels_bt.flatten(), ignore_index=IGNORED, reduction="sum"
        )

    return loss


def without_unseen(labels: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Return the labels with unseen tokens set to `IGNORED`. Held-out text contains a few unseen tokens."""
    return labels.masked_fill(~seen[labels.clamp(min=0)], IGNORED)


@torch.no_grad()
def validation_loss(loop: Loop, source: CorruptedWindows, seen: torch.Tensor, micro_batch: int, batches: int) -> float:
    """Return the loss in nats per target token over the first `batches` held-out batches, without unseen tokens."""
    loop.model.eval()
    total, tokens = 0.0, 0
    for step in range(batches):
        for cut in source.batch(step, 0, 1).micro_batches(micro_batch):
            micro = {name: tensor.to(loop.process.device) for name, tensor in cut.items()}
            total += float(loop.loss_function(loop.model, micro))
            tokens += int((without_unseen(cut["labels"], seen) != IGNORED).sum())
    loop.model.train()
    return total / tokens


@torch.no_grad()
def redraw_rows(weight: torch.Tensor, learnt: torch.Tensor, keep: list[int], seed: int) -> None:
    """Redraw all rows that were not learnt, in place, with the mean and deviation of the learnt rows.

    Args:
        weight: (tokens, d), the embeddings.
        learnt: (tokens,), whether a token's row was learnt.
        keep: token ids whose rows are not redrawn.
    """
    new = ~learnt.to(weight.device)
    new[keep] = False
    mean, deviation = weight[learnt].mean(0), weight[learnt].std(0)
    noise = torch.randn(int(new.sum()), weight.shape[1], generator=torch.Generator().manual_seed(seed))
    weight[new] = mean + deviation * noise.to(weight.device)


def save_checkpoint(
    model: T5ForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, card: dict[str, Any], folder: Path
) -> None:
    """Write bf16 weights, configuration, tokenizer and `pretraining.json` to a folder that transformers can load."""
    model.config.dtype = "bfloat16"
    model.config.architectures = ["T5ForConditionalGeneration"]
    model.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    weights = {
        name: value.detach().to("cpu", torch.bfloat16).contiguous()
        for name, value in model.named_parameters()  # tied tensors are saved once, as `shared`
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "pretraining.json").write_text(json.dumps(card, indent=1) + "\n")
