"""`predict` and `Adapter.predict` report how many generated texts were cut, and at which limit."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

import petransfer
from petransfer.evaluation.cut_texts import CutTexts
from petransfer.evaluation.generation import Generation
from petransfer.recipe.values import MOST_NEW_TOKENS
from tests.sharing.conftest import ROWS, call

TEXTS = [source for source, _ in ROWS[:6]]


def test_notes_count_the_texts_that_were_cut_at_each_limit() -> None:
    cut = CutTexts(4)
    cut.add([Generation("a", True, 3, 4), Generation("b", False, 3, 4), Generation("c", False, 3, 6)])
    cut.add([Generation("d", False, 9, 2)])
    at_limit, at_positions = cut.notes("--max-new-tokens ")
    assert at_limit.startswith("2 of 4 texts were cut at 4 tokens")
    assert "--max-new-tokens 8 allows more" in at_limit
    assert at_positions.startswith("1 of 4 texts was cut")
    ended = CutTexts(4)
    ended.add([Generation("a", True, 3, 4)])
    assert ended.notes("--max-new-tokens ") == []
    largest = CutTexts(MOST_NEW_TOKENS)
    largest.add([Generation("a", False, 3, MOST_NEW_TOKENS)])
    assert "allows more" not in largest.notes("--max-new-tokens ")[0]


@pytest.mark.parametrize("kind", ["tiny_t5", "tiny_gpt2"])
def test_the_number_of_cut_texts_is_reported(
    kind: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    model = str(request.getfixturevalue(kind))
    adapter = petransfer.Adapter.load(model, device="cpu")
    cut = sum(not one.ended for one in adapter.predictor.generations(TEXTS, 3))
    assert cut > 0  # the weights are random, so texts rarely end within 3 tokens
    verb = "was" if cut == 1 else "were"
    assert call("predict", model, *TEXTS, "--max-new-tokens", "3", "--cpu") == 0
    message = capsys.readouterr()
    assert message.out.count("\n") == len(TEXTS)
    assert f"{cut} of {len(TEXTS)} texts {verb} cut at 3 tokens; --max-new-tokens 6 allows more" in message.err
    with caplog.at_level(logging.WARNING, "petransfer"):
        assert len(adapter.predict(TEXTS, 3)) == len(TEXTS)
    assert f"{cut} of {len(TEXTS)} texts {verb} cut at 3 tokens; max_new_tokens=6 allows more" in caplog.text


def test_no_note_if_no_text_is_cut(
    run: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    adapter = petransfer.Adapter.load(run, device="cpu")
    assert all(one.ended for one in adapter.predictor.generations(TEXTS, 64))
    with caplog.at_level(logging.WARNING, "petransfer"):
        adapter.predict(TEXTS, 64)
    assert "cut" not in caplog.text
    capsys.readouterr()
    assert call("predict", str(run), *TEXTS, "--cpu") == 0
    assert "cut" not in capsys.readouterr().err


def test_a_text_cut_at_the_last_position_of_a_decoder_gets_no_advice(
    tiny_gpt2: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(tiny_gpt2)  # a model with 128 positions
    predictor = petransfer.Adapter.load(model, device="cpu").predictor
    (text,) = predictor.generations(["to walk"], 500)
    assert not text.ended
    assert call("predict", model, "to walk", "--max-new-tokens", "500", "--cpu") == 0
    message = capsys.readouterr().err
    assert "the text was cut, because the model" in message
    assert "allows more" not in message
