"""Score adapters, whole models and base checkpoints side by side on the same examples."""

from __future__ import annotations

import itertools
import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from petransfer.data import Example
from petransfer.data.answers import text_answers, without_untrained_calls
from petransfer.data.encoding import encodable, encode_examples
from petransfer.errors import RunError, UserError, shortened
from petransfer.evaluation.exact_match import Evaluation, evaluate
from petransfer.evaluation.metric_checks import check_metrics, declared
from petransfer.evaluation.one_pass import ScoredExample
from petransfer.evaluation.predictor import Predictor
from petransfer.evaluation.run_metrics import compute_metrics_of_rows
from petransfer.models.loading import Loaded
from petransfer.sharing.base import LoadOptions, base_of
from petransfer.sharing.bundle import Bundle
from petransfer.sharing.combined_adapters import Combination, load_adapters, refuse_different_bases, sharing_key
from petransfer.sharing.merge import merge
from petransfer.sharing.sources import ModelSource, opened_source
from petransfer.sharing.task_data import (
    Pairs,
    TestData,
    has_same_rows,
    test_data,
    trained_on,
    training_labels,
    warn_of_untrained_labels,
)
from petransfer.sharing.usable_rows import encoded_rows, for_examples, usable_rows
from petransfer.sharing.whole_models import whole_predictor

logger = logging.getLogger(__name__)


class ModelToScore(NamedTuple):
    """A model to score.

    bundle: the adapter or fully fine-tuned model. None for a base checkpoint, a combination or a merged adapter.
    trained: the adapters or models whose training the model results from. Empty for a base checkpoint.
    """

    label: str
    bundle: Bundle | None
    predictor: Predictor
    trained: tuple[Bundle, ...] = ()


