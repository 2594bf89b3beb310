"""Threads of a process take turns: trainings run one after another, and other uses of a model between two steps."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import petransfer as pt
from petransfer.models.thread_turns import torch_state_lock, yield_to_waiting_thread
from petransfer.study.local_executor import Outcome
from petransfer.training.batches import Tensors
from petransfer.training.cpu.cpu_step import CpuFastPath, LabelScores


def test_trainings_run_one_after_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    running: list[int] = []
    most: list[int] = []

    def execute(*_: object) -> Outcome:
        running.append(1)
        most.append(len(running))
        time.sleep(0.1)
        running.pop()
        return Outcome(True, {}, ())

    monkeypatch.setattr("petransfer.api.prepare_study", lambda *_: object())
    monkeypatch.setattr("petransfer.api.execute_study", execute)

    def run(name: str) -> None:
        with pytest.raises(pt.RunError, match="stopped"):
            pt.Study("smoke", arms=["english"], seeds=[0], out=tmp_path / name).run(cpu=True)

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(run, ["first", "second"]))
    assert most == [1, 1]
    assert "another thread of this process is training a model" in caplog.text


def test_first_imports_in_several_threads_do_not_disturb_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Libraries such as transformers replace their module at the end of the import. Other threads keep the old one."""
    (tmp_path / "slow_library.py").write_text(
        "import sys, time, types\ntime.sleep(0.2)\nreal = types.ModuleType(__name__)\nreal.name = 1\n"
        "sys.modules[__name__] = real\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("first", "second"):
        (tmp_path / f"{name}_user.py").write_text(f"from slow_library import name as {name}\n")
        monkeypatch.setitem(pt._PUBLIC, name, f"{name}_user")
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(lambda name: getattr(pt, name), ["first", "second"]))
    assert found == [1, 1]
    for name in ("first", "second"):
        delattr(pt, name)


def test_other_threads_load_models_between_two_steps_of_a_training() -> None:
    with ThreadPoolExecutor(1) as threads, torch_state_lock():
        loading = threads.submit(pt.load, "nano/english", 32, device="cpu")
        with pytest.raises(TimeoutError):
            loading.result(timeout=0.3)
        for _ in range(10_000):  # steps of a training
            yield_to_waiting_thread()
            if loading.done():
                break
            time.sleep(0.001)
        assert loading.done()
        assert loading.exception() is None


def test_threads_score_one_model_one_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """The faster forward pass on a CPU changes layers of the model, so that two threads would disturb each other."""
    score_labels = CpuFastPath.score_labels

    def slow(path: CpuFastPath, batch: Tensors) -> LabelScores:
        time.sleep(0.05)
        return score_labels(path, batch)

    monkeypatch.setattr(CpuFastPath, "score_labels", slow)
    model, tokenizer = pt.load("nano/english", 32, device="cpu")
    with ThreadPoolExecutor(2) as threads:
        scoring = [threads.submit(pt.exact_match, model, tokenizer, ["to walk"], ["gehen"]) for _ in range(2)]
    assert [each.result() for each in scoring] == [0.0, 0.0]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # about a fork in a process with threads
def test_a_forked_process_does_not_wait_for_threads_of_its_parent() -> None:
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with torch_state_lock():
            held.set()
            done.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    child = os.fork()
    if child == 0:
        with torch_state_lock():
            os._exit(7)
    try:
        deadline = time.monotonic() + 20
        while (ended := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert ended == (child, 7 << 8)
    finally:
        done.set()
        thread.join()
