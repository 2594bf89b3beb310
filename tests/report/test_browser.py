"""The report page in a real browser, if one is installed: on a desktop, on a phone, in dark mode, and printed.

The screenshots are kept in the folder PETRANSFER_ARTEFACTS, so that people can look at them.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from html import escape
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from petransfer.effects.study_effects import update_effects
from petransfer.report import run_groups as groups
from petransfer.report import run_table as tables
from petransfer.report.page import ReportData, page
from tests.report.made import make, recipe_of, sweep

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on PATH")

DARK = "--blink-settings=preferredColorScheme=0"
# A browser window is at least 500 pixels wide, but a frame in it can be narrower.
FRAME = """<!doctype html><meta charset="utf-8"><title></title><body style="margin:0">
<iframe style="width:{width}px;height:{height}px;border:0" srcdoc="{page}"></iframe>
<script>
onload = () => {{
  const frame = frames[0], page = frame.document.documentElement
  const dark = frame.matchMedia("(prefers-color-scheme: dark)").matches
  const wide = one => one.getBoundingClientRect().width > 200
  const charts = [...frame.document.querySelectorAll("svg.chart")].filter(wide)
  const size = [page.scrollWidth, page.scrollHeight]
  document.title = ["looked", frame.innerWidth, ...size, dark, charts.length].join(" ")
}}
</script>"""


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A report page with tables and charts that are wider than a phone."""
    methods = [{"name": "lora", "bits": 32}, {"name": "full", "bits": 32, "rate_scaling": "rms"}]
    effects = ["english-scratch", {"retention": "english-scratch", "under": "lora"}]
    recipe = recipe_of(task={"name": "scan", "splits": ["right"]}, methods=methods, effects=effects, seeds=[0, 1, 2, 3])
    cells, folder = make(tmp_path_factory.mktemp("study") / "made", recipe)
    sweep(folder, recipe)
    found = groups.groups_of(tables.rows_of(cells, folder), "nano")
    return page(ReportData(recipe, cells, folder, found, update_effects(recipe, cells, folder)))


@pytest.fixture
def artefacts(tmp_path: Path) -> Path:
    folder = Path(os.environ.get("PETRANSFER_ARTEFACTS") or tmp_path).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def framed(html: str, width: int, height: int) -> str:
    """Return a page with `html` in a frame of this size (pixels). Its title has the sizes and the visible charts."""
    unfolded = html.replace('<details class="section">', '<details class="section" open>')
    return FRAME.format(width=width, height=height, page=escape(unfolded))


def browse(tmp_path: Path, html: str, *options: str) -> str:
    """Open a page in the browser with these options, and return what the browser prints."""
    (tmp_path / "shown.html").write_text(html, encoding="utf-8")
    own = (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        f"--user-data-dir={tmp_path / 'profile'}",
    )
    command = [str(BROWSER), *own, *options, (tmp_path / "shown.html").as_uri()]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout


@pytest.mark.parametrize(
    ("name", "width", "dark"),
    [
        pytest.param("desktop", 1280, False, marks=pytest.mark.slow),  # `dark` has this width, `telephone` is light
        ("telephone", 390, False),
        ("dark", 1280, True),
    ],
)
def test_the_page_fits_the_screen_and_follows_the_colour_scheme(
    name: str, width: int, dark: bool, shown: str, tmp_path: Path, artefacts: Path
) -> None:
    options = [f"--window-size={max(width, 500)},800", *([DARK] if dark else [])]
    dom = browse(tmp_path, framed(shown, width, 800), *options, "--dump-dom")
    looked = re.search(r"<title>looked (\d+) (\d+) (\d+) (\w+) (\d+)</title>", dom)
    assert looked
    inside, across, height, scheme, charts = looked.groups()
    assert int(inside) == width
    assert int(across) <= width, "the page scrolls sideways; only its tables should"
    assert scheme == str(dark).lower()
    drawn = shown.count('<svg class="chart"')
    assert int(charts) == drawn - 1 > 5  # the forest plot is drawn in two widths, and one of them is visible
    path = artefacts / f"report-{name}.png"
    whole = [f"--window-size={max(width, 500)},{height}", *options[1:], f"--screenshot={path}"]
    browse(tmp_path, framed(shown, width, int(height)), *whole)
    picture = matplotlib.image.imread(path)
    assert picture.shape[:2] == (int(height), max(width, 500))
    pixels = picture[::2, :width:2, :3]
    paper = np.median(pixels, axis=(0, 1))
    assert np.allclose(paper, np.array([0x16, 0x17, 0x16] if dark else [0xFF] * 3) / 255, atol=0.01)
    assert 0.02 < np.mean(np.abs(pixels - paper).max(axis=2) > 0.2) < 0.5, (
        "the page is almost empty or almost full of text and charts"
    )


def test_the_page_can_be_printed(shown: str, tmp_path: Path, artefacts: Path) -> None:
    path = artefacts / "report.pdf"
    browse(tmp_path, shown, "--no-pdf-header-footer", f"--print-to-pdf={path}")
    content = path.read_bytes()
    assert content.startswith(b"%PDF-")
    pages = len(re.findall(rb"/Type\s*/Page\b", content))
    assert 2 < pages < 30
    assert len(content) > 20_000
