"""Keeps libraries' progress bars and warnings out of our own output."""

from __future__ import annotations

import logging
import warnings

# On CPUs with avx512_bf16 bitsandbytes says when it is imported that it lacks a kernel, which nothing here needs.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def quiet() -> None:
    """Silences what a user can do nothing about; errors stay."""
    import transformers

    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for name in ("accelerate", "bitsandbytes.autograd._functions"):  # the second warns at every 8-bit product
        logging.getLogger(name).setLevel(logging.ERROR)
