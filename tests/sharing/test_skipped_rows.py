"""An adapter that was trained with --skip-bad-rows is verified, scored and merged without the skipped rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import petransfer
from petransfer.data import Example
from petransfer.evaluation.exact_match import Evaluation, evaluate
from tests.cli.calls import call


def test_verify_evaluate_and_merge_skip_the_bad_rows_that_training_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PETRANSFER_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    targets = ["walk"] * 6 + ["</s> run"] * 2
    Path("a.jsonl").write_text(
        "".join(json.dumps({"input": f"in {n}", "target": t}) + "\n" for n, t in enumerate(targets))
    )
    for part in ("dev", "test"):
        rows = [{"input": f"{part} {n}", "target": target} for n, target in enumerate(targets)]
        Path(f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = ["a.jsonl", "--dev", "dev.jsonl", "--test", "test.jsonl"]
    arguments = [*files, "--steps", "2", "--cpu", "--out", "out"]
    assert call(monkeypatch, "train", "nano/english", *arguments, "--skip-bad-rows") == 0
    (result,) = Path("out/runs").glob("*/result.json")
    assert json.loads(result.read_text())["test"]["examples"] == 6
    capsys.readouterr()
    code = call(monkeypatch, "adapter", "verify", str(result.parent / "adapter"))
    message = capsys.readouterr().out
    assert code == 0, message
    assert "equal to the recorded value (6 examples)" in " ".join(message.split())
    adapter = petransfer.Adapter.load("out", device="cpu")
    scores = adapter.evaluate()
    assert (scores.examples, scores.exact_match) == (6, scores.claimed)
    scored = []

    def recorded(model: Any, loaded: Any, examples: Sequence[Example], *others: Any, **options: Any) -> Evaluation:
        scored.append([example.target for example in examples])
        return evaluate(model, loaded, examples, *others, **options)

    monkeypatch.setattr("petransfer.sharing.merge.evaluate", recorded)
    merged = adapter.merge("merged")
    assert scored == [["walk"] * 6]
    assert merged.dev == merged.dev_claimed
