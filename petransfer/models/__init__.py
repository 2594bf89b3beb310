"""Checkpoints: how they are found, loaded, quantised and checked."""

import logging

# On CPUs with avx512_bf16, bitsandbytes warns at import about a missing kernel. petransfer does not use this kernel.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
