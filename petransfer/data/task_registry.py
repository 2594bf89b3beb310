"""The registry of tasks. The file of a task declares the task and its metadata in one `RegisteredTask`.

The built-in tasks are in `petransfer/data/tasks`. Another package adds a task by an entry point in the group
`petransfer.tasks`. The entry point has the name of the task; its value is `module:object`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from petransfer.data.logical_forms import Semantics
from petransfer.data.task import Task
from petransfer.errors import UserError, unknown
from petransfer.registries import Registry
from petransfer.user_paths import expanded


@dataclass(frozen=True)
class RegisteredTask:
    """The metadata of a task, and the function that makes the task.

    Args:
        name: Name of the task in recipes.
        factory: Function that makes the task without reading a file. Its keyword arguments are `data_dir` and the
            options of the task.
        title: Name of the task in tables and model cards.
        licence: Licence of the data, in the notation of the Hugging Face hub. None: not known.
        languages: ISO 639-1 codes of the languages of the inputs.
        hub_datasets: Ids of the data on the Hugging Face hub.
        citation: The publication: authors, year, title and source.
        category_titles: Title of each category, for tables.
        category_groups: Group of each category. An effect can be computed on the categories of one group.
        semantics: How to compare the meanings of prediction and target. None: only equal strings have equal meanings.
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
    """Return the metadata of a task. None if no installed package has the task."""
    return TASKS.get(name)


def task_title(name: str) -> str:
    """Return the title of a task. An unknown task has the title `name`."""
    info = task_info(name)
    return info.title if info else name


def categories_in(task: str, name: str) -> tuple[str, ...]:
    """Return the categories of a group. If no group is called `name`, return `name` as the only category.

    Args:
        task: Name of the task.
        name: Name of a group or of a category. If it is empty, the result is empty. If the task has no registered
            categories, every name is accepted.

    Raises:
        UserError: The task has registered categories, and `name` is neither one of them nor a group.
    """
    info = task_info(task)
    titles, groups = (info.category_titles, info.category_groups) if info else ({}, {})
    if not name:
        return ()
    found = tuple(category for category, group in groups.items() if group == name)
    if not found and titles and name not in titles:
        raise unknown(f"group of categories, or category, of {task}", name, [*dict.fromkeys(groups.values()), *titles])
    return found or (name,)


def load_task(name: str, data_dir: Path | str | None = None, /, **options: object) -> Task:
    """Return the task called `name`. No file is read.

    Args:
        name: Name in the registry, such as `scan` or `lines`.
        data_dir: Folder in which the task looks for its files first.
        **options: Options of the task's class (scan: `dev_size`; cogs: `version`; lines: `train`, `dev`, ...).

    Raises:
        UserError: The name, an option, or an option's value is unknown.

    Example:
        >>> load_task("scan", dev_size=100).train_size("add_jump")
        14570
    """
    factory = TASKS.lookup(name).factory
    known = [option for option in inspect.signature(factory).parameters if option != "data_dir"]
    if "data_dir" in options:
        raise UserError(
            f"data_dir is not an option of the task {name}. In a recipe, write `data_dir: FOLDER` on the same level as "
            f"`task:`. In Python, give the folder as the second argument: load_task('{name}', 'FOLDER')"
        )
    for option in options:
        if option not in known:
            raise unknown(f"option of task {name}", option, known)
    return factory(data_dir=expanded(data_dir) if data_dir else None, **options)


def task_splits(name: str) -> tuple[str, ...]:
    """Return the splits of the task called `name`, without reading any file."""
    return load_task(name).splits
