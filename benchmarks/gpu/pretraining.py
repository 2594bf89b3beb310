"""Stage e: span-corruption pretraining of several seeds in one process, each step replayed as a CUDA graph.

Throughput is measured on made-up tokens. If the current folder has a folder `corpora/` with files `<arm>.npy`, the
throughput is measured on the first file instead. Then these arms are pretrained and their weights saved. Each file is
one stream of token ids, made with the embedded tokenizer.
"""

from __future__ import annotations

import gc
import itertools
import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch.nn import functional

from benchmarks.gpu.graphed import Options, StaticStep
from benchmarks.gpu.records import Records
from benchmarks.gpu.stages import Task
from benchmarks.sides import clock
from petransfer.data.encoding import Layout
from petransfer.models.loading import load_checkpoint
from petransfer.models.quiet_libraries import silence_libraries
from petransfer.models.registry import checkpoint_spec
from petransfer.pretraining.pretrain import RARE, SIZES, TRAINING, make_model, redraw_rows
from petransfer.pretraining.span_corruption import Noise
from petransfer.recipe.run_spec import TrainSpec
from petransfer.training.batches import IGNORED, Batch, Tensors

CORPORA = Path("corpora")
BATCH = 32  # windows in a step
RESULT_BYTES = 15 * 2**20  # maximum size of the file with all pretrained weights


class Windows:
    """Batches of windows with span corruption, as tensors. All windows of a batch are made at once.

    The distribution is that of `petransfer.pretraining.span_corruption`: in each window, the same number of tokens is
    masked, in spans of random lengths. The random numbers are different, so the trained weights differ from the weights
    of `petransfer pretrain`.

    Args:
        ids: One stream of token ids, (tokens,).
        noise: Window length, share of masked tokens and mean length of a masked span.
        seed: The seed for the random choice of windows and spans.
        marks: The ids of the sentinel tokens, at least as many as a window has spans.
        eos: The id of the token that ends inputs and targets.
        start: The id of the token that the decoder starts with.
    """

    def __init__(self, ids: np.ndarray, noise: Noise, seed: int, marks: Sequence[int], eos: int, start: int) -> None:
        self._ids, self._noise, self._seed = ids, noise, seed
        self._marks, self._eos, self._start = np.array(marks[: noise.spans]), eos, start
        self._count = len(ids) // noise.window - 1

    def batch(self, step: int) -> Tensors:
        """Return the tensors of one step: input_ids (32, source), decoder_input_ids and labels (32, target)."""
        rng = np.random.default_rng([self._seed, step])
        noise, rows = self._noise, BATCH
        first = rng.integers(0, self._count * noise.window, rows)
        window_bw = self._ids[first[:, None] + np.arange(noise.window)].astype(np.int64)
        kept_bs = _partitions(noise.window - noise.masked, noise.spans, rows, rng)
        lost_bs = _partitions(noise.masked, noise.spans, rows, rng)
        source = _with_marks(window_bw, kept_bs, lost_bs, self._marks, self._eos, before=False)
        target = _with_marks(window_bw, kept_bs, lost_bs, self._marks, self._eos, before=True)
        read = np.concatenate([np.full((rows, 1), self._start), target[:, :-1]], axis=1)
        return {
            "input_ids": torch.from_numpy(source),
            "attention_mask": torch.ones(source.shape, dtype=torch.long),
            "decoder_input_ids": torch.from_numpy(read),
            "labels": torch.from_numpy(target),
        }


def _partitions(total: int, parts: int, rows: int, rng: np.random.Generator) -> np.ndarray:
    """Return random whole numbers of shape (rows, parts). Each is at least 1, and each row sums to `total`."""
    cuts = np.sort(np.argsort(rng.random((rows, total - 1)), axis=1)[:, : parts - 1], axis=1) + 1
    edges = np.concatenate([np.zeros((rows, 1), int), cuts, np.full((rows, 1), total)], axis=1)
    return np.diff(edges, axis=1)


