"""Several adapters on a base that is loaded once: what each says, how each scores, and what their weighted sum does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from petransfer.data import Example, SplitData, load_task, task_info
from petransfer.data.encoding import encode_examples
from petransfer.errors import UserError
from petransfer.evaluation.exact_match import Evaluation, evaluate
from petransfer.evaluation.predictor import Predictor
from petransfer.models.loading import Loaded
from petransfer.recipe.run_spec import RunSpec
from petransfer.sharing.attach import (
    COMBINATIONS,
    COMBINED,
    FIRST,
    Base,
    attach,
    base_of,
    combine,
    refuse_moved,
    together,
)
from petransfer.sharing.bundle import RECIPE, Bundle, of_whole_model
from petransfer.sharing.safe_reading import read_json, read_text, read_yaml


@dataclass(frozen=True)
class Where:
    """Where things are on this machine. checkpoint, revision: of the base. device: None takes a GPU if there is one."""

    checkpoint: str | None = None
    revision: str | None = None
    data_dir: Path | None = None
    device: str | None = None


@dataclass(frozen=True)
class Combination:
    """A weighted sum of adapters. kind: peft's name for the way of combining."""

    weights: tuple[float, ...]
    kind: str = "linear"


@dataclass(frozen=True)
class Adapters:
    """Adapters on their base. labels: by peft's name of each, in order, the combination last."""

    model: Any
    loaded: Loaded
    base: Base
    bundles: Mapping[str, Bundle]
    labels: Mapping[str, str]

    def each(self) -> Iterator[tuple[str, str, Predictor]]:
        """Name, label and predictor of each, while it is the active one."""
        for name, label in self.labels.items():
            self.model.set_adapter(name)
            yield name, label, self._predictor(name)

    def _predictor(self, name: str) -> Predictor:
        spec = self.bundles.get(name, self.bundles[FIRST]).spec
        template = str(spec.task.options.get("template", "")) if spec else ""
        return Predictor(self.model, self.loaded, spec.task.prefix if spec else "", template)


def put_together(bundles: Sequence[Bundle], where: Where, combination: Combination | None = None) -> Adapters:
    """Loads the base once and puts all adapters on it.

    Raises:
        UserError: they have different bases, or one does not fit.
    """
    if combination:
        _check(bundles, combination)
    together(bundles)
    base = base_of(bundles[0], where.checkpoint, where.revision)
    loaded = base.load(where.device)
    refuse_moved(base, loaded, where.revision)
    model = attach(loaded, bundles, base.bits)
    named = dict(zip(model.peft_config, bundles, strict=True))
    labels = {name: bundle.label for name, bundle in named.items()}
    if combination:
        combine(model, combination.weights, combination.kind)
        terms = " + ".join(
            f"{weight:g} x {label}" for weight, label in zip(combination.weights, labels.values(), strict=True)
        )
        labels[COMBINED] = f"{combination.kind}: {terms}"
    return Adapters(model, loaded, base, named, labels)


def _check(bundles: Sequence[Bundle], combination: Combination) -> None:
    if combination.kind not in COMBINATIONS:
        raise UserError(f"no combination '{combination.kind}'; take {', '.join(COMBINATIONS)}")
    if len(combination.weights) != len(bundles):
        raise UserError(f"--weights has {len(combination.weights)} numbers for {len(bundles)} adapters")


@dataclass(frozen=True)
class Row:
    """One adapter or model on one part. claimed: the exact match that it was saved with, where this is its part, in %.

    same: the share of examples on which it is right where the first one is and wrong where that is, in %. generated:
    the answers that were generated. disagreements: how many of them are not what one forward pass says.
    """

    label: str
    task: str
    examples: int
    exact_match: float
    log_prob_per_token: float
    claimed: float | None
    same: float
    generated: int
    disagreements: int


@dataclass(frozen=True)
class Asked:
    """What is scored, and how. data: a file, or a benchmark's `task/split`; None: the first one's own task and split.

    by_generation: see `petransfer.evaluation.exact_match.evaluate`.
    """

    part: str
    data: str | None = None
    by_generation: bool = False


