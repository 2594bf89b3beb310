"""What a run needs to go on after an interruption, saved so that a kill at any moment leaves one whole state."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from petransfer.errors import RunError
from petransfer.training.distributed.fsdp import fill, split_as, whole_tensors


@dataclass
class Progress:
    """How far a run has come, besides its tensors.

    loss_sum, loss_steps: losses gathered since the last line of metrics. metrics_bytes: the length that metrics.jsonl
    had; what stands behind it was written after this state and will be written again. seconds: training time so far.
    token_budget: of a micro-batch; 0 for none, as in a state that was written before there was one.
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
    token_budget: int = 0


def trained_tensors(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The parameters that training changes, by name, each tied tensor once."""
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
    """Writes `folder/step-<n>` whole or not at all, then removes the states before it, unless they are to be kept.

    Tensors that are split among processes are put together, for which all must come; one of them `writes`.

    Raises:
        RunError: the disk is full or not writable; the last good state is left as it was.
    """
    parameters = trained_tensors(model)
    moments, plain = _flatten(optimizer, {id(value): name for name, value in parameters.items()})
    values, moments = whole_tensors(parameters, writes), whole_tensors(moments, writes)
    if not writes:
        return
    target = folder / f"step-{progress.step:09d}"
    partial = folder / f".partial-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for stale in folder.glob(".partial-*"):
            shutil.rmtree(stale, ignore_errors=True)
        partial.mkdir()
        save_file(values, partial / "model.safetensors")
        save_file(moments, partial / "optimizer.safetensors")
        meta = {"identity": identity, "progress": asdict(progress), "optimizer": plain}
        (partial / "progress.json").write_text(json.dumps(meta))
        for file in partial.iterdir():
            _sync(file)
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
        _sync(folder)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise RunError(f"cannot save the state in {folder}: {error.strerror}; the last good state is kept") from error
    except Exception as error:  # safetensors reports a full disk as its own error
        shutil.rmtree(partial, ignore_errors=True)
        raise RunError(f"cannot save the state in {folder}: {error}; the last good state is kept") from error
    for old in [] if keep_others else sorted(folder.glob("step-*")):
        if old.name < target.name:
            shutil.rmtree(old, ignore_errors=True)


def keep_only(folder: Path, step: int) -> None:
    """Removes the states of all other steps."""
    for state in folder.glob("step-*"):
        if state.name != f"step-{step:09d}":
            doomed = folder / f".partial-{state.name}"  # by rename first: no half of a state is taken for a whole
            state.replace(doomed)
            shutil.rmtree(doomed, ignore_errors=True)


def peek_progress(folder: Path, identity: str) -> Progress | None:
    """The progress of the newest whole state, or None where there is none for this spec."""
    for state in sorted(folder.glob("step-*"), reverse=True):
        try:
            meta = json.loads((state / "progress.json").read_text())
        except (OSError, ValueError):
            continue
        if meta.get("identity") == identity:
            return Progress(**meta["progress"])
    return None


def load_state(folder: Path, progress: Progress, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Puts the tensors of the state that `progress` was peeked from into the model and the optimiser.

    Raises:
        RunError: the state's tensors are not the ones that this model trains.
    """
    state = folder / f"step-{progress.step:09d}"
    saved = load_file(state / "model.safetensors")
    parameters = trained_tensors(model)
    if saved.keys() != parameters.keys():
        odd = sorted(saved.keys() ^ parameters.keys())[0]
        raise RunError(f"the state in {state} does not fit the model (tensor {odd}); remove the folder to start again")
    for name, parameter in parameters.items():
        fill(parameter, saved[name])
    meta = json.loads((state / "progress.json").read_text())
    _unflatten(optimizer, parameters, load_file(state / "optimizer.safetensors"), meta["optimizer"])


def _flatten(
    optimizer: torch.optim.Optimizer, names: Mapping[int, str]
) -> tuple[dict[str, torch.Tensor], dict[str, dict[str, Any]]]:
    """An optimiser's state as named tensors and plain values; pickle is never used."""
    tensors: dict[str, torch.Tensor] = {}
    plain: dict[str, dict[str, Any]] = {}
    for parameter, values in optimizer.state.items():
        name = names[id(parameter)]
        for key, value in values.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{name}//{key}"] = value.detach().clone(memory_format=torch.contiguous_format)  # may be shared
            else:
                plain.setdefault(name, {})[key] = value
    return tensors, plain


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
        # AdamW keeps its step count on the CPU unless fused or capturable; moments live beside their parameter.
        device = value.device if slot == "step" and not _fused(optimizer) else parameter.device
        optimizer.state[parameter][slot] = split_as(parameter, value.to(device))
    for name, values in plain.items():
        optimizer.state[parameters[name]].update(values)


def _fused(optimizer: torch.optim.Optimizer) -> bool:
    return bool(optimizer.param_groups[0].get("fused") or optimizer.param_groups[0].get("capturable"))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
