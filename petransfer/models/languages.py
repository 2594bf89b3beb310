"""The languages of multilingual tokenizers: mBART, M2M100 and NLLB mark inputs and targets with a language token."""

from __future__ import annotations

import functools
import logging
import re
from typing import Any

from transformers import PreTrainedTokenizerBase

from petransfer.errors import UserError, unknown

_log = logging.getLogger(__name__)

# The tokenizer of the first mBART checkpoints, whose decoder starts with the token of the target language.
STARTS_FROM_LANGUAGE = "MBartTokenizer"
# The pattern of the language codes of mBART (`en_XX`) and NLLB (`eng_Latn`).
_LANGUAGE = re.compile("[a-z]{2,3}_[A-Z][A-Za-z]+")


def with_languages(
    tokenizer: Any, name: str, source_language: str | None, target_language: str | None
) -> PreTrainedTokenizerBase:
    """Return a tokenizer that marks inputs and targets with their languages.

    Args:
        source_language: Language of the inputs, in the tokenizer's notation (`en_XX`, `en`, `eng_Latn`).

    Raises:
        UserError: The tokenizer has no languages, or lacks one of the two languages, or only one language is given.
    """
    given = [language for language in (source_language, target_language) if language]
    if not hasattr(tokenizer, "src_lang"):
        if given:
            raise UserError(
                f"the tokenizer of {name} has no setting for languages; remove source_language and target_language "
                "(--source-language, --target-language)"
            )
        return tokenizer
    if len(given) == 1:
        raise UserError(f"{name}: give source_language and target_language together")
    if not given:
        if _codes(tokenizer):
            _warn_of_no_language(name, tokenizer.src_lang)
        return tokenizer
    for key, language in (("source_language", source_language), ("target_language", target_language)):
        if language not in _codes(tokenizer):
            raise unknown(f"{key} of {name}", str(language), _codes(tokenizer))
    tokenizer.src_lang, tokenizer.tgt_lang = source_language, target_language
    return tokenizer


@functools.cache
def _warn_of_no_language(name: str, marked_as: str) -> None:
    """Log the warning once per process: a training loads its tokenizer several times."""
    _log.warning(
        "the tokenizer of %s marks languages, but no language was given: inputs are marked as %s and targets are not "
        "marked. Give --source-language and --target-language, or source_language and target_language in the recipe",
        name,
        marked_as,
    )


def target_token(tokenizer: Any) -> int | None:
    """Return the token id of the target language that `with_languages` set. None if no language was set."""
    language = getattr(tokenizer, "tgt_lang", None) if hasattr(tokenizer, "src_lang") else None
    return _codes(tokenizer).get(language) if language else None


def _codes(tokenizer: Any) -> dict[str, int]:
    """Return the token id of each language of a tokenizer."""
    names = getattr(tokenizer, "lang_code_to_token", None)  # M2M100 writes the language `en` as the token `__en__`
    if names:
        return {language: tokenizer.convert_tokens_to_ids(token) for language, token in names.items()}
    found = getattr(tokenizer, "lang_code_to_id", None) or tokenizer.get_added_vocab()
    return {str(token): int(at) for token, at in dict(found).items() if _LANGUAGE.fullmatch(str(token))}
