"""Start the workers of a study by forking, because importing torch in each worker takes five seconds."""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from typing import Any

import pytest

_CONTEXT = multiprocessing.get_context("fork")


class _Forking:
    """A replacement for the spawn context of `multiprocessing` that forks. Arguments are pickled, as with spawn."""

    RawValue = staticmethod(_CONTEXT.RawValue)

    @staticmethod
    def Process(target: Callable[..., None], args: tuple[Any, ...]) -> BaseProcess:
        *sent, stop = args  # the stop flag is shared memory, which is not pickled
        given: tuple[Any, ...] = pickle.loads(pickle.dumps(sent))
        return _CONTEXT.Process(target=target, args=(*given, stop))


def fork_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `local_executor` fork its workers."""
    monkeypatch.setattr("petransfer.study.local_executor.multiprocessing.get_context", lambda way: _Forking)
