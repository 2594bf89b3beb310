"""Write the report of a study: its page, tables, plots and effects."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from petransfer.atomic_files import write_text
from petransfer.effects.study_effects import update_effects
from petransfer.errors import UserError
from petransfer.report import page, plot_files, run_groups, run_page, run_table, sweep
from petransfer.study.study import StudyGrid

logger = logging.getLogger(__name__)

FILES = ("report.html", "table.csv", "table.md", "table.tex", "plots/", "effects.json")


@dataclass(frozen=True)
class StudyReport:
    """The content of a study's report.

    Attributes:
        path: The page, `report.html`.
        groups: The runs of the study, grouped by split, arm and method.
        effects: The content of effects.json.
        swept: The results of the learning-rate sweep by arm and method. Empty if there was no sweep.
        unswept_note: A note on learning rates that were not swept, or ''.
        any_done: Whether a run of the study is finished. Otherwise the report shows only the sweep.
        single: The run, if the study is one finished run without effects. Otherwise None.
    """

    path: Path
    groups: list[run_groups.RunGroup]
    effects: dict[str, Any]
    swept: list[sweep.SweepGroup]
    unswept_note: str
    any_done: bool
    single: run_table.RunRow | None = None


def write_report(grid: StudyGrid) -> StudyReport:
    """Write report.html, table.csv, table.md, table.tex, plots/ and effects.json into the study's folder.

    Raises:
        UserError: No run of the study is finished and there was no sweep.
    """
    recipe, cells, folder = grid.recipe, grid.cells, grid.folder
    rows = run_table.rows_of(cells, folder)
    family = recipe.family_name
    groups = run_groups.groups_of(rows, family)
    swept = sweep.groups_of(cells, folder)
    for damage in grid.damaged.values():
        logger.warning(f"left out, because it is damaged: {damage}; run it again with `{grid.repair_command}`")
    any_done = any(row.status == "done" for row in rows)
    if not any_done and not swept:
        if grid.damaged:
            raise UserError(
                f"all finished runs of {folder.path} are damaged; repeat only these runs with `{grid.repair_command}`"
            )
        raise UserError(f"no run of {folder.path} is finished; run them with `{grid.run_command}`")
    effects = update_effects(recipe, cells, folder, anew=True) if any_done else {"effects": []}
    unswept_note = sweep.unswept_note(cells, swept)
    if any_done:
        run_table.write_csv(rows, folder.path / "table.csv", family)
        write_text(folder.path / "table.md", run_groups.markdown(groups, effects, family, unswept_note))
        write_text(folder.path / "table.tex", run_groups.latex(groups, effects))
    findings = page.ReportData(recipe, cells, folder, groups, effects)
    plot_files.save_all(groups, effects, cells, folder)
    path = folder.path / "report.html"
    single = rows[0] if run_page.is_single_run(findings) else None
    write = run_page.run_page if single else page.page
    write_text(path, write(findings))
    return StudyReport(path, groups, effects, swept, unswept_note, any_done, single)
