"""The schema of pretraining recipes, whose arms differ only in their corpus."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from petransfer.recipe.values import Count, FolderName, Names, Real, Seeds, Strict, Text, Whole


class CorpusPart(Strict):
    """The text of one arm: files in a folder, or generated nested brackets.

    path: a folder inside the corpora's folder. files: `[train, valid]`, or one file whose end is held out. documents:
    the separator of documents. shuffle_words: shuffle words within each document. brackets: the number of kinds of
    generated brackets. seed: of generated or shuffled text. title, licence, languages: for the checkpoint's card.
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
    """Span corruption. window: tokens per example. density: share of tokens to replace. mean_span: mean span length."""

    window: Annotated[Whole, Field(ge=8, le=4096)] = 128
    density: Annotated[Real, Field(gt=0, lt=0.9)] = 0.3
    mean_span: Annotated[Real, Field(ge=1)] = 4.0


class PretrainTrainPart(Strict):
    """The optimisation. Each tensor's learning rate is `learning_rate` times the tensor's initial root mean square."""

    steps: Count
    batch_size: Count = 32
    learning_rate: Annotated[Real, Field(gt=0, lt=10)] = 6e-2
    warmup: Annotated[Real, Field(ge=0, lt=1)] = 0.02
    final: Annotated[Real, Field(ge=0, le=1)] = 0.05
    weight_decay: Annotated[Real, Field(ge=0)] = 0.008


class PretrainRecipe(Strict):
    """A family of checkpoints: every arm at every size and seed, with one tokenizer and the same training.

    tokens: the length to which each corpus is cut, so that every arm has the same amount of text; None keeps all of it.
    bits: bits of the computation; the weights are trained in fp32.
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