def _with_marks(
    window_bw: np.ndarray, kept_bs: np.ndarray, lost_bs: np.ndarray, marks: np.ndarray, eos: int, before: bool
) -> np.ndarray:
    """Return the inputs or the targets of a batch of windows, with a sentinel token (mark) for each masked span.

    Inputs (`before` is False) contain the unmasked tokens of a window, with a mark in the place of each masked span.
    Targets (`before` is True) contain the masked tokens, with a mark before each span.

    Args:
        window_bw: the token ids of the windows, of shape (rows, window).
        kept_bs, lost_bs: the lengths of the unmasked and of the masked spans, of shape (rows, spans).
        marks: the ids of the sentinel tokens.
        eos: the id of the token at the end of each row.
    """
    rows, width = window_bw.shape
    lengths_b2s = np.stack([kept_bs, lost_bs], axis=2).reshape(rows, -1)  # kept, lost, kept, lost, ...
    ends = np.cumsum(lengths_b2s, axis=1)
    which_bw = (np.arange(width)[None, :, None] >= ends[:, None, :]).sum(2)  # the index of each token's span
    wanted_bw = (which_bw % 2 == 1) if before else (which_bw % 2 == 0)
    spans = len(marks)
    own = lost_bs if before else kept_bs
    out = np.full((rows, int(own[0].sum()) + spans + 1), eos)
    behind = np.cumsum(own, axis=1)
    mark_at = np.arange(spans) + (behind - own if before else behind)
    np.put_along_axis(out, mark_at, np.broadcast_to(marks, (rows, spans)), axis=1)
    free = np.ones(out.shape, bool)
    np.put_along_axis(free, mark_at, False, axis=1)
    free[:, -1] = False
    out[free] = window_bw[wanted_bw]
    return out


@dataclass(frozen=True)
class Arm:
    """The corpus of a pretraining arm as one stream of token ids, (tokens,)."""

    name: str
    ids: np.ndarray


def run(records: Records, task: Task) -> None:
    """Measure tokens per second for several numbers of seeds. Then pretrain the arms whose corpora are available."""
    silence_libraries()
    device = torch.device("cuda" if torch.cuda.is_available() and not task.rehearse else "cpu")
    tokenizer: Any = load_checkpoint(checkpoint_spec("nano/english"), 32).tokenizer
    marks = tokenizer.convert_tokens_to_ids([f"<extra_id_{at}>" for at in range(Noise().spans)])
    steps = 1 if task.rehearse else 150
    arms = _corpora() or [Arm("made-up", _made_up(len(tokenizer), tokenizer.eos_token_id))]
    for size in ("nano",) if task.rehearse else ("nano", "micro"):
        for seeds, bits in ((1, 32), (2, 16)) if task.rehearse else ((1, 32), (1, 16), (4, 16), (8, 16)):
            if task.seconds_left < 15:
                return
            runs = [Run(arms[0], size, seed, TRAINING, tokenizer, marks, device, bits) for seed in range(seeds)]
            records.add(what="throughput", size=size, seeds=seeds, bits=bits, **_throughput(runs, steps, device))
            del runs
            # A step and its graphs refer to each other. They must not be deleted during a later capture, so delete them
            # now.
            gc.collect()
    if arms[0].name != "made-up":
        _pretrain(records, task, arms, tokenizer, marks, device)


class Run:
    """The pretraining of one arm with one seed: its model, its batches and its steps."""

    def __init__(
        self,
        arm: Arm,
        size: str,
        seed: int,
        train: TrainSpec,
        tokenizer: Any,
        marks: Sequence[int],
        device: torch.device,
        bits: int,
    ) -> None:
        self.arm, self.size, self.seed, self.device = arm, size, seed, device
        self.model = make_model(SIZES[size], tokenizer, seed).to(device)
        config = self.model.config
        self.layout = Layout(True, config.pad_token_id, config.eos_token_id, config.decoder_start_token_id)
        self.noise = Noise()
        self.counts = np.bincount(arm.ids, minlength=len(tokenizer))
        self.counts[list(marks)] = len(arm.ids) // self.noise.window
        self.source = Windows(arm.ids, self.noise, seed, marks, self.layout.eos_id, self.layout.decoder_start_id)
        loss = _loss_over(torch.from_numpy(self.counts > 0).to(device), device, bits)
        self.steps = StaticStep(self.model, train, device, Options(multiple=1), loss)
        self.tokens = BATCH * self.noise.target_length

    def step(self, at: int, batch: Tensors) -> torch.Tensor:
        """Take step number `at`, and return the loss per target token in nats, as a tensor on the device."""
        return self.steps.step(at, Batch((), self.tokens, self.layout), [batch])


