"""Colours of plots. On an HTML page, CSS variables replace the colours, for light and dark themes."""

from __future__ import annotations

from collections.abc import Sequence

INK, MUTED, FAINT, RULE, PAPER = "#000000", "#7F7F7F", "#B0B0B0", "#D9D9D9", "#FFFFFF"
# The colours of Okabe and Ito (2008) with a darker yellow, then five colours of Paul Tol's muted scheme (2021). People
# with colour blindness can distinguish them. Control arms are grey and black.
SERIES = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#B2A300",
    "#332288", "#882255", "#117733", "#44AA99", "#AA4499",
)  # fmt: skip
CONTROLS = {"scratch": INK, "random": MUTED, "english-newemb": FAINT}
# If a plot has more series than colours, two series with the same colour differ in their marker and line style.
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", ":", "-.")

# Marker shape and colour of each verdict, so that verdicts can be distinguished without colour.
VERDICTS = {
    "holds": ("o", "#009E73"),
    "reversed": ("s", "#D55E00"),
    "equivalent": ("D", "#0072B2"),
    "inconclusive": ("o", "#7F7F7F"),
    "saturated": ("X", "#B0B0B0"),
    "not learnt": ("v", "#B0B0B0"),
}
HOLLOW = {"inconclusive", "not learnt"}

VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    FAINT: "--faint",
    RULE: "--rule",
    PAPER: "--paper",
    **{colour: f"--series-{at}" for at, colour in enumerate(SERIES)},
}


def colours(names: Sequence[str]) -> dict[str, str]:
    """Return the colour of each arm, by the arm's name. The control arms are always included."""
    own = [name for name in dict.fromkeys(names) if name not in CONTROLS]
    return {name: SERIES[at % len(SERIES)] for at, name in enumerate(own)} | CONTROLS
