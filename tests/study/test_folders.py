"""Folders of studies and runs: finished and killed runs, claims, and damaged or read-only folders."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from petransfer.atomic_files import replacing, write_text
from petransfer.cli.run import _log_interrupted
from petransfer.errors import UserError
from petransfer.recipe.loading import load_recipe
from petransfer.study.folders import RunFolder, StudyFolder
from petransfer.study.grid import expand
from petransfer.study.stack_groups import common_start, resumable_groups
from petransfer.study.study import StudyGrid, load_grid
from petransfer.study.train_folder import differences
from petransfer.study.worker_losses import note_failure


@pytest.mark.parametrize("killed_at", ["result.json", "DONE"])
def test_a_run_killed_while_its_result_is_written_is_not_done(
    killed_at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(tmp_path)
    (tmp_path / "state" / "step-000000001").mkdir(parents=True)
    write = RunFolder.write_json

    def dies(self: RunFolder, name: str, content: dict[str, Any]) -> None:
        if name == killed_at:
            raise KeyboardInterrupt
        write(self, name, content)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "write_json", dies)
        with pytest.raises(KeyboardInterrupt):
            folder.finish({"run_id": tmp_path.name})
    assert not folder.done
    assert folder.result() is None
    assert (tmp_path / "state" / "step-000000001").exists()
    folder.finish({"run_id": tmp_path.name})
    assert folder.done
    assert folder.result() == {"run_id": tmp_path.name}
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    "left",
    [[".lock"], [".lock", ".recipe.yaml.partial"], ["runs/"], [".lock", "runs/", "sweep.json"], []],
    ids=["lock", "recipe being written", "runs alone", "sweep", "empty"],
)
def test_the_folder_of_a_study_killed_at_its_start_can_be_opened(left: list[str], tmp_path: Path) -> None:
    for name in left:
        (tmp_path / name).mkdir() if name.endswith("/") else (tmp_path / name).write_text("name: sm")
    StudyFolder(tmp_path).open(load_recipe("smoke"))
    assert load_recipe(str(tmp_path / "recipe.yaml")).name == "smoke"
    assert {path.name for path in tmp_path.iterdir()} == {".lock", "recipe.yaml", "runs"} | {
        name.rstrip("/") for name in left if not name.endswith(".partial")
    }


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(UserError, match=r"thesis\.tex.*--out"):
        StudyFolder(tmp_path).open(load_recipe("smoke"))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("petransfer.study.folders.write_text", denied)
    with pytest.raises(UserError, match=r"cannot be written to \(Permission denied\).*--out"):
        StudyFolder(tmp_path).open(load_recipe("smoke"))


@pytest.mark.filterwarnings("error")
def test_the_warning_about_a_file_system_without_locks_is_logged_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def missing(*_: int) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", missing)
    study = StudyFolder(tmp_path / "study")
    for _ in range(2):
        study.open(load_recipe("smoke"))
        with study.run("abc").claim() as held:
            assert held
    assert [record.message.partition(",")[0] for record in caplog.records] == [
        f"the file system of {tmp_path / 'study'} has no locks"
    ]


def test_a_study_on_a_read_only_disk_can_be_planned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def read_only(**_: Any) -> None:
        raise OSError(30, "Read-only file system")

    study = StudyFolder(tmp_path)
    study.open(load_recipe("smoke"))
    monkeypatch.setattr("petransfer.study.folders.tempfile.TemporaryFile", read_only)
    with pytest.raises(UserError, match=r"cannot be written to \(Read-only file system\).*--out"):
        study.check("smoke")
    with pytest.raises(UserError, match="cannot be written to"):
        StudyFolder(tmp_path / "new").check("smoke", to_write=False)
    study.check("smoke", to_write=False)
    assert "cannot be written to (Read-only file system)" in caplog.text


def test_differences_include_settings_that_only_one_of_two_recipes_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, recipe = StudyFolder(tmp_path), load_recipe("smoke")
    study.open(load_recipe("smoke", ["train.steps=null", "train.epochs=2"]))
    monkeypatch.setattr(StudyFolder, "names", lambda self: {"a"})
    monkeypatch.setattr(RunFolder, "status", lambda self: "done")
    found = differences(tmp_path, recipe)
    assert "no train.steps (you asked for 12)" in found
    assert "train.epochs=2.0 (you asked for none)" in found


def test_a_file_is_written_completely_or_not_at_all(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "old")
    with pytest.raises(UnicodeEncodeError), replacing(tmp_path / "a") as partial:
        partial.write_text("new \ud800", encoding="utf-8")
    assert (tmp_path / "a").read_text() == "old"
    with replacing(tmp_path / "folder") as partial:
        partial.mkdir()
        (partial / "b").write_text("b")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "b", "folder"]


def _finished(tmp_path: Path) -> tuple[StudyGrid, RunFolder]:
    """Make a study with one finished run."""
    (cell,) = expand(load_recipe("smoke", options={"arms": ["scratch"], "effects": []}))
    grid = StudyGrid(load_recipe("smoke"), [cell], StudyFolder(tmp_path), [cell])
    folder = grid.folder.run(cell.run_id)
    folder.path.mkdir(parents=True)
    folder.write_json("spec.json", cell.spec.as_dict())
    _write_examples(folder.path, [True, False])
    scores = {"exact_match": 50.0, "disagreements": 0}
    folder.finish({"run_id": cell.run_id, "steps": 1, "trained_parameters": 1, "dev": scores, "test": scores})
    return grid, folder


def _write_examples(folder: Path, correct: list[bool]) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"correct": correct}), folder / "examples.parquet")


def _replace(path: Path, make: Callable[[Path], None]) -> None:
    """Replace a file by a named pipe or a folder, which has another modification time."""
    path.unlink()
    make(path)


def _change(name: str, change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        change(content)
        (folder / name).write_text(json.dumps(content))

    return apply


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("result.json", lambda folder: (folder / "result.json").write_text('{"run_id": "')),
        ("result.json", lambda folder: (folder / "result.json").write_text("")),
        ("result.json", lambda folder: (folder / "result.json").write_bytes(b"\xff\xfe\x00")),
        ("result.json", lambda folder: (folder / "result.json").write_text("[" * 100_000)),
        ("result.json", lambda folder: (folder / "result.json").unlink()),
        ("result.json", lambda folder: _replace(folder / "result.json", os.mkfifo)),
        ("result.json", lambda folder: _replace(folder / "result.json", os.mkdir)),
        ("result.json", _change("result.json", lambda content: content.update(seconds=10**400))),
        ("result.json", _change("result.json", lambda content: content.pop("steps"))),
        ("result.json", _change("result.json", lambda content: content.update(seconds="long"))),
        ("result.json", _change("result.json", lambda content: content["test"].update(examples=[1]))),
        ("result.json", _change("result.json", lambda content: content["test"].update(categories={"a": 1}))),
        ("spec.json", lambda folder: _replace(folder / "spec.json", os.mkfifo)),
        ("result.json", _change("result.json", lambda content: content.update(test=5))),
        ("result.json", _change("result.json", lambda content: content["test"].update(exact_match="50"))),
        ("result.json", _change("result.json", lambda content: content["test"].update(exact_match=1000))),
        ("result.json", _change("result.json", lambda content: content["dev"].update(exact_match=float("nan")))),
        ("result.json", _change("result.json", lambda content: content.update(run_id="f" * 12))),
        ("spec.json", _change("spec.json", lambda content: content.update(seed=7))),
        ("spec.json", lambda folder: (folder / "spec.json").write_text("{}")),
        ("spec.json", lambda folder: (folder / "spec.json").unlink()),
        ("examples.parquet", lambda folder: (folder / "examples.parquet").unlink()),
        ("examples.parquet", lambda folder: (folder / "examples.parquet").write_bytes(b"PAR1\0")),
        ("examples.parquet", lambda folder: _write_examples(folder, [True, True])),
        ("examples.parquet", lambda folder: _write_examples(folder, [])),
        ("examples.parquet", lambda folder: _replace(folder / "examples.parquet", os.mkfifo)),
    ],
)
def test_a_damaged_run_is_reported_and_repair_resets_it_to_waiting(
    name: str, damage: Callable[[Path], Any], tmp_path: Path
) -> None:
    grid, folder = _finished(tmp_path)
    assert folder.status() == "done"
    assert not grid.damaged
    os.utime(folder.path / name, ns=(1, 1))  # so that the damage always changes the modification time
    damage(folder.path)
    assert folder.status() == "damaged"
    assert folder.result() is None
    assert not folder.done
    (output,) = grid.damaged.values()
    assert str(folder.path / name) in output
    assert "\n" not in output
    assert not grid.waiting
    assert grid.repair() == [folder.path.name]
    assert folder.status() == "waiting"
    assert len(grid.waiting) == 1


def test_repair_keeps_a_run_that_another_process_has_repeated_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid, folder = _finished(tmp_path)
    right = (folder.path / "result.json").read_bytes()
    os.utime(folder.path / "result.json", ns=(1, 1))
    (folder.path / "result.json").write_text("{}")
    claim = RunFolder.claim

    def late(run: RunFolder) -> Any:
        (run.path / "result.json").write_bytes(right)  # as if another process had just written it
        return claim(run)

    monkeypatch.setattr(RunFolder, "claim", late)
    grid.repair()
    assert folder.status() == "done"


def test_a_claim_belongs_to_one_process_and_ends_with_it(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from petransfer.study.folders import RunFolder\n"
        "with RunFolder(Path(sys.argv[1])).claim() as held: print(held, flush=True); time.sleep(60)"
    )
    folder = RunFolder(tmp_path)
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "True\n"
        assert folder.status() == "running"
        assert folder.claimed_by(other.pid)
        with folder.claim() as held:
            assert not held
        other.kill()
        other.wait()
        assert folder.status() == "waiting"
        with folder.claim() as held:
            assert held
            assert folder.losses() == 1
    assert folder.claimed_by(other.pid)  # the killed process stays recorded as an owner
    folder.forget_losses()
    assert not folder.claimed_by(other.pid)
    with folder.claim():
        assert folder.losses() == 0


@pytest.mark.parametrize(
    ("started_at", "now", "losses"),
    [
        ([], "", 0),
        (["", "", ""], "", 3),
        (["", "", ""], "step-1", 1),
        (["", "step-1", "step-1"], "step-1", 3),
        (["", "step-1", "step-1"], "step-2", 1),
        (["", "step-1", "step-2", "step-2"], "step-2", 3),
    ],
)
def test_losses_counts_the_workers_killed_at_the_newest_training_state(
    started_at: list[str], now: str, losses: int, tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path)
    lines = [f"machine {number}\t{state}\n" for number, state in enumerate(started_at)]
    (tmp_path / ".claim-owner").write_text("".join(lines))
    for state in {*started_at, now} - {""}:
        (tmp_path / "state" / state).mkdir(parents=True)
    with folder.claim() as held:
        assert held
        assert folder.losses() == losses
        folder.add_loss()
        assert folder.losses() == losses + 1
    assert folder.killed() == len(started_at) + 1


def test_an_error_after_the_results_were_saved_leaves_the_run_done(tmp_path: Path) -> None:
    """For example an error of a tracker. No file is removed, even if the error is a user's mistake."""
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    (folder.path / "adapter").mkdir()
    folder.finish({"run_id": "run"})
    note_failure(folder, UserError("the tracker has no such project"))
    assert folder.status() == "done"
    assert {path.name for path in folder.path.iterdir()} == {"result.json", "DONE", "adapter"}