def _loss_over(seen: torch.Tensor, device: torch.device, bits: int) -> Any:
    """Return a function that computes the summed cross-entropy of a batch in nats.

    seen: (vocabulary,) whether a token occurs in the corpus; all other tokens get a probability of 0. bits: at 16,
    matrix products are computed in bf16, but the weights stay in fp32.
    """
    never_v = ~seen

    def loss(model: torch.nn.Module, batch: Tensors) -> torch.Tensor:
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        with torch.autocast(device.type, torch.bfloat16, enabled=bits == 16, cache_enabled=False):
            logits_btv = model(**inputs, use_cache=False).logits
        logits_nv = logits_btv.float().flatten(0, 1).masked_fill(never_v, -1e9)
        return functional.cross_entropy(logits_nv, batch["labels"].flatten(), ignore_index=IGNORED, reduction="sum")

    return loss


def _ahead(runs: Sequence[Run], first: int, count: int) -> Iterator[list[Tensors]]:
    """Yield the batches of all runs for each step. Threads make the batches of the next 16 steps in advance.

    On a GPU, the batches are in pinned memory.
    """

    def make(step: int) -> list[Tensors]:
        return [_pinned(run.source.batch(step), run.device) for run in runs]

    with ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(make, step) for step in range(first, min(first + 16, first + count))]
        for step in range(first, first + count):
            yield waiting.pop(0).result()
            if step + 16 < first + count:
                waiting.append(pool.submit(make, step + 16))


def _pinned(batch: Tensors, device: torch.device) -> Tensors:
    return {name: value.pin_memory() for name, value in batch.items()} if device.type == "cuda" else batch


def _throughput(runs: Sequence[Run], steps: int, device: torch.device) -> dict[str, Any]:
    """Measure how many tokens of text per second all runs train on together. The runs take their steps in turn."""
    started = clock(device)
    warm = 1 if device.type == "cpu" else 5
    for step, batches in enumerate(_ahead(runs, 0, warm)):
        for one, batch in zip(runs, batches, strict=True):
            one.step(step, batch)
    ready = clock(device)
    losses: list[torch.Tensor] = []
    for step, batches in enumerate(_ahead(runs, warm, steps), warm):
        losses = [one.step(step, batch) for one, batch in zip(runs, batches, strict=True)]
    seconds = clock(device) - ready
    each = [float(loss) for loss in losses]
    if not all(map(math.isfinite, each)):
        raise RuntimeError(f"a loss is not finite: {each}")
    tokens = len(runs) * steps * BATCH * runs[0].noise.window
    return {
        "tokens_per_second": round(tokens / seconds),
        "steps_per_second": round(len(runs) * steps / seconds, 1),
        "warm_up_seconds": round(ready - started, 1),
        "losses": [round(loss, 4) for loss in each],
    }


def _made_up(vocabulary: int, eos: int) -> np.ndarray:
    """Return random token ids whose frequencies follow Zipf's law. Every 500th token ends a document."""
    rng = np.random.default_rng(0)
    weights = 1 / np.arange(1, vocabulary - 100)
    ids = (rng.choice(len(weights), 400_000, p=weights / weights.sum()) + 100).astype(np.uint16)
    ids[::500] = eos
    return ids


def _corpora() -> list[Arm]:
    files = sorted(CORPORA.glob("*.npy")) if CORPORA.is_dir() else []
    return [Arm(path.stem, np.load(path, mmap_mode="r")) for path in files]


def _pretrain(
    records: Records, task: Task, arms: Sequence[Arm], tokenizer: Any, marks: Sequence[int], device: torch.device
) -> None:
    """Pretrain the size nano for as many arms and seeds as the time allows. Save all weights in bf16 in one file."""
    steps, kept, size = 8000, {}, 0
    for seed, arm in itertools.product(range(1, 3), arms):
        started = time.monotonic()
        one = Run(arm, "nano", seed, replace(TRAINING, steps=steps), tokenizer, marks, device, 16)
        loss = torch.zeros(())
        for step, (batch,) in enumerate(_ahead([one], 0, steps)):
            loss = one.step(step, batch)
        redraw_rows(one.model.shared.weight, torch.from_numpy(one.counts >= RARE), [one.layout.pad_id], seed)
        weights = {
            f"{arm.name}.{seed}.{name}": value.detach().to("cpu", torch.bfloat16).contiguous()
            for name, value in one.model.named_parameters()
        }
        size += sum(value.nbytes for value in weights.values())
        if size > RESULT_BYTES:
            return
        kept |= weights
        save_file(kept, task.out / "e.safetensors")
        seconds = time.monotonic() - started
        records.add(
            what="pretrained", arm=arm.name, seed=seed, steps=steps, loss=float(loss), seconds=round(seconds, 1)
        )
        if task.seconds_left < 1.3 * seconds:
            return
