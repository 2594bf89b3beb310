"""The verb `doctor`: report the machine's hardware and software."""

from __future__ import annotations

import functools
import importlib
import json
import os
import platform
import shutil
import sys
import textwrap
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer

from petransfer import __version__
from petransfer.errors import reason_of
from petransfer.plurals import count
from petransfer.training.cpu.processor import available_cores, processor

PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "datasets", "typer")


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False) -> None:
    """Check the machine: versions, devices, CPU speed, bitsandbytes, bf16, access to the hub, and free disk space.

    The CPU's speed is measured for about two seconds.

    A line with PROBLEM names something that does not work. The exit code is 0 even if there are problems.
    """
    checks: dict[str, Callable[[], str]] = {
        "python": platform.python_version,
        "petransfer": _own_version,
        **{name: functools.partial(metadata.version, name) for name in PACKAGES},
        "devices": _devices,
        "cpu": _cpu,
        "matrix products": _matrix_products,
        "bitsandbytes works": _bitsandbytes,
        "bf16": _bf16,
        "compiler": _compiler,
        "hub": _hub,
        "disk": lambda: f"{shutil.disk_usage(Path.cwd()).free / 1e9:.0f} GB free here",
    }
    found = {}
    for name, check in checks.items():
        try:
            found[name] = check()
        except Exception as error:  # report every failure, whatever its type
            found[name] = f"PROBLEM: {reason_of(error, 160)}"
    if as_json:
        print(json.dumps(found, indent=1))
        return
    width = shutil.get_terminal_size((120, 24)).columns if sys.stdout.isatty() else 10**6
    for name, value in found.items():
        print(textwrap.fill(f"{name:<20} {value}", width, subsequent_indent=" " * 21, break_long_words=False))


def _own_version() -> str:
    try:
        return metadata.version("petransfer")
    except metadata.PackageNotFoundError:
        return f"{__version__} (run from its source, not installed)"


def _cpu() -> str:
    return f"{processor()}; {count(available_cores(), 'core')}"


def _matrix_products() -> str:
    """Return the CPU's speed in matrix products at 32 and 16 bits. A training step also needs other operations."""
    from petransfer.training.cpu.speed import measure_speeds, recommended

    speeds = measure_speeds()
    best = [recommended([speed for speed in speeds if speed.bits == bits]) for bits in (32, 16)]
    shown = (f"{one.bits} bits {one.flops / 1e12:.2g} TFLOP/s with {count(one.threads, 'thread')}" for one in best)
    return f"on the CPU: {', '.join(shown)}; a training step of a small model can still be slower at 16 bits"


def _devices() -> str:
    import torch

    if not torch.cuda.is_available():
        return f"CPU only, {count(os.cpu_count() or 1, 'core')}"
    cards = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return ", ".join(f"{card.name} ({card.total_memory / 1e9:.0f} GB)" for card in cards)


def _bitsandbytes() -> str:
    import torch

    functional = importlib.import_module("bitsandbytes.functional")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    weight = torch.randn(64, 64, device=device)
    packed, state = functional.quantize_4bit(weight, quant_type="nf4")
    error = (functional.dequantize_4bit(packed, state) - weight).abs().mean()
    name = "GPU" if device == "cuda" else "CPU"
    return f"yes, on the {name} (4 bits change weights of standard deviation 1 by {float(error):.3f} on average)"


def _compiler() -> str:
    found = next(filter(None, map(shutil.which, ("g++", "clang++", "c++"))), None)
    return f"{found} (pretrain compiles its model with it)" if found else "none; pretrain is slower without one"


def _bf16() -> str:
    import torch

    if torch.cuda.is_available():
        # emulated bf16 is slow, and runs with 8 or 4 bits refuse it
        supported = torch.cuda.is_bf16_supported(including_emulation=False)
        return "yes" if supported else "PROBLEM: this card has no bf16; use bits: 32"
    fast = any(name in processor() for name in ("amx_bf16", "avx512_bf16"))
    return "yes, on the CPU" + ("" if fast else " (slowly: no bf16 instructions)")


def _hub() -> str:
    from petransfer.data.hub_network import why_unreachable

    reason = why_unreachable()
    return f"not reachable ({reason}); local folders, the cache and the nano family work" if reason else "reachable"
