"""Use the tokenizer in an adapter's folder. TRL, unsloth and LLaMA-Factory save the tokenizer of the training there.

Such a tokenizer can have more tokens than the base's, and another chat template.
"""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from petransfer.errors import UserError
from petransfer.models.checkpoint_files import generation_config, load_tokenizer, one_line_errors
from petransfer.models.hashes import tokenizer_sha256
from petransfer.models.hub_cache import VOCABULARIES
from petransfer.models.loading import Loaded
from petransfer.models.special_tokens import layout_of
from petransfer.sharing.base import AdapterBase
from petransfer.sharing.bundle import Bundle
from petransfer.sharing.bundle_files import TOKENIZER_FILES
from petransfer.sharing.safe_reading import read_json

_log = logging.getLogger(__name__)


def with_own_tokenizer(loaded: Loaded, bundle: Bundle, base: AdapterBase) -> Loaded:
    """Return the base with the tokenizer in an adapter's folder. Without such a tokenizer, `loaded` is returned.

    Adapters that petransfer trained have no tokenizer of their own: petransfer.json says which one they need.

    Raises:
        UserError: the tokenizer is damaged, or has tokens for which the base has no embeddings.
    """
    folder = bundle.weights.parent
    if not bundle.own_tokenizer():
        return loaded
    _refuse_large(bundle, folder)
    if any((folder / name).is_file() for name in VOCABULARIES):
        with one_line_errors(replace(base.checkpoint, source=str(folder))):
            tokenizer = load_tokenizer(replace(base.checkpoint, tokenizer_source=str(folder)))
    else:
        tokenizer = copy.deepcopy(loaded.tokenizer)
        tokenizer.chat_template = _chat_template(folder) or tokenizer.chat_template
    if _same(tokenizer, loaded.tokenizer):
        return loaded
    _refuse_tokens_without_embeddings(tokenizer, loaded, bundle)
    _log.info("%s is used with the tokenizer in its folder, which differs from that of its base", bundle.label)
    layout = layout_of(loaded.model.config, tokenizer, generation_config(base.checkpoint))
    return replace(loaded, tokenizer=tokenizer, layout=replace(layout, input_end=loaded.layout.input_end))


def has_own_chat_template(bundle: Bundle) -> bool:
    """Return whether there is a chat template in an adapter's folder."""
    return bundle.spec is None and bool(_chat_template(bundle.weights.parent))


def _same(one: Any, other: Any) -> bool:
    return bool(one.chat_template == other.chat_template and tokenizer_sha256(one) == tokenizer_sha256(other))


def _chat_template(folder: Path) -> str:
    """Return the chat template in a folder without a vocabulary. Empty if there is none."""
    alone = folder / "chat_template.jinja"
    if alone.is_file():
        return alone.read_text(encoding="utf-8", errors="replace")
    settings = folder / "tokenizer_config.json"
    try:
        content: Mapping[str, Any] = read_json(settings) if settings.is_file() else {}
    except (UserError, json.JSONDecodeError):
        return ""
    found = content.get("chat_template")
    return found if isinstance(found, str) else ""


def _refuse_large(bundle: Bundle, folder: Path) -> None:
    for name, limit in TOKENIZER_FILES.items():
        path = folder / name
        if path.is_file() and path.stat().st_size > limit:
            size = path.stat().st_size
            raise UserError(
                f"{bundle.label} is refused: its {name} has {size:,} bytes, and at most {limit:,} are read; remove the "
                "tokenizer's files from the folder to use the base's tokenizer"
            )


def _refuse_tokens_without_embeddings(tokenizer: Any, loaded: Loaded, bundle: Bundle) -> None:
    rows = int(loaded.model.get_input_embeddings().num_embeddings)
    # A padding token needs no embedding, because padded positions are never read.
    known = loaded.tokenizer.get_vocab()
    beyond = {token: at for token, at in tokenizer.get_vocab().items() if at >= rows and known.get(token) != at}
    beyond.pop(str(tokenizer.pad_token), None)
    if beyond:
        first = min(beyond, key=lambda token: beyond[token])
        raise UserError(
            f"{bundle.label} does not fit its base: its tokenizer has the token {first!r:.60} with the id "
            f"{beyond[first]:,}, but the base has embeddings for {rows:,} tokens; resize the base as it was for "
            "training, save it, and name it with --checkpoint"
        )
