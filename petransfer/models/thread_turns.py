"""Let the threads of a process take turns: PyTorch has one random state and one default dtype for all of them.

Without turns, a model that is loaded or trained in one thread changes the numbers of a training in another thread.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import threading
from collections.abc import Iterator

_log = logging.getLogger(__name__)


class _Turns:
    """The locks of a process.

    importing: held while a name of petransfer's API, or transformers, is imported.
    training: held during a whole training.
    state: held by the thread that uses PyTorch's common state.
    entrance: held by the thread that waits for `state`, so that a training cannot take `state` again before it.
    owner: the thread that holds `state`.
    """

    def __init__(self) -> None:
        self.importing, self.training = threading.RLock(), threading.RLock()
        self.state, self.entrance = threading.Lock(), threading.Lock()
        self.owner: int | None = None

    def enter(self) -> None:
        with self.entrance:
            self.state.acquire()
        self.owner = threading.get_ident()

    def leave(self) -> None:
        if self.owner == threading.get_ident():  # False after Ctrl-C inside `enter`
            self.owner = None
            self.state.release()


_turns = _Turns()


def _renew() -> None:
    global _turns
    _turns = _Turns()


if hasattr(os, "register_at_fork"):  # a new process must not wait for the threads of its parent
    os.register_at_fork(after_in_child=_renew)


@contextlib.contextmanager
def import_lock() -> Iterator[None]:
    """Import in one thread at a time.

    While one thread imports transformers for the first time, `from transformers import AutoConfig` in another thread
    fails, because transformers replaces its module at the end of its import.
    """
    with _turns.importing:
        yield


def import_transformers() -> None:
    """Import transformers in one thread at a time, before functions that import modules which need it."""
    with import_lock():
        importlib.import_module("transformers")


@contextlib.contextmanager
def training_lock() -> Iterator[None]:
    """Wait until no other thread of this process trains, and exclude other trainings during the `with` block."""
    turns = _turns
    if not turns.training.acquire(blocking=False):
        _log.warning("another thread of this process is training a model; this run starts when that one has ended")
        turns.training.acquire()
    try:
        yield
    finally:
        turns.training.release()


@contextlib.contextmanager
def torch_state_lock() -> Iterator[None]:
    """Use PyTorch's common state in one thread at a time: to load a model, to train, or to generate."""
    turns = _turns
    if turns.owner == threading.get_ident():
        yield
        return
    turns.enter()
    try:
        yield
    finally:
        turns.leave()


def yield_to_waiting_thread() -> None:
    """Let a waiting thread go first. Called after each training step, inside `torch_state_lock`."""
    turns = _turns
    if turns.entrance.locked() and turns.owner == threading.get_ident():
        turns.leave()
        turns.enter()
