"""Generate the tables in the README, the documentation and the page of the study on COGS.

The tables are made from the files in results/ and from petransfer's defaults.

A table follows a line `<!-- NAME -->`. tests/test_readme.py checks that the tables are up to date. To update them, run:

    python -m tests.generated_tables
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
COGS = RESULTS / "transfer-cogs"
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), COGS / "README.md")
# The studies in the table of claims: name of the benchmark, name of the study, and the test categories that are counted
# (None: all).
STUDIES = (("SCAN", "transfer-scan", None), ("COGS", "transfer-cogs", "lexical"))
SEEDS = 6
# The paper's claims, and one question that the paper did not ask. Each has the name of its effect in the studies.
CLAIMS = (
    ("English helps: English − no pretraining", "english-scratch"),  # noqa: RUF001
    ("other languages help: German − no pretraining", "german-scratch"),  # noqa: RUF001
    ("code helps: code − no pretraining", "code-scratch"),  # noqa: RUF001
    ("not in the paper: anonymised code − no pretraining", "code_anon-scratch"),  # noqa: RUF001
    ("proteins do not help: protein − English with new embeddings", "protein-english-newemb"),  # noqa: RUF001
)


def claims(results: Path = RESULTS) -> str:
    """Return the table of the paper's claims: the effect and verdict on each benchmark and for each method."""
    found = {}
    for benchmark, study, categories in STUDIES:
        if not (results / study / "effects.json").is_file():
            continue
        for effect in json.loads((results / study / "effects.json").read_text(encoding="utf-8"))["effects"]:
            if effect.get("categories") == categories and effect["method"]:
                name = effect["name"].removesuffix(f" ({categories})")
                found[benchmark, effect["method"].split()[0], name] = effect
    columns = [(benchmark, method) for benchmark, *_ in STUDIES for method in ("lora", "full")]
    # a column is shown only if the study has all of its effects
    columns = [column for column in columns if all((*column, name) in found for _, name in CLAIMS)]
    words = {"lora": "LoRA", "full": "full fine-tuning"}
    rows = [[claim, *(_cell(found[(*column, name)]) for column in columns)] for claim, name in CLAIMS]
    return _table(
        ["claim of the paper: difference", *(f"{benchmark}, {words[method]}" for benchmark, method in columns)], rows
    )


def _cell(effect: dict[str, Any]) -> str:
    interval, (left, right) = effect["interval"], effect["seeds"]
    number = f"{left} and {right} seeds" if left != right else "one seed" if left == 1 else f"{left} seeds"
    fewer = "" if min(left, right) == SEEDS else f" ({number})"
    values = f" [{signed(interval['low'])}, {signed(interval['high'])}]" if interval else ""
    return f"{signed(effect['difference'])}{values}, {effect['verdict']}{fewer}"


def signed(value: float) -> str:
    """Return a number with its sign and one decimal. Negative numbers have a minus sign, not a hyphen."""
    return f"{value:+z.1f}".replace("-", "−")  # noqa: RUF001


def cogs_runs(study: Path = COGS) -> str:
    """Return the table of the finished runs of the study on COGS: scores by arm, method and seed, in percent."""
    from petransfer.data.task_registry import categories_in
    from petransfer.study.study import open_grid

    found: dict[tuple[str, str], dict[int, list[float]]] = {}
    for cell in open_grid(study).cells:
        file = study / "runs" / cell.run_id / "result.json"
        if not file.is_file():
            continue
        result = json.loads(file.read_text(encoding="utf-8"))
        scores = {name: value["exact_match"] for name, value in result["test"]["categories"].items()}
        groups = [[scores[name] for name in categories_in("cogs", group)] for group in ("lexical", "structural")]
        values = [result["dev"]["exact_match"], *map(fmean, groups)]
        found.setdefault((cell.arm, cell.spec.method.name), {})[cell.seed] = values
    rows = []
    for method, word in (("lora", "LoRA"), ("full", "full")):
        for (arm, name), seeds in found.items():
            if name == method:
                listed = [", ".join(f"{seeds[seed][at]:.1f}" for seed in sorted(seeds)) for at in range(3)]
                rows.append([arm, word, ", ".join(map(str, sorted(seeds))), *listed])
    head = ["arm", "method", "seeds", "dev EM, %", "lexical EM, %", "structural EM, %"]
    return _table(head, rows, left=2)


