"""A grid on a local Ray cluster of two nodes: killed workers, failures, limits, stacks and stop requests."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from petransfer.errors import UserError
from petransfer.study.folders import RunFolder, StudyFolder
from petransfer.study.resource_demands import Resources
from tests.study.jobs import Job, Named

ray = pytest.importorskip("ray", reason="Ray is an extra: pip install 'petransfer[ray]'")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A cluster of two nodes with two cores each, with this process connected to it."""
    from ray.cluster_utils import Cluster

    from petransfer.study.ray_executor import connect

    try:
        # Each process of Ray takes a second to start. So there is no dashboard, no worker starts before there is a
        # task, and idle workers remain for the next task.
        made = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 2,
                "include_dashboard": False,
                "include_log_monitor": False,
                "_system_config": {
                    "prestart_worker_first_driver": False,
                    "idle_worker_killing_time_threshold_ms": 600_000,
                },
            },
        )
        made.add_node(num_cpus=2)
    except Exception as error:  # a raylet ends if its agents have not started after fifteen seconds
        pytest.skip(f"Ray's own processes did not start on this machine: {error}")
    yield connect(made.address)
    ray.shutdown()
    made.shutdown()


def _carry_out(cluster: Any, path: Path, cells: list[Named], **options: Any) -> tuple[Any, StudyFolder]:
    from petransfer.study.ray_executor import execute_on_ray

    study = StudyFolder(path / "study")
    (study.path / "runs").mkdir(parents=True, exist_ok=True)
    (study.path / "recipe.yaml").write_text("name: x")
    (path / "marks").mkdir()
    demands = options.pop("demands", {cell.run_id: Resources() for cell in cells})
    tick: Callable[[], None] = options.pop("tick", lambda: None)
    most, threads, group = options.pop("most", 0), options.pop("threads", 1), options.pop("group", None)
    return execute_on_ray(cells, study, Job(path / "marks"), demands, most, threads, tick, cluster, group), study


def test_runs_with_killed_workers_are_restarted_and_failures_are_reported(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("petransfer.study.ray_executor.AGAIN", 0.1)
    kinds = ["end", "gets on and dies", "mistake", "dies"]
    cells = [Named(f"run{at}", does) for at, does in enumerate(kinds)]
    outcome, study = _carry_out(cluster, tmp_path, cells)
    marks = {path.name: path.read_text().splitlines() for path in (tmp_path / "marks").iterdir()}
    # run3 fails after three workers were killed at the same training state
    assert [len(marks[cell.run_id]) for cell in cells] == [1, 4, 1, 3]
    assert {line for lines in marks.values() for line in lines} == {str(tmp_path)}  # the working folder of all tasks
    assert [study.run(cell.run_id).status() for cell in cells] == ["done"] * 2 + ["failed"] * 2
    assert outcome.failures["run2"] == "the user's"
    assert outcome.mistakes == ("the user's",)
    assert "3 workers were killed at the same training state" in outcome.failures["run3"]
    assert not list(study.path.glob(".stop-*"))


def test_a_run_that_another_process_has_claimed_is_skipped(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("petransfer.study.ray_executor.HELD", 1.0)
    monkeypatch.setattr("petransfer.study.ray_executor.AGAIN", 0.1)
    with RunFolder(tmp_path / "study" / "runs" / "mine").claim() as claimed:
        assert claimed
        outcome, _ = _carry_out(cluster, tmp_path, [Named("mine"), Named("free")])
    assert outcome.elsewhere == 1
    assert sorted(path.name for path in (tmp_path / "marks").iterdir()) == ["free"]


def test_a_stack_is_one_task_but_its_runs_are_claimed_and_finished_separately(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("petransfer.study.ray_executor.HELD", 1.0)
    monkeypatch.setattr("petransfer.study.ray_executor.AGAIN", 0.1)
    kinds = ["end", "dies once", "mistake", "end", "end"]
    cells = [Named(f"run{at}", does) for at, does in enumerate(kinds)]
    with RunFolder(tmp_path / "study" / "runs" / "run3").claim() as claimed:
        assert claimed
        outcome, study = _carry_out(cluster, tmp_path, cells, group=lambda some: [list(some[:4]), list(some[4:])])
    marks = {path.name: path.read_text().splitlines() for path in (tmp_path / "marks").iterdir()}
    assert marks.pop("run4") == [str(Path.cwd())]  # not in a stack
    assert marks == {name: ["of 3", "of 3"] for name in ("run0", "run1", "run2")}
    assert [study.run(cell.run_id).done for cell in cells] == [True, True, False, False, True]
    assert outcome.failures["run2"] == "the user's"
    assert outcome.elsewhere == 1


def test_parallel_runs_are_limited_and_a_stop_request_reaches_the_nodes(cluster: Any, tmp_path: Path) -> None:
    message: list[bool] = []

    def tick() -> None:
        if not message and len(list((tmp_path / "marks").iterdir())) == 2:
            time.sleep(1.5)  # without the limit, a third run would start in this time
            message.append(True)
            signal.raise_signal(signal.SIGINT)

    cells = [Named(f"run{at}", "waits") for at in range(4)]
    outcome, study = _carry_out(cluster, tmp_path, cells, most=2, tick=tick)
    assert outcome.interrupted
    assert len(list((tmp_path / "marks").iterdir())) == 2
    assert not any(study.run(cell.run_id).done for cell in cells)


def test_more_threads_than_any_node_has_are_refused(cluster: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no node of the cluster has more than 2 cores"):
        _carry_out(cluster, tmp_path, [Named("a")], threads=3)


def test_a_missing_cluster_gives_one_line_of_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from petransfer.study.ray_executor import connect

    monkeypatch.setattr(ray, "is_initialized", lambda: False)

    def nowhere(**_: object) -> None:
        raise ConnectionError("Could not find any running Ray instance.\nPlease specify one.")

    monkeypatch.setattr(ray, "init", nowhere)
    with pytest.raises(UserError, match="start one with `ray start --head`") as error:
        connect("auto")
    assert "\n" not in str(error.value)