@pytest.mark.parametrize(
    "text", ["name: 2021-99-99", "[" * 3000, "name: !!python/object:os.system {}", "- 1", "\x00", "a: &a [*a]"]
)
def test_a_study_folder_with_an_unreadable_recipe_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(UserError, match="cannot be read as a recipe; use --out"):
        StudyFolder(tmp_path).check("smoke")


def test_a_folder_that_another_training_has_taken_meanwhile_is_refused(tmp_path: Path) -> None:
    first, second = (load_recipe("smoke").model_copy(update={"seeds": seeds}) for seeds in ([0], [1]))
    chosen = [StudyFolder(tmp_path / "study", chosen_with="") for _ in range(3)]
    chosen[0].open(first)
    chosen[1].open(first)  # the same training
    with pytest.raises(UserError, match=r"just started in .*study; run the same command again"):
        chosen[2].open(second)
    assert load_recipe(str(tmp_path / "study" / "recipe.yaml")).seeds == [0]
    StudyFolder(tmp_path / "study").open(second)  # `run` does not set `chosen_with`, because its recipe may change


def test_an_error_that_cannot_be_recorded_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*given: object) -> None:
        raise OSError(28, "No space left on device")

    folder = RunFolder(tmp_path / "run")
    monkeypatch.setattr(RunFolder, "write_json", full)
    note_failure(folder, ValueError("the state is lost"))
    assert "run failed: the state is lost" in caplog.text
    assert "No space left on device" in caplog.text


