"""Write the plots of a study to the folder plots/, as SVG, PDF and PNG."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from petransfer.effects.criteria import criterion_of
from petransfer.effects.drawing import ONE_COLUMN
from petransfer.effects.kind import kinds_in_order
from petransfer.report import page_data as gather
from petransfer.report import plots, sweep
from petransfer.report.heat_map import heat_map
from petransfer.report.parameter_plot import parameters_and_effect
from petransfer.report.run_groups import RunGroup
from petransfer.study.folders import StudyFolder
from petransfer.study.grid import Cell

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# A plot whose file name ends like this has the width of one column. Other plots have the width of a two-column page.
NARROW = "-one-column"
_KINDS = {"contrast": "effects"}  # by kind of effect: its file name, if it differs from the name of the kind
_NAMES = ("learning-curves", "by-arm", "by-category", "learning-rates", "parameters")


def save_all(groups: Sequence[RunGroup], effects: dict[str, Any], cells: Sequence[Cell], study: StudyFolder) -> None:
    """Write all plots of a study. Old plots that have no data now are removed."""
    figures = _figures(groups, effects, cells, study)
    kinds = [_KINDS.get(kind.name, kind.name) for kind in kinds_in_order()]
    for name in (*_NAMES, *kinds, *(f"{name}{NARROW}" for name in ("by-arm", *kinds))):
        path = study.path / "plots" / name
        figure = figures.get(name)
        if figure is not None:
            plots.save(figure, path)
        else:
            for suffix in (".svg", ".png", ".pdf"):
                path.with_suffix(suffix).unlink(missing_ok=True)


def _figures(
    groups: Sequence[RunGroup], effects: dict[str, Any], cells: Sequence[Cell], study: StudyFolder
) -> dict[str, Figure | None]:
    figures: dict[str, Figure | None] = {}
    if any(group.done for group in groups):
        figures["learning-curves"] = plots.learning_curves(groups, study)
        figures["by-arm"] = plots.by_arm(groups)
        figures[f"by-arm{NARROW}"] = plots.by_arm(groups, ONE_COLUMN)
    for kind in kinds_in_order():
        found, criterion, name = effects.get(kind.key, []), criterion_of(effects), _KINDS.get(kind.name, kind.name)
        figures[name] = kind.plot(found, criterion, None)
        figures[f"{name}{NARROW}"] = kind.plot(found, criterion, ONE_COLUMN)
    heats, swept = gather.heats(groups, study), sweep.groups_of(cells, study)
    trained = gather.trained(effects["effects"], groups)
    figures["by-category"] = heat_map(heats) if heats else None
    figures["learning-rates"] = sweep.plot(swept) if swept else None
    figures["parameters"] = parameters_and_effect(trained, criterion_of(effects).word) if trained else None
    return figures
