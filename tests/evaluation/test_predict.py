"""Predictions of models with few positions: virtual tokens, input and generated text must fit into them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from transformers import BartConfig

from petransfer.data import LinesTask
from petransfer.data.encoding import Encoded, encode_examples
from petransfer.data.task import Example
from petransfer.data.templates import render_text
from petransfer.errors import UserError
from petransfer.evaluation.exact_match import evaluate
from petransfer.evaluation.generation import generations, tokens_left
from petransfer.evaluation.predictor import Predictor
from petransfer.evaluation.run_metrics import compute_metrics_of_rows
from petransfer.methods import apply_method, virtual_tokens
from petransfer.models.lengths import VirtualTokens, length_check
from petransfer.models.loading import load_checkpoint
from petransfer.models.registry import checkpoint_spec
from petransfer.recipe.run_spec import MethodSpec
from tests.data.test_chat import every

TOKENS = {"prompt": MethodSpec("prompt", 32, virtual_tokens=20), "prefix": MethodSpec("prefix", 32, virtual_tokens=20)}


def predictor(checkpoint: Path, method: str | None) -> Predictor:
    loaded = load_checkpoint(checkpoint_spec(str(checkpoint)), 32)
    model = apply_method(loaded, TOKENS[method], 0) if method else loaded.model
    return Predictor(model.eval(), loaded, "")


@pytest.mark.parametrize("method", [None, "prompt", "prefix"])
def test_a_long_input_does_not_change_other_texts_and_a_longer_one_is_refused(
    method: str | None, tiny_gpt2: Path
) -> None:
    ask = predictor(tiny_gpt2, method)
    long, short = "word " * 90, "word"
    (alone,) = ask.generations([short])
    cut, other = ask.generations([long, short])
    assert other == alone
    assert (cut.ended, cut.input_tokens + cut.tokens + 20 * bool(method)) == (False, 128)
    taken = ", of which the adapter's virtual tokens take 20" if method else ""
    with pytest.raises(UserError, match=rf"\d+ tokens; the model has 128 positions{taken}; shorten it"):
        ask([short, "word " * 140])


def test_messages_count_and_locate_inputs_that_are_too_long(tiny_gpt2: Path) -> None:
    ask, long = predictor(tiny_gpt2, None), "word " * 140
    with pytest.raises(UserError, match=r"^input 2 \('word .*; the model has 128 positions; shorten it"):
        ask(["word", long])
    message = r"^2 of 3 inputs are too long: line 1 of x \('word .*\) has \d+ tokens, line 3 of x .*; shorten them"
    with pytest.raises(UserError, match=message):
        ask.token_ids([long, "word", long + long], ["line 1 of x", "line 2 of x", "line 3 of x"])
    with pytest.raises(UserError, match=r"9 of 9 inputs .*, and 4 more; the model"):
        ask([long] * 9)


def test_an_input_with_a_token_without_embedding_is_refused(tiny_gpt2: Path) -> None:
    loaded = load_checkpoint(checkpoint_spec(str(tiny_gpt2)), 32)
    predictor = Predictor(loaded.model, loaded, "")
    known = predictor.loaded.model.config.vocab_size
    predictor.loaded.tokenizer.add_tokens([f"<new{at}>" for at in range(known - len(predictor.loaded.tokenizer) + 1)])
    last = predictor.loaded.tokenizer.convert_ids_to_tokens(known)
    with pytest.raises(
        UserError, match=rf"^input 2 has the token '{last}' \({known:,}\), and the model has embeddings"
    ):
        predictor.generations(["walk", f"run {last}"], 2)


def test_virtual_tokens_reduce_the_positions_for_inputs(tiny_gpt2: Path, tiny_t5: Path) -> None:
    for method, left in ((None, 118), ("prompt", 98), ("prefix", 98)):
        ask = predictor(tiny_gpt2, method)
        assert tokens_left(ask.model, ask.loaded, 10) == left
    ask = predictor(tiny_t5, "prompt")
    assert tokens_left(ask.model, ask.loaded, 10) is None
    assert virtual_tokens(ask.loaded, TOKENS["prompt"]) == VirtualTokens(input=20)
    assert virtual_tokens(ask.loaded, TOKENS["prefix"]) == VirtualTokens(target=20)


@pytest.mark.parametrize(
    ("virtual", "source", "target", "message"),
    [
        (VirtualTokens(), 64, 56, ""),
        (VirtualTokens(), 65, 5, "the input has more tokens than .* \\(65 of 64"),
        (VirtualTokens(input=20), 44, 56, ""),
        (VirtualTokens(input=20), 45, 5, "the input has more tokens than .* \\(45 of 64"),
        (VirtualTokens(target=20), 64, 36, ""),
        (VirtualTokens(target=20), 5, 37, "the target has more tokens than .* \\(37 of 64"),
    ],
)
def test_virtual_tokens_of_an_encoder_decoder_take_positions_of_one_side(
    virtual: VirtualTokens, source: int, target: int, message: str
) -> None:
    check = length_check(BartConfig(max_position_embeddings=64), "bart", 0, virtual)
    assert re.match(message or "None", str(check(Encoded((3,) * source, (3,) * target))))


def test_a_long_input_does_not_limit_the_text_of_another_example(tiny_gpt2: Path) -> None:
    """One example has a long input, which leaves too few positions for the long target of the other example."""
    loaded = load_checkpoint(checkpoint_spec(str(tiny_gpt2)), 32)
    rows = [Example(0, "walk " * 90, "walk", "all"), Example(1, "walk", " ".join(["the walk"] * 30), "all")]
    encoded = encode_examples(rows, "", loaded.tokenizer, loaded.layout)
    assert evaluate(loaded.model, loaded, rows, encoded).audited == 2
    answers = compute_metrics_of_rows(
        loaded.model, loaded, ["token_f1"], [row.target for row in rows], [], encoded
    ).answers
    limit = int(1.5 * len(encoded[1].target_ids)) + 8
    (cut,), (alone,) = (generations(loaded.model, loaded, [row.input_ids], [limit]) for row in encoded)
    assert cut.tokens == 128 - len(encoded[0].input_ids) < limit
    assert alone.tokens == limit
    assert answers == [cut.text, alone.text]


TEMPLATE = "{title}: {meta.n}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"title": "a", "meta": {"n": 3}}', "a: 3"),
        ('{"title": true, "meta.n": 0.5}', "true: 0.5"),
        ('{"title": null, "meta.n": 3}', ": 3"),
        ('{"title": "a", "meta.n": NaN}', "a: "),
    ],
)
def test_render_text_makes_the_input_that_a_row_of_the_training_data_has(
    text: str, expected: str, elsewhere: Path
) -> None:
    assert render_text(TEMPLATE, text) == expected
    row = json.loads(text) | {"target": "walk"}
    others = [{**row, "title": f"title {n}"} for n in range(11)]
    Path("rows.jsonl").write_text("".join(json.dumps(each) + "\n" for each in (row, *others)))
    assert every(LinesTask(train="rows.jsonl", template=TEMPLATE))[0].input == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"title": null, "meta.n": NaN}', "the title is missing"),
        ('{"title": "a", "meta.n": [1]}', "the meta.n is a list, not text"),
        ('{"title": "a"}', "not a JSON object with title, meta.n"),
        ("[1]", "not a JSON object with title, meta.n"),
    ],
)
def test_render_text_refuses_a_text_without_usable_values_for_the_template(text: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        render_text(TEMPLATE, text)
