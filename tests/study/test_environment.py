"""The record of software and machine in a result."""

from __future__ import annotations

import subprocess
from pathlib import Path

import torch

from petransfer.study.environment import environment, git_commit


def test_the_git_commit_is_marked_as_dirty_if_files_were_changed(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    assert git_commit(tmp_path) is None
    git_commit.cache_clear()
    git("init", "-q")
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "-q", "-m", "First")
    commit = git("rev-parse", "HEAD")
    assert git_commit(tmp_path) == commit
    git_commit.cache_clear()
    (tmp_path / "file").write_text("two")
    assert git_commit(tmp_path) == f"{commit}-dirty"
    git_commit.cache_clear()


def test_a_result_records_the_cpu_and_the_versions() -> None:
    found = environment(torch.device("cpu"), 3)
    assert found["threads"] == 3
    assert {"cpu", "instruction_set", "amx", "cores", "python", "device"} <= found.keys()
    assert {"torch", "transformers", "peft"} <= found["packages"].keys()
