"""Convert plots to SVG inside an HTML page. The colours follow the page's light or dark theme."""

from __future__ import annotations

import io
import re
from html import escape
from typing import TYPE_CHECKING

from petransfer.effects.palette import VARIABLES
from petransfer.report.plots import write_svg
from petransfer.visible_text import visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def inline_svg(figure: Figure, name: str, alt: str) -> str:
    """Return a matplotlib figure as an `svg` element for an HTML page.

    `name`: unique prefix for the ids in the SVG. `alt`: alternative text for screen readers.
    """
    buffer = io.BytesIO()
    write_svg(figure, buffer)
    drawn = buffer.getvalue().decode("utf-8")
    drawn = drawn[drawn.index("<svg") :]
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn, flags=re.DOTALL)
    drawn = re.sub(r"<style.*?</style>", "", drawn, flags=re.DOTALL)
    drawn = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', drawn)
    drawn = re.sub(r'(url\(#|href="#)', rf"\1{name}-", drawn)
    for colour, variable in VARIABLES.items():
        drawn = re.sub(re.escape(colour), f"var({variable})", drawn, flags=re.IGNORECASE)
    width = re.search(r'<svg[^>]*\bwidth="([\d.]+)pt"', drawn)
    assert width, "matplotlib gives its SVG a width in points"
    pixels = round(float(width.group(1)) * 4 / 3)
    head = (
        f'<svg class="chart" role="img" aria-label="{escape(visible(alt))}" style="max-width:{pixels}px" '
        'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
    )
    drawn = re.sub(r"<svg([^>]*)>", lambda found: f"{head}{_view_box(found.group(1))}>", drawn, count=1)
    return "\n".join(line.rstrip() for line in drawn.splitlines() if line.strip())


def _view_box(attributes: str) -> str:
    found = re.search(r'viewBox="[^"]*"', attributes)
    assert found, "matplotlib gives its SVG a viewBox"
    return found.group(0)
