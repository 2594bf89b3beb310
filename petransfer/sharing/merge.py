"""Merging an adapter into its base's weights, written as any model's are, and looking at what that changed."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from petransfer.errors import RunError, UserError
from petransfer.models.loading import DTYPES, Loaded
from petransfer.models.saving import save_model
from petransfer.recipe.methods import METHODS
from petransfer.recipe.run_spec import Bits
from petransfer.sharing.attach import attach, base_of, refuse_moved
from petransfer.sharing.bundle import Bundle
from petransfer.sharing.combined_adapters import Where

# The most that logits may move when an adapter is added to the 32-bit weights, and when the model is written and read
# back, as their root mean square over that of the logits. Rounding the merged weights to 16 bits is neither: how far it
# moves them depends on the checkpoint (0.5 to 7 % were seen), and the figure is reported.
LIMIT = 1e-3
ROWS, PIECES = 16, 24


@dataclass(frozen=True)
class Merged:
    """What merging changed. moved: the logits, as a share of their size. largest: the most that one moved. agree: the
    share of positions at which the most likely piece is the same, in %. bits: of what was written.
    """

    moved: float
    largest: float
    agree: float
    bits: int


def merge(bundle: Bundle, target: Path, where: Where, bits: Bits | None = None) -> Merged:
    """Writes the merged model and its tokenizer to `target`, and compares the logits of what lies there with before.

    Raises:
        UserError: the width cannot be merged into, the target exists, or the adapter or its base is not sound.
        RunError: the merged model says something else; nothing is left.
    """
    _refuse_inputs(bundle)
    trained = bundle.spec.method.bits if bundle.spec else 16
    width = bits or (32 if trained == 32 else 16)
    if width not in DTYPES:
        raise UserError(
            f"an adapter is not merged into a base of {width} bits: the sum would be rounded to a few levels again, "
            "and most of what the adapter learnt is smaller than the step between two; merge into 16 bits, or keep it "
            "beside its base"
        )
    if target.exists():
        raise UserError(f"{target} exists; delete it or take another folder")
    base = base_of(bundle, where.checkpoint, where.revision, 32)
    loaded = base.load(where.device)
    refuse_moved(base, loaded, where.revision)
    count = loaded.model.get_input_embeddings().num_embeddings
    model = attach(loaded, [bundle], 32)
    before = _logits(model, loaded, count)
    try:
        whole = model.merge_and_unload(safe_merge=True)
    except (ValueError, NotImplementedError, AttributeError) as error:
        raise UserError(f"{bundle.label} cannot be merged: {str(error).splitlines()[0][:160]}") from error
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        _refuse_another(_compare(before, _logits(whole, loaded, count), 32), "merging the adapter")
        rounded = whole.to(DTYPES[width])
        held = _logits(rounded, loaded, count)
        save_model(rounded, partial)
        loaded.tokenizer.save_pretrained(partial)
        read = _logits(_read(partial, loaded, width), loaded, count)
        _refuse_another(_compare(held, read, width), "writing and reading it")
        merged = _compare(before, read, width)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return merged


def _refuse_inputs(bundle: Bundle) -> None:
    """Raises UserError where what was trained is no part of any weight."""
    kind = bundle.config.get("peft_type")
    for method in METHODS.of_package():
        if method.peft_type == kind and method.not_merged:
            raise UserError(f"{bundle.label} cannot be merged, as {method.title} never can: {method.not_merged}")


def _read(folder: Path, loaded: Loaded, bits: Bits) -> torch.nn.Module:
    auto = AutoModelForSeq2SeqLM if loaded.layout.encoder_decoder else AutoModelForCausalLM
    model: torch.nn.Module = auto.from_pretrained(folder, dtype=DTYPES[bits])
    return model.to(loaded.model.device).eval()


@torch.inference_mode()
def _logits(model: torch.nn.Module, loaded: Loaded, count: int) -> torch.Tensor:
    """On pieces drawn at random among `count`, the same at every call: (ROWS, PIECES, vocabulary) in fp32."""
    drawn = torch.Generator().manual_seed(0)
    device = next(model.parameters()).device
    ids, said = (torch.randint(3, count, (ROWS, PIECES), generator=drawn).to(device) for _ in range(2))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if loaded.layout.encoder_decoder:
        batch["decoder_input_ids"] = said
    logits_btv: torch.Tensor = model(**batch, use_cache=False).logits
    return logits_btv.float().cpu()


def _compare(before: torch.Tensor, after: torch.Tensor, bits: int) -> Merged:
    apart = after - before
    moved = float(apart.square().mean().sqrt() / before.square().mean().sqrt())
    agree = 100 * float((before.argmax(-1) == after.argmax(-1)).float().mean())
    return Merged(moved, float(apart.abs().max()), agree, bits)


def _refuse_another(found: Merged, step: str) -> None:
    """Refuse a merged model whose logits a step changed.

    Raises:
        RunError: they moved by more than LIMIT, or are not finite.
    """
    if not found.moved <= LIMIT:
        raise RunError(
            f"the merged model is another: {step} moved its logits by {100 * found.moved:.1f} %; nothing was written"
        )
