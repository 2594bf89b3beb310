"""The examples in the docstrings of `petransfer.Adapter` and `petransfer.exact_match` run."""

from __future__ import annotations

import doctest

import pytest

from petransfer.evaluation import exact_match
from petransfer.sharing import adapter


@pytest.mark.parametrize("module", [adapter, exact_match], ids=["Adapter", "exact_match"])
def test_the_examples_in_the_docstrings_run(module: object) -> None:
    outcome = doctest.testmod(module)  # type: ignore[arg-type]
    assert outcome.attempted > 2
    assert outcome.failed == 0
