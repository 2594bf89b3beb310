"""Effects in sentences for the page: what was compared, what was seen, and what may be concluded."""

from __future__ import annotations

from typing import Any

from petransfer.effects.criteria import Criterion, unlearnt
from petransfer.effects.seed_counts import LEVEL
from petransfer.report.charts import label_of

_CONCLUSIONS = {
    "holds": "The effect holds.",
    "reversed": "The effect is reversed.",
    "equivalent": "The two are equivalent within {margin:g} points.",
    "saturated": "Both are so near to one end of the scale that {word} cannot answer.",
}


def of_effect(effect: dict[str, Any], criterion: Criterion) -> tuple[str, str]:
    """A contrast of arms or methods: the sentence that concludes, and the details that a careful reader wants."""
    place = f"in the arm {effect['arm']}" if effect["arm"] else f"under {effect['method']}"
    seen = (
        f"{label_of(effect)} on {effect['split']}, {place}: {signed(effect['difference'])} points"
        f"{_interval(effect['interval'])}, {effect['left']:.1f} against {effect['right']:.1f}{criterion.unit} "
        f"{criterion.word}."
    )
    details = [_tested(effect), *_secondary(effect), *_paper(effect)]
    if effect.get("dev"):
        said = unlearnt(effect["dev"], criterion.unit)
        seen += f" {said[0].upper()}{said[1:]}."
    return _tidy(f"{seen} {_concluded(effect, criterion)}"), _tidy(" ".join(details))


def _tested(effect: dict[str, Any]) -> str:
    left, right = effect["seeds"]
    if effect["paired"]:
        seeds = f"{left} pairs of seeds"
    else:
        seeds = f"{left} and {right} seeds" if left != right else f"{left} seed{'s' if left > 1 else ''} each"
    if effect["left_out"]:
        seeds += f" ({effect['left_out']} runs have no partner of the same seed)"
    least = f"the least that so many seeds can give is {p_value(effect['least_p_holm'])}"
    return f"{seeds}; exact permutation p after Holm {p_value(effect['p_holm'])}, {least}."


def _concluded(effect: dict[str, Any], criterion: Criterion) -> str:
    if effect["verdict"] != "inconclusive":
        return _CONCLUSIONS[effect["verdict"]].format(margin=effect["margin"], word=criterion.word)
    if effect["p_holm"] < LEVEL and not criterion.by_example:
        return "Undecided; the exact test tells the seeds apart, but their interval holds zero: more seeds are needed."
    if effect["p_holm"] < LEVEL:
        return "Undecided; the seeds agree, but other test examples could change the sign: more examples are needed."
    if effect["seeds_needed"]:
        unit = "pairs of seeds" if effect["paired"] else "seeds an arm"
        return f"Undecided; with the spread seen, {effect['seeds_needed']} {unit} would be needed."
    return "Undecided; one seed decides nothing."


def _secondary(effect: dict[str, Any]) -> list[str]:
    parts = []
    if effect["log_prob_difference"] is not None:
        nats = signed(effect["log_prob_difference"], 3)
        parts.append(f"Log-probability per target token: {nats} nats, unadjusted p {p_value(effect['log_prob_p'])}.")
    if effect["log_odds"]:
        odds = effect["log_odds"]
        said = f"{signed(odds['difference'], 2)}{_interval(odds['interval'], 2)}"
        parts.append(f"Log-odds, as a side is near the end of the scale: {said}.")
    if effect["mcnemar"]:
        pair = effect["mcnemar"]
        parts.append(
            f"These two runs alone, by McNemar\u2019s test: {pair['only_left']} examples are right only in the first, "
            f"{pair['only_right']} only in the second, p {p_value(pair['p'])}."
        )
    return parts


def _paper(effect: dict[str, Any]) -> list[str]:
    paper = effect.get("paper")
    if not paper:
        return []
    seeds = f"{paper['seeds'][0]} and {paper['seeds'][1]} seeds"
    points = f"{signed(paper['difference'])} points{_interval(paper['interval'])}"
    return [
        f"The paper ({paper['family']}, all weights): {points}, {seeds}; judged alone it {_ALONE[paper['verdict']]}."
    ]


def _tidy(text: str) -> str:
    """Figures stay with their percent signs."""
    return text.replace(" %", "\u00a0%").replace(" points", "\u00a0points").replace("p <", "p\u00a0<")


_ALONE = {
    "holds": "holds",
    "reversed": "is reversed",
    "equivalent": "shows equivalence",
    "inconclusive": "is inconclusive",
    "saturated": "is saturated",
}


def of_scale(scale: dict[str, Any], criterion: Criterion) -> str:
    """A difference of differences, with both sides and the arm whose change makes most of it."""
    here, there = scale["here"], scale["there"]
    sides = " and ".join(
        f"{signed(side['difference'])} points{_interval(side['interval'])} in {side['name']} "
        f"({side['left']:.1f} against {side['right']:.1f}{criterion.unit})"
        for side in (here, there)
    )
    word = criterion.word
    left, right = scale["of_left"], scale["of_right"]
    most = "the first arm" if abs(left) >= abs(right) else "the second arm, the control"
    moved = f"{signed(left)} of it from the first arm and {signed(right)} from the second: most is {most} moving"
    verdict = {
        "holds": "The effect grows with scale.",
        "reversed": "The effect shrinks with scale.",
        "equivalent": "The effect does not change with scale within the margin.",
        "saturated": f"{word.capitalize() if word.islower() else word} has no room to differ on either side.",
        "inconclusive": "Whether it changes with scale is undecided.",
    }[scale["verdict"]]
    return _tidy(
        f"{scale['name']} on {scale['split']}, {scale['method']}: {sides}. Difference of differences "
        f"{signed(scale['difference'])}{_interval(scale['interval'])}, {moved}; p after Holm "
        f"{p_value(scale['p_holm'])}. {verdict}"
    )


def of_retention(one: dict[str, Any]) -> str:
    """What a method keeps of an effect."""
    under, over = one["under"], one["over"]
    sides = (
        f"{one['name']} on {one['split']}: {signed(under['difference'])} points{_interval(under['interval'])} under "
        f"{under['name']}, {signed(over['difference'])}{_interval(over['interval'])} under {over['name']}"
    )
    if one["ratio"] is None:
        return f"{sides}. The share that is kept is {one['undefined']}."
    interval = one["interval"]
    bounds = f"95 % interval {100 * interval['low']:.0f} to {100 * interval['high']:.0f} %"
    return _tidy(f"{sides}. {100 * one['ratio']:.0f} % of it is kept ({bounds}).")


def signed(value: float, digits: int = 1) -> str:
    """With its sign, a true minus."""
    return f"{value:+.{digits}f}".replace("-", "\u2212")


def p_value(value: float) -> str:
    """Two or three digits, never 0."""
    return "<\u202f0.001" if value < 0.001 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def _interval(interval: dict[str, float] | None, digits: int = 1) -> str:
    if interval is None:
        return ""
    return f" (95 % interval {signed(interval['low'], digits)} to {signed(interval['high'], digits)})"
