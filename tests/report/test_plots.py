"""Plots of studies with many methods: panels, rows, and methods in order of their trained parameters."""

from __future__ import annotations

from pathlib import Path

import pytest

from petransfer.effects.drawing import new_figure, plot_forest
from petransfer.effects.study_effects import update_effects
from petransfer.report import page_data as gather
from petransfer.report import plots
from petransfer.report import run_groups as groups
from petransfer.report import run_table as tables
from petransfer.report.parameter_plot import parameters_and_effect
from petransfer.report.plots import save
from tests.report.made import make, recipe_of

WIDTHS = [{"name": "lora", "bits": 32, "rank": rank} for rank in (2, 4, 8, 16)]
MANY = [*WIDTHS, {"name": "full", "bits": 32, "rate_scaling": "rms"}]


def test_every_method_has_a_panel_of_curves_and_rows_in_the_plot_by_arm(tmp_path: Path) -> None:
    recipe = recipe_of(
        task={"name": "scan", "splits": ["right"]}, methods=MANY, effects=["english-scratch"], seeds=[0, 1]
    )
    cells, folder = make(tmp_path, recipe)
    found = groups.groups_of(tables.rows_of(cells, folder), "nano")
    curves = plots.learning_curves(found, folder)
    assert curves
    titles = [axes.get_title() for axes in curves.axes]
    assert sorted(titles) == sorted(("r2", "r4", "r8", "r16", "full"))
    assert all(axes.lines for axes in curves.axes)  # no panel is empty
    (legend,) = curves.legends
    assert [text.get_text() for text in legend.get_texts()] == ["english", "german", "scratch"]
    arms = plots.by_arm(found)
    assert arms
    em, loss = arms.axes
    assert [label.get_text() for label in em.get_yticklabels()] == ["english", "german"] * 5 + ["scratch"]
    assert em.get_ylim() == loss.get_ylim()
    assert sum(text.get_text().startswith("paper") for text in em.texts) == 6
    assert em.get_xlim()[1] < 75  # the paper's 96.8 % does not widen the axis


def test_a_forest_plot_has_a_row_for_each_method_and_one_for_the_paper(tmp_path: Path) -> None:
    recipe = recipe_of(
        task={"name": "scan", "splits": ["right"]}, methods=MANY, effects=["english-scratch"], seeds=[0, 1]
    )
    cells, folder = make(tmp_path, recipe)
    effects = update_effects(recipe, cells, folder)["effects"]
    (axes,) = plot_forest(effects, "exact match").axes
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["r2", "r4", "r8", "r16", "full", "Orhan (2021)"]
    several = recipe_of(methods=MANY[-2:], effects=["english-scratch", "german-scratch"], seeds=[0, 1])
    cells, folder = make(tmp_path / "several", several)
    (axes,) = plot_forest(update_effects(several, cells, folder)["effects"], "exact match").axes
    assert len(axes.get_yticklabels()) == 2 * 2 * 2
    assert {text.get_text().strip() for text in axes.texts} == {
        f"{split} \u00b7 {method}" for split in ("add_jump", "right") for method in ("lora", "full")
    }


def test_methods_are_sorted_by_the_number_of_trained_parameters(tmp_path: Path) -> None:
    recipe = recipe_of(methods=MANY, effects=["english-scratch", "german-scratch"], seeds=[0, 1])
    cells, folder = make(tmp_path, recipe)
    effects = update_effects(recipe, cells, folder)["effects"]
    points = gather.trained(effects, groups.groups_of(tables.rows_of(cells, folder), "nano"))
    assert {one.parameters for one in points} == {90_000, 1_700_000}
    left, right = parameters_and_effect(points, "EM").axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["r16", "r2", "r4", "r8", "full"]
    assert left.get_xlim() == (1e4, 1e7)
    markers = {(line.get_color(), line.get_marker()) for line in right.lines if line.get_marker() != "None"}
    assert len(markers) == 4  # two effects on two splits


@pytest.mark.parametrize("name", ["$\\foo$", "a$b$c", "\\$x"])
def test_a_dollar_in_a_name_does_not_start_a_formula(name: str, tmp_path: Path) -> None:
    figure, (axes,) = new_figure(1, size=(3, 2))
    axes.plot([1, 1000], [1, 2], label=name)
    axes.set_xscale("log")
    axes.set_yticks([1], [name])
    figure.legend()
    save(figure, tmp_path / "plot")
    text = (tmp_path / "plot.svg").read_text()
    assert text.count(f">{name}<") == 2
    assert ">$" not in text.replace(f">{name}<", "")  # the labels of the logarithmic axis are still drawn as formulas
