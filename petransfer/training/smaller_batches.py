"""Repeat a training step with smaller micro-batches when memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from petransfer.errors import RunError
from petransfer.training.out_of_memory import OutOfMemory, raising_out_of_memory, release_cached_memory
from petransfer.training.state import Progress

Result = TypeVar("Result")


class HasMicroBatch(Protocol):
    """The members of a training loop that `with_smaller_micro_batches` uses."""

    progress: Progress

    def use_less_memory(self) -> None: ...


def with_smaller_micro_batches(attempt: Callable[[], Result], loops: Sequence[HasMicroBatch], message: str) -> Result:
    """Return the result of `attempt`. Halve the micro-batches and repeat the call each time memory runs out.

    Args:
        loops: loops whose micro-batches are halved. All loops have the same micro-batch.

    Raises:
        RunError: memory ran out with micro-batches of one example. `message` is the error's text.
    """
    while True:
        try:
            with raising_out_of_memory():
                return attempt()
        except OutOfMemory as error:
            if loops[0].progress.micro_batch <= 1:
                raise RunError(message) from error
        for loop in loops:
            loop.use_less_memory()
        release_cached_memory()
