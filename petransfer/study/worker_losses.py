"""Mark runs as failed: after an error, or after too many workers were killed while executing them. Imports no torch."""

from __future__ import annotations

import contextlib
import traceback

from petransfer.errors import RunError, UserError, reason_of
from petransfer.study.folders import RunFolder

# If this many workers are killed while a run has the same newest training state, the run is assumed to be the cause and
# is marked as failed.
LOST = 3


def may_be_tried(folder: RunFolder, how: str = "") -> bool:
    """Return whether a run that this process has claimed may be executed.

    If `LOST` workers were killed since the run's newest training state, mark the run as failed and return False.

    Args:
        how: How the last worker ended, such as `SIGKILL`; empty if that is not known.
    """
    if folder.losses() < LOST:
        return True
    by = f" ({how})" if how else ""
    note_failure(folder, RunError(f"{LOST} workers were killed at the same training state{by}; is memory short?"))
    return False


def note_lost_worker(folder: RunFolder, how: str, began: bool = True) -> bool:
    """Record that the worker of a run was killed. Return whether the run may be tried again.

    Args:
        how: How the worker ended, such as `SIGKILL`.
        began: Whether the worker had claimed the run.
    """
    with folder.claim() as claimed:
        if claimed and not began:
            folder.add_loss()
        return not claimed or folder.done or may_be_tried(folder, how)


def note_failure(folder: RunFolder, error: Exception) -> None:
    """Write the error of a run to failed.json.

    If the error is a user's mistake and the run has no training state, the other files of the run are removed.
    """
    kind = "mistake" if isinstance(error, UserError) else "failure"
    with contextlib.suppress(OSError):
        if kind == "mistake" and not (folder.path / "state").exists():
            folder.clear()
        said = "".join(traceback.format_exception(error))
        folder.write_json("failed.json", {"error": reason_of(error), "kind": kind, "traceback": said})
