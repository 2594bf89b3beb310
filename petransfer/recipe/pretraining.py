"""The schema of pretraining recipes. The arms of a pretraining recipe differ only in their corpus."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from petransfer.plurals import count
from petransfer.recipe.values import BatchSize, Count, FolderName, Names, Real, Seeds, Strict, Text, Whole

# The number of sentinels of the embedded tokenizer: the tokens `<extra_id_0>`, `<extra_id_1>`, ... mark masked spans.
SENTINELS = 32


def masked_tokens(window: int, density: float) -> int:
    """Return the number of masked tokens in a window."""
    return round(window * density)


def masked_spans(window: int, density: float, mean_span: float) -> int:
    """Return the number of masked spans in a window."""
    return max(1, round(masked_tokens(window, density) / mean_span))


class CorpusPart(Strict):
    """The pretraining text (corpus) of one arm: files in a folder, or generated nested brackets.

    path: the arm's folder inside the folder of all corpora.
    files: names, without `.txt`, of the files for training and for validation. With one file, its last documents are
        held out for validation.
    documents: what separates two documents: a blank line, or the end of a line.
    shuffle_words: put the words of each sentence in random order.
    brackets: number of kinds of generated brackets. 0: the text is read from files.
    seed: seed for generated or shuffled text.
    title, licence, languages: description of the text for the checkpoint's card.
    """

    path: str = ""
    files: Annotated[list[str], Field(min_length=1, max_length=2)] = ["train", "valid"]
    documents: Literal["blank-line", "line"] = "blank-line"
    shuffle_words: bool = False
    brackets: Annotated[Whole, Field(ge=0, le=1024)] = 0
    seed: Annotated[Whole, Field(ge=0)] = 0
    title: str = ""
    licence: str = ""
    languages: list[str] = []

    @model_validator(mode="after")
    def _text_or_brackets(self) -> CorpusPart:
        if bool(self.path) == bool(self.brackets):
            raise ValueError("give either path or brackets")
        return self


class NoisePart(Strict):
    """The settings of span corruption: spans of a text are masked, and the model learns to generate them.

    window: tokens of text in an example.
    density: share of these tokens to mask, from 0 to 1.
    mean_span: mean number of tokens of a masked span.
    """

    window: Annotated[Whole, Field(ge=8, le=4096)] = 128
    density: Annotated[Real, Field(gt=0, lt=0.9)] = 0.3
    mean_span: Annotated[Real, Field(ge=1)] = 4.0

    @model_validator(mode="after")
    def _spans_fit(self) -> NoisePart:
        masked = masked_tokens(self.window, self.density)
        spans = masked_spans(self.window, self.density, self.mean_span)
        given = f"window {self.window}, density {self.density:g} and mean_span {self.mean_span:g} give "
        given += f"{masked} masked tokens in {count(spans, 'span')}"
        if spans > SENTINELS:
            raise ValueError(f"{given}; the tokenizer can mark {SENTINELS} spans; raise mean_span")
        if spans > min(masked, self.window - masked):
            raise ValueError(f"{given}; each span needs a masked token and an unmasked token before it; change density")
        return self


class PretrainTrainPart(Strict):
    """The settings of the optimiser.

    steps: optimiser steps.
    batch_size: examples per step.
    learning_rate: each tensor's learning rate is this number times the tensor's root mean square at the start.
    warmup: share of the steps during which the learning rate increases.
    final: last learning rate divided by the highest.
    """

    steps: Count
    batch_size: BatchSize = 32
    learning_rate: Annotated[Real, Field(gt=0, lt=10)] = 6e-2
    warmup: Annotated[Real, Field(ge=0, lt=1)] = 0.02
    final: Annotated[Real, Field(ge=0, le=1)] = 0.05
    weight_decay: Annotated[Real, Field(ge=0)] = 0.008


class PretrainRecipe(Strict):
    """The pretraining of a family of checkpoints: every arm at every size and seed, with one tokenizer.

    tokens: number of tokens to which each corpus is cut. Default: the whole text.
    bits: bits of the computation. The weights are trained in fp32.
    corpora: the text of each arm.
    corpora_dir: folder that contains the folders of all corpora.
    """

    kind: Literal["pretrain"]
    name: FolderName
    description: Text = ""
    arms: Names
    sizes: Annotated[list[Literal["nano", "micro"]], Field(min_length=1)] = ["nano"]
    seeds: Seeds = [0]
    tokens: Annotated[Whole, Field(ge=1)] | None = None
    bits: Literal[16, 32] = 32
    noise: NoisePart = NoisePart()
    train: PretrainTrainPart
    corpora: Annotated[dict[str, CorpusPart], Field(min_length=1)]
    corpora_dir: Path | None = None
