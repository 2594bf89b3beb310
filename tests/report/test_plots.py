"""Pictures of studies with many methods: panels in rows, and methods in the order of what they train."""

from __future__ import annotations

from pathlib import Path

from petransfer.effects.study_effects import update_effects
from petransfer.report import charts, plots
from petransfer.report import page_data as gather
from petransfer.report import run_groups as groups
from petransfer.report import run_table as tables
from tests.report.made import make, recipe_of

WIDTHS = [{"name": "lora", "bits": 32, "rank": rank} for rank in (2, 4, 8, 16)]
MANY = [*WIDTHS, {"name": "full", "bits": 32, "rate_scaling": "rms"}]


def test_more_than_four_panels_go_into_rows(tmp_path: Path) -> None:
    recipe = recipe_of(
        task={"name": "scan", "splits": ["right"]}, methods=MANY, effects=["english-scratch"], seeds=[0, 1]
    )
    cells, folder = make(tmp_path, recipe)
    found = groups.groups_of(tables.rows_of(cells, folder), "nano")
    for figure, high in ((plots.by_arm(found), 4), (plots.learning_curves(found, folder), 2)):
        shown = [axes for axes in figure.axes if axes.axison]
        titles = [axes.get_title() for axes in shown if axes.get_title()]
        assert sorted(titles) == sorted(f"right\n{method}" for method in {cell.method for cell in cells})
        assert len(figure.axes) == 3 * high
        assert len(figure.axes) - len(shown) == high // 2
        assert all(axes.lines for axes in shown)
    legend = plots.learning_curves(found, folder).axes[4].get_legend()  # the last panel that is drawn
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["english", "german", "scratch"]


def test_methods_stand_in_the_order_of_what_they_train(tmp_path: Path) -> None:
    recipe = recipe_of(methods=MANY, effects=["english-scratch", "german-scratch"], seeds=[0, 1])
    cells, folder = make(tmp_path, recipe)
    effects = update_effects(recipe, cells, folder)["effects"]
    points = gather.trained(effects, groups.groups_of(tables.rows_of(cells, folder), "nano"))
    assert {one.parameters for one in points} == {90_000, 1_700_000}
    left, right = charts.parameters_and_effect(points, "EM").axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["r16", "r2", "r4", "r8", "full"]
    assert left.get_xlim() == (1e4, 1e7)
    markers = {(line.get_color(), line.get_marker()) for line in right.lines if line.get_marker() != "None"}
    assert len(markers) == 4  # two effects on two splits
