"""Train several runs together on one loaded base model, and save each run separately."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

from petransfer.errors import UserError
from petransfer.recipe.run_spec import RunSpec
from petransfer.study.folders import RunFolder
from petransfer.study.prepared_run import LoadedBase, PreparedRun
from petransfer.study.settings import Settings
from petransfer.study.single_run import finish, make_loop, open_base, prepare, restoring_thread_count
from petransfer.study.stack_groups import common_start
from petransfer.training.stacked import StackedLoop, make_stack, refuse_layer_drop, shared_copy
from petransfer.training.state import keep_only


@restoring_thread_count()
def run_stack(
    specs: Sequence[RunSpec],
    folders: Sequence[RunFolder],
    settings: Settings,
    progress: Callable[[int, float, float], None] = lambda step, loss, seconds: None,
    should_stop: Callable[[], bool] = lambda: False,
    failed: Callable[[RunFolder, Exception], None] = lambda folder, error: None,
) -> None:
    """Execute or resume several runs as one stack.

    The base model is loaded once. Each adapter is evaluated alone, independently of the other runs.

    Args:
        folders: The folder of each run, in the order of `specs`.
        progress: Called after a step with the step number, the loss and the training time in seconds.
        should_stop: Called after a step. True interrupts all runs.
        failed: Called with the folder and the error of each failed run. The other runs continue.

    Raises:
        Interrupted: `should_stop` returned True; the training states are saved.
        RunError: Memory ran out even with one example of each run, or a training state cannot be saved.
        UserError: The data or the checkpoint cannot be used, or the model cannot be stacked.
    """
    start = common_start(specs, folders)
    for folder in folders:
        keep_only(folder.path / "state", start)
    base = open_base(specs[0], settings)
    refuse_layer_drop(base.loaded.model.config)
    ready: list[PreparedRun] = []
    for spec, folder in zip(specs, folders, strict=True):
        try:
            ready.append(prepare(spec, folder, base, shared_copy(base.loaded.model)))
        except UserError as error:
            failed(folder, error)
    if not ready:
        return
    with contextlib.ExitStack() as ending:
        for run in ready:
            ending.callback(run.trackers.close)
        _train(ready, base, progress, should_stop, failed)


def _train(
    ready: Sequence[PreparedRun],
    base: LoadedBase,
    progress: Callable[[int, float, float], None],
    should_stop: Callable[[], bool],
    failed: Callable[[RunFolder, Exception], None],
) -> None:
    """Train the prepared runs as one stack, then score and save each of them."""
    loops = [make_loop(run, base, base.settings.execution, progress, should_stop) for run in ready]
    by_name = {run.folder.path.name: run for run in ready}
    loop = StackedLoop(
        make_stack(base.loaded.model, [run.model for run in ready]),
        loops,
        list(by_name),
        base.loaded.layout,
        should_stop,
        lambda name, error: failed(by_name[name].folder, error),
    )
    trained = loop.run()
    done = {at.folder.name: at.progress for at in loop.loops}
    for name in trained:
        try:
            finish(by_name[name], base, done[name])
        except Exception as error:  # an error of one run must not stop the others from being saved
            failed(by_name[name].folder, error)
