"""A study's folder that is moved during training: training ends at once, and can resume in the new folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from petransfer.training.metrics_file import MetricsFile
from tests.cli.calls import call


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("seeds", ["0", "0,1"])
def test_training_ends_if_its_folder_is_moved_and_resumes_in_the_new_folder(
    seeds: str, tiny_t5: Path, tiny_rows: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    append = MetricsFile.append
    steps: list[int] = []

    def moving(self: MetricsFile, line: dict[str, object]) -> None:
        steps.append(int(str(line["step"])))
        if len(steps) == 6:
            Path("study").rename("moved")
        append(self, line)

    monkeypatch.setattr(MetricsFile, "append", moving)
    options = ["--bits", "32", "--steps", "8", "--test", "4", "--cpu", "--seeds", seeds]
    command = ["train", str(tiny_t5), str(tiny_rows), *options, "--save-every", "0", "--out"]
    assert call(monkeypatch, *command, "study") == 1
    message = capsys.readouterr().err
    assert "was moved or removed during training" in message
    assert "its new place with --out" in message
    assert len(steps) == 6, "no step and no run may follow the move"
    assert not Path("study", "recipe.yaml").exists()
    assert not list(Path("study").rglob("DONE"))
    assert call(monkeypatch, *command, "moved") == 0
    assert steps[6] == 6, "training must resume from the last training state"
    assert len(list(Path("moved").rglob("DONE"))) == len(seeds.split(","))