def quantised_memory() -> str:
    """Return the table of the sizes of T5 weights, quantised the usual way and by petransfer, in GB (10^9 bytes)."""
    cells = json.loads((RESULTS / "bench" / "memory-cpu.json").read_text(encoding="utf-8"))
    rows = []
    for checkpoint in dict.fromkeys(cell["checkpoint"] for cell in cells):
        here = {(cell["bits"], cell["side"]): cell for cell in cells if cell["checkpoint"] == checkpoint}
        figures = [f"{here[bits, side]['weights'] / 1e9:.2f}" for bits in (8, 4) for side in ("usual", "petransfer")]
        half = 2 * next(iter(here.values()))["parameters"] / 1e9
        rows.append([checkpoint.rpartition("/")[2], f"{half:.2f}", *figures])
    head = ["checkpoint", "bf16", "8 bits, usual", "8 bits, petransfer", "4 bits, usual", "4 bits, petransfer"]
    return _table(head, rows)


def coverage() -> str:
    """Return the table of how often 95 % intervals of several kinds contain the true difference, in percent."""
    found = json.loads((RESULTS / "bench" / "coverage-cpu.json").read_text(encoding="utf-8"))["coverage"]
    populations = list(found)
    kinds = list(found[populations[0]])
    names = {"log-odds": "log-odds (used here)", "bca": "BCa bootstrap", "percentile": "percentile bootstrap"}
    names |= {"studentised": "studentised bootstrap", "welch": "Welch's t"}
    rows = [
        [names[kind], *(f"{100 * found[name][kind]['mean']:.1f}" for name in populations)]
        for kind in sorted(kinds, key=lambda kind: kind != "log-odds")
    ]
    scores = [name.replace("the seeds themselves", "the measured scores") for name in populations]
    return _table(["interval", *(f"drawn from {name}" for name in scores)], rows)


def default_learning_rates() -> str:
    """Return the table of the default peak learning rates of `petransfer train`."""
    from types import SimpleNamespace

    from petransfer.recipe.methods import METHODS
    from petransfer.study.quick_recipe import default_learning_rate

    kinds = {
        "T5 family": (SimpleNamespace(is_encoder_decoder=True, model_type="t5"), False),
        "other encoder-decoders": (SimpleNamespace(is_encoder_decoder=True, model_type="bart"), False),
        "decoder-only": (SimpleNamespace(is_encoder_decoder=False, model_type="llama"), False),
        "`nano/...`": (SimpleNamespace(is_encoder_decoder=True, model_type="t5"), True),
    }
    rows = [
        [f"`{method}`", *(f"{default_learning_rate(method, *kind):g}" for kind in kinds.values())] for method in METHODS
    ]
    return _table(["method", *kinds], rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Return a table in Markdown. left: number of columns that are aligned to the left."""
    lines = [head, ["---"] * left + ["---:"] * (len(head) - left), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


TABLES: dict[str, Callable[[], str]] = {
    "claims": claims,
    "cogs-runs": cogs_runs,
    "quantised-memory": quantised_memory,
    "coverage": coverage,
    "default-learning-rates": default_learning_rates,
}
_PLACE = re.compile(rf"^(<!-- ({'|'.join(TABLES)}) -->\n)(?:\|.*\n)*", flags=re.M)


def updated(text: str) -> str:
    """Return the text with every generated table replaced by an up-to-date table."""
    return _PLACE.sub(lambda found: f"{found[1]}{TABLES[found[2]]()}\n", text)


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(updated(page.read_text(encoding="utf-8")), encoding="utf-8")
