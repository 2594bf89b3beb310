"""Comparison of two studies: scores, effects, different settings, and runs that cannot be compared."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from petransfer.cli import main
from petransfer.effects.kinds.contrast import judge
from petransfer.effects.reference import paper_contrast, paper_scores
from petransfer.effects.runs import Runs
from petransfer.effects.study_effects import collect
from petransfer.report.comparison import _data_note, differences
from petransfer.study.grid import Cell
from petransfer.study.study import open_grid
from tests.report.made import level_of, make, recipe_of

Call = Callable[..., int]
RIGHT = {"name": "scan", "splits": ["right"]}  # one split instead of two: half the runs


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Call:
    def run(*words: str | Path) -> int:
        monkeypatch.setattr(sys, "argv", ["petransfer", "report", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            main()
        return int(stop.value.code or 0)

    return run


def test_equal_arms_and_effects_of_two_studies_are_compared(
    tmp_path: Path, call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "a", recipe_of(task=RIGHT))
    other = recipe_of(name="b", seeds=[10, 11, 12, 13, 14, 15], task=RIGHT)
    make(tmp_path / "b", other, lambda cell: level_of(cell) - (0.3 if cell.arm == "english" else 0.04), examples=400)
    with pytest.raises(AssertionError):  # the exit code is not 0, because the test examples differ
        assert call("compare", tmp_path / "a", tmp_path / "b") == 0
    assert "were not tested on the same examples" in capsys.readouterr().err
    make(tmp_path / "c", other, lambda cell: level_of(cell) - (0.3 if cell.arm == "english" else 0.04))
    assert call("compare", tmp_path / "a", tmp_path / "c", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    cells = {(one["split"], one["name"], one["method"]): one for one in found["cells"]}
    assert len(cells) == 3 + 3 + 1
    assert cells["right", "english", "full 32-bit"]["difference"] == pytest.approx(-26)
    assert cells["right", "scratch", "full 32-bit"]["difference"] == pytest.approx(0)
    effects = {(one["split"], one["name"], one["method"]): one for one in found["effects"]}
    assert len(effects) == 2 * 3
    (english, german) = (effects["right", f"{arm}-scratch", "full 32-bit"] for arm in ("english", "german"))
    assert (english["difference"], english["verdict"]) == (pytest.approx(-26), "reversed")
    assert (german["difference"], german["verdict"]) == (pytest.approx(0), "equivalent")
    make(tmp_path / "d", other.model_copy(update={"margin": 0.1}))
    assert call("compare", tmp_path / "a", tmp_path / "d", "--json") == 0
    strict = json.loads(capsys.readouterr().out)
    assert {one["margin"] for one in [strict, *strict["cells"]]} == {0.1}
    assert {one["verdict"] for one in [*strict["cells"], *strict["effects"]]} == {"inconclusive"}


def test_the_comparison_is_written_as_html_or_markdown(
    tmp_path: Path, call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "a", recipe_of(task=RIGHT))
    make(tmp_path / "b", recipe_of(name="b", seeds=[6, 7, 8, 9, 10, 11], task=RIGHT))
    for suffix in ("html", "md"):
        assert call("compare", tmp_path / "a", tmp_path / "b", "--out", tmp_path / f"c.{suffix}") == 0
        text = (tmp_path / f"c.{suffix}").read_text()
        assert "B minus A" in text
        assert "english-scratch" in text
        assert "http" not in text
    message = capsys.readouterr().out
    assert "A and B differ in these settings:" in message
    assert "seeds: [0, 1, 2, 3, 4, 5] in A and [6, 7, 8, 9, 10, 11] in B" in message
    assert "effects that both studies have" in message
    assert call("compare", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "c.pdf") == 2


def test_studies_are_compared_in_their_common_metric_or_in_exact_match(
    tmp_path: Path, call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exact match is equal in A and B, and chrF is 10 points higher in B."""
    task = {"name": "scan", "splits": ["right"], "metrics": ["chrf"]}
    content = {"task": task, "methods": [FULL], "effects": ["english-scratch"]}
    for name, seeds, level in (("a", range(6), 50.0), ("b", range(6, 12), 60.0)):
        recipe = recipe_of(name=name, seeds=list(seeds), **content)
        make(
            tmp_path / name, recipe, lambda cell: 0.5, scores=lambda cell, level=level: {"chrf": level + cell.seed % 6}
        )
    assert call("compare", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "c.md") == 0
    assert "Effects are differences in test chrF" in " ".join(capsys.readouterr().out.split())
    text = (tmp_path / "c.md").read_text()
    assert "| test chrF in A | test chrF in B |" in text
    assert "| right | english | full 32-bit | 52.5 (6 seeds) | 62.5 (6 seeds) | +10.0 [" in text
    assert "paper" not in text.replace("the comparison with the paper are left out", "")
    make(tmp_path / "d", recipe.model_copy(update={"judge_by": "exact_match"}), lambda cell: 0.5)
    assert call("compare", tmp_path / "a", tmp_path / "d", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["judged_by"], found["cells"][0]["difference"]) == ("exact_match", 0)
    assert found["by_note"] == "Exact match is compared, because A and B use different metrics: chrF, exact match"


