"""Mark runs as failed: after an error, or after too many workers were killed while executing them. Imports no torch."""

from __future__ import annotations

import contextlib
import traceback

from petransfer.errors import RunError, UserError, reason_of
from petransfer.study.folders import RunFolder

# If this many workers are lost at the same step of a run, the run is assumed to be the cause and fails.
LOST = 3


def may_be_tried(folder: RunFolder, how: str = "") -> bool:
    """Return whether a run that this process has claimed may be executed; mark it as failed if it lost LOST workers.

    how: how the last worker ended, if that is known.
    """
    if folder.losses() < LOST:
        return True
    by = f" ({how})" if how else ""
    note_failure(folder, RunError(f"{LOST} workers were lost at the same step{by}; is memory short?"))
    return False


def note_lost_worker(folder: RunFolder, how: str, began: bool = True) -> bool:
    """Return whether a run whose worker was killed may be tried again.

    how: how the worker ended. began: whether it had claimed the run.
    """
    with folder.claim() as claimed:
        if claimed and not began:
            folder.add_loss()
        return not claimed or folder.done or may_be_tried(folder, how)


def note_failure(folder: RunFolder, error: Exception) -> None:
    """Write failed.json. If a user's mistake stopped the run before its first state, remove all other files."""
    kind = "mistake" if isinstance(error, UserError) else "failure"
    with contextlib.suppress(OSError):
        if kind == "mistake" and not (folder.path / "state").exists():
            folder.clear()
        said = "".join(traceback.format_exception(error))
        folder.write_json("failed.json", {"error": reason_of(error), "kind": kind, "traceback": said})