@dataclass(frozen=True)
class Scores:
    """The scores of one adapter or model on some examples.

    examples: number of examples.
    exact_match: in %.
    log_prob_per_token: mean log-probability of the target tokens, in nats.
    claimed: exact match on these examples in petransfer.json, in %. None if not recorded, or recorded on other
        examples.
    same: percentage of examples on which this model and the first model are both right or both wrong.
    generated: number of generated texts.
    disagreements: number of generated texts that contradict the forward pass.
    seen_rows: positions, from 0, of the examples used in training. None if unknown.
    seen: exact match on the examples used in training, in %. None if unknown or without such examples.
    unseen: exact match on all other examples, in %. None if unknown or without such examples.
    metrics: scores of other metrics by name, such as `rouge_l`.
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
    seen_rows: tuple[int, ...] | None = field(default=None, repr=False)
    seen: float | None = None
    unseen: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class EvaluationRequest:
    """The data, the metrics and the kind of an evaluation.

    data, part, columns: see `petransfer.sharing.task_data.test_data`.
    by_generation: see `petransfer.evaluation.exact_match.evaluate`.
    with_base: also score the base, and each adapter merged into its base.
    metrics: names of additional metrics.
    """

    data: str | Pairs | None = None
    part: str | None = None
    by_generation: bool = False
    with_base: bool = False
    metrics: tuple[str, ...] = ()
    columns: Mapping[str, str] = field(default_factory=dict)


def predictors(
    sources: Sequence[ModelSource],
    load_options: LoadOptions,
    combination: Combination | None = None,
    with_base: bool = False,
) -> Iterator[ModelToScore]:
    """Yield each source, ready to be scored. Use a predictor before you take the next one.

    All adapters have the same base. Neighbouring adapters share it in memory if they can. Whole models are loaded one
    at a time.

    Args:
        sources: adapters, whole models and base checkpoints.
        load_options: where to find bases and data.
        combination: also yield this combination of all adapters.
        with_base: first yield the base, and last yield each adapter merged into its base.

    Raises:
        UserError: the adapters have different bases, or a source cannot be loaded.
    """
    bundles = [source.adapter() for source in sources if source.kind == "adapter"]
    other = next((source for source in sources if source.kind != "adapter"), None)
    if combination and other:
        raise UserError(f"--weights combines adapters, and {other.label} is a whole model; leave one of them out")
    if with_base and not bundles:
        raise UserError(f"--base: {sources[0].label} is a whole model and has no base; leave --base out")
    if bundles:
        refuse_different_bases(bundles, load_options.checkpoint is not None)
    if with_base:
        yield _base(bundles[0], load_options)
    if combination:
        yield from _adapters(bundles, load_options, combination)
    else:
        yield from _one_after_the_other(sources, load_options)
    if with_base:
        yield from _merged(bundles, load_options)


def _one_after_the_other(sources: Sequence[ModelSource], load_options: LoadOptions) -> Iterator[ModelToScore]:
    """Yield each source. The base is loaded again for an adapter that cannot share it with the source before it."""
    first = next((source.bundle for source in sources if source.bundle and source.bundle.spec), None)

    def key_of(source: ModelSource) -> tuple[object, ...]:
        return sharing_key(source.adapter()) if source.kind == "adapter" else ()

    for key, group in itertools.groupby(sources, key=key_of):
        if key:
            yield from _adapters([source.adapter() for source in group], load_options)
            continue
        for source in group:
            own = (source.bundle,) if source.bundle else ()
            yield ModelToScore(source.label, source.bundle, whole_predictor(source, load_options, like=first), own)


def _adapters(
    bundles: Sequence[Bundle], load_options: LoadOptions, combination: Combination | None = None
) -> Iterator[ModelToScore]:
    """Yield adapters that share a base in memory, and then their combination."""
    adapters = load_adapters(bundles, load_options, combination)
    for name, label, predictor in adapters.each():
        bundle = adapters.bundles.get(name)
        yield ModelToScore(label, bundle, predictor, (bundle,) if bundle else tuple(bundles))


def _base(bundle: Bundle, load_options: LoadOptions) -> ModelToScore:
    base = base_of(bundle, load_options)
    loaded = base.load(load_options.device)
    predictor = Predictor(loaded.model.eval(), loaded, bundle.prefix(), bundle.template(), bundle.chat())
    return ModelToScore(f"base: {base.checkpoint.name}", None, predictor)


def _merged(bundles: Sequence[Bundle], load_options: LoadOptions) -> Iterator[ModelToScore]:
    for bundle in bundles:
        with tempfile.TemporaryDirectory(prefix="petransfer-") as folder:
            target = Path(folder) / "merged"
            try:
                merge(bundle, target, load_options)
            except (UserError, RunError):  # prompts and prefixes cannot be merged into weights
                continue
            with opened_source(str(target)) as source:
                predictor = whole_predictor(source, replace(load_options, checkpoint=None, revision=None))
            yield ModelToScore(f"merged: {bundle.label}", None, predictor, (bundle,))


def side_by_side(
    sources: Sequence[ModelSource],
    load_options: LoadOptions,
    request: EvaluationRequest,
    combination: Combination | None = None,
) -> list[Scores]:
    """Score all sources on the same examples. Default: the examples of the first adapter's own task.

    Raises:
        UserError: the data or a source is not available.
    """
    first = next((source for source in sources if source.bundle), sources[0])
    data_dir = load_options.data_dir
    data = test_data(first.bundle, first.label, request.data, request.part, data_dir, request.columns)
    targets = data.labels or tuple(sorted({example.target for example in data.examples}))
    if not data.own and first.bundle:
        warn_of_untrained_labels(first.bundle, targets, data.name, data_dir)
    data = replace(data, labels=data.labels or _all_labels(sources, targets, data_dir))
    metrics = _metrics(first.bundle, request.metrics, data)
    ready = predictors(sources, load_options, combination, request.with_base)
    return _scores(ready, first.bundle, load_options, request, data, metrics)


def _all_labels(sources: Sequence[ModelSource], targets: Sequence[str], data_dir: Path | None) -> tuple[str, ...]:
    """Return the targets of the data and the labels of each source's training.

    With fewer labels than in training, choosing the right label would be easier.
    """
    trained = [training_labels(source.bundle, data_dir) for source in sources if source.bundle]
    return tuple(sorted({*targets, *chain(*trained)}))


def _metrics(bundle: Bundle | None, requested: Sequence[str], data: TestData) -> list[str]:
    """Return the requested metrics, and the computable metrics of an adapter's own task."""
    _check_metrics(requested, data)
    own = bundle.spec.task.metrics if bundle and bundle.spec else ()
    found = []
    for name in own:
        try:
            _check_metrics([name], data)
            found.append(name)
        except UserError as problem:
            logger.info("%s is left out: %s", name, problem)
    return list(dict.fromkeys([*found, *requested]))


def _check_metrics(names: Sequence[str], data: TestData) -> None:
    """Raise UserError for a metric that cannot be computed on data, or that would be 100 % for every model."""
    check_metrics(names, lambda: (len(data.labels), data.name))
    of_labels = next((metric.name for metric in declared(names) if metric.of_labels), None)
    if of_labels and len(data.labels) == 1 and not data.own:
        raise UserError(
            f"{of_labels} needs at least two labels, but every row of {data.name} has the target "
            f"'{shortened(data.labels[0], 40)}', and the training labels are not known; add rows with other "
            "labels, or name the folder of the training data with --data-dir"
        )