def test_single_methods_of_two_studies_are_compared_even_if_they_differ(
    tmp_path: Path, call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "a", recipe_of(methods=[{"name": "lora", "bits": 32}], effects=["english-scratch"]))
    make(tmp_path / "b", recipe_of(name="b", methods=[{"name": "full", "bits": 32, "rate_scaling": "rms"}],
                                   effects=["english-scratch"]))  # fmt: skip
    assert call("compare", tmp_path / "a", tmp_path / "b") == 0
    message = capsys.readouterr().out
    assert "full 32-bit less lora r16 32-bit" in message
    assert "not compared, because both studies have the same runs: scratch on add_jump (full 32-bit: all 6)" in message
    assert "english-scratch on add_jump (full 32-bit less lora r16 32-bit): english" in " ".join(message.split())
    assert (
        "effects that both studies have" not in message
    )  # both effects use the same control runs, so they are not independent


LORA, FULL = {"name": "lora", "bits": 32}, {"name": "full", "bits": 32, "rate_scaling": "rms"}


def wide(cell: Cell) -> float:
    """Return a run's score, 0 to 1. Seeds differ by up to 50 points. LoRA is 5 to 8 points below full fine-tuning."""
    return 0.2 + 0.1 * cell.seed - (0.05 + 0.01 * (cell.seed % 4) if "lora" in cell.method else 0)


