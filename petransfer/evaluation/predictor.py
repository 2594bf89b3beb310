"""Answers with a run's adapter or model."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

import petransfer.models.bitsandbytes_import  # noqa: F401 - before peft

# isort: split
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from petransfer.data.encoding import encode_inputs
from petransfer.data.templates import fields_of, render
from petransfer.errors import UserError
from petransfer.evaluation.generation import generate, room
from petransfer.methods import weights_bits
from petransfer.models.lengths import positions
from petransfer.models.loading import Loaded, load_checkpoint
from petransfer.models.registry import checkpoint_spec, is_embedded
from petransfer.recipe.run_spec import CheckpointSpec, RunSpec


@dataclass(frozen=True)
class Predictor:
    """A trained model that answers texts greedily."""

    model: torch.nn.Module
    loaded: Loaded
    prefix: str
    template: str = ""

    @classmethod
    def of(cls, folder: Path, checkpoint: str | None = None, device: torch.device | str | None = None) -> Predictor:
        """The model of a run's folder, or of the `adapter/` or `model/` in it.

        Raises:
            UserError: there is no finished adapter or model, or its base is not where it was.
        """
        weights = weights_folder(folder)
        spec = _spec(weights)
        base = _base(spec, weights, checkpoint)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        bits, wide = weights_bits(spec.method), spec.method.keep_wide
        loaded = load_checkpoint(base, bits, seed=spec.seed, device=device, keep_wide=wide)
        if weights.name == "adapter":
            model: torch.nn.Module = PeftModel.from_pretrained(loaded.model, str(weights))
        else:
            auto = AutoModelForSeq2SeqLM if loaded.layout.encoder_decoder else AutoModelForCausalLM
            model = auto.from_pretrained(weights, dtype=torch.float32)
        template = str(spec.task.options.get("template", ""))
        return cls(model.to(device).eval(), loaded, spec.task.prefix, template)

    def __call__(self, texts: Sequence[str], max_new_tokens: int = 512) -> list[str]:
        """The answers, in order. Of a run whose template names several columns, a text is a JSON object of them.

        max_new_tokens: the longest answer in pieces, where the model has positions for so many.

        Raises:
            UserError: a text is no such object, or takes all positions that the model has.
        """
        inputs = [self.prefix + self._input(text) for text in texts]
        rows = encode_inputs(inputs, self.loaded.tokenizer, self.loaded.layout)
        alike: dict[int, list[int]] = {}  # a batch goes on for as long as its longest answer may be
        for at, row in enumerate(rows):
            alike.setdefault(self._limit(texts[at], len(row), max_new_tokens), []).append(at)
        said: dict[int, str] = {}
        for limit, chosen in alike.items():
            found = generate(self.model, self.loaded, [rows[at] for at in chosen], limit)
            said |= zip(chosen, found, strict=True)
        return [said[at] for at in range(len(rows))]

    def _limit(self, text: str, pieces: int, most: int) -> int:
        left = room(self.model, self.loaded, pieces)
        if left is None:
            return most
        if left < 1:
            has = positions(self.loaded.model.config)
            raise UserError(f"the input {text[:40]!r} takes {pieces:,} of the model's {has:,} positions; shorten it")
        return min(most, left)

    def _input(self, text: str) -> str:
        if not self.template:
            return text
        columns = fields_of(self.template)
        if len(columns) == 1:
            return render(self.template, {columns[0]: text})
        with contextlib.suppress(ValueError, TypeError, KeyError):
            values = json.loads(text)
            return render(self.template, {column: str(values[column]) for column in columns})
        raise UserError(
            f"the input {text[:40]!r} is no JSON object with {', '.join(columns)}, which the template names"
        )


def is_whole_model(folder: Path) -> bool:
    """Whether a run's folder, or the `model/` in it, holds a fully fine-tuned model and no adapter."""
    if (folder / "adapter_config.json").is_file() or (folder / "adapter").is_dir():
        return False
    return (folder / "petransfer.json").is_file() or (folder / "model").is_dir()


def weights_folder(folder: Path) -> Path:
    """The `adapter/` or `model/` of a run's folder, or the folder itself where it is one.

    Raises:
        UserError: it holds neither.
    """
    for candidate in (folder / "adapter", folder / "model", folder):
        if (candidate / "petransfer.json").is_file():
            return candidate
    raise UserError(f"{folder} holds no finished adapter or model; name a folder like results/<study>/runs/<run-id>")


def _spec(weights: Path) -> RunSpec:
    try:
        return RunSpec.from_dict(json.loads((weights / "petransfer.json").read_text(encoding="utf-8"))["spec"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{weights}/petransfer.json is damaged ({error}); get the adapter again") from error


def _as_made(base: CheckpointSpec, made: CheckpointSpec) -> CheckpointSpec:
    return replace(base, reinit=made.reinit, tokenizer=made.tokenizer, tokenizer_source=made.tokenizer_source)


def _base(spec: RunSpec, weights: Path, checkpoint: str | None) -> CheckpointSpec:
    """The base as it stands on this machine: named now, or where the run's own spec.json found it."""
    made = spec.checkpoint
    kept = weights.parent / "spec.json"
    here = RunSpec.from_dict(json.loads(kept.read_text(encoding="utf-8"))).checkpoint if kept.is_file() else None
    if checkpoint is not None:
        found = _as_made(checkpoint_spec(checkpoint), here or made)
    else:
        found = here or _as_made(checkpoint_spec(made.name), made)
    if is_embedded(found.name) and checkpoint_spec(found.name).weights != made.weights:
        raise UserError(
            f"{made.name} has other weights in this version of petransfer than the run in {weights} began with"
        )
    return found
