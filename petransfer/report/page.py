"""report.html: one file that holds everything, needs no network, and says the same bytes for the same runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from petransfer.effects.criteria import criterion_of
from petransfer.effects.drawing import label_of, plot_forest, plot_ratios
from petransfer.effects.kinds.contrast import CONTRAST
from petransfer.effects.kinds.retention import RETENTION
from petransfer.effects.kinds.scale import SCALE
from petransfer.effects.palette import colours as colours_of
from petransfer.effects.reference import CITATION
from petransfer.effects.wording import signed
from petransfer.recipe.loading import freeze
from petransfer.recipe.schema import Recipe
from petransfer.report import charts, plots, sweep
from petransfer.report import page_data as gather
from petransfer.report.html_elements import document, marked, panels, picture, table
from petransfer.report.run_groups import (
    Group,
    columns_of,
    effect_columns,
    effects_table,
    failed_note,
    metrics_table,
    paper_note,
    table_of,
)
from petransfer.study.folders import StudyFolder
from petransfer.study.grid import Cell


@dataclass(frozen=True)
class Findings:
    """All that a page is made from."""

    recipe: Recipe
    cells: Sequence[Cell]
    study: StudyFolder
    groups: Sequence[Group]
    effects: dict[str, Any]


def page(findings: Findings) -> str:
    """The whole page. A section for which the study has no data is left out."""
    sections = "\n".join(f"<section>\n{text}\n</section>" for text in _sections(findings) if text)
    return document(f"{findings.recipe.name}: report", f"{_head(findings)}\n<main>\n{sections}\n</main>")


def _sections(findings: Findings) -> Iterator[str]:
    if not any(group.done for group in findings.groups):  # a sweep comes before the runs
        yield _rates(findings)
        yield _provenance(findings)
        return
    yield _verdicts(findings.effects)
    yield _forest(findings.effects)
    yield _kept(findings.effects)
    yield _scales(findings.effects)
    yield _results(findings)
    yield _metrics(findings.groups)
    yield _heat(findings)
    yield _curves(findings)
    yield _rates(findings)
    yield _parameters(findings)
    yield _errors(findings)
    yield _provenance(findings)


def _head(findings: Findings) -> str:
    rows = [row for group in findings.groups for row in group.runs]
    done = sum(row.status == "done" for row in rows)
    runs = f"All {done} runs are done." if done == len(rows) else f"{done} of {len(rows)} runs are done."
    failed = failed_note(findings.groups)
    runs += f" {failed}" if failed else ""
    lead = f'<p class="lead">{escape(findings.recipe.description)}</p>\n' if findings.recipe.description else ""
    return f"<header>\n<h1>{escape(findings.recipe.name)}</h1>\n{lead}<p>{escape(runs)}</p>\n</header>"


def _verdicts(effects: dict[str, Any]) -> str:
    criterion = criterion_of(effects)
    items = [
        (effect["verdict"], CONTRAST.sentence(effect, criterion), CONTRAST.details(effect, criterion))
        for effect in effects["effects"]
    ]
    items += [("missing", f"{line}.", "") for line in effects.get("missing", ())]
    note = f"<p>{escape(criterion.note)}</p>\n" if criterion.note else ""
    if not items:
        return note  # it holds of what is kept of effects, and of scale
    lines = "\n".join(_item(*item) for item in items)
    return f'<h2>Verdicts</h2>\n<p>{escape(_counted(effects))}</p>\n{note}<ul class="verdicts">\n{lines}\n</ul>'


def _item(kind: str, text: str, details: str) -> str:
    badge = f'<span class="verdict {kind}">{"not estimated" if kind == "missing" else kind}</span>'
    note = f'<p class="note">{escape(details)}</p>' if details else ""
    return f"<li><p>{badge} {escape(text)}</p>{note}</li>"


def _counted(effects: dict[str, Any]) -> str:
    """How many effects came to which verdict."""
    found = Counter(effect["verdict"] for effect in effects["effects"])
    parts = [f"{count} {verdict}" for verdict, count in found.most_common()]
    parts += [f"{len(effects['missing'])} not estimated"] if effects.get("missing") else []
    tests = effects.get("tests", 0)
    together = f" The p values are adjusted for {tests} tests together (Holm)." if tests > 1 else ""
    return f"Of the declared effects: {', '.join(parts)}.{together}"


def _forest(effects: dict[str, Any]) -> str:
    shown = effects["effects"]
    if not shown:
        return ""
    alt = "Forest plot. " + "; ".join(
        f"{label_of(one)} on {one['split']} {signed(one['difference'])} points" for one in shown
    )
    criterion = criterion_of(effects)
    drawn = "two-level bootstrap over seeds and examples" if criterion.by_example else "bootstrap over seeds alone"
    caption = (
        f"Differences in test {criterion.word} with 95 % intervals ({drawn}); the band "
        "is the margin within which two arms count as equal."
    )
    if any(one.get("paper") for one in shown):
        caption += " Hollow diamonds: the same contrast in Orhan (2021), all weights trained."
    lines = table(effect_columns(effects), effects_table(effects), left=3)
    return f"<h2>Effects</h2>\n{picture(plot_forest(shown, criterion.word), 'forest', alt, caption)}\n{lines}"


def _kept(effects: dict[str, Any]) -> str:
    found = effects.get("retentions", [])
    if not found:
        return ""
    text = "\n".join(f"<p>{escape(RETENTION.sentence(one, criterion_of(effects)))}</p>" for one in found)
    shown = ""
    if any(one["ratio"] is not None for one in found):
        alt = "; ".join(RETENTION.sentence(one, criterion_of(effects)) for one in found if one["ratio"] is not None)
        caption = "Share of each effect that is kept, with 95 % intervals: the dashed line is all of it."
        shown = picture(plot_ratios([one for one in found if one["ratio"] is not None]), "kept", alt, caption)
    return f"<h2>What of an effect is kept</h2>\n{shown}\n{text}"


def _scales(effects: dict[str, Any]) -> str:
    found = effects.get("scales", [])
    text = "\n".join(f"<p>{escape(SCALE.sentence(one, criterion_of(effects)))}</p>" for one in found)
    return f"<h2>Scale</h2>\n{text}" if found else ""


def _results(findings: Findings) -> str:
    groups = findings.groups
    colours = colours_of([group.arm for group in groups])
    drawn = []
    for at, ((split, method), members) in enumerate(plots.panels_of(groups).items()):
        if any(group.done for group in members):
            figure, (axes,) = plots.grid(1, size=(4.4, 3.1))
            plots.draw_arms(axes, members, "test", colours)
            drawn.append(picture(figure, f"arms{at}", _alt(members, "test"), f"{split}, {method}"))
    note = paper_note(groups, findings.recipe.family_name)
    text = "Means over seeds, and in brackets the lowest and the highest seed. A dot is a seed, a bar the mean."
    swept = sweep.groups_of(findings.cells, findings.study)
    notes = [note[:1].upper() + note[1:], "" if swept else sweep.unswept(findings.cells, swept)]
    beneath = "\n".join(f'<p class="note">{escape(one)}</p>' for one in notes if one)
    lines = table(columns_of(groups), table_of(groups), left=3)
    return f"<h2>Exact match</h2>\n<p>{text}</p>\n{lines}\n{beneath}\n{panels(drawn)}"


def _metrics(groups: Sequence[Group]) -> str:
    parts = []
    for split in dict.fromkeys(group.split for group in groups):
        columns, lines = metrics_table([group for group in groups if group.split == split])
        if lines:
            parts.append(f"<h3>{escape(split)}</h3>\n{table(columns, lines, left=2)}")
    text = "On test, out of 100: means over seeds, and in brackets the lowest and the highest seed."
    return f"<h2>Other metrics</h2>\n<p>{text}</p>\n" + "\n".join(parts) if parts else ""


def _heat(findings: Findings) -> str:
    heats = gather.heats(findings.groups, findings.study)
    if not heats:
        return ""
    text = "Test exact match in %, means over seeds."
    families = ", ".join(dict.fromkeys(heat.family for heat in heats if heat.family))
    if families:
        text += (
            f" Beneath it, in small type: the same arm and category in {CITATION} ({families}, all weights trained)."
        )
    parts = "\n".join(map(_heat_table, heats))
    return f"<h2>By category</h2>\n<p>{escape(text)}</p>\n{parts}"


def _heat_table(heat: charts.Heat) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in heat.columns)
    body = "\n".join(
        f'<tr><th scope="row">{escape(name).replace("_", "_<wbr>")}</th>{"".join(map(_heat_cell, values, paper))}</tr>'
        for name, values, paper in zip(heat.rows, heat.values, heat.paper, strict=True)
    )
    return (
        f'<h3>{escape(heat.split)}</h3>\n<div class="wide"><table class="heat">\n'
        f'<thead><tr><td class="none"></td>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'
    )


def _heat_cell(value: float | None, paper: float | None) -> str:
    if value is None:
        return '<td class="none"></td>'
    beneath = "" if paper is None else f"<small>{paper:.1f}</small>"
    return f'<td style="--em:{value:.0f}">{value:.1f}{beneath}</td>'


def _curves(findings: Findings) -> str:
    drawn = []
    colours = colours_of([group.arm for group in findings.groups])
    for at, ((split, method), members) in enumerate(plots.panels_of(findings.groups).items()):
        figure, (axes,) = plots.grid(1, size=(4.4, 3.1))
        plots.draw_curves(axes, members, findings.study, colours)
        if axes.lines:
            axes.legend(frameon=False, fontsize="small")
            names = ", ".join(dict.fromkeys(group.arm for group in members))
            alt = f"Dev exact match over optimiser steps on {split}, {method}, for {names}"
            drawn.append(picture(figure, f"curves{at}", alt, f"{split}, {method}"))
    text = "Exact match in distribution (dev) as training goes on: thin lines are seeds, thick ones their mean."
    return f"<h2>Learning curves</h2>\n<p>{text}</p>\n{panels(drawn)}" if drawn else ""


def _rates(findings: Findings) -> str:
    groups = sweep.groups_of(findings.cells, findings.study)
    if not groups:
        return ""
    found = colours_of([one["arm"] for one in groups])
    drawn = []
    for at, (method, members) in enumerate(sweep.by_method(groups).items()):
        figure, (axes,) = plots.grid(1, size=(4.4, 3.1))
        sweep.draw(axes, members, found)
        axes.legend(frameon=False, fontsize="small")
        drawn.append(picture(figure, f"rates{at}", sweep.alt(method, members), sweep.caption(method, members)))
    text = "Each arm and method at several rates, compared on dev, never on test."
    said = [*sweep.sentences(groups), sweep.unswept(findings.cells, groups)]
    notes = "\n".join(f'<p class="note">{escape(line)}</p>' for line in said if line)
    lines = table(sweep.COLUMNS, sweep.lines_of(groups), left=3)
    return f"<h2>Learning rates</h2>\n<p>{text}</p>\n{notes}\n{panels(drawn)}\n{lines}"


def _parameters(findings: Findings) -> str:
    points = gather.trained(findings.effects["effects"], findings.groups)
    if not points:
        return ""
    alt = "; ".join(
        f"{one.name} on {one.split}: {signed(one.effect['difference'])} points with {one.parameters:,} parameters"
        for one in points
    )
    caption = "What the pretrained arm trains against the effect, with 95 % intervals."
    shown = picture(charts.parameters_and_effect(points, criterion_of(findings.effects).word), "trained", alt, caption)
    return f"<h2>Trained parameters and effect</h2>\n{shown}"


def _errors(findings: Findings) -> str:
    found = gather.errors(findings.groups, findings.study)
    if not found:
        return ""
    by_group: dict[str, list[gather.Error]] = {}
    for error in found:
        name = f"{error.group.split}, {error.group.arm}, {error.group.method}, seed {error.seed}"
        by_group.setdefault(name, []).append(error)
    text = (
        "What the models said instead: the first wrong answers among test examples that were drawn at random, not "
        "picked. What is not in the expected answer at its place is marked."
    )
    parts = [
        f"<details{' open' if at < OPEN_ERRORS else ''}><summary>{escape(name)}</summary>\n"
        + "\n".join(map(_answer, members))
        + "\n</details>"
        for at, (name, members) in enumerate(by_group.items())
    ]
    return f"<h2>Errors</h2>\n<p>{text}</p>\n" + "\n".join(parts)


# Groups whose wrong answers are shown at once; the others unfold.
OPEN_ERRORS = 3


def _answer(error: gather.Error) -> str:
    return (
        f'<dl class="said"><dt>{escape(error.category)}</dt><dd>{escape(error.input)}</dd>'
        f"<dt>expected</dt><dd>{escape(error.target)}</dd>"
        f"<dt>said</dt><dd>{marked(error.target, error.said)}</dd></dl>"
    )


def _provenance(findings: Findings) -> str:
    name = findings.recipe.name
    commands = f"petransfer run --recipe results/{name}/recipe.yaml\npetransfer report results/{name}"
    arms = table(("arm", "checkpoint", "revision or sha256"), gather.checkpoints(findings.groups), left=3)
    made = "\n".join(f"<li>{escape(line)}</li>" for line in gather.environments(findings.groups, findings.study))
    made = f"<p>Made with:</p>\n<ul>\n{made}\n</ul>" if made else ""
    digest = findings.effects.get("runs_sha256")
    digest = (
        f" <code>effects.json</code> was judged on runs whose digest is <code>{digest[:16]}</code>." if digest else ""
    )
    return (
        "<h2>Provenance, and how to repeat it</h2>\n"
        f"<pre>{escape(commands)}</pre>\n"
        "<p>A run\u2019s id is a hash of all that can change its numbers: repeated with the same versions on the same "
        f"kind of machine arrives at the same folders.{digest}</p>\n{arms}\n{made}\n"
        f"<details><summary>The recipe</summary>\n<pre>{escape(freeze(findings.recipe))}</pre>\n</details>\n"
        f"<details><summary>The runs</summary>\n<pre>{escape(gather.run_ids(findings.groups))}</pre>\n</details>"
    )


def _alt(members: Sequence[Group], figure: str) -> str:
    parts = []
    for group in members:
        values = getattr(group, figure)
        if values:
            parts.append(f"{group.arm} {sum(values) / len(values):.1f} %")
    return f"Test exact match on {members[0].split}: {', '.join(parts)}"
