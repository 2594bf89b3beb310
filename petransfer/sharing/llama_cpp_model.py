"""Compute logits with llama.cpp, through the package llama-cpp-python."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from petransfer.errors import UserError


class LlamaCppModel:
    """A GGUF model that llama.cpp runs on the CPU. Call `close` after use.

    Args:
        file: the GGUF file.
        positions: largest number of tokens of an input and its target together.

    Raises:
        UserError: llama-cpp-python is not installed, or the file cannot be loaded.
    """

    def __init__(self, file: Path, positions: int) -> None:
        if importlib.util.find_spec("llama_cpp") is None:
            raise UserError("reading GGUF files needs llama-cpp-python; run `pip install llama-cpp-python`")
        if not file.is_file():
            raise UserError(f"there is no file {file}; make it with llama.cpp's convert_hf_to_gguf.py")
        self._api: Any = importlib.import_module("llama_cpp")
        self._quiet = self._api.llama_log_callback(lambda level, text, data: None)  # must live as long as the model
        self._api.llama_log_set(self._quiet, None)
        self._api.llama_backend_init()
        self._model = self._api.llama_model_load_from_file(str(file).encode(), self._api.llama_model_default_params())
        if not self._model:
            raise UserError(f"{file} cannot be loaded by llama.cpp; convert the model again")
        options = self._api.llama_context_default_params()
        options.n_ctx = options.n_batch = options.n_ubatch = positions
        self._context = self._api.llama_init_from_model(self._model, options)
        self._vocabulary = self._api.llama_model_get_vocab(self._model)
        self._has_encoder = bool(self._api.llama_model_has_encoder(self._model))

    def close(self) -> None:
        self._api.llama_free(self._context)
        self._api.llama_model_free(self._model)

    def tokenize(self, text: str, add_special_tokens: bool) -> list[int]:
        """Return the token ids of a text, computed by the tokenizer in the GGUF file."""
        content = text.encode()
        tokens = (self._api.llama_token * (len(content) + 8))()
        arguments = (content, len(content), tokens, len(tokens), add_special_tokens, True)
        return list(tokens[: self._api.llama_tokenize(self._vocabulary, *arguments)])

    def target_logits(self, input_ids: Sequence[int], target_ids: Sequence[int]) -> torch.Tensor:
        """Return the logits for the target's tokens: (target tokens, vocabulary), fp32.

        Raises:
            UserError: llama.cpp cannot process the tokens.
        """
        memory = self._api.llama_get_memory(self._context)
        if memory:
            self._api.llama_memory_clear(memory, True)
        read = [*input_ids, *target_ids[:-1]]
        if self._has_encoder:
            tokens = (self._api.llama_token * len(input_ids))(*input_ids)
            self._api.llama_encode(self._context, self._api.llama_batch_get_one(tokens, len(input_ids)))
            read = [self._api.llama_model_decoder_start_token(self._model), *target_ids[:-1]]
        batch = self._api.llama_batch_init(len(read), 0, 1)
        batch.n_tokens = len(read)
        for at, token in enumerate(read):
            batch.token[at], batch.pos[at], batch.logits[at] = token, at, 1
            batch.n_seq_id[at], batch.seq_id[at][0] = 1, 0
        failed = self._api.llama_decode(self._context, batch)
        self._api.llama_batch_free(batch)
        if failed:
            raise UserError(f"llama.cpp cannot read {len(read):,} tokens (its error code is {failed})")
        shape = (len(read), self._api.llama_vocab_n_tokens(self._vocabulary))
        logits = np.ctypeslib.as_array(self._api.llama_get_logits(self._context), shape=shape)
        return torch.from_numpy(logits[-len(target_ids) :].copy())
