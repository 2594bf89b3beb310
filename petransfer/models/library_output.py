"""Keep progress bars and warnings of libraries out of petransfer's output."""

from __future__ import annotations

import logging
import warnings


def silence_libraries() -> None:
    """Silence progress bars and warnings of libraries that a user can do nothing about. Errors are still shown."""
    import transformers

    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for name in ("accelerate", "bitsandbytes.autograd._functions"):  # the second one warns at every 8-bit product
        logging.getLogger(name).setLevel(logging.ERROR)
