"""The registry of tasks: every task's file declares the task and its metadata in one `RegisteredTask`.

Built-in tasks are the files of `petransfer/data/tasks`. Another package adds its own by an entry point of the group
`petransfer.tasks` whose name is the task's name and whose value is `module:object`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from petransfer.data.logical_forms import Semantics
from petransfer.data.task import Task
from petransfer.errors import unknown
from petransfer.registries import Registry


@dataclass(frozen=True)
class RegisteredTask:
    """A task: how to make it, and its metadata.

    Args:
        name: What a recipe calls the task.
        factory: Makes the task from the keyword `data_dir` and the task's own options. It must not read any file.
        title: The name in tables and cards.
        licence: The licence of the data, as the Hugging Face hub names it; None where it is not known.
        languages: ISO 639-1 codes of the inputs.
        hub_datasets: Ids of the same data on the Hugging Face hub.
        citation: Authors, year and where it was published.
        category_titles: A title for each category, for tables.
        category_groups: The group of each category, for tables.
        semantics: How to compare the meaning of a prediction and its target, where that differs from equal strings.
        text_is_private: Whether inputs and targets must never be written to a file.
        published: False where the rows are the user's own files.
    """

    name: str
    factory: Callable[..., Task]
    title: str
    licence: str | None = None
    languages: tuple[str, ...] = ()
    hub_datasets: tuple[str, ...] = ()
    citation: str = ""
    category_titles: Mapping[str, str] = field(default_factory=dict)
    category_groups: Mapping[str, str] = field(default_factory=dict)
    semantics: Semantics | None = None
    text_is_private: bool = False
    published: bool = True


TASKS: Registry[RegisteredTask] = Registry("task", RegisteredTask, "petransfer.data.tasks", "petransfer.tasks")


def task_info(name: str) -> RegisteredTask | None:
    """Return a task's metadata, or None where no installed package has the task.

    A card or a report can describe the run of a task that another machine has.
    """
    return TASKS.get(name)


def task_title(name: str) -> str:
    """Return the title of a task; the name itself where no installed package has the task."""
    info = task_info(name)
    return info.title if info else name


def load_task(name: str, data_dir: Path | str | None = None, /, **options: object) -> Task:
    """Make a task by its name, without reading any file; the task's `load` reads its files.

    Args:
        name: A name in the registry, such as `scan` or `lines`.
        data_dir: Where the task looks for its files first.
        **options: The options of the task's class (scan: `dev_size`; cogs: `version`; lines: `train`, `dev`, ...).

    Raises:
        UserError: The name, an option, or an option's value is unknown.

    Example:
        >>> load_task("scan", dev_size=100).train_size("add_jump")
        14570
    """
    factory = TASKS.lookup(name).factory
    known = [option for option in inspect.signature(factory).parameters if option != "data_dir"]
    for option in options:
        if option not in known:
            raise unknown(f"option of task {name}", option, known)
    return factory(data_dir=Path(data_dir).expanduser() if data_dir else None, **options)


def task_splits(name: str) -> tuple[str, ...]:
    """Return the splits of the task called `name`, without reading any file.

    Raises:
        UserError: The name is unknown.
    """
    return load_task(name).splits
