"""Processes of a launcher: their index, their wait for each other, and launches that are refused."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from petransfer.errors import UserError
from petransfer.recipe.run_spec import MethodSpec, RunSpec, TrainSpec
from petransfer.study.launched_processes import LaunchedProcess, launched_process, refuse_launch
from petransfer.study.local_executor import stop_on_signals
from petransfer.study.process_group import ProcessGroup, default_signal_handlers
from tests.cli.calls import call

NAMES = ("RANK", "WORLD_SIZE", "PMI_RANK", "PMI_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE")


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unset the environment variables of launchers."""
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("message", "place"),
    [
        ({}, LaunchedProcess()),
        ({"RANK": "1", "WORLD_SIZE": "2"}, LaunchedProcess(1, 2)),
        ({"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4"}, LaunchedProcess(3, 4)),
        ({"RANK": "0"}, LaunchedProcess()),
        ({"RANK": "2", "WORLD_SIZE": "2"}, LaunchedProcess()),
        ({"RANK": "x", "WORLD_SIZE": "2"}, LaunchedProcess()),
    ],
)
def test_the_process_index_is_read_from_the_environment(
    message: dict[str, str], place: LaunchedProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in message.items():
        monkeypatch.setenv(name, value)
    assert launched_process() == place
    assert launched_process().leads == (place.index == 0)
    assert launched_process().shared == (place.count > 1)


def test_only_the_first_process_executes_predict_and_pretrain_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert call(monkeypatch, "predict", "nowhere", "text") == 0
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("RANK", "0")
    assert call(monkeypatch, "predict", "nowhere", "text") == 2
    assert "nowhere" in capsys.readouterr().err
    assert call(monkeypatch, "pretrain", "--recipe", "pretrain-nano") == 2
    assert "pretrain does not share a run among processes" in capsys.readouterr().err


def test_a_warning_is_logged_if_accelerate_started_only_one_process(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    refuse_launch([])
    assert not caplog.text
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")  # set only if several processes were requested
    refuse_launch([])
    assert "Accelerate started only one process" in caplog.text
    assert "--multi_gpu" in caplog.text


@pytest.mark.parametrize(("name", "message"), [("DEEPSPEED", "DeepSpeed"), ("MEGATRON_LM", "Megatron-LM")])
def test_deepspeed_and_megatron_are_refused_before_a_folder_is_created(
    name: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    assert call(monkeypatch, "run", "--recipe", "smoke", "--out", str(tmp_path / "out")) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "use FSDP" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("told", "changes", "message"),
    [
        ({"FSDP_VERSION": "1"}, {}, "fsdp_version: 2"),
        ({"WORLD_SIZE": "1", "RANK": "0"}, {}, "only one process"),
        ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, {}, "leave it out"),
        ({}, {"method": MethodSpec("lora", bits=4, rank=4, alpha=8.0)}, "lora at 4 bits.*quantised"),
        ({}, {"method": MethodSpec("lora", bits=8, rank=4, alpha=8.0)}, "lora at 8 bits.*quantised"),
        ({}, {"method": MethodSpec("ln", bits=16)}, "ln at 16 bits.*bits: 32"),
        ({}, {"train": TrainSpec(8, 8, 1e-3, optimizer="adamw-8bit")}, "train.optimizer: adamw"),
    ],
)
def test_launches_that_fsdp_does_not_support_are_refused_in_one_line(
    told: dict[str, str],
    changes: dict[str, Any],
    message: str,
    tiny_spec: Callable[..., RunSpec],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    launched = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "RANK": "0", "WORLD_SIZE": "2"}
    for name, value in (launched | told).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message) as refused:
        refuse_launch([tiny_spec(), tiny_spec(**changes)])
    assert "\n" not in str(refused.value)


