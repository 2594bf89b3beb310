"""plots/: every picture that the study has data for, as SVG and PNG."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from petransfer.effects.criteria import criterion_of
from petransfer.effects.drawing import plot_forest, plot_ratios
from petransfer.report import charts, plots, sweep
from petransfer.report import page_data as gather
from petransfer.report.run_groups import Group
from petransfer.study.folders import StudyFolder
from petransfer.study.grid import Cell

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save_all(groups: Sequence[Group], effects: dict[str, Any], cells: Sequence[Cell], study: StudyFolder) -> None:
    """Writes the pictures; those whose data are gone since an earlier report are removed."""
    figures: dict[str, Figure] = {}
    word = criterion_of(effects).word
    if any(group.done for group in groups):
        figures = {"learning-curves": plots.learning_curves(groups, study), "by-arm": plots.by_arm(groups)}
    if effects["effects"]:
        figures["effects"] = plot_forest(effects["effects"], word)
    if any(one["ratio"] is not None for one in effects.get("retentions", ())):
        figures["retention"] = plot_ratios([one for one in effects["retentions"] if one["ratio"] is not None])
    heats, swept = gather.heats(groups, study), sweep.groups_of(cells, study)
    trained = gather.trained(effects["effects"], groups)
    figures |= {"by-category": charts.heat_map(heats)} if heats else {}
    figures |= {"learning-rates": sweep.figure(swept)} if swept else {}
    figures |= {"parameters": charts.parameters_and_effect(trained, word)} if trained else {}
    for name in _NAMES:
        path = study.path / "plots" / name
        if name in figures:
            plots.save(figures[name], path)
        else:
            for kind in (".svg", ".png"):
                path.with_suffix(kind).unlink(missing_ok=True)


_NAMES = ("learning-curves", "by-arm", "effects", "retention", "by-category", "learning-rates", "parameters")
