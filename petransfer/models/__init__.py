"""Checkpoints: how they are found, loaded, quantised and checked."""

import logging

# On CPUs with avx512_bf16 bitsandbytes warns at import that it lacks a kernel, which petransfer does not use.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
