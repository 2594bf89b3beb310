"""Tasks: benchmarks and the user's own data. Load a task by name, read its splits, and encode its examples."""

from petransfer.data.task import Example, SplitData, Task, cut_dev
from petransfer.data.task_registry import TASKS, RegisteredTask, load_task, task_info, task_splits, task_title
from petransfer.data.tasks.lines import LinesTask

__all__ = [
    "TASKS",
    "Example",
    "LinesTask",
    "RegisteredTask",
    "SplitData",
    "Task",
    "cut_dev",
    "load_task",
    "task_info",
    "task_splits",
    "task_title",
]
