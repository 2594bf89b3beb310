"""Pretrain one checkpoint on text by span corruption."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch.nn import functional
from transformers import PreTrainedTokenizerBase, T5Config, T5ForConditionalGeneration

from petransfer.atomic_files import named_errors
from petransfer.data.encoding import Layout
from petransfer.errors import UserError
from petransfer.models.quantization import check_bf16
from petransfer.pretraining.corpora import Corpus
from petransfer.pretraining.span_corruption import CorruptedWindows, Noise
from petransfer.recipe.pretraining import SENTINELS
from petransfer.recipe.run_spec import Bits, TrainSpec
from petransfer.training.batches import IGNORED, Tensors
from petransfer.training.distributed import this_process
from petransfer.training.execution import Execution
from petransfer.training.hooks import Hooks
from petransfer.training.loop import Loop


@dataclass(frozen=True)
class Size:
    """The size of a T5. Each attention head has 32 dimensions.

    Attributes:
        layers: The number of encoder layers, equal to the number of decoder layers.
        heads: The number of attention heads of a layer.
    """

    d_model: int
    layers: int
    d_ff: int
    heads: int


SIZES = {"nano": Size(128, 2, 512, 4), "micro": Size(256, 4, 1024, 8)}

# The learning rate of each tensor is proportional to the tensor's root mean square at the start, and weight decay pulls
# the tensor back to this size. One learning rate for all tensors would be wrong either for the embeddings (standard
# deviation 1) or for the matrices (about 0.09). If the learning rates follow the current size, training diverges.
TRAINING = TrainSpec(
    steps=11_000, batch_size=32, learning_rate=6e-2, warmup=0.02, final=0.05, rate_scaling="rms", weight_decay=0.008
)

# If tokens occur in the training text fewer times than this, or never, their embeddings get nearly the same direction
# in training. After training, these embeddings are replaced by random ones.
RARE = 30


@dataclass(frozen=True)
class PretrainSpec:
    """All settings that determine the weights of a checkpoint.

    Attributes:
        tokens: The length of the training text in tokens.
        bits: The bits of the computation. The weights are trained in fp32.
    """

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
        """A hash of all settings. Training resumes only from a state with an equal hash."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


def make_model(size: Size, tokenizer: PreTrainedTokenizerBase, seed: int) -> T5ForConditionalGeneration:
    """Return a T5 v1.0 with random weights, ReLU and tied embeddings, without dropout."""
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
    """Pretrain a checkpoint and write it to `folder/checkpoint`. An interrupted training resumes.

    Returns:
        The numbers and settings for the checkpoint's card.

    Raises:
        UserError: A text is too short, the disk is too full, or the GPU has no bf16.
        Interrupted, RunError: See `Loop.run`.
    """
    process = this_process(cpu)
    check_bf16(spec.bits, process.device)
    _refuse_lack_of_text_or_disk(spec, corpus, folder)
    model = make_model(SIZES[spec.size], tokenizer, spec.seed)
    layout = Layout(True, model.config.pad_token_id, model.config.eos_token_id, model.config.decoder_start_token_id)
    sentinels = [tokenizer.convert_tokens_to_ids(f"<extra_id_{index}>") for index in range(SENTINELS)]

    def windows(ids: np.ndarray, seed: int) -> CorruptedWindows:
        return CorruptedWindows(ids, spec.noise, spec.train.batch_size, seed, layout, sentinels, layout.eos_id)

    counts = _token_counts(corpus.train, len(tokenizer), sentinels, spec.noise)
    seen = torch.from_numpy(counts > 0)
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
        loss_function=_loss_over(seen.to(process.device), bf16=spec.bits == 16),
        autocast=spec.bits == 16,
    )

    def validate(micro_batch: int) -> dict[str, Any]:
        return {"valid_loss": validation_loss(loop, windows(corpus.valid, seed=12345), seen, micro_batch, batches=20)}

    hooks.evaluate_at, hooks.evaluate = _validation_steps(spec.train.steps), validate
    with _without_head(model):  # the loss function computes the logits
        done = loop.run()
        valid_loss = validate(done.micro_batch)["valid_loss"]
    learnt = torch.from_numpy(counts >= RARE)
    redraw_rows(model.shared.weight, learnt, keep=[layout.pad_id], seed=spec.seed)
    card = _card_content(spec, corpus, model, counts, valid_loss)
    # The time is not written: with it, the same pretraining would give a checkpoint with another hash each time.
    save_checkpoint(model, tokenizer, card, folder / "checkpoint")
    return {**card, "seconds": round(done.seconds)}


def _token_counts(ids: np.ndarray, vocabulary: int, sentinels: list[int], noise: Noise) -> np.ndarray:
    """Return how often each token occurs in training: in the text, or as a sentinel of a window."""
    counts = np.bincount(ids, minlength=vocabulary)
    counts[sentinels[: noise.spans]] = len(ids) // noise.window
    return counts


