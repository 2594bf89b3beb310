"""The registry of tasks. The file of a task declares the task and its metadata in one `RegisteredTask`.

The files of the built-in tasks are in `petransfer/data/tasks`. Another package adds a task by an entry point in the
group `petransfer.tasks`. The name of the entry point is the name of the task, and its value is `module:object`.
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
    """The metadata of a task, and the function that makes the task.

    Args:
        name: The name of the task in recipes.
        factory: Makes the task. Its keyword arguments are `data_dir` and the options of the task. It must not read any
            file.
        title: The name of the task in tables and model cards.
        licence: The licence of the data, as the Hugging Face hub names it; None if it is not known.
        languages: ISO 639-1 codes of the languages of the inputs.
        hub_datasets: Ids of the same data on the Hugging Face hub.
        citation: The publication: authors, year, title and source.
        category_titles: A title for each category, for tables.
        category_groups: The group of each category, for tables.
        semantics: How to compare the meaning of a prediction with that of its target. None: only equal strings have the
            same meaning.
        text_is_private: Whether inputs and targets must never be written to a file.
        published: False if the rows come from the user's own files.
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
    """Return the metadata of a task, or None if no installed package has the task.

    A task can be missing when a model card or a report describes a run from another machine.
    """
    return TASKS.get(name)


def task_title(name: str) -> str:
    """Return the title of a task, or `name` if no installed package has the task."""
    info = task_info(name)
    return info.title if info else name


def load_task(name: str, data_dir: Path | str | None = None, /, **options: object) -> Task:
    """Return the task called `name`. This reads no file; the task's method `load` reads its files.

    Args:
        name: A name in the registry, such as `scan` or `lines`.
        data_dir: The folder in which the task looks for its files first.
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
