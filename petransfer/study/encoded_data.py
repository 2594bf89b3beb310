"""Encode the examples of a run as token ids, and check all examples."""

from __future__ import annotations

import functools
import logging
from dataclasses import replace
from pathlib import Path

from petransfer.data import SplitData, load_task
from petransfer.data.chat import chat_layout
from petransfer.data.encoded_examples import EncodedSplit, encode_split
from petransfer.data.encoding import Layout, encodable, encode_targets
from petransfer.errors import UserError, shortened
from petransfer.evaluation.metric_checks import declared
from petransfer.memory.meta_model import virtual_tokens_of
from petransfer.models.architecture import configuration
from petransfer.models.lengths import length_check
from petransfer.models.loading import tokenizer_and_layout
from petransfer.models.text_part import text_config
from petransfer.plurals import count
from petransfer.recipe.methods import METHODS
from petransfer.recipe.run_spec import Options, RunSpec, TrainSpec
from petransfer.training.batches import used_examples
from petransfer.training.packing import refuse_packing

_log = logging.getLogger(__name__)
_NO_TRAINING = TrainSpec(steps=1, batch_size=1, learning_rate=1.0)


@functools.lru_cache(maxsize=2)
def task_data(name: str, split: str, options: Options, data_dir: Path | None) -> SplitData:
    """Return the examples of a split. The last two results are cached."""
    return load_task(name, data_dir, **options).load(split)


@functools.lru_cache(maxsize=1)
def encoded_task(spec: RunSpec, data_dir: Path | None, scored: tuple[str, ...]) -> tuple[EncodedSplit, Layout]:
    """Read and encode the examples of a run (see `encode_data`). The last result is cached.

    Runs that leave out unusable rows and differ only in their training settings share this result.

    Args:
        scored: The evaluated parts: `dev`, or `dev` and `test`.

    Raises:
        UserError: The data cannot be found or used, or early stopping lacks a dev set.
    """
    data = task_data(spec.task.name, spec.task.split, spec.task.arguments, data_dir)
    if spec.train.early_stopping and not data.dev:
        raise UserError("train.early_stopping needs a dev set, and this data has none; give one with --dev")
    if spec.task.skips_bad_rows:  # then all rows are encoded, and the training settings have no influence
        refuse_packing(spec, configuration(spec.checkpoint)[0])
        return _all_encoded(replace(spec, train=_NO_TRAINING, seed=0), data_dir, scored)
    return encode_data(spec, data, scored)


@functools.lru_cache(maxsize=1)
def _all_encoded(spec: RunSpec, data_dir: Path | None, scored: tuple[str, ...]) -> tuple[EncodedSplit, Layout]:
    data = task_data(spec.task.name, spec.task.split, spec.task.arguments, data_dir)
    return encode_data(spec, data, scored)


def encode_data(spec: RunSpec, data: SplitData, scored: tuple[str, ...]) -> tuple[EncodedSplit, Layout]:
    """Encode the training examples and the evaluated parts with the checkpoint's tokenizer.

    Args:
        scored: The evaluated parts: `dev`, or `dev` and `test`.

    Returns:
        The usable examples with token ids, and the layout of an example (one sequence or two, special tokens).

    Raises:
        UserError: Rows cannot be used, a fold leaves no test rows, or the model does not support chats, packing or
            added tokens as requested.
    """
    _check_test_rows(spec, data, scored)
    config, own_head = configuration(spec.checkpoint)
    refuse_packing(spec, config)
    tokenizer, layout = tokenizer_and_layout(spec.checkpoint, config)
    layout = chat_layout(tokenizer, layout, data.train[0].chat)
    _check_added_tokens(spec)
    source, train = spec.task.source, spec.train
    encoded = encode_split(
        data,
        spec.task.prefix,
        tokenizer,
        layout,
        parts=("train", *scored),
        too_long=length_check(
            config,
            spec.checkpoint.name,
            int(source.get("max_length", 0)),
            virtual_tokens_of(config, spec.checkpoint.name, spec.method, own_head),
            0 if spec.checkpoint.tokenizer or spec.checkpoint.added_tokens else text_config(config).vocab_size,
        ),
        skip_bad_rows=spec.task.skips_bad_rows,
        used_in_training=lambda: used_examples(len(data.train), train.batch_size, train.steps, spec.seed),
    )
    if any(metric.of_labels for metric in declared(spec.task.metrics)):
        labels = encodable(data.labels, tokenizer, layout) if spec.task.skips_bad_rows else data.labels
        encode_targets(labels, tokenizer, layout)
        notes = [*encoded.notes, *untrained_labels_notes(encoded.data)]
        encoded = replace(encoded, data=replace(encoded.data, labels=tuple(labels)), notes=notes)
    return encoded, layout


def _check_test_rows(spec: RunSpec, data: SplitData, scored: tuple[str, ...]) -> None:
    fold = str(spec.task.source.get("fold", ""))
    if "test" in scored and fold and not len(data.test):
        raise UserError(
            f"with fold {fold}, no row is left for the test set; give a file with test rows (--test FILE, or test in "
            f"task.options), or score every fold with `petransfer train MODEL DATA --folds {fold.partition('/')[2]}`"
        )


def _check_added_tokens(spec: RunSpec) -> None:
    trains_new = METHODS.lookup(spec.method.name).trains_all_weights or spec.method.embeddings != "frozen"
    if spec.checkpoint.added_tokens and not trains_new:
        raise UserError(
            f"added_tokens: the embeddings of added tokens must be trained, and {spec.method.name} keeps them frozen; "
            "use lora or another method that has the setting embeddings, and set embeddings: new"
        )


def untrained_labels_notes(data: SplitData) -> list[str]:
    """Return a warning for dev and test if they have labels that no train row has."""
    known, notes = {example.target for example in data.train}, []
    for part in ("dev", "test"):
        found = [example.target for example in getattr(data, part) if example.target not in known]
        names = list(dict.fromkeys(found))
        if names:
            shown = ", ".join(shortened(name, 40) for name in names[:3]) + (", ..." if len(names) > 3 else "")
            rows = count(len(found), f"{part} row")
            verb = "has" if len(found) == 1 else "have"
            notes.append(
                f"warning: {rows} {verb} {count(len(names), 'label')} that no train row has: {shown}. Add train rows "
                "with these labels, or correct the labels if they are typing errors"
            )
    return notes


def log_notes(encoded: EncodedSplit) -> None:
    """Log the notes about the data as warnings."""
    for note in encoded.notes:
        _log.warning("%s", note)
