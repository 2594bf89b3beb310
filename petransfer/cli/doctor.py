"""`doctor`: what this machine has, and what of petransfer will work on it."""

from __future__ import annotations

import functools
import importlib
import json
import os
import platform
import shutil
import socket
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer

PACKAGES = ("petransfer", "torch", "transformers", "peft", "bitsandbytes", "accelerate", "datasets", "typer")


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False) -> None:
    """Report versions, devices, bitsandbytes, bf16, the hub and the disk."""
    checks: dict[str, Callable[[], str]] = {
        "python": platform.python_version,
        **{name: functools.partial(metadata.version, name) for name in PACKAGES},
        "devices": _devices,
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
        except Exception as error:  # a doctor reports what is broken, whatever broke it
            found[name] = f"PROBLEM: {' '.join(str(error).split())[:160] or type(error).__name__}"
    if as_json:
        print(json.dumps(found, indent=1))
        return
    for name, value in found.items():
        print(f"{name:<20} {value}")


def _devices() -> str:
    import torch

    if not torch.cuda.is_available():
        return f"CPU only, {os.cpu_count()} cores"
    cards = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return ", ".join(f"{card.name} ({card.total_memory / 1e9:.0f} GB)" for card in cards)


def _bitsandbytes() -> str:
    import torch

    functional = importlib.import_module("bitsandbytes.functional")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    weight = torch.randn(64, 64, device=device)
    packed, state = functional.quantize_4bit(weight, quant_type="nf4")
    error = (functional.dequantize_4bit(packed, state) - weight).abs().mean()
    return f"yes, NF4 on the {device} (mean error {float(error):.3f} of deviation 1)"


def _compiler() -> str:
    found = next(filter(None, map(shutil.which, ("g++", "clang++", "c++"))), None)
    return f"{found} (pretrain compiles its model with it)" if found else "none; pretrain goes on without, slower"


def _bf16() -> str:
    import torch

    if torch.cuda.is_available():
        return "yes" if torch.cuda.is_bf16_supported() else "PROBLEM: this card has no bf16; take bits: 32"
    return "yes, on the CPU" + ("" if _cpu_has("amx_bf16", "avx512_bf16") else " (slowly: no bf16 instructions)")


def _cpu_has(*flags: str) -> bool:
    path = Path("/proc/cpuinfo")
    return path.exists() and any(flag in path.read_text() for flag in flags)


def _hub() -> str:
    if os.environ.get("HF_HUB_OFFLINE", "0") not in {"", "0"}:
        return "offline (HF_HUB_OFFLINE is set); local folders, the cache and the embedded family work"
    try:
        socket.create_connection(("huggingface.co", 443), timeout=3).close()
    except OSError:
        return "not reachable; local folders, the cache and the embedded family work"
    return "reachable"
