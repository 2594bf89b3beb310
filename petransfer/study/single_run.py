"""Execute one run: load, train, evaluate, and save the results."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from petransfer.atomic_files import replacing
from petransfer.data import TASKS, Example
from petransfer.data.encoding import Encoded
from petransfer.data.rows.chat_rows import readable_input
from petransfer.evaluation.exact_match import Evaluation, summary
from petransfer.evaluation.metric_checks import declared
from petransfer.evaluation.run_metrics import MetricScores
from petransfer.methods import apply_method, computes_in_bf16, save_method, weights_bits
from petransfer.methods.shared.trained_tokens import trained_tokens
from petransfer.models.base_record import base_record
from petransfer.models.loading import Loaded, load_checkpoint
from petransfer.models.quantization import check_bf16, check_optimizer, inventory, weight_count
from petransfer.models.registry import is_embedded
from petransfer.models.special_tokens import declare_ends
from petransfer.recipe.methods import METHODS
from petransfer.recipe.run_spec import RunSpec
from petransfer.study.checkpointing_choice import with_needed_checkpointing
from petransfer.study.encoded_data import encoded_task, log_notes
from petransfer.study.environment import environment
from petransfer.study.examples_table import write_examples
from petransfer.study.folders import RunFolder
from petransfer.study.launched_processes import splits_tensors
from petransfer.study.prepared_run import LoadedBase, PreparedRun
from petransfer.study.provenance import provenance, with_file_hashes
from petransfer.study.run_scoring import (
    CURVE_EXAMPLES,
    STOPPING_EXAMPLES,
    dev_curve,
    evaluate_trained,
    evaluation_steps,
)
from petransfer.study.settings import Settings
from petransfer.training.batches import ShuffledExamples
from petransfer.training.distributed import Process, gather_model, shard_model, this_process
from petransfer.training.execution import Execution
from petransfer.training.hooks import Hooks
from petransfer.training.loop import Loop
from petransfer.training.packing import check_packing, collate_packed
from petransfer.training.quantization_cost import check_quantization_cost, quantisation_cost
from petransfer.training.reload_check import check_reloaded
from petransfer.training.state import Progress, newest_progress, trained_tensors
from petransfer.training.tracker_names import check_trackers
from petransfer.training.trackers import RunTrackers, SamplePrediction, start_trackers


@contextlib.contextmanager
def restoring_thread_count() -> Iterator[None]:
    """Restore torch's number of CPU threads at the end. A resumed run sets the number that it began with."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


