"""Fixtures of all tests: small checkpoints with random weights, and specs whose runs take seconds."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Tests run in parallel. More threads than cores would slow down all of them.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from petransfer.models.registry import checkpoint_spec
from petransfer.recipe.run_spec import MethodSpec, RunSpec, TaskSpec, TrainSpec
from tests.tiny_models import keep, limit_t5_layers, make_tiny_t5

# Hypothesis tries the same examples in every session, so that a change cannot fail by bad luck. CONTRIBUTING.md
# describes how to try new examples.
settings.register_profile("same", derandomize=True, database=None)
settings.load_profile("same")

# Files with tests or fixtures that take ten seconds or more. They run first, so that no worker still runs one of them
# when all other workers are idle.
LONGEST = (
    "tests/invariants/",
    "tests/study/test_on_ray.py",
    "tests/docs/",
    "tests/report/test_page.py",
    "tests/training/test_two_processes.py",
    "tests/cli/test_run.py",
    "tests/memory/",
    "tests/data/test_memory.py",
    "tests/real/",
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Sort the longest tests to the front, and skip tests marked `gpu` or `slow` where necessary.

    Tests marked `gpu` are skipped if there is no CUDA device. With PETRANSFER_GPU_TESTS=cpu they are not skipped, and
    the tests in tests/gpu run on the CPU. Tests marked `slow` are skipped unless the option `-m` selects tests.
    """
    import torch

    items.sort(key=lambda item: not item.nodeid.startswith(LONGEST))
    if not config.getoption("-m"):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="slow: run it with -m slow"))
    if not torch.cuda.is_available() and os.environ.get("PETRANSFER_GPU_TESTS") != "cpu":
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session", autouse=True)
def _modules_are_no_garbage() -> None:
    """Exclude the imported modules from garbage collection.

    With torch and similar libraries, each collection takes half a second. Every run collects garbage when it ends, and
    so does training in several processes.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_the_disk() -> Iterator[None]:
    """Disable fsync, because tests write thousands of small files. It only protects files from a power failure."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def _slow_work_is_not_named() -> Iterator[None]:
    """Prevent log lines about slow work, which a busy machine would add to the output that a test expects."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("petransfer.study.slow_work.SILENCE", 1e6)
        yield


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, which is the working directory and has a separate petransfer cache."""
    monkeypatch.setenv("PETRANSFER_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def tiny_t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A T5 with one encoder layer, one decoder layer and 32 dimensions."""
    return make_tiny_t5(tmp_path_factory.mktemp("tiny-t5"))


@pytest.fixture
def two_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limit every T5 of the registry to two layers each, because a memory prediction takes time for every layer."""
    limit_t5_layers(monkeypatch, 2)


@pytest.fixture(scope="session")
def tiny_gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 with one layer and 32 dimensions."""
    from transformers import GPT2Config, GPT2LMHeadModel

    def make(tokens: int) -> Any:
        config = GPT2Config(
            vocab_size=tokens, n_embd=32, n_layer=1, n_head=2, n_positions=128, resid_pdrop=0.1, embd_pdrop=0.1,
            attn_pdrop=0.1, pad_token_id=0, eos_token_id=1, bos_token_id=1,
        )  # fmt: skip
        return GPT2LMHeadModel(config)

    return keep(tmp_path_factory.mktemp("tiny-gpt2"), make)


LORA = MethodSpec("lora", bits=32, rank=4, alpha=8.0)
FULL = MethodSpec("full", bits=32)


@pytest.fixture(scope="session")
def tiny_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with 204 rows of SCAN that have at most eight actions.

    Encoding and scoring all of SCAN, or generating 48 actions, would take most of the time of a short run.
    """
    from petransfer.data import load_task

    rows = [row for row in load_task("scan").load("jump_around_right").train if len(row.target.split()) <= 8][::29]
    path = tmp_path_factory.mktemp("tiny-rows") / "rows.tsv"
    path.write_text("".join(f"{row.input}\t{row.target}\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def tiny_spec(tiny_t5: Path, tiny_rows: Path) -> Callable[..., RunSpec]:
    """A function that makes a spec with the tiny T5. Keyword arguments replace fields of the spec."""

    def make(method: MethodSpec = LORA, steps: int = 8, **changes: object) -> RunSpec:
        spec = RunSpec(
            checkpoint=checkpoint_spec(str(tiny_t5)),
            task=TaskSpec("lines", "held-out", options=(("dev", 20), ("test", 40), ("train", str(tiny_rows)))),
            method=method,
            train=TrainSpec(steps=steps, batch_size=8, learning_rate=2e-3),
            seed=0,
        )
        return replace(spec, **changes)  # type: ignore[arg-type]

    return make
