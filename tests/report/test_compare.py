"""Two studies side by side: the same cells and effects, their differences, and what cannot be compared."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from petransfer.cli import main
from petransfer.effects.reference import published, published_contrast
from petransfer.effects.verdict import judge
from tests.report.made import level_of, make, recipe_of

Call = Callable[..., int]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Call:
    def run(*words: str | Path) -> int:
        monkeypatch.setattr(sys, "argv", ["petransfer", "report", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            main()
        return int(stop.value.code or 0)

    return run


def test_the_same_cells_and_effects_stand_side_by_side(
    tmp_path: Path, call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "a", recipe_of())
    other = recipe_of(name="b", seeds=[10, 11, 12, 13, 14, 15])
    make(tmp_path / "b", other, lambda cell: level_of(cell) - (0.3 if cell.arm == "english" else 0.04), examples=400)
    with pytest.raises(AssertionError):  # other examples
        assert call("compare", tmp_path / "a", tmp_path / "b") == 0
    assert "were not tested on the same examples" in capsys.readouterr().err
    make(tmp_path / "c", other, lambda cell: level_of(cell) - (0.3 if cell.arm == "english" else 0.04))
    assert call("compare", tmp_path / "a", tmp_path / "c", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    cells = {(one["split"], one["name"], one["method"]): one for one in found["cells"]}
    assert len(cells) == 2 * (3 + 3 + 1)
    assert cells["right", "english", "full 32-bit"]["difference"] == pytest.approx(-26)
    assert cells["right", "scratch", "full 32-bit"]["difference"] == pytest.approx(0)
    effects = {(one["split"], one["name"], one["method"]): one for one in found["effects"]}
    assert len(effects) == 2 * 2 * 3
    (english, german) = (effects["right", f"{arm}-scratch", "full 32-bit"] for arm in ("english", "german"))
    assert (english["difference"], english["verdict"]) == (pytest.approx(-26), "reversed")
    assert german["difference"] == pytest.approx(0)


def test_it_is_written_as_a_page_or_as_text(tmp_path: Path, call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path / "a", recipe_of())
    make(tmp_path / "b", recipe_of(name="b", seeds=[6, 7, 8, 9, 10, 11]))
    for suffix in ("html", "md"):
        assert call("compare", tmp_path / "a", tmp_path / "b", "--out", tmp_path / f"c.{suffix}") == 0
        text = (tmp_path / f"c.{suffix}").read_text()
        assert "B less A" in text
        assert "english-scratch" in text
        assert "http" not in text
    said = capsys.readouterr().out
    assert "family nano" in said
    assert "the same effects" in said
    assert call("compare", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "c.pdf") == 2


def test_one_method_in_each_study_is_compared_though_they_differ(
    tmp_path: Path, call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "a", recipe_of(methods=[{"name": "lora", "bits": 32}], effects=["english-scratch"]))
    make(tmp_path / "b", recipe_of(name="b", methods=[{"name": "full", "bits": 32, "rate_scaling": "rms"}],
                                   effects=["english-scratch"]))  # fmt: skip
    assert call("compare", tmp_path / "a", tmp_path / "b") == 0
    said = capsys.readouterr().out
    assert "full 32-bit less lora r16 32-bit" in said
    assert "the very same runs in both, not compared: scratch on add_jump" in said


def test_the_papers_figures_stand_beside_both(tmp_path: Path, call: Call, capsys: pytest.CaptureFixture[str]) -> None:
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
    assert english == {"t5-base": pytest.approx(published()["t5-base", "english", "scan", "right", ""].mean)}
    assert german == {}
    assert call("compare", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "c.md") == 0
    said = capsys.readouterr().out
    assert "paper: Orhan (2021), arXiv:2109.15101, t5-base, all weights trained; its epochs were chosen on" in said
    text = (tmp_path / "c.md").read_text()
    lines = [[part.strip() for part in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    figures = {(line[0], line[1]): line[-1] for line in lines}
    assert (figures["split", "arm"], figures["split", "effect"]) == ("paper: EM %", "paper: points")
    assert figures["right", "english"] == f"{english['t5-base']:.1f}"
    (theirs,) = (
        judge([known]) if (known := published_contrast("t5-base", "english", "scratch", "scan", "right")) else []
    )
    assert figures["right", "english-scratch"].startswith(f"{theirs.difference:+.1f} [")
    assert figures["right", "german"] == figures["right", "german-scratch"] == ""


def test_nothing_in_common_is_said(tmp_path: Path, call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path / "a", recipe_of(arms=["english"], effects=[]))
    make(tmp_path / "b", recipe_of(name="b", arms=["german"], effects=[]))
    assert call("compare", tmp_path / "a", tmp_path / "b") == 2
    assert "no arm and split in common" in capsys.readouterr().err
    assert call("compare", tmp_path / "a", tmp_path / "nosuch") == 2
