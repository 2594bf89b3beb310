"""What the README shows works: its commands, its recipe, and the figures that it takes from results/."""

from __future__ import annotations

import difflib
import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from petransfer.cli import main
from petransfer.recipe.loading import load_recipe
from petransfer.study.grid import expand
from tests.readme import FIGURE, corrected

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SHOWN = "\n".join(re.findall(r"^```\w*\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE))
COMMANDS = [line.split("#")[0].strip() for line in SHOWN.splitlines() if line.startswith("petransfer ")]


@pytest.mark.parametrize(
    "command", [line for line in COMMANDS if "<" not in line and " status " not in line and "results/pairs" not in line]
)
def test_the_commands_are_understood(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`run` as `plan` and `pretrain --plan`: all is read and checked, nothing trained, no largest batch looked for."""
    monkeypatch.setattr("petransfer.memory.planner._largest", lambda of, demand, memory, card: 1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PETRANSFER_CACHE", str(tmp_path / "cache"))
    (tmp_path / "pairs.tsv").write_text("".join(f"in {n}\tout {n}\n" for n in range(10)))
    words = shlex.split(command)
    if words[1] == "run":
        words = ["petransfer", "plan", *_of_plan(words[2:])]
    if words[1] in ("train", "sweep"):
        words.append("--plan")
    if words[1] == "pretrain" and "--plan" not in words:
        words.append("--plan")
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code


def _of_plan(words: list[str]) -> list[str]:
    """Without the options that only say how `run` carries a grid out."""
    text = " ".join(words)
    for option in (
        "--checkpointing",
        "--by-generation",
        r"--processes \d+",
        r"--stack \S+",
        "--executor ray",
        "--address auto",
    ):
        text = re.sub(option, "", text)
    return shlex.split(text)


def test_the_recipe_is_a_recipe(tmp_path: Path) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", README, flags=re.DOTALL)
    path = tmp_path / "mine.yaml"
    path.write_text(block.replace("./my-codet5", "owner/my-codet5"))
    assert expand(load_recipe(str(path)))


def test_tables_and_figures_are_those_of_results() -> None:
    """`python -m tests.readme` puts right what this finds; what sentences make of the figures is for people to say."""
    for kind in ("groups: ", "verdicts: ", "support "):
        assert f"<!-- {kind}" in README
    assert FIGURE.search(README)
    right = corrected(README)
    assert right == README, "\n".join(difflib.unified_diff(README.splitlines(), right.splitlines(), n=0, lineterm=""))


@pytest.mark.parametrize(
    ("wrong", "part"),
    [
        ("<!-- german-scratch, full, points -->+11.6 points", ">+11.5 points"),
        ("<!-- german-scratch, full, verdict -->inconclusive.", ">holds."),
        ("<!-- effects, full, holds -->7 of <!-- effects, full, all -->8,", ">2 of <!--"),
        ("<!-- english, full, test -->0,", ">19.7,"),
        ("<!-- english, full, trained -->1 weights", ">1,709,824 weights"),
        ("<!-- groups: full-scan -->\n| nothing |\n\nmore", "| opposite_right | german |"),
        (
            "<!-- support -->\n| T5 | no |\n\nmore",
            "| BART | yes | yes | yes | yes |",
        ),
    ],
)
def test_a_wrong_figure_is_put_right(wrong: str, part: str) -> None:
    right = corrected(f"<!-- from: full-scan -->\n{wrong}")
    assert part in right
    assert corrected(right) == right


def test_what_quantising_costs_is_what_was_measured() -> None:
    cells = json.loads((ROOT / "results" / "bench" / "quantise-cpu.json").read_text())

    def spread(bits: int, wide: str) -> tuple[float, float]:
        found = [100 * cell["change"] for cell in cells if (cell["bits"], cell["wide"]) == (bits, wide)]
        assert len(found) == 6
        return min(found), max(found)

    sentence = " ".join(README.split())
    assert f"at most {spread(8, 'head')[1]:.2f} % at 8 bits" in sentence
    assert "by {:.1f} to {:.1f} % at 4; with the head".format(*spread(4, "head")) in sentence
    assert "quantised as well by {:.1f} to {:.1f} %".format(*spread(4, "nothing")) in sentence


def test_what_stacking_saves_is_what_was_measured() -> None:
    (cell,) = json.loads((ROOT / "results" / "bench" / "stacked-cpu.json").read_text())
    ratio = {row["runs"]: row["ratio"] for row in cell["rows"]}
    said = f"one core took {ratio[8]:.2f} times as many examples a second with eight runs as one by one, "
    assert said + f"{ratio[2]:.2f} with two" in " ".join(README.split())


def test_the_pictures_are_there() -> None:
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", README):
        assert (ROOT / picture).is_file()


def test_the_figures_are_those_of_results() -> None:
    """Every `| arm | ... |` row of a table that names its study repeats what that study's runs say."""
    for study, table in re.findall(r"<!-- figures: (\S+) -->\n(.*?)\n\n", README, flags=re.DOTALL):
        found = {}
        for result in (ROOT / "results" / study / "runs").glob("*/result.json"):
            spec = json.loads((result.parent / "spec.json").read_text())
            run = json.loads(result.read_text())
            arm = {"all": "scratch", "none": spec["checkpoint"]["name"].removeprefix("nano/")}
            name = arm[spec["checkpoint"]["reinit"]]
            name = "random" if name == "scratch" and spec["method"]["name"] != "full" else name
            figures = (run["dev"]["exact_match"], run["test"]["exact_match"], run["test"]["log_prob_per_token"])
            found[name, str(spec["seed"])] = tuple(
                f"{value:.{n}f}" for value, n in zip(figures, (1, 1, 3), strict=True)
            )
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
        assert {(row[0], row[1]): tuple(row[-3:]) for row in rows} == found
