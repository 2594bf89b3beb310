"""Rows that a tokenizer cannot encode are counted by reason, and refused or left out."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from petransfer.data import Example, SplitData
from petransfer.data.bad_rows import BadRow
from petransfer.data.encoded_examples import EncodedSplit, encode_split
from petransfer.data.encoding import Encoded, Layout, encode_targets
from petransfer.errors import UserError

LAYOUT = Layout(encoder_decoder=True, pad_id=0, eos_id=1)


def sentencepiece_like() -> PreTrainedTokenizerFast:
    """Return a tokenizer with letters as tokens. As in T5, line breaks and repeated blanks become one blank."""
    letters = ["▁", *"abcdefghijklmnopqrstuvwxyz.;()0123456789"]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), *((letter, -1.0) for letter in letters)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=2))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
        extra_special_tokens=["<extra_id_0>"],
    )  # fmt: skip


def split(targets: list[str], inputs: list[str] | None = None) -> SplitData:
    inputs = inputs or [f"in {n}" for n in range(len(targets))]
    rows = tuple(Example(n, inputs[n], target, "all") for n, target in enumerate(targets))
    return SplitData(rows, (Example(0, "a", "b", "all"),), (Example(0, "a", "b", "all"),))


def encode(data: SplitData, **options: Any) -> EncodedSplit:
    return encode_split(data, "", sentencepiece_like(), LAYOUT, **options)


def test_targets_with_added_special_tokens_are_refused() -> None:
    tokenizer = sentencepiece_like()
    tokenizer.add_tokens(["<ent>", "</ent>"], special_tokens=True)
    with pytest.raises(UserError, match=r"special token; generated texts never contain special tokens [(]</ent> in"):
        encode_split(split(["<ent>run</ent>"]), "", tokenizer, LAYOUT)
    tokenizer.add_tokens(["[ent]"])
    assert encode_split(split(["[ent] run"]), "", tokenizer, LAYOUT).data.train


TARGETS = ["good", "trailing ", " leading", "<extra_id_0> mask", "{ x }", "a < b", "two\nlines", "so  far", "good too"]
REASONS = {
    "the tokenizer drops the blanks at the ends of the target ('trailing␣'), and 1 more row has this problem",
    "the target contains a special token; generated texts never contain special tokens "
    "(<extra_id_0> in '<extra_id_0> mask')",
    "the tokenizer loses characters of the target ('{' '}' in '{ x }'), and 1 more row has this problem",
    "the tokenizer changes blanks or line breaks inside the target ('two⏎lines'), and 1 more row has this problem",
}


def test_targets_that_the_tokenizer_changes_are_counted_by_reason() -> None:
    with pytest.raises(UserError) as error:
        encode(split(TARGETS))
    message = str(error.value)
    assert "7 of 11 rows of the data" in message
    assert "--skip-bad-rows" in message
    assert "train row 2: the tokenizer drops" in message
    for reason in REASONS:
        assert reason in message
    assert "\n" not in message


def test_skip_bad_rows_leaves_out_targets_that_the_tokenizer_changes() -> None:
    found = encode(split(TARGETS), skip_bad_rows=True)
    assert [row.target for row in found.data.train] == ["good", "good too"]
    assert len(found.parts["train"]) == 2
    (note,) = found.notes
    assert note.startswith("7 bad rows left out: ")
    with pytest.raises(UserError, match="no train row can be used: train row 1: the tokenizer drops"):
        encode(split(["bad "]), skip_bad_rows=True)


def test_rows_that_are_too_long_are_counted_and_left_out() -> None:
    def too_long(row: Encoded) -> BadRow | None:
        return BadRow("too long", f"{len(row.target_ids)}") if len(row.target_ids) > 5 else None

    with pytest.raises(UserError, match=r"1 of 4 rows .* train row 2: too long \(8\)"):
        encode(split(["ab", "abcdef"]), too_long=too_long)
    assert len(encode(split(["ab", "abcdef"]), too_long=too_long, skip_bad_rows=True).data.train) == 1


def test_inputs_that_lose_characters_are_counted_in_a_warning() -> None:
    inputs = [f"if (a) {{\n  return{chr(9) * n};\n}}" for n in range(4)]
    (note,) = encode(split(["ok"] * 4, inputs)).notes
    assert note.startswith("warning: the tokenizer loses characters of train inputs (")
    for part in ("'\\n' in 4", "'{' in 4", "'\\t' in 3", "of 4 inputs"):
        assert part in note
    assert encode(split(["ok"] * 2, ["a b", "c"])).notes == []


def test_encode_targets_names_the_lost_characters_of_a_target() -> None:
    with pytest.raises(UserError, match=r"cannot reproduce the target 'a\{': .* \('\{' in 'a\{'\)"):
        encode_targets(["a{"], sentencepiece_like(), LAYOUT)


def test_only_examples_used_in_training_are_checked_if_the_part_is_large(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from petransfer.data import encoded_examples

    rows = _Sequence([Example(n, "in", "ok" if n else "bad ", "all") for n in range(30)])
    monkeypatch.setattr(encoded_examples, "KEPT", 10)
    data = SplitData(rows, (Example(0, "a", "b", "all"),), (Example(0, "a", "b", "all"),))
    assert len(encode(data, used_in_training=lambda: [3, 4]).parts["train"]) == 30
    with pytest.raises(UserError, match="1 of 32 rows"):
        encode(data, used_in_training=lambda: [0, 1])
    # with `skip_bad_rows`, all examples are checked
    assert len(encode(data, used_in_training=lambda: [3], skip_bad_rows=True).parts["train"]) == 29


class _Sequence:
    """A sequence of examples that is neither a tuple nor a list, like the rows on disk."""

    def __init__(self, rows: list[Example]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, at: Any) -> Any:
        return self._rows[at]

    def without(self, positions: list[int]) -> _Sequence:
        return _Sequence([row for at, row in enumerate(self._rows) if at not in positions])
