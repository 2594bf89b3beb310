"""Format numbers for sentences, tables and pages. The minus sign is U+2212."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from petransfer.plurals import count

MINUS = "\u2212"


def signed(value: float, digits: int = 1) -> str:
    """Format a number with a plus or minus sign. 0 has no sign."""
    text = f"{value:+.{digits}f}"
    return (text if float(text) else f"{0:.{digits}f}").replace("-", MINUS)


def plain(value: float, digits: int = 1) -> str:
    """Format a number. Only negative numbers have a sign."""
    text = f"{value:.{digits}f}"
    return (text if float(text) else f"{0:.{digits}f}").replace("-", MINUS)


def bounds(interval: Mapping[str, float] | None, digits: int = 1) -> str:
    """Format an interval as ` [low, high]`, with a space in front. '' for None."""
    return f" [{signed(interval['low'], digits)}, {signed(interval['high'], digits)}]" if interval else ""


def p_value(value: float | None) -> str:
    """Format a p value, never as 0. None (not tested) gives a dash."""
    if value is None:
        return "\u2013"
    return "<0.001" if value < 0.001 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def p_text(value: float | None) -> str:
    """Format a p value in a sentence: `p = 0.035` or `p < 0.001`."""
    text = p_value(value)
    return f"p < {text[1:]}" if text.startswith("<") else f"p = {text}"


def interval_text(interval: Mapping[str, float] | None, digits: int = 1) -> str:
    """Format a 95 % interval in a sentence, such as `95 % interval +5.3 to +43.2`. '' for None."""
    return f"95 % interval {signed(interval['low'], digits)} to {signed(interval['high'], digits)}" if interval else ""


def seeds_text(seeds: Sequence[int], paired: bool, noun: str = "arm") -> str:
    """Format the numbers of seeds of two groups, or the number of pairs of seeds. `noun`: word for a group."""
    left, right = seeds
    if paired:
        return f"{count(left, 'pair')} of seeds"
    if left == right:
        return f"{count(left, 'seed')} per {noun}"
    return f"{left} and {right} seeds"


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def unpaired(runs: int) -> str:
    """Return a clause about `runs` runs that have no partner with an equal seed."""
    return f"{count(runs, 'run')} {'has' if runs == 1 else 'have'} no partner of the same seed"
