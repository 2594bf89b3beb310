"""Start the workers of a study by a fork: to import torch in each takes five seconds."""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from typing import Any

import pytest

_CONTEXT = multiprocessing.get_context("fork")


class _Forking:
    """Stands for the context of `multiprocessing` whose processes are spawned, and sends the same as it does."""

    RawValue = staticmethod(_CONTEXT.RawValue)

    @staticmethod
    def Process(target: Callable[..., None], args: tuple[Any, ...]) -> BaseProcess:
        *sent, stop = args  # the flag is shared memory
        given: tuple[Any, ...] = pickle.loads(pickle.dumps(sent))
        return _CONTEXT.Process(target=target, args=(*given, stop))


def fork_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `local_executor` fork its workers."""
    monkeypatch.setattr("petransfer.study.local_executor.multiprocessing.get_context", lambda way: _Forking)
