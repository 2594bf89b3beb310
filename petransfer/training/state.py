"""Save and load the training state that a run resumes from. A killed process leaves a complete state."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from petransfer.atomic_files import replace_folder, sync
from petransfer.errors import FolderMoved, RunError, reason_of, refuse_moved
from petransfer.training.distributed import copy_into, gather_tensors, is_part, shard_like
from petransfer.unreadable_files import refuse_unreadable


@dataclass
class Progress:
    """The progress of a run: all parts of the training state that are not tensors.

    Attributes:
        step: number of optimiser steps taken.
        micro_batch: maximum number of examples in a micro-batch.
        threads: CPU threads. 0 means torch's default.
        metrics_bytes: length of metrics.jsonl when the state was saved. Later lines are removed when the run resumes.
        loss_sum: sum of the losses since the last line of metrics.
        loss_steps: number of losses in `loss_sum`.
        seconds: training time.
        out_of_memory: how often memory ran out.
        notes: other facts about the run, such as the run ids of its stack.
        token_budget: maximum number of tokens in a micro-batch. 0 means no limit.
        early_stopping: state of early stopping. Empty without early stopping.
    """

    step: int = 0
    micro_batch: int = 0
    threads: int = 0
    metrics_bytes: int = 0
    loss_sum: float = 0.0
    loss_steps: int = 0
    seconds: float = 0.0
    out_of_memory: int = 0
    notes: dict[str, Any] = field(default_factory=dict)
    # States of older versions have no budget.
    token_budget: int = 0
    early_stopping: dict[str, Any] = field(default_factory=dict)


def trained_tensors(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Return the trained parameters by name. A tied tensor is listed once."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def save_state(
    folder: Path,
    progress: Progress,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    identity: str,
    keep_others: bool = False,
    writes: bool = True,
) -> None:
    """Write `folder/step-<n>` completely or not at all, then remove the earlier states.

    All processes must call this function, because sharded tensors are gathered.

    Args:
        identity: text that identifies the run. A run resumes only from a state with its text.
        keep_others: whether the earlier states are kept.
        writes: whether this process writes the files.

    Raises:
        RunError: the disk is full or not writable. The last complete state is kept.
    """
    parameters = trained_tensors(model)
    moments, plain = _flatten(optimizer, {id(value): name for name, value in parameters.items()})
    values, moments = gather_tensors(parameters, writes), gather_tensors(moments, writes)
    if not writes:
        return
    meta = {"identity": identity, "progress": asdict(progress), "optimizer": plain}
    target = folder / f"step-{progress.step:09d}"
    with _written_whole(target) as partial:
        save_file(values, partial / "model.safetensors")
        save_file(moments, partial / "optimizer.safetensors")
        (partial / "progress.json").write_text(json.dumps(meta))
    for old in [] if keep_others else sorted(folder.glob("step-*")):
        if old.name < target.name:
            shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def _written_whole(target: Path) -> Iterator[Path]:
    """Yield a temporary folder, and rename the folder to `target` after writing has succeeded."""
    folder = target.parent
    partial = folder / f".partial-{os.getpid()}"
    try:
        refuse_moved(folder.parent)
        folder.mkdir(exist_ok=True)
        for stale in folder.glob(".partial-*"):
            shutil.rmtree(stale, ignore_errors=True)
        partial.mkdir()
        yield partial
        for file in partial.iterdir():
            sync(file)
        replace_folder(partial, target)
        sync(folder)
    except FolderMoved:
        raise
    except Exception as error:  # safetensors raises an error of its own class if the disk is full
        shutil.rmtree(partial, ignore_errors=True)
        reason = getattr(error, "strerror", None) or error
        earlier = folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir())
        kept = "the last good state is kept" if earlier else "no earlier state was saved"
        raise RunError(f"cannot save the state in {folder}: {reason}; {kept}") from error


def save_best(folder: Path, model: torch.nn.Module, step: int, *, writes: bool = True) -> None:
    """Write the trained tensors to `folder/best-<step>`, and keep the folders of earlier best steps.

    Call `remove_other_bests` after the next training state is saved.
    """
    # A run that resumes from an earlier state needs the folder of an earlier best step.
    values = gather_tensors(trained_tensors(model), writes)
    if writes:
        with _written_whole(_best(folder, step)) as partial:
            save_file(values, partial / "model.safetensors")


def load_best(folder: Path, model: torch.nn.Module, step: int) -> None:
    """Load the trained tensors of `save_best` for this step into the model."""
    _fill_trained(model, _tensors_in(_best(folder, step) / "model.safetensors"), _best(folder, step))


def remove_other_bests(folder: Path, step: int) -> None:
    """Remove the folders `best-*`, except the folder of `step`."""
    for best in folder.glob("best-*"):
        if best != _best(folder, step):
            shutil.rmtree(best, ignore_errors=True)


def _best(folder: Path, step: int) -> Path:
    return folder / f"best-{step:09d}"


def keep_only(folder: Path, step: int) -> None:
    """Remove the saved states of all steps except `step`."""
    for state in folder.glob("step-*"):
        if state.name != f"step-{step:09d}":
            # Rename the folder first: a run must not resume from a partly removed state.
            removed = folder / f".partial-{state.name}"
            state.replace(removed)
            shutil.rmtree(removed, ignore_errors=True)


def newest_progress(folder: Path, identity: str) -> Progress | None:
    """Return the progress in the newest state with this identity. None without such a state."""
    for state in sorted(folder.glob("step-*"), reverse=True):
        try:
            meta = json.loads((state / "progress.json").read_text())
            if meta["identity"] == identity:
                return Progress(**meta["progress"])
        except (OSError, ValueError, KeyError, TypeError):  # a damaged file, or one of a later version
            continue
    return None


def load_state(folder: Path, progress: Progress, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Load the tensors of the state at `progress.step` into the model and the optimiser.

    Raises:
        RunError: the tensors of the state are damaged or do not fit the model.
        UserError: a file of the state cannot be read, such as without permission.
    """
    state = folder / f"step-{progress.step:09d}"
    _fill_trained(model, _tensors_in(state / "model.safetensors"), state)
    meta = json.loads((state / "progress.json").read_text())
    _unflatten(optimizer, trained_tensors(model), _tensors_in(state / "optimizer.safetensors"), meta["optimizer"])


