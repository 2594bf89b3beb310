"""Keep progress bars and warnings of libraries out of petransfer's output."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator


def silence_libraries() -> None:
    """Silence libraries' progress bars and warnings that a user cannot act on. Errors are still shown."""
    import transformers

    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for name in ("accelerate", "bitsandbytes.autograd._functions"):  # the second one warns at every 8-bit product
        logging.getLogger(name).setLevel(logging.ERROR)


@contextlib.contextmanager
def without_progress_bars() -> Iterator[None]:
    """Turn the progress bars of transformers off for a while, and leave the user's own setting as it was."""
    import transformers

    enabled = transformers.logging.is_progress_bar_enabled()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            transformers.logging.enable_progress_bar()
