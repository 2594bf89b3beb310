"""Log a run to experiment trackers such as TensorBoard and Weights & Biases, through Accelerate."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker

from petransfer.errors import UserError, reason_of
from petransfer.recipe.run_spec import RunSpec
from petransfer.training.tracker_names import check_trackers

logger = logging.getLogger(__name__)

# For each entry of metrics.jsonl, its name in a tracker.
NAMES = {
    "loss": "train/loss",
    "learning_rate": "train/learning_rate",
    "grad_norm": "train/grad_norm",
    "dev_em": "dev/exact_match",
    "dev_loss": "dev/loss",
}
PREDICTIONS = ("input", "target", "prediction")
# Subfolder of a run's folder for the files of a tracker.
FOLDER = "tracking"


@dataclass(frozen=True)
class SamplePrediction:
    """One dev example with the text that the trained model generated for it."""

    input: str
    target: str
    prediction: str


class RunTrackers:
    """The trackers of one run. A tracker that fails is removed with a warning, and training continues."""

    def __init__(self, trackers: Sequence[GeneralTracker], batch_size: int, device: torch.device) -> None:
        self._trackers, self._batch_size, self._device = list(trackers), batch_size, device
        self._step, self._seconds = 0, 0.0

    def log(self, line: dict[str, Any]) -> None:
        """Log a line of metrics.jsonl, examples per second and memory in GB (on a GPU, its peak in this run)."""
        if not self._trackers:
            return
        values = {NAMES.get(name, name): value for name, value in line.items() if name not in ("step", "seconds")}
        steps, seconds = line["step"] - self._step, line["seconds"] - self._seconds
        if steps > 0 and seconds > 0:
            values["train/examples_per_second"] = steps * self._batch_size / seconds
        values["memory/gb"] = _memory(self._device) / 1e9
        self._step, self._seconds = line["step"], line["seconds"]
        self._each(lambda tracker: tracker.log(values, step=line["step"]))

    def log_result(self, values: dict[str, float], predictions: Sequence[SamplePrediction], step: int) -> None:
        """Log the scores of a finished run and some of its predictions."""
        self._each(lambda tracker: tracker.log(values, step=step))
        rows = [[getattr(row, name) for name in PREDICTIONS] for row in predictions]
        if rows:
            self._each(lambda tracker: _log_table(tracker, rows, step))

    def close(self) -> None:
        self._each(lambda tracker: tracker.finish())
        self._trackers = []

    def _each(self, call: Callable[[GeneralTracker], Any]) -> None:
        for tracker in list(self._trackers):
            try:
                call(tracker)
            except Exception as error:  # a failing tracker, such as one whose server is down, must not end the run
                logger.warning("%s failed and is not used any more: %s", tracker.name, reason_of(error, 200))
                self._trackers.remove(tracker)


def start_trackers(
    names: Sequence[str], folder: Path, spec: RunSpec, device: torch.device, resumed_at: int = 0
) -> RunTrackers:
    """Start the trackers of one run.

    Args:
        names: Accelerate's names of trackers, such as `tensorboard` and `wandb`.
        folder: the run's folder. TensorBoard writes to its subfolder `tracking/`.
        device: device whose memory use is logged.
        resumed_at: step that the run resumes from. 0 for a new run.

    Raises:
        UserError: a tracker is unknown, not installed, or cannot start.
    """
    if names and device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)  # the peak of an earlier run in this process is not this run's
    return RunTrackers(
        [_start(name, folder, spec, resumed_at) for name in check_trackers(names)], spec.train.batch_size, device
    )


def _start(name: str, folder: Path, spec: RunSpec, resumed_at: int) -> GeneralTracker:
    configuration = _flat(spec.as_dict())
    study = folder.parent.parent.name or "petransfer"
    run_name = f"{spec.checkpoint.name} {spec.method.name} {spec.task.split} seed {spec.seed}"
    kind: Any = LOGGER_TYPE_TO_CLASS[name]
    try:
        if name == "tensorboard":
            tracker = kind(FOLDER, str(folder), purge_step=resumed_at + 1)
        elif name == "wandb":
            tracker = kind(
                os.environ.get("WANDB_PROJECT", study), name=run_name, id=folder.name, resume="allow",
                dir=str(folder), config=configuration, reinit="create_new",
            )  # fmt: skip
        elif name == "mlflow":
            tracker = kind(study, run_name=run_name)
        elif name == "trackio":
            tracker = kind(study, name=run_name)
        else:
            tracker = kind(study, str(folder)) if kind.requires_logging_directory else kind(study)
        tracker.start()
        if name != "wandb":  # wandb already has the configuration
            tracker.store_init_configuration(configuration)
    except Exception as error:
        raise UserError(f"--log-with {name}: cannot start ({reason_of(error, 200)}); see its documentation") from error
    started: GeneralTracker = tracker
    return started


def _log_table(tracker: Any, rows: list[list[str]], step: int) -> None:
    """Log predictions as a table, or as text in TensorBoard. Other trackers get nothing."""
    if hasattr(tracker, "log_table"):
        tracker.log_table("dev/predictions", columns=list(PREDICTIONS), data=rows, step=step)
    elif tracker.name == "tensorboard":
        lines = [PREDICTIONS, ("---",) * len(PREDICTIONS), *([_cell(text) for text in row] for row in rows)]
        tracker.log({"dev/predictions": "\n".join("| " + " | ".join(line) + " |" for line in lines)}, step=step)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _flat(content: Any, prefix: str = "") -> dict[str, bool | int | float | str]:
    """Return nested values as one dict with dotted names."""
    if isinstance(content, dict):
        return {key: value for name, part in content.items() for key, value in _flat(part, f"{prefix}{name}.").items()}
    plain = isinstance(content, bool | int | float | str)
    return {prefix.rstrip("."): content if plain else str(content)}


def _memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return int(psutil.Process().memory_info().rss)
