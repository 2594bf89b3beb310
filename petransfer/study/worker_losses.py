"""Mark runs as failed after an error, or after too many killed workers. Imports no torch."""

from __future__ import annotations

import logging
import traceback

from petransfer.errors import RunError, UserError, reason_of
from petransfer.study.folders import RunFolder

logger = logging.getLogger(__name__)

# If this many workers are killed while a run has the same newest training state, the run is assumed to be the cause and
# is marked as failed.
LOST = 3


def may_be_tried(folder: RunFolder, how: str = "") -> bool:
    """Return whether a claimed run can be executed. Too many killed workers make the run fail.

    `how` tells how the last worker ended, such as `SIGKILL`.
    """
    if folder.losses() < LOST:
        return True
    by = f" ({how})" if how else ""
    note_failure(folder, RunError(f"{LOST} workers were killed at the same training state{by}; is memory short?"))
    return False


def note_lost_worker(folder: RunFolder, how: str, began: bool = True) -> bool:
    """Record a killed worker. Return whether the run can be tried again.

    `how` tells how the worker ended, such as `SIGKILL`. `began` is True if the worker had claimed the run.
    """
    with folder.claim() as claimed:
        if claimed and not began:
            folder.add_loss()
        return not claimed or folder.done or may_be_tried(folder, how)


def note_failure(folder: RunFolder, error: Exception) -> None:
    """Write the error of a run to failed.json. A finished run stays finished: its files are kept."""
    if folder.done:  # such as an error of an experiment tracker after the results were saved
        return
    kind = "mistake" if isinstance(error, UserError) else "failure"
    try:
        # after a user's mistake, a run without training state leaves no files
        if kind == "mistake" and not (folder.path / "state").exists():
            folder.clear()
        text = "".join(traceback.format_exception(error))
        folder.write_json("failed.json", {"error": reason_of(error), "kind": kind, "traceback": text})
    except OSError as problem:  # such as a full disk, which is then probably also the error of the run
        logger.error(
            f"run {folder.path.name} failed: {reason_of(error)}; this cannot be recorded in {folder.path} "
            f"({problem.strerror or problem})"
        )
