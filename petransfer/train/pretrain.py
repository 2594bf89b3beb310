"""Pretrains one checkpoint of the embedded family from text, by span corruption through the common loop."""

from __future__ import annotations

import hashlib
import json
import lzma
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch.nn import functional
from transformers import PreTrainedTokenizerBase, T5Config, T5ForConditionalGeneration

from petransfer.checkpoints.encoding import Layout
from petransfer.checkpoints.vocabulary import SENTINELS, sentinel
from petransfer.errors import UserError
from petransfer.recipe.spec import TrainSpec
from petransfer.train.batches import IGNORED, Tensors
from petransfer.train.loop import Execution, Hooks, Loop
from petransfer.train.spans import CorruptedWindows, Noise


@dataclass(frozen=True)
class Size:
    """A T5 of `layers` + `layers` layers with heads of 32."""

    d_model: int
    layers: int
    d_ff: int
    heads: int


SIZES = {"nano": Size(128, 2, 512, 4), "micro": Size(256, 4, 1024, 8)}

# Rates follow each tensor's size at the start, and decay pulls each back to it: one AdamW rate is wrong for either the
# embeddings (deviation 1) or the matrices (near 0.09), and rates that follow the current size run away.
TRAINING = TrainSpec(
    steps=11_000, batch_size=32, learning_rate=6e-2, warmup=0.02, final=0.05, rate_scaling="rms", weight_decay=0.008
)

# Pieces that occur less often than this in a corpus end on one direction too, and are drawn anew like the unseen.
RARE = 30


