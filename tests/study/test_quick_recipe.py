"""The recipe that `train` makes from a model and a data file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from petransfer.study.quick_recipe import TrainRequest, recipe_for


@pytest.mark.parametrize(
    ("kind", "tasks", "prefix"),
    [
        ("t5", {"summarization": {"prefix": "summarize: ", "num_beams": 4}}, "answer: "),
        ("t5", {"summarization": {"num_beams": 4}}, ""),
        ("t5", {"summarization": {"prefix": " "}}, ""),
        ("t5", ["summarization"], ""),
        ("bart", {"summarization": {"num_beams": 4, "length_penalty": 2.0}}, ""),
        ("bart", {"translation": {"prefix": "translate: "}}, ""),
        ("gpt2", {"text-generation": {"do_sample": True, "max_length": 50}}, ""),
    ],
)
def test_only_an_original_t5_gets_a_prefix(
    kind: str, tasks: object, prefix: str, tiny_t5: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PETRANSFER_CACHE", str(tmp_path / "cache"))
    (tmp_path / "rows.tsv").write_text("".join(f"say {n}\t{n}\n" for n in range(40)))
    folder = Path(shutil.copytree(tiny_t5, tmp_path / "base"))
    config = json.loads((folder / "config.json").read_text()) if kind == "t5" else {"model_type": kind}
    (folder / "config.json").write_text(json.dumps(config | {"task_specific_params": tasks}))
    recipe = recipe_for(str(folder), str(tmp_path / "rows.tsv"), TrainRequest(), [], False)
    assert recipe["task"]["prefix"] == prefix