@restoring_thread_count()
def run_one(
    spec: RunSpec,
    folder: RunFolder,
    settings: Settings,
    progress: Callable[[int, float, float], None] = lambda step, loss, seconds: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Execute or resume a run and return the content of result.json.

    Only the leading process writes files. Other processes of the run return an empty dictionary.

    Args:
        progress: Called after every step with the step number, the loss and the training time in seconds.
        should_stop: Called after every step. True interrupts the run.

    Raises:
        Interrupted: `should_stop` returned True; the training state is saved.
        RunError: Training failed.
        UserError: The spec or the settings cannot be used.
    """
    base = open_base(spec, settings)
    execution = with_needed_checkpointing(spec, settings.execution, base.process.device)
    prepared = prepare(spec, folder, base)
    with contextlib.closing(prepared.trackers):
        loop = make_loop(prepared, base, execution, progress, should_stop)
        if not loop.finished:  # the training state may be from a stack, but the remaining steps are trained without it
            loop.progress.notes.pop("stack", None)
        loop.run()
        loop.save()
        return finish(prepared, base, loop.progress, settings.execution.micro_batch)


def open_base(spec: RunSpec, settings: Settings) -> LoadedBase:
    """Read and encode the data of a run, and load the checkpoint.

    Raises:
        UserError: The data or the checkpoint cannot be used with the settings of the run.
    """
    started = time.monotonic()
    if torch.cuda.is_available():
        gc.collect()  # frees the model of an earlier run, which refers to itself if its forward method was replaced
    check_trackers(settings.log_with)
    check_optimizer(spec.train.optimizer)
    if settings.execution.threads:
        torch.set_num_threads(settings.execution.threads)
    encoded, layout = encoded_task(spec, settings.data_dir, settings.scored_parts)
    process = this_process(settings.cpu)
    check_bf16(spec.method.bits, process.device)
    bits, wide = weights_bits(spec.method), spec.method.keep_wide
    # With FSDP, the model is not loaded on one GPU, because it may not fit there.
    device = None if splits_tensors() else process.device
    loaded = load_checkpoint(spec.checkpoint, bits, seed=spec.seed, device=device, keep_wide=wide)
    # chats can have other end tokens
    ends = replace(loaded.layout, eos_id=layout.eos_id, other_end_ids=layout.other_end_ids)
    loaded = replace(loaded, layout=ends)
    if process.leads:
        log_notes(encoded)
    return LoadedBase(settings, process, encoded.data, loaded, started, spec, encoded)


def prepare(spec: RunSpec, folder: RunFolder, base: LoadedBase, model: PreTrainedModel | None = None) -> PreparedRun:
    """Prepare a run for training: write spec.json, check quantisation, and apply the method.

    Args:
        model: New modules with the tensors of `base.loaded.model`. None: `base.loaded.model` itself.

    Raises:
        UserError: An example is too long for the model.
        RunError: Quantisation changes the model's loss too much.
    """
    loaded = replace(base.loaded, model=model or base.loaded.model)
    encoded = base.encoded_for(spec)
    parts, token_ids = encoded.parts, encoded.token_ids
    if base.process.leads:
        folder.path.mkdir(parents=True, exist_ok=True)
        folder.write_json("spec.json", spec.as_dict() | base_record(spec, loaded.tokenizer))
    if base.cost is None:
        base.cost = _quantisation_cost(spec, loaded, parts["dev"], base.settings.force)
    loaded = replace(loaded, new_tokens=trained_tokens(spec.method, loaded.new_tokens, token_ids))
    applied = apply_method(loaded, spec.method, spec.seed)
    resumed = newest_progress(folder.path / "state", spec.canonical_json())
    names = base.settings.log_with if base.process.leads else ()
    trackers = start_trackers(names, folder.path, spec, base.process.device, resumed.step if resumed else 0)
    if splits_tensors():
        empty_copy = shard_model(applied, base.process.device, computes_in_bf16(spec.method))
        return PreparedRun(spec, folder, loaded, parts, applied, trackers, empty_copy)
    return PreparedRun(spec, folder, loaded, parts, applied.to(base.process.device), trackers)


def make_loop(
    prepared: PreparedRun,
    base: LoadedBase,
    execution: Execution,
    progress: Callable[[int, float, float], None],
    should_stop: Callable[[], bool],
) -> Loop:
    """Return the training loop of a run. Training resumes from the newest training state."""
    spec, loaded, parts = prepared.spec, prepared.loaded, prepared.parts
    most = STOPPING_EXAMPLES if spec.train.early_stopping else CURVE_EXAMPLES
    curve = dev_curve(prepared.model, loaded, base.data.dev, parts["dev"], most)
    packed = collate_packed if spec.train.packing else None
    if packed and prepared.empty_copy is None:
        check_packing(prepared.model, parts["train"], loaded.layout)
    return Loop(
        prepared.model,
        ShuffledExamples(parts["train"], spec.train.batch_size, spec.seed, loaded.layout, packed),
        spec.train,
        base.process,
        prepared.folder.path,
        identity=spec.canonical_json(),
        seed=spec.seed,
        execution=execution,
        hooks=Hooks(progress, should_stop, evaluation_steps(spec.train), curve, prepared.trackers.log),
        autocast=prepared.autocast,
    )


def finish(prepared: PreparedRun, base: LoadedBase, done: Progress, at_once: int = 0) -> dict[str, Any]:
    """Evaluate a trained run, save the results, and return the content of result.json.

    Only the leading process saves files. Other processes return an empty dictionary.

    Args:
        at_once: Examples per forward pass in the evaluation of a sharded model. 0: the micro-batch of training.
    """
    spec, folder, loaded, model = prepared.spec, prepared.folder, prepared.loaded, prepared.model
    data, process, writes = base.data, base.process, base.process.leads
    evaluations, measured = evaluate_trained(prepared, base, at_once or done.micro_batch, writes)
    if prepared.empty_copy is not None:
        model = gather_model(model, prepared.empty_copy, writes)
    if not writes:
        return {}
    reloads = True
    # With the setting `dev_only`, the test set is not scored and no weights are saved.
    if "test" in evaluations:
        reloads = _save_and_reload(prepared, base, model, evaluations)
        _write_test_examples(prepared, base, evaluations["test"], measured["test"])
    result = {
        "run_id": spec.run_id,
        **{part: summary(evaluation) | measured[part].scores for part, evaluation in evaluations.items()},
        "train_examples": len(data.train),
        "parameters": sum(map(weight_count, loaded.model.parameters())),
        "trained_parameters": sum(value.numel() for value in trained_tensors(model).values()),
        "weights": inventory(model, spec.method.keep_wide).as_dict() | (base.cost or {}),
        "base_commit": loaded.commit,
        "steps": done.step,
        **_stopping(done),
        **({} if reloads else {"reload_checked": False}),
        "micro_batch": done.micro_batch,
        "out_of_memory": done.out_of_memory,
        "checkpointing": bool(done.notes.get("checkpointing")),
        "train_seconds": round(done.seconds, 1),
        "seconds": round(time.monotonic() - base.started, 1),
        "environment": environment(process.device, done.threads) | _shared(process, done),
    }
    folder.finish(result)
    private = TASKS.lookup(spec.task.name).text_is_private
    _log_result(prepared.trackers, evaluations, () if private else data.dev, done.step)
    return result


def _save_and_reload(
    prepared: PreparedRun, base: LoadedBase, model: torch.nn.Module, evaluations: dict[str, Evaluation]
) -> bool:
    """Save the trained weights and load them again. Return whether the saved weights were checked in this way."""
    spec, loaded = prepared.spec, prepared.loaded
    made_from = provenance(spec, loaded, base.data, evaluations, model)
    saved = _save_weights(model, spec, prepared.folder, loaded, made_from)
    return check_reloaded(
        model, saved, spec.method, prepared.parts["dev"], loaded.layout, prepared.autocast, base.load_anew
    )


def _write_test_examples(
    prepared: PreparedRun, base: LoadedBase, evaluation: Evaluation, measured: MetricScores
) -> None:
    """Write the outcome of each test example to examples.parquet."""
    task = prepared.spec.task
    shown = None if TASKS.lookup(task.name).text_is_private else base.data.test
    of_labels = any(metric.of_labels for metric in declared(task.metrics))
    write_examples(evaluation, shown, measured.answers, prepared.folder.path / "examples.parquet", of_labels)


def _log_result(
    trackers: RunTrackers, evaluations: Mapping[str, Evaluation], examples: Sequence[Example], step: int
) -> None:
    """Log the scores and some dev examples with their generated texts to the trackers."""
    scores = {f"final/{part}_exact_match": 100 * found.exact_match for part, found in evaluations.items()}
    generated = [
        SamplePrediction(readable_input(example.input), example.target, row.prediction)
        for example, row in zip(examples, evaluations["dev"].scored, strict=False)
        if row.prediction is not None
    ]
    trackers.log_result(scores, generated[:SAMPLES], step)


# The number of sample predictions that a tracker receives.
SAMPLES = 3


def _stopping(done: Progress) -> dict[str, Any]:
    """Return the reason for early stopping and the best step. Empty without early stopping."""
    return {name: done.early_stopping[name] for name in ("stop_reason", "best_step") if done.early_stopping}


def _shared(process: Process, done: Progress) -> dict[str, Any]:
    """Return the number of processes and of stacked runs, and whether FSDP and CUDA graphs were used."""
    # these numbers are recorded because rounding depends on them
    counts = {"processes": process.count, "stacked": len(done.notes.get("stack", ()))}
    shared: dict[str, Any] = {name: count for name, count in counts.items() if count > 1}
    shared |= {"split": "fsdp2"} if splits_tensors() else {}
    return shared | {name: value for name, value in done.notes.items() if name == "cuda_graphs"}


def _quantisation_cost(spec: RunSpec, loaded: Loaded, dev: Sequence[Encoded], force: bool) -> dict[str, Any]:
    if spec.method.bits > 8:
        return {}
    cost = quantisation_cost(spec.checkpoint, spec.seed, loaded, dev)
    if not force:
        check_quantization_cost(cost, spec.checkpoint.name)
    return {"quantisation": asdict(cost)}


def _save_weights(
    model: torch.nn.Module, spec: RunSpec, folder: RunFolder, loaded: Loaded, made_from: dict[str, Any]
) -> Path:
    """Save the trained weights, the tokenizer of a whole model, and petransfer.json. Return the new folder."""
    is_whole = METHODS.lookup(spec.method.name).trains_all_weights
    target = folder.path / ("model" if is_whole else "adapter")
    if is_whole:
        declare_ends(model, loaded.layout.end_ids)
    # the folder gets its name only when it is complete
    with replacing(target) as partial:
        save_method(spec.method.name, model, partial, spec.checkpoint.name)
        if is_whole and not is_embedded(spec.checkpoint.name):  # a base can be gone when its model is used
            loaded.tokenizer.save_pretrained(partial)
        RunFolder(partial).write_json("petransfer.json", with_file_hashes(partial, made_from))
    return target
