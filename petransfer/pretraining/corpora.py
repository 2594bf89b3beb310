"""Read and check the pretraining text of an arm, and make control texts (shuffled words, nested brackets)."""

from __future__ import annotations

import hashlib
import lzma
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from petransfer.errors import UserError
from petransfer.pretraining.corpus_files import text_file
from petransfer.recipe.pretraining import CorpusPart

# The last documents of a one-file corpus are held out for validation: this share of all documents, from 0 to 1.
HELD_OUT = 0.03


@dataclass(frozen=True)
class Corpus:
    """The training text and the validation text of one arm as token ids.

    Attributes:
        train, valid: Arrays of shape (tokens,). Every document ends with an end token.
        sha256: The hash of the text files, or of the token ids of a generated corpus.
    """

    train: np.ndarray
    valid: np.ndarray
    sha256: str


def read_corpus(part: CorpusPart, root: Path, tokenizer: PreTrainedTokenizerBase, tokens: int | None) -> Corpus:
    """Return the corpus of one arm.

    Args:
        part: The corpus in the recipe.
        root: The folder with the folders of all corpora.
        tokenizer: The tokenizer of all arms.
        tokens: The length of the training text in tokens. None: the whole text, or 1,000,000 generated tokens.

    Raises:
        UserError: A file is missing, empty, not UTF-8, mostly one repeated line, or shorter than `tokens`.
    """
    if part.brackets:
        return brackets(part.brackets, tokens or 1_000_000, tokenizer, part.seed)
    corpus = _read_text(part, root / part.path, tokenizer)
    if tokens and len(corpus.train) < tokens:
        raise UserError(
            f"the corpus {root / part.path} has {len(corpus.train):,} tokens, fewer than tokens: {tokens:,}; lower it "
            "for all arms alike, or give more text"
        )
    return Corpus(corpus.train[:tokens], corpus.valid, corpus.sha256)


def _read_text(part: CorpusPart, folder: Path, tokenizer: PreTrainedTokenizerBase) -> Corpus:
    digest = hashlib.sha256()
    texts = {name: _text(folder, name, digest) for name in part.files}
    splitter = "\n" if part.documents == "line" else "\n\n"
    documents = {
        name: [document for document in text.split(splitter) if document.strip()] for name, text in texts.items()
    }
    for name, found in documents.items():
        _check_variety(texts[name], f"{folder}/{name}.txt", found)
    if len(documents) == 1:
        ((name, found),) = documents.items()
        if len(found) < 2:
            raise UserError(
                f"{folder}/{name}.txt holds one document; write two or more, because the last ones are held out, with "
                f"{'one line each' if part.documents == 'line' else 'a blank line between them'}"
            )
        cut = len(found) - max(1, round(HELD_OUT * len(found)))
        train, valid = found[:cut], found[cut:]
    else:
        train, valid = (documents[name] for name in part.files)
    if part.shuffle_words:
        train, valid = (shuffle_words(found, part.seed) for found in (train, valid))
    return Corpus(_encode(train, tokenizer), _encode(valid, tokenizer), digest.hexdigest())


def _text(folder: Path, name: str, digest: hashlib._Hash) -> str:
    path = text_file(folder, name)
    try:
        raw = lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
    except (OSError, lzma.LZMAError) as error:
        raise UserError(f"{path} cannot be read ({error}); get the file again") from None
    digest.update(raw)
    try:
        return raw.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 at byte {error.start}; convert it") from None


def _check_variety(text: str, place: str, documents: list[str]) -> None:
    if not documents:
        raise UserError(f"{place} holds no text; a corpus needs at least one document")
    lines = Counter(line for line in text.split("\n") if line.strip())
    (line, count), total = lines.most_common(1)[0], lines.total()
    if total >= 20 and count > total / 2:
        raise UserError(f"{place} repeats one line ({count:,} of {total:,} lines are {line[:40]!r}); give real text")


def _encode(documents: list[str], tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    rows = tokenizer(documents, add_special_tokens=True, return_attention_mask=False, verbose=False)["input_ids"]
    kind = np.uint16 if len(tokenizer) <= 1 << 16 else np.int32
    return np.concatenate([np.array(row, dtype=kind) for row in rows])


def shuffle_words(documents: list[str], seed: int) -> list[str]:
    """Return the documents with the words of each sentence in random order.

    A sentence ends with the line, or at a full stop, question mark or exclamation mark before a space.
    """
    rng = np.random.default_rng(seed)

    def shuffled(sentence: str) -> str:
        words = sentence.split(" ")
        return " ".join(words[index] for index in rng.permutation(len(words)))

    return [
        "\n".join(" ".join(map(shuffled, _SENTENCE_END.split(line))) for line in document.split("\n"))
        for document in documents
    ]


_SENTENCE_END = re.compile(r"(?<=[.!?]) ")


def brackets(kinds: int, tokens: int, tokenizer: PreTrainedTokenizerBase, seed: int) -> Corpus:
    """Return a corpus of nested brackets (a k-Dyck language), which has structure but no meaning.

    Words of the tokenizer serve as brackets. Unlike in Papadimitriou and Jurafsky (2020), the opening and the closing
    bracket of a kind are different tokens.

    Args:
        kinds: The number of kinds of brackets. Their frequencies follow a Zipf distribution.
        tokens: The number of training tokens. Validation tokens are added.

    Raises:
        UserError: The tokenizer has fewer than 2 x `kinds` word tokens.
    """
    rng = np.random.default_rng(seed)
    words = [index for token, index in sorted(tokenizer.get_vocab().items()) if token[1:].isalpha()]
    if len(words) < 2 * kinds:
        raise UserError(f"{kinds} kinds of brackets need {2 * kinds} word tokens; the tokenizer has {len(words)}")
    chosen = rng.permutation(np.array(words))[: 2 * kinds].reshape(kinds, 2)
    held_out = max(1, round(HELD_OUT * tokens))
    stream = bracket_ids(chosen, tokens + held_out, rng, int(tokenizer.eos_token_id))
    digest = hashlib.sha256(stream.tobytes()).hexdigest()
    return Corpus(stream[:tokens], stream[tokens:], digest)


def bracket_ids(chosen: np.ndarray, length: int, rng: np.random.Generator, eos: int) -> np.ndarray:
    """Return `length` token ids of nested brackets.

    A token opens or closes a bracket, each with probability 1/2. At most 64 brackets are open.

    Args:
        chosen: The opening and the closing token id of each kind, of shape (kinds, 2).
        eos: The id of the end token of a document.
    """
    weights = 1 / np.arange(1, len(chosen) + 1)
    kinds = rng.choice(len(chosen), size=length, p=weights / weights.sum())
    opens = rng.random(length) < 0.5
    ends = rng.random(length) < 1 / 256  # a document ends at depth 0, after about 500 tokens on average
    ids = np.empty(length, dtype=np.int32)
    stack: list[int] = []
    for at in range(length):
        if not stack and ends[at]:
            ids[at] = eos
        elif not stack or (opens[at] and len(stack) < 64):
            stack.append(int(kinds[at]))
            ids[at] = chosen[stack[-1], 0]
        else:
            ids[at] = chosen[stack.pop(), 1]
    return ids
