"""report.html: self-contained, reproducible, with a section for all data and no section without data."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from petransfer.cli import main
from petransfer.effects.reference import paper_scores
from petransfer.report import page_data as gather
from petransfer.report import plots
from petransfer.report import run_groups as groups
from petransfer.report import run_table as tables
from petransfer.report.heat_map import heat_map
from petransfer.report.page import recipe_text, status_of
from petransfer.report.plots import save as save_plot
from petransfer.report.study_report import write_report
from petransfer.study.folders import StudyFolder
from petransfer.study.grid import Cell, expand
from petransfer.study.study import open_grid
from petransfer.study.sweep import open_sweep
from tests.report.made import draw_nothing, empty_picture, level_of, make, recipe_of, sweep

RIGHT = {"name": "scan", "splits": ["right"]}  # one split instead of two: half the runs
VOID = {"meta", "br", "img", "hr", "link", "input", "path", "use", "wbr"}


class Checked(HTMLParser):
    """A parser that checks that tags are closed in order, and collects ids, references and labels of charts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.labels: list[str | None] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.ids += [value for name, value in attrs if name == "id" and value]
        self.references += [value for name, value in attrs if name in ("src", "href", "xlink:href", "action") and value]
        if tag == "svg":
            self.labels.append(given.get("aria-label"))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


@pytest.fixture
def reported(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], str]:
    def report(folder: Path) -> str:
        monkeypatch.setattr(sys, "argv", ["petransfer", "report", str(folder)])
        with pytest.raises(SystemExit) as stop:
            main()
        assert not stop.value.code
        return (folder / "report.html").read_text(encoding="utf-8")

    return report


@pytest.fixture
def told(reported: Callable[[Path], str], monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], str]:
    """A function that writes a report with empty plots and without plot files, and returns the page."""
    draw_nothing(monkeypatch)
    return reported


@pytest.fixture
def shown(reported: Callable[[Path], str], monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], str]:
    """A function that writes a report with plots but without plot files, and returns the page."""
    monkeypatch.setattr("petransfer.report.plot_files.save_all", lambda *given: None)
    return reported


@pytest.fixture
def sketched(reported: Callable[[Path], str], monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], str]:
    """A function that writes a report with empty plots and empty plot files, and returns the page."""

    def save(figure: object, path: Path) -> None:
        path.parent.mkdir(exist_ok=True)
        path.with_suffix(".svg").touch()

    monkeypatch.setattr("petransfer.report.plots.save", save)
    monkeypatch.setattr("petransfer.report.html_parts.inline_svg", empty_picture)
    return reported


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with data for every section of the report, and its report. Tests that change it make a copy."""
    _, folder = make(tmp_path_factory.mktemp("full") / "made", recipe_of())
    sweep(folder, recipe_of())
    write_report(open_grid(folder.path))
    return folder.path


def sections(text: str) -> list[str]:
    found = re.findall(r"<h2>(.*?)</h2>", text)
    return [title for title in found if title != "Repeat this study"]


def no_figure_is_missing(folder: Path) -> None:
    """Check that no file in the folder contains NaN, infinity or None."""
    for path in folder.iterdir():
        if path.is_file():
            assert not re.search(r"\b(nan|inf|NaN|Infinity|None)\b", path.read_text(encoding="utf-8")), path


EVERYTHING = [
    "Verdicts", "Effects", "Retention", "Exact match", "By category", "Learning curves", "Learning rates",
    "Trained parameters and effect", "Wrong answers",
]  # fmt: skip


def test_a_full_study_has_every_section(full: Path) -> None:
    text = (full / "report.html").read_text(encoding="utf-8")
    assert sections(text) == EVERYTHING
    page = Checked(text)
    assert len(page.ids) == len(set(page.ids))
    assert all(reference.startswith("#") for reference in page.references)
    assert {reference.removeprefix("#") for reference in page.references} <= set(page.ids)
    assert "http" not in re.sub(r'xmlns(:xlink)?="[^"]*"', "", text)
    assert "@import" not in text
    assert text.count("<script") == 1
    assert all(page.labels)
    assert re.search(r"english, [^:;]*: 62.0 %", text)
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text
    assert not re.search(r"#[0-9a-fA-F]{6}", text[text.index("<body>") :]), (
        "a colour that ignores the colour scheme of the page"
    )
    assert "walk left &amp; back" in text
    assert "<mark>&lt;RIGHT&gt;</mark>" in text
    assert "The paper (family t5-base, all weights trained): +93.6 points" in text
    assert "not certain enough to divide by it" in text
    assert re.search(r"9[23] % of the effect is retained \(95 % interval .* to .* %\)", text)
    names = {path.stem for path in (full / "plots").glob("*.png")}
    assert names == {path.stem for path in (full / "plots").glob("*.svg")}
    assert names == {path.stem for path in (full / "plots").glob("*.pdf")}
    wide = {"learning-curves", "by-arm", "effects", "retention", "by-category", "learning-rates", "parameters"}
    assert names == wide | {f"{name}-one-column" for name in ("by-arm", "effects", "retention")}
    no_figure_is_missing(full)


def test_the_same_runs_give_the_same_bytes(
    full: Path, tmp_path: Path, reported: Callable[[Path], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page contains all plots as SVG. Only one plot is also written as files again."""
    other = shutil.copytree(full, tmp_path / "made")
    for path in other.glob("plots/effects.*"):
        path.unlink()
    (other / "report.html").unlink()
    monkeypatch.setattr(plots, "save", lambda figure, path: save_plot(figure, path) if path.stem == "effects" else None)
    reported(other)
    files = [path for path in sorted(full.rglob("*")) if path.is_file() and "runs" not in path.parts]
    assert len(files) > 30
    for path in files:
        assert (other / path.relative_to(full)).read_bytes() == path.read_bytes(), path


