"""Run folders: what makes a run done, and what a kill in between leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from petransfer.study.folders import RunFolder


@pytest.mark.parametrize("killed_at", ["result.json", "DONE"])
def test_a_run_killed_while_it_ends_is_not_done(
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