def _tensors_in(path: Path) -> dict[str, torch.Tensor]:
    refuse_unreadable(path)
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise RunError(
            f"{path} cannot be read ({reason_of(error, 90)}); remove {path.parent} to resume from an earlier state or "
            "to start again"
        ) from error


def _fill_trained(model: torch.nn.Module, saved: Mapping[str, torch.Tensor], place: Path) -> None:
    """Copy saved tensors into the trained tensors of the model."""
    parameters = trained_tensors(model)
    if saved.keys() != parameters.keys():
        name = sorted(saved.keys() ^ parameters.keys())[0]
        raise RunError(f"the state in {place} does not fit the model (tensor {name}); remove the folder to start again")
    for name, parameter in parameters.items():
        copy_into(parameter, saved[name])


def _flatten(
    optimizer: torch.optim.Optimizer, names: Mapping[int, str]
) -> tuple[dict[str, torch.Tensor], dict[str, dict[str, Any]]]:
    """Return an optimiser's state as named tensors and plain values. `names`: each parameter's name, by its `id`."""
    # Tensors and plain values are saved without pickle.
    tensors: dict[str, torch.Tensor] = {}
    plain: dict[str, dict[str, Any]] = {}
    for parameter, values in optimizer.state.items():
        name = names[id(parameter)]
        for key, value in values.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{name}//{key}"] = _copy(value)  # a copy, because safetensors refuses shared memory
            else:
                plain.setdefault(name, {})[key] = value
    return tensors, plain


def _copy(value: torch.Tensor) -> torch.Tensor:
    """Copy a tensor into the host's memory. A sharded tensor is returned itself: `gather_tensors` copies it later."""
    # a GPU can lack room for a second optimiser state
    if is_part(value):
        return value.detach()
    if value.device.type == "cpu":
        return value.detach().clone(memory_format=torch.contiguous_format)
    return value.detach().to("cpu", copy=True)


def _unflatten(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, torch.nn.Parameter],
    tensors: Mapping[str, torch.Tensor],
    plain: Mapping[str, Mapping[str, Any]],
) -> None:
    optimizer.state.clear()
    for key, value in tensors.items():
        name, slot = key.rsplit("//", 1)
        parameter = parameters[name]
        # AdamW keeps its step count on the CPU unless fused or capturable; moments are on their parameter's device.
        device = value.device if slot == "step" and not _fused(optimizer) else parameter.device
        paged = getattr(optimizer, "is_paged", False) and slot in ("state1", "state2")
        held = _in_pages(optimizer, parameter, value) if paged else shard_like(parameter, value.to(device))
        optimizer.state[parameter][slot] = held
    for name, values in plain.items():
        optimizer.state[parameters[name]].update(values)


def _in_pages(optimizer: Any, parameter: torch.nn.Parameter, moment: torch.Tensor) -> torch.Tensor:
    """Copy a moment of AdamW into the memory of bitsandbytes' paged optimiser."""
    buffer: torch.Tensor = optimizer.get_state_buffer(parameter, dtype=moment.dtype)
    return buffer.copy_(moment)


def _fused(optimizer: torch.optim.Optimizer) -> bool:
    return bool(optimizer.param_groups[0].get("fused") or optimizer.param_groups[0].get("capturable"))