def test_methods_are_paired_by_seed_across_studies_as_within_one(
    tmp_path: Path, call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    both = recipe_of(arms=["english"], methods=[LORA, FULL], effects=["lora-full"])
    inside = {one.split: one for one in judge(collect(both, *make(tmp_path / "both", both, wide)).of("contrast"))}
    for name, method in (("a", FULL), ("b", LORA)):
        make(tmp_path / name, recipe_of(name=name, arms=["english"], methods=[method], effects=[]), wide)
    assert call("compare", tmp_path / "a", tmp_path / "b", "--json") == 0
    for one in json.loads(capsys.readouterr().out)["cells"]:
        here = inside[one["split"]]
        assert (one["paired"], one["seeds"], one["p"]) == (True, [6, 6], here.p)
        assert one["p"] == pytest.approx(2 / 2**6)
        assert (one["difference"], one["interval"]["low"]) == pytest.approx((here.difference, here.interval.low))


@pytest.mark.parametrize(("seeds", "paired", "left_out"), [([1, 2, 3], True, 3), ([4, 5, 6], False, 0)])
def test_runs_are_paired_only_if_one_study_has_all_seeds_of_the_other(
    seeds: list[int], paired: bool, left_out: int, tmp_path: Path, call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "a", recipe_of(arms=["english"], methods=[FULL], effects=[]))
    make(tmp_path / "b", recipe_of(name="b", arms=["english"], methods=[LORA], effects=[], seeds=seeds))
    assert call("compare", tmp_path / "a", tmp_path / "b", "--json") == 0
    found = json.loads(capsys.readouterr().out)["cells"]
    assert {(one["paired"], one["left_out"]) for one in found} == {(paired, left_out)}
    assert call("compare", tmp_path / "a", tmp_path / "b") == 0
    message = capsys.readouterr().out
    assert ("english on right: 3 runs have no partner of the same seed" in message) == paired
    assert ("(3 pairs)" in message) == paired


def test_a_study_has_nothing_to_compare_with_itself(
    tmp_path: Path, call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "a", recipe_of())
    assert call("compare", tmp_path / "a", tmp_path / "a", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["cells"], found["effects"], found["one_sided"]) == ([], [], [])
    assert len(found["same_runs"]) == 2 * (3 + 3 + 1) + 2 * 2 * 3
    assert "german-scratch on right (lora r16 4-bit)" in found["same_runs"]


def test_arms_that_share_some_runs_are_not_compared(
    tmp_path: Path, call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    """B has the four seeds of A and two more. A difference would only show the random error of these two."""
    make(tmp_path / "a", recipe_of(seeds=[0, 1, 2, 3], task=RIGHT))
    make(tmp_path / "b", recipe_of(name="b", task=RIGHT))
    assert call("compare", tmp_path / "a", tmp_path / "b", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["cells"], found["effects"]) == ([], [])
    assert "english on right (full 32-bit: 4 of 4 in A and of 6 in B)" in found["same_runs"]
    assert "english-scratch on right (full 32-bit)" in found["same_runs"]


def test_the_papers_scores_are_shown_next_to_both_studies(
    tmp_path: Path, call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    methods = [{"name": "full", "bits": 32, "rate_scaling": "rms"}]
    effects = ["english-scratch", "german-scratch"]
    for name, seeds in {"a": [0, 1, 2, 3], "b": [4, 5, 6, 7]}.items():
        make(tmp_path / name, recipe_of(name=name, seeds=seeds, methods=methods, effects=effects))
    assert call("compare", tmp_path / "a", tmp_path / "b", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    english, german = (
        found["paper_cells"][at]
        for at, one in enumerate(found["cells"])
        if one["split"] == "right" and one["name"] != "scratch"
    )
    assert english == {"t5-base": pytest.approx(paper_scores()["t5-base", "english", "scan", "right", ""].mean)}
    assert german == {}
    assert call("compare", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "c.md") == 0
    message = capsys.readouterr().out
    assert "paper: Orhan (2021), arXiv:2109.15101, t5-base, all weights trained; its epochs were chosen on" in message
    text = (tmp_path / "c.md").read_text()
    lines = [[part.strip() for part in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    figures = {(line[0], line[1]): line[-1] for line in lines}
    assert (figures["split", "arm"], figures["split", "effect"]) == ("paper: EM %", "paper: points")
    assert figures["right", "english"] == f"{english['t5-base']:.1f}"
    (theirs,) = judge([known]) if (known := paper_contrast("t5-base", "english", "scratch", "scan", "right")) else []
    assert figures["right", "english-scratch"].startswith(f"{theirs.difference:+.1f} [")
    assert figures["right", "german"] == figures["right", "german-scratch"] == ""


def test_studies_without_a_common_arm_are_refused(
    tmp_path: Path, call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "a", recipe_of(arms=["english"], effects=[]))
    make(tmp_path / "b", recipe_of(name="b", arms=["german"], effects=[]))
    assert call("compare", tmp_path / "a", tmp_path / "b") == 2
    assert "cannot be compared: no arm and split has finished runs in both studies" in capsys.readouterr().err
    assert call("compare", tmp_path / "a", tmp_path / "nosuch") == 2


def test_the_output_folder_is_created_and_different_data_are_reported(
    tmp_path: Path, call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    """The options of the task differ, so the rows can differ although their number is equal."""
    make(tmp_path / "a", recipe_of(task=RIGHT, effects=[]))
    make(tmp_path / "b", recipe_of(task=RIGHT | {"options": {"dev_size": 40}}, effects=[], seeds=[6, 7]))
    make(tmp_path / "c", recipe_of(task={"name": "cogs", "splits": ["gen"]}, effects=[], seeds=[6, 7]))
    out = tmp_path / "new" / "folder" / "c.md"
    assert call("compare", tmp_path / "a", tmp_path / "b", "--out", out) == 0
    note = "A and B have different rows or options of the task scan: their scores can only be compared if"
    assert note in out.read_text()
    assert note in capsys.readouterr().out
    first, second = (open_grid(tmp_path / name) for name in "ac")
    runs = [Runs(grid.recipe, grid.cells, grid.folder) for grid in (first, second)]
    assert "different tasks, scan and cogs" in _data_note(runs[0], runs[1])
    assert _data_note(runs[0], runs[0]) == ""


def test_different_settings_are_listed() -> None:
    first, second = recipe_of(seeds=[0, 1]), recipe_of(seeds=[0, 1, 2])
    assert differences(first, first) == []
    (line,) = differences(first, second)
    assert line == "seeds: [0, 1] in A and [0, 1, 2] in B"
    (line,) = differences(first, recipe_of(seeds=[0, 1], more_seeds={"scratch": [2]}))
    assert line == "more_seeds: not set in A and {'scratch': [2]} in B"