def _scores(
    ready: Iterable[ModelToScore],
    first: Bundle | None,
    load_options: LoadOptions,
    request: EvaluationRequest,
    data: TestData,
    metrics: Sequence[str],
) -> list[Scores]:
    """Return the scores of each model. All models are scored on the same examples.

    Args:
        ready: the models. Each model is loaded when it is taken, and must be freed before the next one is loaded.
        first: the first adapter, whose own task `data` can be. None without an adapter.
    """
    rows: list[Scores] = []
    correct_in_first: list[bool] = []
    examples: Sequence[Example] = ()
    of_labels = any(metric.of_labels for metric in declared(metrics))
    for label, bundle, plain, trained in ready:
        model, loaded = plain.model, plain.loaded
        if not rows:
            examples = _usable_examples(data, first, model, loaded)
        predictor = for_examples(plain, examples, data.name, label)
        loaded = predictor.loaded
        if not rows:
            examples = without_untrained_calls(examples, loaded.tokenizer, loaded.layout)
        encoded = encoded_rows(examples, predictor, data.name)
        texts = text_answers(examples, loaded.tokenizer, loaded.layout)
        evaluated = evaluate(model, loaded, texts, encoded, by_generation=request.by_generation)
        targets = [example.target for example in texts]
        # a model cannot choose a label of another model's training, or of an unusable row, that it cannot encode
        labels = encodable(data.labels, loaded.tokenizer, loaded.layout) if of_labels else ()
        correct = [row.correct for row in evaluated.scored]
        correct_in_first = correct_in_first or correct
        scores = Scores(
            label=label,
            task=data.name,
            examples=len(correct),
            exact_match=_percent(correct),
            log_prob_per_token=_log_prob_per_token(evaluated.scored),
            claimed=_claim(bundle, first, request.part or "test", data, load_options.data_dir) if data.own else None,
            same=_percent([this == other for this, other in zip(correct, correct_in_first, strict=True)]),
            generated=evaluated.near_ties + evaluated.audited,
            disagreements=evaluated.disagreements,
            metrics=compute_metrics_of_rows(model, loaded, metrics, targets, labels, encoded).scores,
        )
        seen = trained_on(trained, examples, load_options.data_dir)
        rows.append(scores if seen is None else _with_separate_scores(scores, seen, evaluated.scored))
        del plain, predictor, model, loaded  # free this model's memory before the next whole model is loaded
    return rows


def _usable_examples(data: TestData, first: Bundle | None, model: Any, loaded: Loaded) -> Sequence[Example]:
    """Return the examples that the first model can be scored on. Raise UserError if there are none."""
    examples = usable_rows(data.examples, first, model, loaded) if data.own and first else data.examples
    if not examples:
        raise UserError(f"no row of {data.name} can be scored; give other rows with --data FILE")
    return examples


def _log_prob_per_token(scored: Sequence[ScoredExample]) -> float:
    return sum(row.log_prob for row in scored) / sum(row.tokens for row in scored)


def _with_separate_scores(scores: Scores, seen: tuple[int, ...], scored: Sequence[ScoredExample]) -> Scores:
    """Return the scores with separate exact match for examples at the positions `seen` and all others."""
    known = set(seen)
    trained = [row.correct for at, row in enumerate(scored) if at in known]
    others = [row.correct for at, row in enumerate(scored) if at not in known]
    return replace(
        scores,
        seen_rows=seen,
        seen=_percent(trained) if trained else None,
        unseen=_percent(others) if others else None,
    )


def _percent(values: Sequence[bool]) -> float:
    return 100 * sum(values) / len(values)


def evaluation(
    model: Any, loaded: Loaded, prefix: str, examples: Sequence[Example], by_generation: bool = False
) -> Evaluation:
    """Evaluate exact match of a model on some examples."""
    encoded = encode_examples(examples, prefix, loaded.tokenizer, loaded.layout)
    return evaluate(model, loaded, examples, encoded, by_generation=by_generation)


def _claim(
    bundle: Bundle | None, first: Bundle | None, part: str, data: TestData, data_dir: Path | None
) -> float | None:
    """Return the exact match on `part` that petransfer.json records for an adapter, in %.

    None if it is not recorded, or if the adapter may have been scored on other rows than `data`. `data` has the rows of
    the first adapter's own task.
    """
    if not bundle or not bundle.provenance or not first or not has_same_rows(bundle, first, part, data, data_dir):
        return None
    claim = bundle.provenance.get("claims", {}).get(part)
    return float(claim["exact_match"]) if claim else None