def test_launches_that_fsdp_supports_are_not_refused(
    tiny_spec: Callable[..., RunSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_launch([tiny_spec(MethodSpec("lora", bits=4, rank=4, alpha=8.0))])
    launched = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "RANK": "1", "WORLD_SIZE": "2"}
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    refuse_launch([tiny_spec(MethodSpec(name, bits=16, rank=4, alpha=8.0)) for name in ("lora", "dora", "full")])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--executor", "slurm"), "slurm"),
        (("--address", "auto"), "--executor ray"),
        (("--executor", "ray", "--processes", "2"), "remove --processes"),
        (("--workers", "2", "--processes", "2"), "use only one of them"),
        (("--shard", "3/2"), "--shard 3/2"),
    ],
)
def test_invalid_and_contradictory_execution_options_are_refused(
    options: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "run", "--recipe", "smoke", *options) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("late", [0.0, 60.0])
def test_only_a_long_wait_for_other_processes_gives_a_warning(
    late: float, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A wait of a few seconds is usual and gives no warning, because --quiet does not hide warnings."""

    def state(**_: object) -> None:
        assert os.environ["OMP_NUM_THREADS"] == "2"  # Accelerate accepts only one whole number
        time.sleep(0.3)
        raise InterruptedError

    monkeypatch.setattr("petransfer.study.process_group.LATE", late)
    caplog.set_level("INFO", logger="petransfer")
    monkeypatch.setattr("petransfer.study.process_group.PartialState", state)
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "OMP_NUM_THREADS": "2,1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InterruptedError):
        ProcessGroup.join(True, lambda: False)
    told = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert [level for level, _ in told] == ["INFO"] + ["WARNING"] * (late == 0)
    assert "process 1 of 2 waits" in told[0][1]
    assert late or ("WORLD_SIZE=2" in told[1][1] and "unset these variables" in told[1][1])


@pytest.mark.parametrize("ends", [True, False])
def test_a_process_that_waits_for_the_others_ends_with_its_launcher(
    ends: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A launcher that is killed while its processes start cannot end them. The processes can then never connect."""
    monkeypatch.setattr("petransfer.study.process_group.LOOK", 0.05)
    monkeypatch.setattr("petransfer.study.process_group.PartialState", lambda **_: time.sleep(60))
    for name, value in {"RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    gone, held = os.pipe()
    launcher = os.fork()
    if launcher == 0:
        waiting = os.fork()
        if waiting == 0:
            ProcessGroup.join(True, lambda: False)
        os.write(held, f"{waiting}\n".encode())
        time.sleep(0 if ends else 60)
        os._exit(0)
    os.close(held)
    with os.fdopen(gone) as pipe:
        waiting = int(pipe.readline())
        ended = bool(select.select([pipe], [], [], 10 if ends else 0.5)[0])  # the pipe closes when its last writer ends
        for process in (launcher, *([] if ended else [waiting])):
            os.kill(process, signal.SIGKILL)
        os.waitpid(launcher, 0)
    assert ended == ends


def test_signals_have_default_handlers_while_a_process_waits_for_the_others() -> None:
    """A signal handler in Python would not run while the process waits in a library."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    with stop_on_signals():
        set_before = [signal.getsignal(number) for number in numbers]
        with default_signal_handlers():
            assert [signal.getsignal(number) for number in numbers] == [signal.SIG_DFL] * 2
        assert [signal.getsignal(number) for number in numbers] == set_before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_process_that_waits_for_the_others(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, says = os.pipe()

    def state(**_: object) -> None:
        os.write(says, b"waits")
        time.sleep(10)  # with a handler in Python, the wait would continue after the signal

    monkeypatch.setattr("petransfer.study.process_group.PartialState", state)
    for name, value in {"RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    waiting = os.fork()
    if waiting == 0:
        with stop_on_signals() as stopped, contextlib.suppress(BaseException):
            ProcessGroup.join(True, stopped)
        os._exit(0)
    os.close(says)
    with os.fdopen(begun, "rb") as pipe:
        assert pipe.read(5) == b"waits"
        os.kill(waiting, number)
    assert os.waitstatus_to_exitcode(os.waitpid(waiting, 0)[1]) == -number
