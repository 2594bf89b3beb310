"""The grid of a pretraining recipe, and the pretraining of one checkpoint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from petransfer.errors import UserError, unknown
from petransfer.models.registry import NANO
from petransfer.pretraining.corpus_files import text_file
from petransfer.recipe.pretraining import PretrainRecipe
from petransfer.recipe.run_spec import TrainSpec
from petransfer.study.file_forms import PretrainingForm, wrong_part
from petransfer.study.folders import RunFolder, StudyFolder

if TYPE_CHECKING:
    from petransfer.pretraining.corpora import Corpus
    from petransfer.pretraining.pretrain import PretrainSpec
    from petransfer.training.execution import Execution


@dataclass(frozen=True)
class PretrainCell:
    """One run of a pretraining recipe: an arm with a model size and a seed."""

    arm: str
    size: str
    seed: int
    recipe: PretrainRecipe

    @property
    def run_id(self) -> str:
        # other recipes refer to the pretrained checkpoint by this name
        return f"{self.arm}-{self.size}-{self.seed}"

    @property
    def train(self) -> TrainSpec:
        """The training settings, equal for all arms."""
        part = self.recipe.train
        return TrainSpec(
            steps=part.steps,
            batch_size=part.batch_size,
            learning_rate=part.learning_rate,
            warmup=part.warmup,
            final=part.final,
            rate_scaling="rms",
            weight_decay=part.weight_decay,
        )

    def settings(self) -> dict[str, Any]:
        """Return all settings that determine the weights, except the text."""
        recipe = self.recipe
        source = recipe.corpora[self.arm].model_dump(exclude={"path", "title", "licence", "languages"})
        settings = {
            "arm": self.arm,
            "size": self.size,
            "seed": self.seed,
            "bits": recipe.bits,
            "tokens": recipe.tokens,
            "noise": recipe.noise.model_dump(),
            "train": asdict(self.train),
            "corpus": source,
        }
        plain: dict[str, Any] = json.loads(json.dumps(settings))
        return plain


def expand_pretraining(recipe: PretrainRecipe) -> list[PretrainCell]:
    """Return all runs of a pretraining recipe, sorted by size, seed and arm."""
    for arm in recipe.arms:
        if arm not in recipe.corpora:
            raise unknown("arm", arm, recipe.corpora)
    return [
        PretrainCell(arm, size, seed, recipe)
        for size in dict.fromkeys(recipe.sizes)
        for seed in dict.fromkeys(recipe.seeds)
        for arm in dict.fromkeys(recipe.arms)
    ]


def check_settings(cells: list[PretrainCell], study: StudyFolder) -> None:
    """Raise UserError for a run that began with other settings, or whose arm and size have a run with other settings.

    The seeds of an arm and size may differ in nothing else, because studies use them as repetitions.
    """
    begun = {name: content for name in sorted(study.names()) if (content := _read_spec(study.run(name)))}
    for cell in cells:
        now = _flat(cell.settings())
        for name, content in begun.items():
            was = _flat(content["settings"])
            if name != cell.run_id and (was.get("arm"), was.get("size")) != (cell.arm, cell.size):
                continue
            compared = {*was, *now} - ({"seed"} if name != cell.run_id else set())
            for key in sorted(compared):
                if was.get(key) != now.get(key):
                    raise UserError(
                        f"{study.run(name).path} was created with {key} {was.get(key)}, not {now.get(key)}; use "
                        "another --out"
                    )


def _refuse_changed_corpus(arm: str, sha256: str, folder: RunFolder) -> None:
    """Raise UserError if a run of an arm began with another text. All seeds and sizes of an arm must have one text.

    Args:
        arm: The arm of the run.
        sha256: The hash of the arm's corpus.
        folder: The folder of the run. The other runs are next to it.
    """
    for path in sorted(folder.path.parent.iterdir()):
        begun = _read_spec(RunFolder(path))
        if begun is not None and begun["settings"].get("arm") == arm and begun["corpus_sha256"] != sha256:
            raise UserError(
                f"the corpus of {arm} has changed since {path} was created (sha256 {begun['corpus_sha256'][:12]}, now "
                f"{sha256[:12]}); restore it or use another --out"
            )


def refuse_missing_corpora(cells: Sequence[PretrainCell], corpora: Path) -> None:
    """Raise UserError if the corpus of a run has no files.

    Args:
        cells: The runs that will be trained.
        corpora: The folder with the folders of all corpora.
    """
    for part in (cell.recipe.corpora[cell.arm] for cell in cells):
        for name in part.files if part.path else ():
            text_file(corpora / part.path, name)


def _read_spec(folder: RunFolder) -> dict[str, Any] | None:
    """Return the content of the spec.json of a run that has begun. None if the run has not begun."""
    begun = folder.begun()
    wrong = "" if begun is None else wrong_part(PretrainingForm, begun)
    if wrong:
        raise UserError(
            f"{folder.path / 'spec.json'} is damaged ({wrong}); delete {folder.path} to start this run again"
        )
    return begun


def _flat(content: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(content, dict):
        return {prefix.rstrip("."): content}
    return {key: value for name, part in content.items() for key, value in _flat(part, f"{prefix}{name}.").items()}


@dataclass(frozen=True)
class Pretrain:
    """Pretrain the checkpoint of one run with the executor's number of threads.

    Attributes:
        execution: Settings of the training loop, such as the micro-batch.
        corpora: The folder with the folders of all corpora.
        cpu: Use the CPU even if there is a GPU.
    """

    execution: Execution
    corpora: Path
    cpu: bool = False

    def __call__(
        self,
        cell: PretrainCell,
        folder: RunFolder,
        threads: int,
        progress: Callable[[int, float, float], None],
        should_stop: Callable[[], bool],
    ) -> object:
        from transformers import AutoTokenizer

        from petransfer.pretraining.checkpoint_card import write_card
        from petransfer.pretraining.corpora import read_corpus
        from petransfer.pretraining.pretrain import pretrain
        from petransfer.training.distributed import this_process
        from petransfer.training.hooks import Hooks

        recipe = cell.recipe
        tokenizer = AutoTokenizer.from_pretrained(NANO / "tokenizer")
        corpus = read_corpus(recipe.corpora[cell.arm], self.corpora, tokenizer, recipe.tokens)
        _refuse_changed_corpus(cell.arm, corpus.sha256, folder)
        spec = _pretrain_spec(cell, corpus)
        folder.write_json("spec.json", {"settings": cell.settings(), "corpus_sha256": corpus.sha256})
        execution = replace(self.execution, threads=threads)
        hooks = Hooks(progress, should_stop)
        card = pretrain(spec, corpus, tokenizer, folder.path, execution, hooks, self.cpu)
        write_card(card, recipe.corpora[cell.arm], folder.path, this_process(self.cpu).device, threads)
        folder.finish({key: card[key] for key in ("parameters", "seen_tokens", "valid_loss", "seconds")})
        return card


def _pretrain_spec(cell: PretrainCell, corpus: Corpus) -> PretrainSpec:
    """Return the settings that determine the weights of a run's checkpoint."""
    from petransfer.pretraining.pretrain import PretrainSpec
    from petransfer.pretraining.span_corruption import Noise

    return PretrainSpec(
        arm=cell.arm,
        size=cell.size,
        corpus_sha256=corpus.sha256,
        tokenizer_sha256=hashlib.sha256((NANO / "tokenizer" / "tokenizer.json").read_bytes()).hexdigest(),
        tokens=len(corpus.train),
        noise=Noise(**cell.recipe.noise.model_dump()),
        train=cell.train,
        seed=cell.seed,
        bits=cell.recipe.bits,
    )
