"""Tables, plots and messages of `petransfer report`, for constructed runs with known scores."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from petransfer.cli import main
from petransfer.effects.wording import p_value
from petransfer.recipe.loading import load_recipe
from petransfer.report import plots
from petransfer.report import run_groups as groups
from petransfer.report import run_table as tables
from petransfer.study.folders import StudyFolder
from petransfer.study.grid import Cell, expand
from tests.report import made
from tests.report.made import METHODS, draw_nothing, make, recipe_of

SAVE = plots.save


@pytest.fixture
def study(tmp_path: Path) -> tuple[list[Cell], StudyFolder]:
    """A study of the recipe lora-scan with two arms and three seeds. The last run of scratch is not finished."""
    recipe = load_recipe("lora-scan", ["arms=[english, scratch]", "seeds=[0, 1, 2]", "effects=[english-scratch]"], {})
    folder = StudyFolder(tmp_path / "study")
    folder.open(recipe)
    cells = expand(recipe)
    for cell in cells:
        run = folder.run(cell.run_id)
        run.path.mkdir()
        points = [(500, 20.0 + cell.seed), (1000, 90.0 + cell.seed)]
        lines = [json.dumps({"step": step, "loss": 1.0, "seconds": 9.0, "dev_em": em}) for step, em in points]
        (run.path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
        run.write_json("spec.json", cell.spec.as_dict())
        if cell.arm == "scratch" and cell.seed == 2:
            continue
        correct = np.arange(100) < (60 if cell.arm == "english" else 10) + cell.seed
        table = {
            "index": np.arange(100),
            "category": ["all"] * 100,
            "correct": correct,
            "log_prob": -1.0 * np.arange(100),
            "tokens": np.full(100, 10),
        }
        pyarrow.parquet.write_table(pyarrow.table(table), run.path / "examples.parquet")
        measured = {"exact_match": float(100 * correct.mean()), "log_prob_per_token": -4.95, "disagreements": 0}
        run.finish({"steps": 1000, "dev": measured, "test": measured, "trained_parameters": 7})
    return cells, folder


def test_the_tables_have_the_mean_and_range_over_the_seeds_of_a_group(study: tuple[list[Cell], StudyFolder]) -> None:
    found = groups.groups_of(tables.rows_of(*study))
    assert groups.table_of(found) == [
        ("opposite_right", "english", "lora r16 new-embeddings 32-bit", "3", "61.0 (60.0 to 62.0)",
         "61.0 (60.0 to 62.0)", "4.950 (4.950 to 4.950)"),
        ("opposite_right", "scratch", "full 32-bit", "2 of 3", "10.5 (10.0 to 11.0)", "10.5 (10.0 to 11.0)",
         "4.950 (4.950 to 4.950)"),
    ]  # fmt: skip
    assert r"2 of 3 & 10.5 (10.0 to 11.0)" in groups.latex(found, NONE)
    assert r"opposite\_right & english" in groups.latex(found, NONE)
    assert r"dev EM \%" in groups.latex(found, NONE)


def test_a_learning_curve_is_the_mean_over_the_seeds(study: tuple[list[Cell], StudyFolder]) -> None:
    cells, folder = study
    figure = plots.learning_curves(groups.groups_of(tables.rows_of(cells, folder)), folder)
    assert figure
    (axes,) = figure.axes
    thick = [line for line in axes.lines if line.get_linewidth() > 1]
    assert [line.get_label() for line in thick] == ["english", "scratch"]
    assert len(axes.lines) == 2 + 6  # an unfinished run has a curve too
    for line in thick:
        assert list(line.get_xdata()) == [500, 1000]
        assert list(line.get_ydata()) == pytest.approx([21, 91])


def test_the_legend_has_the_arms_of_all_panels(tmp_path: Path) -> None:
    """The arm `random` is trained only by LoRA, and the panel of LoRA is not the last one."""
    methods = [{"name": "lora", "bits": 32}, {"name": "full", "bits": 32}]
    recipe = made.recipe_of(arms=["english", "scratch", "random"], methods=methods, effects=[])
    cells, folder = made.make(
        tmp_path / "made", recipe, lambda cell: 0.5, skip=lambda cell: cell.arm == "random" and "full" in cell.method
    )
    found = groups.groups_of(tables.rows_of(cells, folder))
    figure = plots.learning_curves(found, folder)
    assert figure
    assert len(figure.axes) == 4
    assert not any(axes.get_legend() for axes in figure.axes)
    assert "random" not in [line.get_label() for line in figure.axes[-1].lines]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["english", "scratch", "random"]
    assert [line.get_color() for line in legend.get_lines()] == ["#0072B2", "#000000", "#7F7F7F"]


def test_the_plot_by_arm_shows_every_seed(study: tuple[list[Cell], StudyFolder]) -> None:
    figure = plots.by_arm(groups.groups_of(tables.rows_of(*study)))
    assert figure
    test, loss = figure.axes
    dots = [list(line.get_xdata()) for line in test.lines if line.get_marker() == "o"]
    assert dots == [pytest.approx([60, 61, 62]), pytest.approx([10, 11])]
    assert loss.get_xlabel().replace("\n", " ") == "test loss per token, nats"


def test_the_size_of_quantised_weights_is_reported(study: tuple[list[Cell], StudyFolder]) -> None:
    row = tables.rows_of(*study)[0]
    assert tables.weight_lines([row]) == []
    weights = {
        "bytes": {"bfloat16": 1_000_000, "nf4": 3_000_000},
        "share": {"bfloat16": 25.0, "nf4": 75.0},
        "wide": {"norm": {}, "embeddings": {"bytes": 9, "why": "rows are looked up"}},
        "quantisation": {"loss_at_16_bits": 2.0, "loss": 2.01},
    }
    (line,) = tables.weight_lines([replace(row, weights=weights)] * 2)
    assert (
        "4.0 MB of weights, 25.0 % bfloat16, 75.0 % nf4; not quantised: norm, embeddings (rows are looked up)" in line
    )
    assert "2.000 at 16 bits, 2.010 quantised" in line


NONE: dict[str, Any] = {"effects": []}


def test_the_latex_table_has_the_effects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = made.recipe_of(methods=[{"name": "lora", "bits": 32}], effects=["english-scratch", "german-scratch"])
    _, folder = made.make(tmp_path / "made", recipe)
    monkeypatch.setattr("petransfer.report.plot_files.save_all", lambda *given: None)
    monkeypatch.setattr("petransfer.report.page.page", lambda findings: "")
    assert _report(folder.path, monkeypatch) == 0
    text = (folder.path / "table.tex").read_text()
    first, second = text.split("\n\n")
    assert first.startswith(r"\begin{tabular}{lllrrrrr}")
    head = r"effect & split & under & points of EM & p (Holm) & verdict & paper: points & paper: p (Holm) \\"
    assert second.splitlines()[:4] == [r"\begin{tabular}{lllrrlrr}", r"\toprule", head, r"\midrule"]
    effects = json.loads((folder.path / "effects.json").read_text())["effects"]
    for line, one in zip(second.splitlines()[4:8], effects, strict=True):
        low, high = one["interval"]["low"], one["interval"]["high"]
        cells = [part.strip() for part in line.removesuffix(r" \\").split(" & ")]
        assert cells[:3] == [one["name"], one["split"].replace("_", r"\_"), one["method"]]
        assert cells[3:6] == [
            f"{one['difference']:+.1f} [{low:+.1f}, {high:+.1f}]".replace("-", "$-$"),
            p_value(one["p_holm"]),
            one["verdict"],
        ]
        assert (cells[6] != "") == (one["name"] == "english-scratch")
    assert second.endswith("\\bottomrule\n\\end{tabular}\n")


def _report(folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["petransfer", "report", str(folder)])
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0)


def save_svg(figure: Any, path: Path) -> None:
    """Save a figure only as SVG, in place of `plots.save`."""
    path.parent.mkdir(exist_ok=True)
    plots.write_svg(figure, path.with_suffix(".svg"))


def _hashes(folder: Path) -> dict[str, str]:
    made = [path for path in folder.rglob("*") if path.is_file() and "runs" not in path.parts and path.name != ".lock"]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in made}


def test_a_repeated_report_has_the_same_bytes(
    study: tuple[list[Cell], StudyFolder], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All plots are drawn as SVG. Only one plot is also drawn as PNG and PDF, which takes most of the time."""
    monkeypatch.setattr(plots, "save", lambda figure, path: (SAVE if path.stem == "by-arm" else save_svg)(figure, path))
    folder = study[1].path
    assert _report(folder, monkeypatch) == 0
    message = capsys.readouterr()
    first = _hashes(folder)
    names = {"table.csv", "table.md", "table.tex", "effects.json", "report.html"}
    plotted = ("learning-curves", "by-arm", "by-arm-one-column", "effects", "effects-one-column")
    pictures = {f"{name}.svg" for name in plotted} | {"by-arm.png", "by-arm.pdf"}
    assert set(first) == names | pictures | {"recipe.yaml"}
    for path in folder.rglob("*"):
        if path.is_file() and path.name in names | pictures:
            path.unlink()
    assert _report(folder, monkeypatch) == 0
    assert _hashes(folder) == first
    assert "2 of 3" in message.out
    assert "+50.5 points" in message.out
    assert "+50.5 points" in (folder / "table.md").read_text()
    ElementTree.parse(folder / "plots" / "by-arm.svg")