def side_by_side(adapters: Adapters, where: Where, asked: Asked) -> list[Row]:
    """All adapters, and their combination, on one part.

    Raises:
        UserError: the data cannot be had.
    """
    ready = ((adapters.bundles.get(name), label, predictor) for name, label, predictor in adapters.each())
    return _rows(ready, adapters.bundles[FIRST], where, asked)


def whole_models(folders: Sequence[Path], where: Where, asked: Asked) -> list[Row]:
    """Fully fine-tuned models on one part, each loaded when its turn comes.

    Raises:
        UserError: the data, or the tokenizer of its base, cannot be had.
    """
    if where.revision:
        raise UserError(f"--revision is of an adapter's base, and {folders[0]} is a whole model; leave it out")
    runs = [of_whole_model(folder) for folder in folders]
    ready = ((run, run.label, Predictor.of(Path(run.label), where.checkpoint, where.device)) for run in runs)
    return _rows(ready, runs[0], where, asked)


def _rows(
    ready: Iterable[tuple[Bundle | None, str, Predictor]], first: Bundle, where: Where, asked: Asked
) -> list[Row]:
    split, named = _data(first, where, asked.data)
    examples = getattr(split, asked.part)
    rows: list[Row] = []
    right: list[bool] = []
    for own, label, predictor in ready:
        found = evaluation(predictor.model, predictor.loaded, predictor.prefix, examples, asked.by_generation)
        now = [row.correct for row in found.scored]
        right = right or now
        same = 100 * sum(one == other for one, other in zip(right, now, strict=True)) / len(now)
        claimed = _claim(own, first, asked.part) if own and asked.data is None else None
        log_prob = sum(row.log_prob for row in found.scored) / sum(row.tokens for row in found.scored)
        audit = found.near_ties + found.audited, found.disagreements
        rows.append(Row(label, named, len(now), 100 * found.exact_match, log_prob, claimed, same, *audit))
        del predictor  # before the next whole model is loaded
    return rows


def evaluation(
    model: Any, loaded: Loaded, prefix: str, examples: Sequence[Example], by_generation: bool = False
) -> Evaluation:
    """Exact match of the active adapter, or of a whole model."""
    encoded = encode_examples(examples, prefix, loaded.tokenizer, loaded.layout)
    return evaluate(model, loaded, examples, encoded, by_generation=by_generation)


def _claim(bundle: Bundle, first: Bundle, part: str) -> float | None:
    """Of the same task as the first adapter's."""
    if not bundle.spec or not first.spec or not bundle.provenance:
        return None
    if (bundle.spec.task.name, bundle.spec.task.split) != (first.spec.task.name, first.spec.task.split):
        return None
    claim = bundle.provenance.get("claims", {}).get(part)
    return float(claim["exact_match"]) if claim else None


def _data(bundle: Bundle, where: Where, data: str | None) -> tuple[SplitData, str]:
    if data is None:
        if bundle.spec is None:
            raise UserError(f"{bundle.label} does not say what it was trained on; name a file by --data")
        return data_of(bundle, where.data_dir), f"{bundle.spec.task.name} {bundle.spec.task.split}"
    name, _, split = data.partition("/")
    benchmark = task_info(name)
    if split and benchmark and benchmark.published:
        return load_task(name, where.data_dir).load(split), f"{name} {split}"
    whole = load_task("lines", where.data_dir, train=data, dev=1, test=1).load("held-out")
    every = sorted((*whole.train, *whole.dev, *whole.test), key=lambda row: row.index)
    return SplitData(every, every, every, whole.labels), Path(data).name


def data_of(bundle: Bundle, data_dir: Path | None) -> SplitData:
    """The examples that an adapter was trained and tested on.

    Raises:
        UserError: they are the sharer's own, and not here.
    """
    assert bundle.spec is not None
    task = bundle.spec.task
    options: dict[str, Any] = dict(task.options)
    kept = bundle.here / "spec.json" if bundle.here else None
    if kept:
        options |= dict(RunSpec.from_dict(read_json(kept)).task.source)
    elif task.name == "lines":
        if RECIPE not in bundle.files:
            raise UserError(f"{bundle.label} has no recipe.yaml that says which rows it was trained on")
        said = (read_yaml(read_text(bundle.files[RECIPE]), RECIPE).get("task") or {}).get("options")
        options = dict(said) if isinstance(said, dict) else options
    return load_task(task.name, data_dir, **options).load(task.split)
