"""Write each example script of this folder as a notebook.

In a script, the line `# %%` starts a cell with code, and the line `# %% [markdown]` starts a cell with text.
"""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

FOLDER = Path(__file__).parent
SCRIPTS = sorted(path for path in FOLDER.glob("*.py") if path.name != Path(__file__).name)


def notebook_of(script: Path) -> str:
    """Return the notebook of a script as the text of an .ipynb file; the same script gives the same text."""
    parts = re.split(r"^# %%(.*)$", script.read_text(encoding="utf-8"), flags=re.M)[1:]
    cells = []
    for number, (kind, text) in enumerate(zip(parts[::2], parts[1::2], strict=True)):
        if "[markdown]" in kind:
            lines = (line.removeprefix("#").removeprefix(" ") for line in text.strip().splitlines())
            cell = new_markdown_cell("\n".join(lines))
        else:
            cell = new_code_cell(text.strip())
        cell["id"] = f"cell-{number}"
        cells.append(cell)
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return nbformat.writes(new_notebook(cells=cells, metadata=kernel)) + "\n"


if __name__ == "__main__":
    for script in SCRIPTS:
        script.with_suffix(".ipynb").write_text(notebook_of(script), encoding="utf-8")
