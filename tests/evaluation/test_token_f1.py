"""Token F1, compared with values computed by hand."""

from __future__ import annotations

import pytest

from petransfer.recipe.metrics import HEADINGS, METRICS, check_metric_name


@pytest.mark.parametrize(
    ("prediction", "target", "expected"),
    [
        ("the cat sat", "the cat sat", 100),
        ("", "", 100),
        ("", "a", 0),
        ("a", "b", 0),
        ("Cat", "cat", 0),
        ("the cat sat", "the cat sat down", 600 / 7),
        ("a a a", "a b", 200 / 5),
        ("sat the  cat\tthe", "the cat the mat", 300 / 4),
    ],
)
def test_token_f1_of_one_example(prediction: str, target: str, expected: float) -> None:
    assert METRICS["token_f1"].score([prediction], [target])["token_f1"] == pytest.approx(expected)


def test_recipes_accept_token_f1_and_tables_have_its_heading() -> None:
    assert check_metric_name("token_f1") == "token_f1"
    assert HEADINGS["token_f1"] == "token F1 %"


def test_token_f1_is_the_mean_over_examples() -> None:
    assert METRICS["token_f1"].score(["a", "b"], ["a", "c"]) == {"token_f1": 50}
