"""The benchmarks that a model can be trained and scored on, by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path

from petransfer.data.cogs import CogsTask
from petransfer.data.logical_forms import RECOGS, Semantics
from petransfer.data.own_rows import LinesTask
from petransfer.data.recogs import CogsVariableFreeTask, RecogsTask
from petransfer.data.scan import ScanTask
from petransfer.data.scan_mcd import ScanMcdTask
from petransfer.data.slog import SlogTask
from petransfer.data.task import Example, SplitData, Task, cut_dev
from petransfer.errors import unknown

__all__ = [
    "CLOSED",
    "SEMANTICS",
    "TASKS",
    "CogsTask",
    "Example",
    "LinesTask",
    "ScanTask",
    "SplitData",
    "Task",
    "cut_dev",
    "load_task",
    "task_splits",
]

TASKS: dict[str, Callable[..., Task]] = {
    "scan": ScanTask,
    "scan-mcd": ScanMcdTask,
    "cogs": CogsTask,
    "cogs-variable-free": CogsVariableFreeTask,
    "recogs": RecogsTask,
    "slog": SlogTask,
    "lines": LinesTask,
}
"""Makes a task from its `data_dir` and its own options. Making one reads no file; its `load` does."""

SEMANTICS: dict[str, Semantics] = {"recogs": RECOGS}
"""The tasks whose answers are also scored by what they mean."""


CLOSED: frozenset[str] = frozenset({"slog"})
"""The tasks whose examples are never written out in clear, by their authors' wish."""


def load_task(name: str, data_dir: Path | str | None = None, /, **options: object) -> Task:
    """The task called `name`, with the options of its class (scan: dev_size; scan-mcd: dev, dev_size; cogs: version).

    Raises:
        UserError: the name, or an option, or an option's value is unknown.
    """
    if name not in TASKS:
        raise unknown("task", name, TASKS)
    factory = TASKS[name]
    known = [option for option in inspect.signature(factory).parameters if option != "data_dir"]
    for option in options:
        if option not in known:
            raise unknown(f"option of task {name}", option, known)
    return factory(data_dir=Path(data_dir).expanduser() if data_dir else None, **options)


def task_splits(name: str) -> tuple[str, ...]:
    """The splits of the task called `name`, without reading any file.

    Raises:
        UserError: the name is unknown.
    """
    return load_task(name).splits
