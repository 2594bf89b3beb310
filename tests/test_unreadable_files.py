"""Test that unreadable files (no permission, failing disk, Git LFS pointer) are not reported as damaged."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from petransfer.errors import UserError
from petransfer.recipe.loading import load_recipe
from petransfer.sharing import bundle_zip, examples_file, safe_reading
from petransfer.study import damaged_runs, folders
from petransfer.training.metrics_file import read_metrics
from petransfer.training.state import _tensors_in
from tests.cli import calls
from tests.report.made import METHODS, make, recipe_of

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 12345\n"
READERS: dict[str, Callable[[Path], Any]] = {
    "result.json": damaged_runs.read_json,
    "adapter_config.json": safe_reading.read_json,
    "README.md": safe_reading.read_text,
    "adapter_model.safetensors": safe_reading.read_header,
    "examples.parquet": examples_file.read_table,
    "a.petransfer.zip": lambda path: bundle_zip.read_zip(path, path.parent),
    "metrics.jsonl": read_metrics,
    "model.safetensors": _tensors_in,
    "recipe.yaml": lambda path: load_recipe(str(path)),
}


def _failing(patch: pytest.MonkeyPatch, file: str, number: int) -> None:
    """Make opening a file with this name fail. Changed permissions would have no effect, because root ignores them."""
    real = io.open

    def opened(path: Any, *how: Any, **more: Any) -> Any:
        if Path(path).name == file:
            raise OSError(number, os.strerror(number), str(path))
        return real(path, *how, **more)

    patch.setattr(io, "open", opened)


@pytest.mark.parametrize("file", READERS)
def test_each_reader_reports_why_a_file_cannot_be_read(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / file
    path.write_text(POINTER)
    with pytest.raises(UserError, match=rf"{file} is a Git LFS pointer.*`git lfs pull`"):
        READERS[file](path)
    for number, advice in ((errno.EACCES, "change its permissions"), (errno.EIO, "try again")):
        with monkeypatch.context() as patch:
            _failing(patch, file, number)
            with pytest.raises(UserError) as refused:
                READERS[file](path)
        assert str(refused.value).startswith(f"{path} cannot be read ({os.strerror(number)}); {advice}")


def test_a_finished_run_that_cannot_be_read_is_not_reported_as_damaged(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cells, folder = make(Path("study"), recipe_of(arms=["english"], methods=[METHODS[0]], effects=[]), examples=10)
    run = folder.run(cells[0].run_id).path
    verbs = (("status", "study"), ("report", "./study"), ("run", "study", "--cpu", "--repair"))
    for file in ("result.json", "spec.json", "examples.parquet"):
        for verb in verbs:
            with monkeypatch.context() as patch:
                _failing(patch, file, errno.EACCES)
                damaged_runs.damage_of.cache_clear()
                error = calls.refused(patch, capsys, *verb)
            assert f"{run / file} cannot be read (Permission denied)" in error
            assert "repair" not in error
    (run / "examples.parquet").write_text(POINTER)
    for verb in verbs:
        assert "git lfs pull" in calls.refused(monkeypatch, capsys, *verb)
    assert (run / "DONE").exists()


def test_a_folder_of_runs_that_cannot_be_read_is_not_reported_as_empty(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make(Path("study"), recipe_of(arms=["english"], methods=[METHODS[0]], effects=[]), examples=10)

    def denied(path: Any = ".") -> Any:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(folders.os, "listdir", denied)
    error = calls.refused(monkeypatch, capsys, "status", "study")
    assert f"{Path('study', 'runs')} cannot be read (Permission denied); change its permissions" in error