def test_changes_by_hand_in_effects_json_are_overwritten(
    study: tuple[list[Cell], StudyFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_nothing(monkeypatch)
    folder = study[1].path
    assert _report(folder, monkeypatch) == 0
    first = _hashes(folder)
    path = folder / "effects.json"
    path.write_text(path.read_text().replace("inconclusive", "holds").replace("50.5", "60.5"))
    assert _report(folder, monkeypatch) == 0
    assert _hashes(folder) == first


def _rebuilds(shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check that a report on the runs of a shipped study equals its shipped files. Of the plots, compare SVGs only."""
    monkeypatch.setattr(plots, "save", save_svg)
    copy = tmp_path / shipped.name
    shutil.copytree(shipped, copy, ignore=shutil.ignore_patterns("plots", "*.html", "table.*", "effects.json"))
    outputs = [Path("effects.json"), Path("report.html"), *(Path(f"table.{kind}") for kind in ("csv", "md", "tex"))]
    outputs += [path.relative_to(shipped) for path in sorted(shipped.glob("plots/*.svg"))]
    assert _report(copy, monkeypatch) == 0
    for path in outputs:
        assert (copy / path).read_bytes() == (shipped / path).read_bytes(), path
    assert len(list(copy.glob("plots/*.svg"))) == len(outputs) - 5


SHIPPED = sorted(path.parent for path in (Path(__file__).parents[2] / "results").glob("*/effects.json"))
QUICKEST = "bits-scan-8000"


def test_the_report_of_one_shipped_study_can_be_rebuilt_from_its_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (shipped,) = (path for path in SHIPPED if path.name == QUICKEST)
    _rebuilds(shipped, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("shipped", [path for path in SHIPPED if path.name != QUICKEST], ids=lambda path: path.name)
def test_the_report_of_every_shipped_study_can_be_rebuilt_from_its_runs(
    shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _rebuilds(shipped, tmp_path, monkeypatch)


def test_the_index_of_results_lists_every_study() -> None:
    index = (SHIPPED[0].parent / "README.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"\]\(([\w-]+)/README.md\)", index)) == sorted(
        path.parent.name for path in SHIPPED[0].parent.glob("*/README.md")
    )


def _lose(path: Path) -> None:
    path.unlink()


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def _without_a_column(path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.parquet.read_table(path, columns=["index", "category"]), path)


@pytest.mark.parametrize(
    ("damage", "message"), [(_lose, "is missing"), (_cut, "cannot be read"), (_without_a_column, "cannot be read")]
)
def test_a_run_with_missing_or_damaged_examples_is_left_out_and_reported(
    study: tuple[list[Cell], StudyFolder], damage: Callable[[Path], None], message: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    draw_nothing(monkeypatch)
    cells, folder = study
    draw_nothing(monkeypatch)
    run = folder.run(cells[0].run_id).path
    damage(run / "examples.parquet")
    assert _report(folder.path, monkeypatch) == 0
    (effect,) = json.loads((folder.path / "effects.json").read_text())["effects"]
    assert (effect["left_seeds"], effect["right_seeds"]) == ([61.0, 62.0], [10.0, 11.0])
    assert "| 2 of 3 | 61.5 (61.0 to 62.0) |" in (folder.path / "table.md").read_text()
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "damaged" in line]
    assert f"{run / 'examples.parquet'} {message}" in line
    assert "--repair" in line


@pytest.mark.parametrize(
    "content",
    [b"\x80\xff\n", b"[1]\n", b'{"step": 1}\n', b'{"step": 0, "loss": 1, "seconds": 1}\n', b"[" * 100_000 + b"\n"],
)
def test_damaged_metrics_are_reported_in_one_line(
    study: tuple[list[Cell], StudyFolder], content: bytes,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    cells, folder = study
    path = folder.run(cells[0].run_id).path / "metrics.jsonl"
    path.write_bytes(content)
    assert _report(folder.path, monkeypatch) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert f"{path}:1 is damaged" in line


def test_damaged_examples_are_reported_in_a_study_without_effects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """If a study has no effects, only the section of wrong answers reads the examples."""
    draw_nothing(monkeypatch)
    cells, folder = make(tmp_path / "made", recipe_of(effects=[], arms=["english"], methods=[METHODS[0]]))
    _cut(folder.run(cells[0].run_id).path / "examples.parquet")
    assert _report(folder.path, monkeypatch) == 0
    assert "examples.parquet cannot be read (ArrowInvalid)" in capsys.readouterr().err


def test_a_folder_without_a_study_or_without_finished_runs_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _report(tmp_path, monkeypatch) == 2
    assert "no recipe.yaml" in capsys.readouterr().err
    StudyFolder(tmp_path / "empty").open(load_recipe("smoke", [], {}))
    assert _report(tmp_path / "empty", monkeypatch) == 2
    assert "no run of" in capsys.readouterr().err


def test_deleted_files_of_finished_runs_are_reported_with_a_command_to_restore_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    draw_nothing(monkeypatch)
    recipe = recipe_of(
        arms=["english"], methods=METHODS[:1], seeds=[0, 1], effects=[], task={"name": "scan", "splits": ["right"]}
    )
    cells, folder = make(tmp_path / "made", recipe)
    paths = [folder.run(cell.run_id).path for cell in cells]
    for path in paths:
        (path / "adapter").mkdir()
        (path / "adapter" / "adapter_model.safetensors").touch()
    again = f"petransfer run --recipe {folder.path / 'recipe.yaml'} --out {folder.path}"

    def message(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["petransfer", *arguments])
        with pytest.raises(SystemExit):
            main()
        return " ".join("".join(capsys.readouterr()).split())

    name = str(folder.path)
    assert "trained weights" not in message("status", name) + message("report", name)
    (paths[0] / "adapter" / "adapter_model.safetensors").unlink()
    shutil.rmtree(paths[1] / "adapter")
    lost = "2 finished runs without trained weights: "
    for verb in ("status", "report"):  # people share studies without weights on purpose
        line = message(verb, name)
        assert "2 finished runs have no trained weights: the scores are kept" in line, verb
        assert "delete the folder" not in line, verb
    for verb in ("run", "predict"):
        more = {"predict": ["walk"], "run": ["--repair", "--cpu"]}.get(verb, [])
        line = message(verb, name, *more)
        assert lost in line, verb
        assert f"run `{again}`, which does not repeat other finished runs" in line, verb
    assert "1 finished run without" in message("predict", name, "walk", "--run", paths[0].name)
    assert f"delete the folder {paths[1]} and" in message("predict", str(paths[1]), "walk")
    for path in paths:
        (path / "examples.parquet").unlink()
    for arguments in (("status", name), ("report", name), ("report", "compare", name, name)):
        line = message(*arguments)
        assert f"`{again} --repair`" in line
        assert "examples.parquet is missing" in line
    for path in paths:
        (path / "DONE").unlink()
    assert f"run them with `{again}`" in message("report", name)
