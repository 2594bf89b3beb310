"""Make studies from constructed run folders, so that their scores are known."""

from __future__ import annotations

import functools
import io
import json
import math
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from petransfer.recipe.loading import validate
from petransfer.recipe.schema import Recipe
from petransfer.study.folders import RunFolder, StudyFolder
from petransfer.study.grid import Cell, expand
from petransfer.study.sweep import sweep_cells, sweep_folder, update_sweep

METHODS = [
    {"name": "lora", "bits": 32},
    {"name": "lora", "bits": 4},
    {"name": "full", "bits": 32, "rate_scaling": "rms"},
]


def recipe_of(**changes: Any) -> Recipe:
    """Return a recipe with three arms, LoRA at 32 and 4 bits, full fine-tuning, two splits and six seeds."""
    content: dict[str, Any] = {
        "name": "made",
        "description": "A study that was never run.",
        "task": {"name": "scan", "splits": ["add_jump", "right"]},
        "arms": ["english", "german", "scratch"],
        "methods": METHODS,
        "seeds": [0, 1, 2, 3, 4, 5],
        "train": {"steps": 100, "learning_rate": {"lora": 2e-3, "full": 2e-2}},
        "effects": [
            "english-scratch",
            "german-scratch",
            {"contrast": "4-bit - lora 32-bit"},
            {"retention": "english-scratch", "under": "4-bit"},
            {"retention": "german-scratch", "under": "4-bit"},
        ],
    }
    return validate(content | changes, "here")


def level_of(cell: Cell) -> float:
    """Return a run's share of correct answers: English about 60 %, German 21 %, scratch 20 %, and less with 4 bits."""
    base = {"english": 0.60, "german": 0.21, "scratch": 0.20}[cell.arm]
    return base - (0.03 if "4-bit" in cell.method else 0.0) + 0.01 * (cell.seed % 3) + 0.004 * cell.seed


def make(
    path: Path,
    recipe: Recipe,
    level: Callable[[Cell], float] = level_of,
    *,
    examples: int = 100,
    categories: int | tuple[str, ...] = 2,
    skip: Callable[[Cell], bool] = lambda cell: False,
    texts: bool = True,
    scores: Callable[[Cell], dict[str, float]] = lambda cell: {},
) -> tuple[list[Cell], StudyFolder]:
    """Write the folder of a study with finished runs. Return its cells and the folder.

    level: returns a run's share of correct answers. categories: their number or names. skip: whether a run is left out.
    texts: whether the examples have texts. scores: returns a run's test scores in metrics other than exact match.
    """
    cases = tuple(f"case_{at}" for at in range(categories)) if isinstance(categories, int) else categories
    folder = StudyFolder(path)
    folder.open(recipe)
    cells = expand(recipe)
    for cell in cells:
        if not skip(cell):
            finish(folder, cell, level(cell), examples, cases, texts, scores(cell))
    return cells, folder


def finish(
    folder: StudyFolder,
    cell: Cell,
    level: float,
    examples: int,
    categories: tuple[str, ...],
    texts: bool,
    scores: dict[str, float],
) -> None:
    """Write the folder of a finished run. `level` is the share of correct answers, which are drawn at random."""
    run = folder.run(cell.run_id)
    run.path.mkdir(parents=True, exist_ok=True)
    run.write_json("spec.json", cell.spec.as_dict())
    curve = [(50, 20.0 + cell.seed), (100, 90.0 + cell.seed)]
    lines = [json.dumps({"step": step, "loss": 1.0, "seconds": 9.0, "dev_em": em}) for step, em in curve]
    (run.path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    content, measured = _rows(cell.seed, level, examples, categories, texts)
    (run.path / "examples.parquet").write_bytes(content)
    run.finish(
        {
            "steps": 100,
            "dev": measured | {"exact_match": min(100.0, 90.0 + cell.seed)},
            "test": measured | scores,
            "trained_parameters": 1_700_000 if cell.spec.method.name == "full" else 90_000,
            "environment": {"packages": {"petransfer": "0"}, "python": "3", "device": "cpu", "threads": 1, "cores": 2},
        }
    )


def remove_test_score(run: RunFolder) -> None:
    """Make a finished run one that was not scored on the test set, as with `dev_only`."""
    result = run.result()
    assert result
    del result["test"]
    run.write_json("result.json", result)
    (run.path / "examples.parquet").unlink()


@functools.lru_cache(maxsize=256)  # runs on different splits, and in the studies of different tests, have the same rows
def _rows(
    seed: int, level: float, examples: int, categories: tuple[str, ...], texts: bool
) -> tuple[bytes, dict[str, Any]]:
    """Return the content of a run's examples.parquet, and its scores."""
    right = np.zeros(examples, dtype=bool)
    right[np.random.default_rng(seed).permutation(examples)[: round(level * examples)]] = True
    names = np.array([categories[at % len(categories)] for at in range(examples)])
    table: dict[str, Any] = {
        "index": np.arange(examples),
        "category": names,
        "correct": right,
        "margin": np.where(right, 1.0, -1.0),
        "log_prob": np.full(examples, -10.0 * (1 - level)),
        "tokens": np.full(examples, 10),
        "tokens_correct": np.where(right, 10, 9),
    }
    if texts:
        drawn = np.arange(examples) < 8
        table["prediction"] = [
            ("WALK LEFT" if right[at] else "WALK <RIGHT>") if drawn[at] else None for at in range(examples)
        ]
        table["input"] = ["walk left & back" if one else None for one in drawn]
        table["target"] = ["WALK LEFT" if one else None for one in drawn]
    content = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(table), content)
    by_category = {
        name: {"exact_match": float(100 * right[names == name].mean()), "examples": int((names == name).sum())}
        for name in sorted(set(names))
    }
    return content.getvalue(), {
        "exact_match": float(100 * right.mean()),
        "log_prob_per_token": -(1 - level),
        "disagreements": 0,
        "categories": by_category,
    }


def sweep(study: StudyFolder, recipe: Recipe) -> None:
    """Write the sweep.json of a study: 0.5, 1 and 2 times each learning rate, for 50 steps. The largest is best."""
    own = expand(recipe)
    cells = sweep_cells([cell for cell in own if cell.seed == 0], (), (0.5, 1, 2), 50)
    for cell in cells:
        run = sweep_folder(study).run(cell.run_id)
        run.path.mkdir(parents=True)
        run.write_json("spec.json", cell.spec.as_dict())
        em = 50 + 10 * math.log10(cell.spec.train.learning_rate)
        dev = {"exact_match": em, "log_prob_per_token": -0.5, "disagreements": 0}
        run.finish({"steps": 50, "trained_parameters": 90_000, "dev": dev})
    update_sweep(recipe, own, cells, study)


def draw_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write no plot files and show empty plots on the page, because drawing takes nine tenths of a report's time."""
    monkeypatch.setattr("petransfer.report.plot_files.save_all", lambda *given: None)
    monkeypatch.setattr("petransfer.report.html_parts.inline_svg", empty_picture)


def empty_picture(figure: object, name: str, alt: str) -> str:
    """Return an empty SVG in place of a plot, with the description of the plot."""
    return f'<svg class="chart" aria-label="{escape(alt)}"></svg>'
