"""The memory of graphics cards, by size or by name. GB is 10^9 bytes everywhere, GiB is 2^30."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from difflib import get_close_matches

from petransfer.errors import UserError

GB, GIB = 10**9, 2**30
# The memory of the smallest card, in bytes.
SMALLEST = GB // 4

# Memory in GiB, which makers of cards call GB. If a card is sold in several sizes, this is the smallest size. Users can
# give another size, as in "RTX 5060 Ti 16GB".
CARDS_GIB = {
    "gtx 1080 ti": 11, "rtx 2060": 6, "rtx 2070": 8, "rtx 2080": 8, "rtx 2080 ti": 11,
    "rtx 3050": 6, "rtx 3060": 12, "rtx 3060 ti": 8, "rtx 3070": 8, "rtx 3070 ti": 8, "rtx 3080": 10,
    "rtx 3080 ti": 12, "rtx 3090": 24, "rtx 3090 ti": 24,
    "rtx 4060": 8, "rtx 4060 ti": 8, "rtx 4070": 12, "rtx 4070 super": 12, "rtx 4070 ti": 12, "rtx 4070 ti super": 16,
    "rtx 4080": 16, "rtx 4080 super": 16, "rtx 4090": 24,
    "rtx 5060": 8, "rtx 5060 ti": 8, "rtx 5070": 12, "rtx 5070 ti": 16, "rtx 5080": 16, "rtx 5090": 32,
    "rtx a2000": 6, "rtx a4000": 16, "rtx a5000": 24, "rtx a6000": 48, "rtx 6000 ada": 48,
    "t4": 16, "p100": 16, "v100": 16, "a10": 24, "a10g": 24, "a40": 48, "a100": 40, "l4": 24, "l40": 48, "l40s": 48,
    "h100": 80, "h200": 141, "b200": 180,
    # Many cards of laptops have less memory than the desktop card of the same name.
    "rtx 2050 laptop": 4, "rtx 2060 laptop": 6, "rtx 2070 laptop": 8, "rtx 2080 laptop": 8,
    "rtx 3050 laptop": 4, "rtx 3050 ti laptop": 4, "rtx 3060 laptop": 6, "rtx 3070 laptop": 8, "rtx 3070 ti laptop": 8,
    "rtx 3080 laptop": 8, "rtx 3080 ti laptop": 16,
    "rtx 4050 laptop": 6, "rtx 4060 laptop": 8, "rtx 4070 laptop": 8, "rtx 4080 laptop": 12, "rtx 4090 laptop": 16,
    "rtx 5050 laptop": 8, "rtx 5060 laptop": 8, "rtx 5070 laptop": 8, "rtx 5070 ti laptop": 12, "rtx 5080 laptop": 16,
    "rtx 5090 laptop": 24,
}  # fmt: skip

_SIZE = r"(\d+(?:\.\d+)?)\s*(g|gb|gib|m|mb|mib)?"
_UNITS = {"": GB, "g": GB, "gb": GB, "gib": GIB, "m": 10**6, "mb": 10**6, "mib": 2**20}


def card_bytes(text: str) -> int:
    """Return the memory of a card in bytes.

    Args:
        text: Size such as `12GB`, `12 GiB`, `12` (GB) or `6144MiB`, name such as `RTX 3060`, or name with size, such as
            `RTX 5060 Ti 16GB`.

    Raises:
        UserError: The text is neither a size nor a known name, or the size is impossible.
    """
    given = text.strip().lower()
    size = re.fullmatch(_SIZE, given)
    if size:
        return _possible(text, int(float(size[1]) * _UNITS[size[2] or ""]))
    name, memory = _name_of(given), None
    with_size = re.fullmatch(r"(.*\S)[\s-]+(\d+)\s*(?:gb|gib|g)(?:\s+hbm\w+)?", given)
    if with_size:
        name, memory = _name_of(with_size[1]), int(with_size[2]) * GIB
    if name not in CARDS_GIB:
        near = get_close_matches(name, CARDS_GIB, 1, 0.8)
        hint = f"; did you mean '{near[0].upper()}'?" if near else ""
        raise UserError(f"--card {text or repr('')}: write a size such as 12GB or a name such as 'RTX 3060'{hint}")
    return _possible(text, memory or CARDS_GIB[name] * GIB)


def _name_of(text: str) -> str:
    """Return the short name of a card, such as `rtx 3060 laptop` for `NVIDIA GeForce RTX3060 Laptop GPU`."""
    plain = re.sub(r"\b(nvidia|geforce|tesla|gpu|sxm\d?|pcie)\b", " ", text.replace("-", " ").replace("_", " "))
    plain = re.sub(r"\b(rtx|gtx)(\d)", r"\1 \2", plain)
    plain = re.sub(r"(\d)(ti|super)\b", r"\1 \2", plain)
    return " ".join(plain.split())


def _possible(text: str, size: int) -> int:
    if not SMALLEST <= size <= 1024 * GB:
        raise UserError(f"--card {text}: a card has between 250MB and 1000GB; write a size such as 12GB")
    return size


def gigabytes(size: float) -> str:
    """Return bytes as text in GB, such as `12.9 GB`. Whole numbers have no decimals."""
    return f"{size / GB:.1f}".removesuffix(".0") + " GB"


def this_card() -> int | None:
    """Return the memory of the first NVIDIA card that this process may use, in bytes. None if there is no card.

    The environment variable CUDA_VISIBLE_DEVICES, as in CUDA, chooses cards by number or UUID. Empty or -1: no card.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    first = visible.split(",")[0].strip() if visible is not None else None
    if first in ("", "-1") or not shutil.which("nvidia-smi"):
        return None
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    if first and not first.startswith("MIG-"):  # nvidia-smi takes no parts of a card
        query += ["-i", first]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired):  # a damaged driver can block nvidia-smi
        return None
    size = done.stdout.strip().split("\n")[0].strip()
    return int(size) * 2**20 if done.returncode == 0 and size.isdigit() else None


def host_bytes() -> int:
    """Return this machine's main memory in bytes."""
    import psutil

    return int(psutil.virtual_memory().total)
