"""Format numbers for sentences, tables and pages: with a real minus sign, and never a p of 0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from petransfer.plurals import count

MINUS = "\u2212"


def signed(value: float, digits: int = 1) -> str:
    """Format a number with its sign."""
    text = f"{value:+.{digits}f}"
    return (text if float(text) else f"{0:.{digits}f}").replace("-", MINUS)


def plain(value: float, digits: int = 1) -> str:
    """Format a number without a plus sign."""
    text = f"{value:.{digits}f}"
    return (text if float(text) else f"{0:.{digits}f}").replace("-", MINUS)


def bounds(interval: Mapping[str, float] | None, digits: int = 1) -> str:
    """Format a confidence interval in brackets after a blank; '' if there is no interval."""
    return f" [{signed(interval['low'], digits)}, {signed(interval['high'], digits)}]" if interval else ""


def p_value(value: float | None) -> str:
    """Format a p value with two or three decimals, never as 0; a dash if there was no test."""
    if value is None:
        return "\u2013"
    return "<0.001" if value < 0.001 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def p_text(value: float | None) -> str:
    """Format a p value in a sentence: `p 0.035` or `p <0.001`."""
    return f"p {p_value(value)}"


def seeds_text(seeds: Sequence[int], paired: bool) -> str:
    """Return a text with the number of seeds of each side."""
    left, right = seeds
    if paired:
        return f"{count(left, 'pair')} of seeds"
    if left == right:
        return f"{count(left, 'seed')} a side"
    return f"{left} and {right} seeds"


def capital(text: str) -> str:
    """Return the text with a capital first letter."""
    return text[:1].upper() + text[1:]


def unpaired(runs: int) -> str:
    """Return a clause about runs that cannot be compared because the other side lacks their seed."""
    return f"{count(runs, 'run')} {'has' if runs == 1 else 'have'} no partner of the same seed"