@pytest.mark.parametrize("content", ["[]", "null", '{"identity": "x"}', "{}"])
def test_a_stack_ignores_a_state_whose_progress_cannot_be_read(content: str, tmp_path: Path) -> None:
    (cell, *_) = expand(load_recipe("smoke"))
    study = StudyFolder(tmp_path)
    state = study.run(cell.run_id).path / "state" / "step-000000002"
    state.mkdir(parents=True)
    (state / "progress.json").write_text(content)
    assert resumable_groups([cell], study) == [[cell]]
    assert common_start([cell.spec], [study.run(cell.run_id)]) == 0


def test_only_runs_with_a_usable_training_state_are_reported_as_resuming(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    content = load_recipe("smoke").model_dump(mode="json")
    grid = load_grid(content, options={"seeds": [0, 1]}, out=tmp_path)
    for at, cell in enumerate(grid.cells[:3]):
        state = tmp_path / "runs" / cell.run_id / "state" / "step-000000002"
        state.mkdir(parents=True)
        (state.parents[1] / "spec.json").write_text(json.dumps(cell.spec.as_dict()))
        identity = [cell.spec.canonical_json(), "another run", None][at]
        (state / "progress.json").write_text(json.dumps({"identity": identity}) if identity else "{")
    _log_interrupted(grid)
    assert "resuming 1 interrupted run from the last saved step" in caplog.text
    assert "starting 2 interrupted runs again from the first step, because no saved step can be used" in caplog.text