@dataclass(frozen=True)
class PretrainSpec:
    """All that decides the weights of one embedded checkpoint."""

    arm: str
    size: str
    corpus_sha256: str
    tokenizer_sha256: str
    tokens: int
    noise: Noise = field(default_factory=Noise)
    train: TrainSpec = TRAINING
    seed: int = 0

    @property
    def identity(self) -> str:
        """What a saved state must have been made from for training to go on from it."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Corpus:
    """A stream of piece ids for training and one for validation, with an end piece after every document."""

    train: np.ndarray
    valid: np.ndarray
    sha256: str


def read_corpus(folder: Path, tokenizer: PreTrainedTokenizerBase, one_document_a_line: bool) -> Corpus:
    """Reads `train.txt(.xz)` and `valid.txt(.xz)` of a folder.

    Raises:
        UserError: a file is missing, empty or not UTF-8.
    """
    streams, digest = [], hashlib.sha256()
    for part in ("train", "valid"):
        raw = _read(folder, part)
        digest.update(raw)
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{folder}/{part}.txt is not UTF-8 at byte {error.start}; convert it") from None
        documents = [piece for piece in text.split("\n" if one_document_a_line else "\n\n") if piece.strip()]
        if not documents:
            raise UserError(f"{folder}/{part}.txt holds no text; a corpus needs at least one document")
        streams.append(_encode(documents, tokenizer))
    return Corpus(streams[0], streams[1], digest.hexdigest())


def _read(folder: Path, part: str) -> bytes:
    for name, opener in ((f"{part}.txt", open), (f"{part}.txt.xz", lzma.open)):
        path = folder / name
        if path.exists():
            with opener(path, "rb") as file:
                content: bytes = file.read()
            return content
    raise UserError(f"no {part}.txt or {part}.txt.xz in {folder}; a corpus folder holds train and valid text")


def _encode(documents: list[str], tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    rows = tokenizer(documents, add_special_tokens=True, return_attention_mask=False, verbose=False)["input_ids"]
    return np.concatenate([np.array(row, dtype=np.uint16) for row in rows])


def make_model(size: Size, tokenizer: PreTrainedTokenizerBase, seed: int) -> T5ForConditionalGeneration:
    """A T5 v1.0 with new weights: ReLU, tied embeddings, no dropout."""
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
    progress: Callable[[int, float, float], None],
    should_stop: Callable[[], bool] = lambda: False,
    mixed_precision: str = "bf16",
    valid_every: int = 1000,
) -> dict[str, Any]:
    """Trains, or goes on training, and leaves a checkpoint in `folder`; returns what its card says."""
    if len(corpus.train) < 2 * spec.noise.window * spec.train.batch_size:
        raise UserError(
            f"the corpus of {spec.arm} has {len(corpus.train)} tokens, less than two batches; give more text"
        )
    model = make_model(SIZES[spec.size], tokenizer, spec.seed)
    sentinels = [tokenizer.convert_tokens_to_ids(sentinel(index)) for index in range(SENTINELS)]
    eos = model.config.eos_token_id
    layout = Layout(True, model.config.pad_token_id, eos, model.config.decoder_start_token_id)

    def windows(ids: np.ndarray, seed: int) -> CorruptedWindows:
        return CorruptedWindows(ids, spec.noise, spec.train.batch_size, seed, layout, sentinels, eos)

    counts = np.bincount(corpus.train, minlength=len(tokenizer))
    counts[sentinels[: spec.noise.spans]] = len(corpus.train) // spec.noise.window
    seen, learnt = counts > 0, counts >= RARE
    loss_function = _loss_over(torch.from_numpy(seen))
    accelerator = Accelerator(mixed_precision=mixed_precision)
    valid = windows(corpus.valid, seed=12345)
    steps = spec.train.steps
    hooks = Hooks(progress, should_stop)
    loop = Loop(
        model.to(accelerator.device),
        windows(corpus.train, spec.seed),
        spec.train,
        accelerator,
        folder,
        identity=spec.identity,
        seed=spec.seed,
        execution=execution,
        hooks=hooks,
        loss_function=loss_function,
    )

    def validate() -> dict[str, Any]:
        return {"valid_loss": validation_loss(loop, valid, batches=20)}

    hooks.at_step |= dict.fromkeys({*range(valid_every, steps, valid_every), steps}, validate)
    done = loop.run()
    final = validate()["valid_loss"]
    redraw_rows(model.shared.weight, torch.from_numpy(learnt), keep=[model.config.pad_token_id], seed=spec.seed)
    card = {
        **asdict(spec),
        "parameters": sum(value.numel() for value in model.parameters()),
        "corpus_tokens": len(corpus.train),
        "seen_tokens": steps * spec.train.batch_size * spec.noise.window,
        "target_tokens": steps * spec.train.batch_size * spec.noise.target_length,
        "valid_loss": final,
        "seconds": round(done.seconds),
        "new_pieces": np.flatnonzero(~learnt).tolist(),
    }
    save_checkpoint(model, card, folder)
    return card


def _loss_over(seen: torch.Tensor) -> Callable[[torch.nn.Module, Tensors], torch.Tensor]:
    """Cross-entropy over the pieces that occur: the others would all be pushed the same way, onto one direction."""
    never = ~seen

    def loss(model: torch.nn.Module, batch: Tensors) -> torch.Tensor:
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        logits_btv = model(**inputs, use_cache=False).logits.float()
        logits_btv = logits_btv.masked_fill(never.to(logits_btv.device), -1e9)
        return functional.cross_entropy(
            logits_btv.flatten(0, 1), batch["labels"].flatten(), ignore_index=IGNORED, reduction="sum"
        )

    return loss


@torch.no_grad()
def validation_loss(loop: Loop, source: CorruptedWindows, batches: int) -> float:
    """Nats per target token over the first `batches` batches of held-out windows."""
    loop.model.eval()
    total, tokens = 0.0, 0
    for step in range(batches):
        batch = source.batch(step, 0, 1)
        for cut in batch.micro_batches(loop.progress.micro_batch):
            micro = {name: tensor.to(loop.accelerator.device) for name, tensor in cut.items()}
            total += float(loop.loss_function(loop.wrapped, micro))
        tokens += batch.target_tokens
    loop.model.train()
    return total / tokens


@torch.no_grad()
def redraw_rows(weight: torch.Tensor, learnt: torch.Tensor, keep: list[int], seed: int) -> None:
    """Draws the rows of pieces that were not learnt from the mean and deviation of the rows that were, in place."""
    new = ~learnt.to(weight.device)
    new[keep] = False
    mean, deviation = weight[learnt].mean(0), weight[learnt].std(0)
    noise = torch.randn(int(new.sum()), weight.shape[1], generator=torch.Generator().manual_seed(seed))
    weight[new] = mean + deviation * noise.to(weight.device)


def save_checkpoint(model: T5ForConditionalGeneration, card: dict[str, Any], folder: Path) -> None:
    """bf16 weights, configuration and card."""
    model.config.dtype = "bfloat16"
    model.config.architectures = ["T5ForConditionalGeneration"]
    model.config.save_pretrained(folder)
    weights = {
        name: value.detach().to("cpu", torch.bfloat16).contiguous()
        for name, value in model.named_parameters()  # tied tensors once, under `shared`
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "pretraining.json").write_text(json.dumps(card, indent=1) + "\n")