def test_sections_without_data_are_left_out(tmp_path: Path, sketched: Callable[[Path], str]) -> None:
    methods = [{"name": "full", "bits": 32, "rate_scaling": "rms"}]
    _, folder = make(tmp_path / "made", recipe_of(methods=methods, effects=[]), categories=1, texts=False)
    text = sketched(folder.path)
    assert sections(text) == ["Exact match", "Learning curves"]
    assert {path.stem for path in (folder.path / "plots").iterdir()} == {
        "learning-curves",
        "by-arm",
        "by-arm-one-column",
    }
    no_figure_is_missing(folder.path)


def chrf_and_rouge(cell: Cell) -> dict[str, float]:
    """Return a run's scores: chrF is 70 for English, else 50, plus the seed. ROUGE-L is only on the split `right`."""
    level = (70.0 if cell.arm == "english" else 50.0) + cell.seed
    return {"chrf": level} | ({"rougeL": level / 2} if cell.split == "right" else {})


def test_other_metrics_have_a_table_for_each_split(tmp_path: Path, told: Callable[[Path], str]) -> None:
    methods = [{"name": "lora", "bits": 32}, {"name": "full", "bits": 32, "rate_scaling": "rms"}]
    task = {"name": "scan", "splits": ["add_jump", "right"], "metrics": ["exact_match", "chrf", "rouge"]}
    recipe = recipe_of(task=task, methods=methods, effects=[])
    _, folder = make(
        tmp_path / "made", recipe, scores=chrf_and_rouge, skip=lambda cell: cell.arm == "german" and cell.seed > 1
    )
    text = told(folder.path)
    Checked(text)
    assert sections(text)[:3] == ["Exact match", "Other metrics", "By category"]
    shown = text[text.index("<h2>Other metrics</h2>") : text.index("<h2>By category</h2>")]
    first, second = shown.split("<h3>")[1:]
    assert (first[:8], second[:5]) == ("add_jump", "right")
    heads = [
        re.findall(r'<th scope="col"[^>]*><button type="button">(.*?)</button></th>', one) for one in (first, second)
    ]
    assert heads == [["arm", "method", "seeds", "chrF"], ["arm", "method", "seeds", "chrF", "ROUGE-L"]]
    rows = [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", line) for line in second.split("<tr>")[2:]]
    assert rows[0] == ["english", "lora r16 32-bit", "6", "72.5 (70.0 to 75.0)", "36.2 (35.0 to 37.5)"]
    assert rows[2] == ["german", "lora r16 32-bit", "2 of 6", "50.5 (50.0 to 51.0)", "25.2 (25.0 to 25.5)"]
    assert len(rows) == 5  # scratch has only full fine-tuning
    no_figure_is_missing(folder.path)


def test_effects_in_another_metric_name_the_metric(tmp_path: Path, shown: Callable[[Path], str]) -> None:
    """The name of the metric replaces exact match in the sentences, the plot and the tables."""
    task = {"name": "scan", "splits": ["add_jump", "right"], "metrics": ["chrf"]}
    methods = [{"name": "lora", "bits": 32}, {"name": "full", "bits": 32, "rate_scaling": "rms"}]
    retention = {"retention": "english-scratch", "under": "lora"}
    recipe = recipe_of(task=task, methods=methods, effects=["english-scratch", retention])
    _, folder = make(tmp_path / "made", recipe, scores=chrf_and_rouge)
    text = shown(folder.path)
    Checked(text)
    part = text[text.index("<h2>Verdicts</h2>") : text.index("<h2>Exact match</h2>")].replace("\u00a0", " ")
    assert ">Effects are differences in test chrF. A run has one value of chrF, " in part
    assert "72.5 against 52.5), p = 0.009 (Holm), 6 seeds per arm. Holds: " in part
    assert "Differences in test chrF with 95 % intervals over seeds alone." in part
    assert ">difference in test chrF, points<" in part
    assert '<th scope="col" class="number"><button type="button">points of chrF</button></th>' in part
    assert "exact match" not in part.lower()
    assert "Orhan" not in part
    assert "points of chrF" in (folder.path / "table.md").read_text()
    assert "- Effects are differences in test chrF" in (folder.path / "table.md").read_text()
    assert "points of chrF" in (folder.path / "table.tex").read_text()
    no_figure_is_missing(folder.path)


def test_retention_in_another_metric_names_the_metric(tmp_path: Path, told: Callable[[Path], str]) -> None:
    task = {"name": "scan", "splits": ["right"], "metrics": ["chrf"]}
    recipe = recipe_of(task=task, effects=[{"retention": "english-scratch", "under": "4-bit"}])
    _, folder = make(tmp_path / "made", recipe, scores=chrf_and_rouge)
    text = told(folder.path)
    assert "Verdicts" not in sections(text)
    assert ">Effects are differences in test chrF" in text


def test_a_study_without_other_metrics_has_no_section_about_them(tmp_path: Path, told: Callable[[Path], str]) -> None:
    _, folder = make(tmp_path / "made", recipe_of(task=RIGHT, effects=[], arms=["english"]))
    assert "Other metrics" not in told(folder.path)


def test_plot_files_without_data_are_deleted(
    full: Path, tmp_path: Path, reported: Callable[[Path], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[str] = []
    monkeypatch.setattr("petransfer.report.plots.save", lambda figure, path: saved.append(path.name))
    monkeypatch.setattr("petransfer.report.html_parts.inline_svg", lambda *given: "")
    folder = shutil.copytree(full, tmp_path / "made")
    assert len(list(folder.glob("plots/learning-rates.*"))) == 3
    (folder / "sweep.json").unlink()
    assert "Learning rates" not in reported(folder)
    assert not list(folder.glob("plots/learning-rates.*"))
    assert "by-arm" in saved
    assert "learning-rates" not in saved
    assert (folder / "plots" / "by-arm.svg").exists()


def test_a_sweep_is_shown_by_method_with_its_number_of_steps(tmp_path: Path, told: Callable[[Path], str]) -> None:
    recipe = recipe_of(task=RIGHT)
    _, folder = make(tmp_path / "made", recipe)
    sweep(folder, recipe)
    text = told(folder.path)
    shown = text[text.index("<h2>Learning rates</h2>") : text.index("<h2>Trained parameters and effect</h2>")]
    assert (
        "The learning rates were chosen at 50 steps; the study trains for 100 steps, for which other learning rates "
        "may be better." in shown
    )
    for method in ("lora r16 32-bit", "lora r16 4-bit", "full 32-bit"):
        assert f"<figcaption>{method}, after 50 steps</figcaption>" in shown
    assert "lora r16 4-bit; chosen: english 26.0 % at 0.004, german 26.0 % at 0.004" in shown
    assert "a value outside this range may be better: english, lora r16 32-bit (highest learning rate);" in shown
    assert "with another learning rate than the chosen one: english, lora r16 32-bit; english, lora r16 4-bit;" in shown
    assert "0.001: 20.0 (0.500), 0.002: 23.0 (0.500), 0.004: 26.0 (0.500)" in shown


def test_the_status_of_a_single_run_is_in_the_singular() -> None:
    (cell, *_) = expand(recipe_of(methods=[{"name": "lora", "bits": 32}], seeds=[0], effects=[]))
    waiting = groups.RunGroup("english", "lora", "right", (tables.RunRow(cell, "waiting"),))
    assert status_of([waiting]) == "The run is not finished."


def test_a_sweep_is_shown_before_the_study_has_runs(
    tmp_path: Path, sketched: Callable[[Path], str], capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = recipe_of(methods=[{"name": "lora", "bits": 32}], seeds=[0, 1], effects=["english-scratch"])
    folder = StudyFolder(tmp_path / "made")
    open_sweep(recipe, folder)
    sweep(folder, recipe)
    text = sketched(folder.path)
    Checked(text)
    assert sections(text) == ["Learning rates"]
    assert "0 of 12 runs are finished." in text
    assert "The learning rates were chosen at 50 steps" in text
    assert "chosen" in capsys.readouterr().out
    assert {path.name for path in folder.path.iterdir() if path.is_file() and path.name != ".lock"} == {
        "recipe.yaml", "sweep.json", "report.html"
    }  # fmt: skip
    assert {path.stem for path in (folder.path / "plots").iterdir()} == {"learning-rates"}
    no_figure_is_missing(folder.path)
    kept = (folder.path / "recipe.yaml").read_bytes()
    make(folder.path, recipe)  # the runs of the study are added to the folder
    assert (folder.path / "recipe.yaml").read_bytes() == kept
    assert {"Exact match", "Learning rates"} <= set(sections(sketched(folder.path)))
    assert (folder.path / "plots" / "by-arm.svg").is_file()


def test_learning_rates_that_were_not_swept_are_reported(
    tmp_path: Path, told: Callable[[Path], str], capsys: pytest.CaptureFixture[str]
) -> None:
    line = "No other learning rates were tried: each arm and method has the learning rate of the recipe."
    methods = [{"name": "lora", "bits": 32}, {"name": "full", "bits": 32}]
    recipe = recipe_of(methods=methods, effects=[], seeds=[0])
    _, folder = make(tmp_path / "made", recipe)
    assert line.replace("'", "&#39;") in told(folder.path)
    assert line in capsys.readouterr().out
    assert f"\n\n{line}\n" in (folder.path / "table.md").read_text()
    sweep(folder, recipe)
    content = json.loads((folder.path / "sweep.json").read_text())
    content["groups"] = [one for one in content["groups"] if one["arm"] != "german"]
    (folder.path / "sweep.json").write_text(json.dumps(content))
    text = told(folder.path)
    assert "were not swept" not in text
    assert (
        "No other learning rates were tried for these methods and arms. lora r16 32-bit: german; full 32-bit: german."
        in text
    )


def is_4_bit_german(cell: Cell) -> bool:
    return cell.arm == "german" and "4-bit" in cell.method and cell.split == "right"


@pytest.mark.parametrize(
    ("skip", "level", "message"),
    [
        (lambda cell: cell.seed > 1, level_of, "Inconclusive"),
        (lambda cell: cell.seed > 0, level_of, "1 seed is too few; a verdict needs 4 on each side"),
        (lambda cell: cell.seed > 0, level_of, "alone: 0 examples right only in the first run, "),
        (lambda cell: cell.arm == "scratch", level_of, "no run of scratch (full 32-bit) is done: 6 waiting"),
        (is_4_bit_german, level_of, "no run of german (lora r16 4-bit) is done: 6 waiting"),
        (lambda cell: "4-bit" in cell.method and cell.seed < 3, level_of, "3 runs have no partner of the same seed"),
        (lambda cell: False, lambda cell: 0.0, "saturated"),
        (lambda cell: False, lambda cell: 1.0, "saturated"),
        (
            lambda cell: False,
            lambda cell: 1.0 if cell.arm == "english" else 0.0,
            "seeds per arm. Holds: p is below 0.05",
        ),
    ],
)
def test_missing_runs_and_verdicts_are_reported(
    skip: Callable[[Cell], bool], level: Callable[[Cell], float], message: str, tmp_path: Path,
    told: Callable[[Path], str],
) -> None:  # fmt: skip
    _, folder = make(tmp_path / "made", recipe_of(task=RIGHT), level, skip=skip)
    text = told(folder.path)
    assert message in text
    Checked(text)
    no_figure_is_missing(folder.path)


def test_failed_runs_are_reported_with_the_reason_of_the_first(
    tmp_path: Path, told: Callable[[Path], str], capsys: pytest.CaptureFixture[str]
) -> None:
    cells, folder = make(tmp_path / "made", recipe_of(task=RIGHT), skip=is_4_bit_german)
    for cell in filter(is_4_bit_german, cells):
        run = folder.run(cell.run_id)
        run.path.mkdir()
        run.write_json("failed.json", {"error": "the loss is not finite at step 12"})
    text = told(folder.path)
    first = "german, lora r16 4-bit, right, seed 0: the loss is not finite at step 12"
    line = f"6 runs failed. The first failed run is {first}"
    assert line in text
    assert f"{line}\n" in capsys.readouterr().out
    assert f"\n\n{line}.\n\n" in (folder.path / "table.md").read_text()
    assert f"% {line}\n" in (folder.path / "table.tex").read_text()
    assert "not estimated, because no run of german (lora r16 4-bit) is done: 6 failed; the loss is not finite" in text
    assert "german-scratch on right (lora r16 4-bit): not estimated" in text


@pytest.mark.parametrize("figure", [math.nan, -math.inf])
def test_a_loss_that_is_not_finite_is_reported(figure: float, tmp_path: Path, told: Callable[[Path], str]) -> None:
    cells, folder = make(tmp_path / "made", recipe_of(task=RIGHT))
    run = folder.run(next(cell for cell in cells if cell.arm == "english" and cell.split == "right").run_id)
    result = run.result()
    assert result
    result["test"]["log_prob_per_token"] = figure
    run.write_json("result.json", result)
    assert "not finite in 1 of 6" in told(folder.path)
    assert "not finite in 1 of 6" in (folder.path / "table.md").read_text()
    no_figure_is_missing(folder.path)
    with (folder.path / "table.csv").open() as file:
        (line,) = [line for line in csv.DictReader(file) if line["run_id"] == run.path.name]
    assert (line["test_log_prob_per_token"], float(line["test_em"])) == ("", 60.0)
    (row,) = [row for row in tables.rows_of(cells, folder) if row.cell.run_id == run.path.name]
    assert tables.plain_line(row).endswith("test EM 60.0 % | test loss per token not finite")
    assert json.loads(json.dumps(tables.as_json([row]), allow_nan=False))[0]["test_log_prob_per_token"] is None


def test_the_papers_scores_are_shown_below_ours_in_every_category(tmp_path: Path, told: Callable[[Path], str]) -> None:
    """The paper has scores of English in both categories, and it has no German arm."""
    recipe = recipe_of(
        task={"name": "cogs", "splits": ["gen"]}, arms=["english", "german"], methods=[{"name": "lora", "bits": 32}],
        effects=[], seeds=[0],
    )  # fmt: skip
    cells, folder = make(tmp_path / "made", recipe, lambda cell: 0.5, categories=("cp_recursion", "subj_to_obj_common"))
    text = told(folder.path)
    shown = text[text.index("<h2>By category</h2>") : text.index("<h2>Learning curves</h2>")].replace("<wbr>", "")
    assert "the same arm and category in Orhan (2021), arXiv:2109.15101 (t5-base, all weights trained)" in shown
    theirs = {
        name: paper_scores()["t5-base", "english", "cogs", "gen", name].mean
        for name in ("cp_recursion", "subj_to_obj_common")
    }
    for name, figure in theirs.items():
        row = shown[shown.index(f">{name}</th>") :].split("</tr>")[0]
        ours = re.findall(r">([\d.]+)(?:<small>([\d.]+)</small>)?</td>", row)
        assert [paper for _, paper in ours] == [f"{figure:.1f}", ""]
    (heat,) = gather.heats(groups.groups_of(tables.rows_of(cells, folder), "nano"), folder)
    drawn = [one.get_text() for one in heat_map([heat]).axes[0].texts]
    assert len(drawn) == 4 + 2
    assert {f"{figure:.0f}" for figure in theirs.values()} <= set(drawn)
    (alone,) = gather.heats(groups.groups_of(tables.rows_of(cells, folder)), folder)
    assert len(heat_map([alone]).axes[0].texts) == 4


def test_the_scale_effect_uses_the_runs_of_another_study(tmp_path: Path, told: Callable[[Path], str]) -> None:
    effects = ["english-scratch", {"scale": "english-scratch", "study": "small"}]
    _, large = make(tmp_path / "large", recipe_of(task=RIGHT, effects=effects))
    assert "scale of english-scratch on right: not estimated, because there is no study small" in told(large.path)
    make(tmp_path / "small", recipe_of(task=RIGHT, name="small"), lambda cell: 0.5 * level_of(cell))
    text = told(large.path)
    assert "Difference: " in text
    assert "The effect grows with scale." in text
    assert "Scale" in sections(text)


def test_paths_in_the_folder_of_the_study_are_relative_in_the_report(tmp_path: Path) -> None:
    arms = {"english": str(tmp_path / "seeds" / "english-{seed}"), "german": "/elsewhere/german"}
    recipe = recipe_of(family={"name": "mine", "arms": arms}, arms=["english", "german"], effects=[])
    text = recipe_text(recipe, StudyFolder(tmp_path))
    assert "english: ./seeds/english-{seed}" in text
    assert "german: /elsewhere/german" in text
    assert str(tmp_path) not in text
