"""Add tokens for characters that a tokenizer lacks, such as line breaks and braces for T5.

The added tokens use spare embedding rows: T5 has 28 more rows than tokens. Thus no tensor changes its size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tokenizers import pre_tokenizers
from transformers import AddedToken, PreTrainedModel, PreTrainedTokenizerBase

from petransfer.errors import UserError


def add_tokens(tokenizer: PreTrainedTokenizerBase, added: Sequence[str]) -> tuple[int, ...]:
    """Add a token for each character that the tokenizer cannot reproduce, and return the new token ids."""
    lacking = [character for character in added if _changes(tokenizer, f"a{character}a")]
    if not lacking:
        return ()
    first = len(tokenizer)
    tokenizer.add_tokens([AddedToken(character, normalized=False, special=False) for character in lacking])
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None and "Metaspace" in repr(backend.pre_tokenizer):
        # otherwise SentencePiece would insert a space after each added token
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    return tuple(range(first, len(tokenizer)))


def draw_embeddings(model: PreTrainedModel, ids: Sequence[int], name: str, seed: int) -> None:
    """Set the embedding rows of added tokens to random values.

    The values have the mean and standard deviation of the other rows. The rows of an untied output head are set too.

    Raises:
        UserError: The model has too few embedding rows.
    """
    if not ids:
        return
    _refuse_lacking_rows(ids, model.get_input_embeddings().num_embeddings, name)
    generator = torch.Generator().manual_seed(seed)
    for end in (model.get_input_embeddings(), model.get_output_embeddings()):
        if end is None or end.weight.is_meta or (end is not model.get_input_embeddings() and _tied(model)):
            continue
        with torch.no_grad():
            known = end.weight[: ids[0]].float()
            drawn = torch.randn(len(ids), known.shape[1], generator=generator).to(known.device)
            end.weight[ids[0] : ids[-1] + 1] = (known.mean(0) + known.std(0) * drawn).to(end.weight.dtype)


def refuse_unplaced_tokens(tokenizer: PreTrainedTokenizerBase, added: Sequence[str], rows: int, name: str) -> None:
    """Raise UserError if a model has too few embedding rows for the added tokens of its tokenizer.

    Args:
        added: The requested tokens. The tokenizer already had some of them.
        rows: The number of the model's embedding rows.
    """
    vocabulary = tokenizer.get_added_vocab() if added else {}
    _refuse_lacking_rows([vocabulary[text] for text in added if text in vocabulary], rows, name)


def _refuse_lacking_rows(ids: Sequence[int], rows: int, name: str) -> None:
    spare = sum(at < rows for at in ids)
    if spare == len(ids):
        return
    if spare:
        raise UserError(f"{name} has embedding rows for {spare} added tokens, but you asked for {len(ids)}; add fewer")
    raise UserError(
        f"{name} has no embedding rows for added tokens; replace these characters in the rows, leave the rows out with "
        "--skip-bad-rows, or choose a model with spare embedding rows, such as T5"
    )


def _tied(model: PreTrainedModel) -> bool:
    head = model.get_output_embeddings()
    return head is not None and head.weight is model.get_input_embeddings().weight


def _changes(tokenizer: PreTrainedTokenizerBase, text: str) -> bool:
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return bool(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False) != text)
