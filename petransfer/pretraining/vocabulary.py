"""The tokenizer of the embedded family: byte-level BPE in which each word and symbol of the benchmarks is one token."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

PAD, EOS = "<pad>", "</s>"
SENTINELS = 32
SCAN_SYMBOL = r" ?I_(?:TURN_(?:LEFT|RIGHT)|WALK|RUN|JUMP|LOOK)"
# Text is split into letters, digits, other signs and spaces, each with the space before it, as in GPT-2.
PIECES = r" ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def sentinel(index: int) -> str:
    """Return the token that stands for the `index`-th masked span."""
    return f"<extra_id_{index}>"


def train_bpe(texts: Iterable[str], size: int) -> Tokenizer:
    """Train a byte-level BPE of `size` tokens (special tokens included) that decodes every text exactly."""
    tokenizer = Tokenizer(models.BPE())
    # A space is put before every text, so that a word is one token in every position; decoding removes this space.
    tokenizer.normalizer = normalizers.Prepend(" ")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(f"{SCAN_SYMBOL}|{PIECES}"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[PAD, EOS, *(sentinel(index) for index in range(SENTINELS))],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {EOS}", special_tokens=[(EOS, 1)])
    return tokenizer


def with_whole_words(tokenizer: Tokenizer, words: Iterable[str]) -> Tokenizer:
    """Return the tokenizer with each word and the space before it as one token; other text is tokenized as before.

    The words are added to the vocabulary without merges: `ignore_merges` keeps a string whole if it is a token.
    """
    state = json.loads(tokenizer.to_str())
    model = state["model"]
    model["ignore_merges"] = True
    for word in sorted(set(words)):
        stretches = tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(word))
        for piece, _ in stretches:
            model["vocab"].setdefault(piece, len(model["vocab"]))
    return Tokenizer.from_str(json.dumps(state))


def transformers_tokenizer(tokenizer: Tokenizer, max_length: int = 512) -> PreTrainedTokenizerFast:
    """Return the tokenizer for transformers, with T5's special tokens."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        additional_special_tokens=[sentinel(index) for index in range(SENTINELS)],
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )


def words_of(texts: Iterable[str]) -> Iterator[str]:
    """Yield the words and symbols of texts, which are separated by blanks."""
    for text in texts:
        yield from text.split()
