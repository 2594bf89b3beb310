"""Standard streams that the caller closed, as some schedulers and daemons do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_command_works_with_closed_streams(closed: str, tmp_path: Path) -> None:
    code = "import sys; from petransfer.cli import main; sys.argv[0] = 'petransfer'; main()"
    command = f'"{sys.executable}" -c "{code}" plan smoke {closed}'
    done = subprocess.run(["bash", "-c", command], check=False, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