def _validation_steps(steps: int) -> set[int]:
    """Return the steps after which the validation loss is computed: about eight, and the last step."""
    return {*range(steps // 8, steps, max(1, steps // 8)), steps}


def _card_content(
    spec: PretrainSpec, corpus: Corpus, model: torch.nn.Module, counts: np.ndarray, valid_loss: float
) -> dict[str, Any]:
    """Return the numbers and settings for the checkpoint's card. `counts`: how often each token occurs in training."""
    examples = spec.train.steps * spec.train.batch_size
    return {
        **asdict(spec),
        "parameters": sum(value.numel() for value in model.parameters()),
        "corpus_tokens": len(corpus.train),
        "seen_tokens": examples * spec.noise.window,
        "target_tokens": examples * spec.noise.target_length,
        "valid_loss": valid_loss,
        "new_pieces": np.flatnonzero(counts < RARE).tolist(),
    }


def _refuse_lack_of_text_or_disk(spec: PretrainSpec, corpus: Corpus, folder: Path) -> None:
    """Raise UserError if a text of the corpus is too short, or if the disk of `folder` has too little free space."""
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
    # parameters of a layer: attention has 4 matrices in the encoder and 8 in the decoder, so 6 on average
    layer = 6 * size.d_model * 32 * size.heads + 2 * size.d_model * size.d_ff
    parameters = 2 * size.layers * layer + size.d_model * 10_000
    # bytes: two training states, each with the weights and two moments in fp32, and the checkpoint in bf16
    needed = parameters * (2 * 3 * 4 + 2)
    free = shutil.disk_usage(next(at for at in (folder, *folder.parents) if at.exists())).free
    if free < needed:
        raise UserError(
            f"{folder} has {free / 1e6:.0f} MB of free disk, {spec.arm} needs {needed / 1e6:.0f}; use another --out"
        )


@contextlib.contextmanager
def _without_head(model: T5ForConditionalGeneration) -> Iterator[None]:
    """Make the model return the input of its head in place of logits. The head's weight is `model.shared.weight`."""
    # The head is replaced as a module, because torch.compile ignores a replaced `forward`.
    head, model.lm_head = model.lm_head, torch.nn.Identity()
    try:
        yield
    finally:
        model.lm_head = head


def _loss_over(seen: torch.Tensor, *, bf16: bool) -> Callable[[torch.nn.Module, Tensors], torch.Tensor]:
    """Return the loss function: cross-entropy, summed over the target tokens, in nats.

    The model must return the input of its head, as it does inside `_without_head`.

    Args:
        seen: whether each token of the vocabulary occurs in the training text, of shape (vocabulary,).
        bf16: whether the logits are computed in bf16.
    """
    # Tokens that never occur in the training text are left out of the softmax. Otherwise they would only learn to be
    # suppressed, and their embeddings would get nearly the same direction.
    ids_s = seen.nonzero().squeeze(1)
    place_v = torch.full_like(seen, IGNORED, dtype=torch.long).index_copy_(
        0, ids_s, torch.arange(len(ids_s), device=seen.device)
    )

    def loss(model: Any, batch: Tensors) -> torch.Tensor:
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        hidden_btd = model(**inputs, use_cache=False).logits
        weight_sd = model.shared.weight.index_select(0, ids_s)
        with torch.autocast(hidden_btd.device.type, torch.bfloat16, enabled=bf16):
            logits_bts = functional.linear(hidden_btd, weight_sd).float()
        labels_bt = place_v[batch["labels"].clamp(min=0)].where(batch["labels"] != IGNORED, IGNORED)
        return functional.cross_entropy(
            logits_bts.flatten(0, 1), labels_bt.flatten(), ignore_index=IGNORED, reduction="sum"
        )

    return loss


def without_unseen(labels: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Return the labels with `IGNORED` in place of tokens that are not in the training text.

    `seen`, of shape (vocabulary,), tells whether a token occurs in the training text.
    """
    return labels.masked_fill(~seen[labels.clamp(min=0)], IGNORED)


@torch.no_grad()
def validation_loss(loop: Loop, source: CorruptedWindows, seen: torch.Tensor, micro_batch: int, batches: int) -> float:
    """Return the mean loss on the validation text, in nats per target token.

    Tokens that are not in the training text are left out.

    Args:
        source: The validation text.
        seen: Whether a token occurs in the training text, of shape (vocabulary,).
        micro_batch: The largest number of examples in a forward pass.
    """
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
    """Replace the unlearnt embeddings by random ones, in place.

    In each dimension, the random values have the mean and the standard deviation of the learnt embeddings.

    Args:
        weight: The embeddings, of shape (vocabulary, d_model).
        learnt: Whether a token's embedding was learnt, of shape (vocabulary,).
        keep: Ids of tokens whose embeddings are not replaced.
    """
    new = ~learnt.to(weight.device)
    new[keep] = False
    mean, deviation = weight[learnt].mean(0), weight[learnt].std(0)
    noise = torch.randn(int(new.sum()), weight.shape[1], generator=torch.Generator().manual_seed(seed))
    weight[new] = mean + deviation * noise.to(weight.device)


def save_checkpoint(
    model: T5ForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, card: dict[str, Any], folder: Path
) -> None:
    """Save bf16 weights, configuration, tokenizer and `pretraining.json` for transformers."""
    model.config.dtype = "bfloat16"
    model.config.architectures = ["T5ForConditionalGeneration"]
    model.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    weights = {
        name: value.detach().to("cpu", torch.bfloat16).contiguous()
        for name, value in model.named_parameters()  # the tied embeddings are saved once, as `shared`
    }
    with named_errors(folder):
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "pretraining.json").write_text(json.dumps(card, indent=1) + "\n")
