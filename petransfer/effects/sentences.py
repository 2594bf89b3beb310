"""An effect in a line for people."""

from __future__ import annotations

from petransfer.effects.bootstrap import Interval
from petransfer.effects.criteria import CRITERIA, Criterion, unlearnt
from petransfer.effects.ratios import Retention, Scale, Side
from petransfer.effects.seed_counts import LEVEL
from petransfer.effects.verdict import Effect
from petransfer.recipe.schema import EXACT_MATCH

_EXACT = CRITERIA[EXACT_MATCH]


def of_effect(effect: Effect, criterion: Criterion = _EXACT) -> str:
    """A contrast of arms or methods with its verdict."""
    about = f"{effect.name} on {effect.split} ({effect.place})"
    seeds = f"{effect.seeds[0]} pairs of seeds" if effect.paired else f"{effect.seeds[0]} and {effect.seeds[1]} seeds"
    p = _p(effect.p_holm)
    if effect.verdict == "inconclusive" and effect.least_p_holm >= LEVEL:
        p += f" (at least {effect.least_p_holm:.3f} with so few seeds)"
    points = f"{effect.difference:+.1f} points of test {criterion.short}{_bounds(effect.interval)}"
    return f"{about}: {points}, {p}, {seeds}: {effect.verdict}{''.join(_more(effect, criterion))}"


def _more(effect: Effect, criterion: Criterion) -> list[str]:
    """What the verdict needs beside it: seeds, the log-probability, the odds, the pair of runs."""
    more = []
    if effect.verdict == "inconclusive":
        unit = "pairs of seeds" if effect.paired else "seeds an arm"
        if effect.p_holm < LEVEL and criterion.by_example:
            more.append(", the seeds agree but other test examples could change the sign: more examples needed")
        elif effect.p_holm < LEVEL:
            more.append(", the exact test tells the seeds apart but their interval holds zero: more seeds needed")
        elif effect.seeds_needed:
            more.append(f", {effect.seeds_needed} {unit} needed")
        else:
            more.append(", one seed decides nothing")
    if effect.verdict == "equivalent":
        more.append(f" within {effect.margin:g} points")
    if effect.verdict == "saturated" and effect.log_prob_difference is not None and effect.log_prob_p is not None:
        more.append(f", log p per token {effect.log_prob_difference:+.3f} ({_p(effect.log_prob_p)})")
    if effect.log_odds:
        more.append(f"; log-odds {effect.log_odds.difference:+.2f}{_bounds(effect.log_odds.interval, 2)}")
    if effect.mcnemar:
        only = f"{effect.mcnemar.only_left} examples only the first has right, {effect.mcnemar.only_right} the second"
        more.append(f"; these two runs differ by McNemar's test with {_p(effect.mcnemar.p)} ({only})")
    if effect.dev:
        more.append(f"; {unlearnt(effect.dev, criterion.unit)}")
    if effect.left_out:
        more.append(f"; {effect.left_out} runs have no partner of the same seed")
    return more


def of_scale(scale: Scale, criterion: Criterion = _EXACT) -> str:
    """A difference of differences with both sides and with the arm that moved."""
    about = f"scale of {scale.name} on {scale.split} ({scale.method})"
    sides = f"{_side(scale.here, criterion.unit)} less {_side(scale.there, criterion.unit)}"
    moved = f"{scale.of_left:+.1f} of it from the first arm and {scale.of_right:+.1f} from the second"
    total = f"{scale.difference:+.1f} points{_bounds(scale.interval)}"
    return f"{about}: {sides} is {total}, {moved}, {_p(scale.p_holm)}: {scale.verdict}"


def of_retention(one: Retention) -> str:
    """A share of an effect that is kept, or why none can be given."""
    about = f"retention of {one.name} on {one.split}, {one.under.name} over {one.over.name}"
    sides = f"{one.under.difference:+.1f} over {one.over.difference:+.1f} points"
    if one.ratio is None or one.interval is None:
        return f"{about}: {sides}, {one.undefined}"
    return f"{about}: {sides} is {one.ratio:.2f} [{one.interval.low:.2f}, {one.interval.high:.2f}]"


def _side(side: Side, unit: str) -> str:
    return f"{side.difference:+.1f}{_bounds(side.interval)} in {side.name} ({side.left:.1f} and {side.right:.1f}{unit})"


def _bounds(interval: Interval | None, digits: int = 1) -> str:
    return f" [{interval.low:+.{digits}f}, {interval.high:+.{digits}f}]" if interval else ""


def _p(value: float) -> str:
    return "p <0.001" if value < 0.0005 else f"p {value:.3f}"
