"""Generate texts with a loaded model, and write inputs in the form on which the model was trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import psutil
import torch

from petransfer.data.bad_rows import BadRow
from petransfer.data.chat import chat_layout, quoted_special_tokens
from petransfer.data.encoding import encode_inputs, input_text, refuse_without_tokens
from petransfer.data.task import Example
from petransfer.data.templates import render_text
from petransfer.errors import UserError
from petransfer.evaluation.generation import Generation, generations, tokens_left, virtual_tokens
from petransfer.evaluation.text_stream import OnText
from petransfer.models.lengths import positions
from petransfer.models.loading import Loaded
from petransfer.models.text_part import text_config, vocabulary_size
from petransfer.recipe.values import MOST_NEW_TOKENS

# Inputs of at most this many tokens are never refused for the memory of their attention.
SHORT = 4096
# Matrices of (heads, tokens, tokens) in fp32 that one attention layer holds at once: position bias, scores, softmax.
ATTENTION_COPIES = 3
# The largest number of inputs that the message about too long inputs lists.
TOO_LONG_SHOWN = 5


@dataclass(frozen=True)
class Predictor:
    """A loaded model that generates a text for each input, by greedy decoding.

    Attributes:
        model: the model, with its adapter.
        loaded: the base model with its tokenizer and layout.
        prefix: text in front of every input.
        template: text that makes an input from a row's columns. '' for plain inputs.
        chat: format of chats. `template`: the tokenizer's chat template. `plain`: lines `role: content`. '' for plain
            inputs. An input is the user's message or a JSON list of messages.
    """

    model: torch.nn.Module
    loaded: Loaded
    prefix: str
    template: str = ""
    chat: str = ""

    def __post_init__(self) -> None:
        layout = chat_layout(self.loaded.tokenizer, self.loaded.layout, self.chat)
        object.__setattr__(self, "loaded", replace(self.loaded, layout=layout))

    def for_chats(self, by_default: bool = False) -> Predictor | None:
        """Return a predictor whose inputs are JSON lists of messages. None if the model does not take chats.

        Args:
            by_default: whether to use the tokenizer's chat template for a model that was not trained on chats.
        """
        if self.chat:
            return self
        has_template = bool(self.loaded.tokenizer.chat_template) and not self.loaded.layout.encoder_decoder
        return replace(self, chat="template") if by_default and has_template else None

    def __call__(self, texts: Sequence[str], max_new_tokens: int = 512) -> list[str]:
        """Return the generated texts in the order of the inputs.

        Args:
            texts: the inputs. For a template with several columns, JSON objects with these columns.
            max_new_tokens: largest number of tokens of a text. The model's number of positions is a second limit.

        Raises:
            UserError: an input is not valid Unicode, is too long, or is not the JSON that the model expects, or
                `max_new_tokens` is not a whole number from 1 to 131,072.
        """
        return [one.text for one in self.generations(texts, max_new_tokens)]

    def generations(
        self,
        texts: Sequence[str],
        max_new_tokens: int = 512,
        on_text: OnText | None = None,
        places: Sequence[str] = (),
    ) -> list[Generation]:
        """Return a `Generation` for each input, by greedy decoding.

        Args:
            on_text: called after each generated token with the index of the input and the text so far.
            places: where each input was read; see `token_ids`.
        """
        if type(max_new_tokens) is not int or not 0 < max_new_tokens <= MOST_NEW_TOKENS:
            raise UserError(
                f"max_new_tokens is {max_new_tokens!r:.40}; give a whole number from 1 to {MOST_NEW_TOKENS:,}"
            )
        rows = self.token_ids(texts, places)
        return generations(self.model, self.loaded, rows, [max_new_tokens] * len(rows), on_text=on_text)

    def quoted_special_tokens(self, texts: Sequence[str]) -> list[list[str]]:
        """Return the special tokens that the messages of each chat contain as text. Empty without a chat template."""
        return quoted_special_tokens(texts, self.loaded.tokenizer) if self.chat == "template" else []

    def token_ids(self, texts: Sequence[str], places: Sequence[str] = ()) -> list[tuple[int, ...]]:
        """Return the token ids of each input, in the form that the model takes.

        Args:
            places: where each input was read, such as `line 2 of inputs.txt`, for messages. Default: its number.

        Raises:
            UserError: an input cannot be used. All inputs that are too long are counted in one message.
        """
        if not texts:
            return []
        places = places or ([f"input {at}" for at in range(1, len(texts) + 1)] if len(texts) > 1 else ["the input"])
        texts = [_without_surrogates(text, place) for text, place in zip(texts, places, strict=True)]
        inputs = [self._input(text, at, place) for at, (text, place) in enumerate(zip(texts, places, strict=True))]
        rows = encode_inputs(inputs, self.loaded.tokenizer, self.loaded.layout, is_rendered=self.chat == "template")
        refuse_without_tokens(inputs, rows)
        self._refuse_unknown_tokens(rows, places)
        self._refuse_too_long(texts, [len(row) for row in rows], places)
        return rows

    def _input(self, text: str, at: int, place: str) -> str:
        """Return an input with prefix and template, or as a chat."""
        try:
            example = Example(at, render_text(self.template, text, place), "", "", self.chat)
            return input_text(example, self.prefix, self.loaded.tokenizer)
        except BadRow as problem:
            raise UserError(f"{place} cannot be used: {problem}") from None

    def _refuse_unknown_tokens(self, rows: Sequence[Sequence[int]], places: Sequence[str]) -> None:
        """Refuse inputs with tokens for which the model has no embeddings."""
        known = vocabulary_size(self.loaded.model.config)
        for row, place in zip(rows, places, strict=True):
            if max(row) >= known:
                token = self.loaded.tokenizer.convert_ids_to_tokens(max(row))
                raise UserError(
                    f"{place} has the token {token!r:.40} ({max(row):,}), and the model has embeddings for {known:,} "
                    "tokens; use the model's own tokenizer, or a model that was resized for this one"
                )

    def _refuse_too_long(self, texts: Sequence[str], lengths: Sequence[int], places: Sequence[str]) -> None:
        """Refuse inputs without a position for a generated token, or whose attention does not fit into memory."""
        reasons = {tokens: self._why_too_long(tokens) for tokens in set(lengths)}
        bad = [at for at, tokens in enumerate(lengths) if reasons[tokens]]
        if not bad:
            return
        reason = reasons[max(lengths)]
        shown = ", ".join(
            f"{places[at]} ({texts[at][:40]!r}) has {lengths[at]:,} tokens" for at in bad[:TOO_LONG_SHOWN]
        )
        if len(bad) == 1:
            raise UserError(f"{shown}; {reason}; shorten it")
        more = f", and {len(bad) - TOO_LONG_SHOWN:,} more" if len(bad) > TOO_LONG_SHOWN else ""
        raise UserError(f"{len(bad):,} of {len(texts):,} inputs are too long: {shown}{more}; {reason}; shorten them")

    def _why_too_long(self, tokens: int) -> str:
        """Return why an input of this many tokens is too long. '' if it is not."""
        left = tokens_left(self.model, self.loaded, tokens)
        if left is None:  # the model has no limit of positions
            return self._why_too_large(tokens)
        if left > 0:
            return ""
        has = positions(self.loaded.model.config, of_encoder=self.loaded.layout.encoder_decoder)
        virtual = virtual_tokens(self.model)
        taken = virtual.input + virtual.target
        of_them = f", of which the adapter's virtual tokens take {taken:,}" if taken else ""
        return f"the model has {has:,} positions{of_them}"

    def _why_too_large(self, tokens: int) -> str:
        """Return why attention over this many tokens does not fit into the free memory. '' if it fits."""
        if tokens <= SHORT:
            return ""
        config, device = text_config(self.loaded.model.config), next(self.model.parameters()).device
        heads = int(getattr(config, "num_heads", 0) or getattr(config, "num_attention_heads", 0) or 1)
        needed = ATTENTION_COPIES * 4 * heads * tokens**2
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
        return (
            f"attention over {tokens:,} tokens needs {needed / 1e9:,.0f} GB, and {free / 1e9:,.0f} GB are free"
            if needed > free
            else ""
        )


def _without_surrogates(text: str, place: str) -> str:
    """Return a text in which bytes that Python read as lone surrogates are decoded as UTF-8."""
    # Python reads arguments this way if the locale is not UTF-8, such as LC_ALL=C
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8")
    except (UnicodeEncodeError, UnicodeDecodeError):
        start = next(at for at, sign in enumerate(text, start=1) if "\ud800" <= sign <= "\udfff")
        raise UserError(f"{place} is not UTF-8 at character {start}; write it as UTF-8") from None
