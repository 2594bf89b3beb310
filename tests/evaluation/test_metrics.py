"""Each metric gives the same score as the library that defines it. A metric that cannot be computed is refused."""

from __future__ import annotations

import importlib.util

import pytest

from petransfer.errors import UserError
from petransfer.evaluation.metric_checks import check_metrics, declared


def scores(names: tuple[str, ...], predictions: list[str], targets: list[str]) -> dict[str, float]:
    """Return all values of the given metrics."""
    return {name: value for metric in declared(names) for name, value in metric.score(predictions, targets).items()}


TARGETS = ["the cat sat on the mat today", "a dog barked", "nobody came to the small party"]
SAID = ["the cat sat on a mat", "a dog barked", "somebody came to a party, they said"]


def test_chrf_and_bleu_equal_those_of_sacrebleu() -> None:
    from sacrebleu.metrics import BLEU, CHRF

    found = scores(("chrf", "bleu"), SAID, TARGETS)
    assert found["chrf"] == pytest.approx(CHRF().corpus_score(SAID, [TARGETS]).score, abs=1e-9)
    assert found["bleu"] == pytest.approx(BLEU().corpus_score(SAID, [TARGETS]).score, abs=1e-9)
    assert 10 < found["bleu"] < 90


def test_rouge_equals_that_of_rouge_score() -> None:
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.scoring import BootstrapAggregator

    found = scores(("rouge",), SAID, TARGETS)
    names = ["rouge1", "rouge2", "rougeL"]
    scorer, sums = RougeScorer(names), dict.fromkeys(names, 0.0)
    aggregate = BootstrapAggregator()
    for target, message in zip(TARGETS, SAID, strict=True):
        row = scorer.score(target, message)
        aggregate.add_scores(row)
        sums = {name: total + row[name].fmeasure for name, total in sums.items()}
    assert found == pytest.approx({name: 100 * total / 3 for name, total in sums.items()})
    for name, interval in aggregate.aggregate().items():
        assert 100 * interval.low.fmeasure - 1e-6 <= found[name] <= 100 * interval.high.fmeasure + 1e-6


def test_rouge_warns_about_targets_without_latin_letters(caplog: pytest.LogCaptureFixture) -> None:
    texts = ["он идёт домой", "he goes home"]
    assert scores(("rouge",), texts, texts)["rougeL"] == 50
    assert "reads only the letters a to z and digits; 1 of 2 targets have none" in caplog.text
    caplog.clear()
    scores(("rouge",), texts[1:], texts[1:])
    assert not caplog.text


@pytest.mark.parametrize("text", ["我今天去北京大学看朋友。", "ฉันไปโรงเรียนวันนี้", "今日は学校へ行きます。"])
@pytest.mark.parametrize("metric", ["bleu", "token_f1"])
def test_scripts_without_blanks_between_words_get_a_warning(
    metric: str, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    scores((metric,), [text, "he goes home now"], [text, "he goes home now"])
    assert f"{metric} separates words at blanks; 1 of 2 targets are in a script without blanks" in caplog.text
    assert caplog.text.count("use chrf") == 1


@pytest.mark.parametrize("metric", ["bleu", "token_f1"])
def test_words_with_blanks_give_no_warning(metric: str, caplog: pytest.LogCaptureFixture) -> None:
    for text in ("he goes home now", "он идёт домой сейчас", "저는 오늘 학교에 가요", "dog, cat."):
        assert next(iter(scores((metric,), [text], [text]).values())) == pytest.approx(100)
    assert not caplog.text


def test_bleu_warns_if_no_target_has_four_words(caplog: pytest.LogCaptureFixture) -> None:
    assert scores(("bleu",), ["red dog walk"] * 5, ["red dog walk"] * 5) == {"bleu": 0}
    assert "no target has 4 words; the score is 0 for correct texts" in caplog.text


def test_accuracy_and_macro_f1_equal_values_computed_by_hand() -> None:
    targets = ["a", "a", "a", "b", "b", "c"]
    message = ["a", "a", "b", "b", "a", "b"]
    # a: 2 hits of 3 predicted and 3 expected, b: 1 of 3 and 2, c: never predicted
    found = scores(("accuracy", "macro_f1"), message, targets)
    assert found["accuracy"] == 50
    assert found["macro_f1"] == pytest.approx(100 * (4 / 6 + 2 / 5 + 0) / 3)


def test_a_missing_library_is_reported_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for metric, library in (("bleu", "sacrebleu"), ("chrf", "sacrebleu"), ("rouge", "rouge-score")):
        with pytest.raises(UserError, match=rf"{metric} needs {library}, which is not installed; run `pip install"):
            check_metrics((metric,), lambda: (2, "x"))
    check_metrics(("exact_match", "accuracy"), lambda: (2, "x"))


def test_accuracy_is_refused_with_too_many_labels() -> None:
    with pytest.raises(UserError, match=r"pairs\.tsv has 5,000 different targets, more than 200; use exact_match"):
        check_metrics(("accuracy",), lambda: (5000, "pairs.tsv"))
