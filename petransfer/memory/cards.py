"""Graphics cards by size or by name: memory and compute capability. GB is 10^9 bytes everywhere, GiB is 2^30."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from petransfer.errors import UserError, no_bf16

GB, GIB = 10**9, 2**30
# The folder of the control groups of Linux, and the file with the groups of this process.
CONTROL_GROUPS, OWN_CONTROL_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
# The memory of the smallest and of the largest card, in bytes.
SMALLEST, LARGEST = GB // 4, 1024 * GB
# Cards with a lower compute capability have no bf16 (https://docs.nvidia.com/cuda/cuda-c-programming-guide).
BF16_CAPABILITY = (8, 0)
# The compute capability that is assumed for a card that is given only by its memory.
USUAL_CAPABILITY = (8, 6)

# Cards by compute capability (https://developer.nvidia.com/cuda-gpus), with their nominal memory in GiB, which makers
# of cards call GB. If a card is sold in several sizes, this is the smallest size. Users can give another size, as in
# "RTX 5060 Ti 16GB". CUDA can use a few per cent less than the nominal memory, and still less with error correction
# (ECC). USABLE_MIB has the usable memory if a source was found; for the other cards, nothing is subtracted.
_GIB = {
    (6, 0): {"p100": 16},
    (6, 1): {
        "gtx 1060": 3, "gtx 1070": 8, "gtx 1070 ti": 8, "gtx 1080": 8, "gtx 1080 ti": 11, "titan xp": 12, "p4": 8,
        "p40": 24,
    },
    (7, 0): {"v100": 16, "titan v": 12},
    (7, 5): {
        "gtx 1650": 4, "gtx 1650 super": 4, "gtx 1660": 6, "gtx 1660 super": 6, "gtx 1660 ti": 6, "rtx 2060": 6,
        "rtx 2060 super": 8, "rtx 2070": 8, "rtx 2070 super": 8, "rtx 2080": 8, "rtx 2080 super": 8, "rtx 2080 ti": 11,
        "titan rtx": 24, "t4": 16,
        "quadro rtx 4000": 8, "quadro rtx 5000": 16, "quadro rtx 6000": 24, "quadro rtx 8000": 48,
        # Many cards of laptops have less memory than the desktop card of the same name.
        "gtx 1650 laptop": 4, "gtx 1660 ti laptop": 6, "rtx 2060 laptop": 6, "rtx 2070 laptop": 8,
        "rtx 2070 super laptop": 8, "rtx 2080 laptop": 8, "rtx 2080 super laptop": 8,
    },
    (8, 0): {"a30": 24, "a100": 40},
    (8, 6): {
        "rtx 3050": 6, "rtx 3060": 12, "rtx 3060 ti": 8, "rtx 3070": 8, "rtx 3070 ti": 8, "rtx 3080": 10,
        "rtx 3080 ti": 12, "rtx 3090": 24, "rtx 3090 ti": 24,
        "rtx a2000": 6, "rtx a4000": 16, "rtx a4500": 20, "rtx a5000": 24, "rtx a5500": 24, "rtx a6000": 48,
        "a2": 16, "a10": 24, "a10g": 24, "a40": 48,
        "rtx 2050 laptop": 4, "rtx 3050 laptop": 4, "rtx 3050 ti laptop": 4, "rtx 3060 laptop": 6,
        "rtx 3070 laptop": 8, "rtx 3070 ti laptop": 8, "rtx 3080 laptop": 8, "rtx 3080 ti laptop": 16,
        "rtx a2000 laptop": 4, "rtx a3000 laptop": 6, "rtx a4000 laptop": 8, "rtx a5000 laptop": 16,
    },
    (8, 9): {
        "rtx 4060": 8, "rtx 4060 ti": 8, "rtx 4070": 12, "rtx 4070 super": 12, "rtx 4070 ti": 12,
        "rtx 4070 ti super": 16, "rtx 4080": 16, "rtx 4080 super": 16, "rtx 4090": 24,
        "rtx 2000 ada": 16, "rtx 4000 ada": 20, "rtx 4500 ada": 24, "rtx 5000 ada": 32, "rtx 6000 ada": 48,
        "l4": 24, "l40": 48, "l40s": 48,
        "rtx 4050 laptop": 6, "rtx 4060 laptop": 8, "rtx 4070 laptop": 8, "rtx 4080 laptop": 12, "rtx 4090 laptop": 16,
    },
    # The driver's name of a GH200 has the size of the memory of its CPU: "NVIDIA GH200 480GB".
    (9, 0): {"h100": 80, "h100 nvl": 94, "h200": 141, "h200 nvl": 141, "gh200": 96, "gh200 480gb": 96},
    (10, 0): {"b200": 180},
    (12, 0): {
        "rtx 5060": 8, "rtx 5060 ti": 8, "rtx 5070": 12, "rtx 5070 ti": 16, "rtx 5080": 16, "rtx 5090": 32,
        "rtx pro 6000": 96,
        "rtx 5050 laptop": 8, "rtx 5060 laptop": 8, "rtx 5070 laptop": 8, "rtx 5070 ti laptop": 12,
        "rtx 5080 laptop": 16, "rtx 5090 laptop": 24,
    },
}  # fmt: skip

# The memory that CUDA reports, in MiB, for cards with error correction, which takes a part of the nominal memory. It
# depends on the driver. These are the smallest published sizes that were found.
USABLE_MIB = {
    "p40": 22_912,  # 22.38 GiB: https://github.com/LinkSoul-AI/Chinese-Llama-2-7b/issues/56
    # 14.56 GiB: https://github.com/Zheng-Chong/CatVTON/issues/133. An older driver leaves 15,843,721,216 bytes
    # (deviceQuery): https://chiemon.github.io/2024/12/25/%E6%98%BE%E5%8D%A1%E4%BF%A1%E6%81%AF.html
    "t4": 14_904,
    "a10": 22_512,  # 21.99 GiB: https://github.com/zai-org/CogVLM/issues/236
    "a10g": 22_587,  # documentation of TorchCodec, "Accelerated video decoding on GPUs with CUDA and NVDEC"
    "a40": 45_416,  # 47,622,258,688 bytes: https://github.com/pyscf/gpu4pyscf/issues/304
    "l4": 22_491,  # 23,583,784,960 bytes: https://github.com/bottlerocket-os/bottlerocket-kernel-kit/pull/139
    "l40": 45_460,  # 44.40 GiB: https://github.com/QwenLM/Qwen3-VL/issues/2097
    "l40s": 45_480,  # 44.42 GiB: https://github.com/stepfun-ai/Step-Video-T2V/issues/8
}


@dataclass(frozen=True)
class Card:
    """A graphics card.

    Attributes:
        bytes: Its memory.
        name: Its name, such as `Tesla T4`. Empty if only the memory is known.
        capability: Its CUDA compute capability, such as (7, 5). None: unknown.
    """

    bytes: int
    name: str = ""
    capability: tuple[int, int] | None = None

    @property
    def has_bf16(self) -> bool:
        """Whether the card supports bf16, which runs with 16, 8 and 4 bits need. True if it is unknown."""
        return self.capability is None or self.capability >= BF16_CAPABILITY

    def check_bits(self, bits: int) -> None:
        """Raise UserError if runs with this number of bits need bf16 and the card does not support it."""
        if bits < 32 and not self.has_bf16:
            raise no_bf16(bits, self.name or "this card")


_NOMINAL_GIB = {name: size for sizes in _GIB.values() for name, size in sizes.items()}
CARDS = {
    name: Card(USABLE_MIB[name] * 2**20 if name in USABLE_MIB else size * GIB, name.upper(), capability)
    for capability, sizes in _GIB.items()
    for name, size in sizes.items()
}

_SIZE = r"(\d+(?:\.\d+)?)\s*(g|gb|gib|m|mb|mib)?"
_UNITS = {"": GB, "g": GB, "gb": GB, "gib": GIB, "m": 10**6, "mb": 10**6, "mib": 2**20}


def parse_card(text: str) -> Card:
    """Return the card with a memory or a name.

    Args:
        text: Size such as `12GB`, `12 GiB`, `12` (GB) or `6144MiB`, name such as `RTX 3060`, or name with size, such as
            `RTX 5060 Ti 16GB`. The compute capability of a card without a name is unknown.

    Raises:
        UserError: The text is neither a size nor a known name, or the size is impossible.
    """
    given = text.strip().lower()
    size = re.fullmatch(_SIZE, given)
    if size:
        return Card(_possible(text, int(float(size[1]) * _UNITS[size[2] or ""])))
    name = _name_of(given)
    if name in CARDS:
        return CARDS[name]
    with_size = re.fullmatch(r"(.*\S)[\s-]+(\d+)\s*(?:gb|gib|g)(?:\s+(?:hbm\w+|pcie))?", given)
    if with_size and (name := _name_of(with_size[1])) in CARDS:
        return _of_size(text, name, int(with_size[2]))
    near = [known for known in get_close_matches(name, CARDS, 3, 0.8) if _digits(known) == _digits(name)]
    hint = f"; did you mean '{near[0].upper()}'?" if near else ""
    raise UserError(f"--card {text or repr('')}: write a size such as 12GB or a name such as 'RTX 3060'{hint}")


def _of_size(text: str, name: str, size: int) -> Card:
    """Return the card with a known name and a memory of `size` GiB."""
    known = CARDS[name]
    if size == _NOMINAL_GIB[name]:
        return known
    return Card(_possible(text, size * GIB), known.name, known.capability)


def _name_of(text: str) -> str:
    """Return the short name of a card, such as `rtx 3060 laptop` for `NVIDIA GeForce RTX3060 Laptop GPU`."""
    plain = text.replace("-", " ").replace("_", " ")
    plain = re.sub(r"\b(nvidia|geforce|tesla|gpu|sxm\d?|pcie|generation|blackwell)\b", " ", plain)
    plain = re.sub(r"\b(max q )?(workstation|server) edition\b", " ", plain)
    plain = re.sub(r"\b(rtx|gtx)(\d)", r"\1 \2", plain)
    plain = re.sub(r"(\d)(ti|super)\b", r"\1 \2", plain)
    return " ".join(plain.split())


def _digits(name: str) -> list[str]:
    return re.findall(r"\d+", name)


def _possible(text: str, size: int) -> int:
    if not SMALLEST <= size <= LARGEST:
        raise UserError(f"--card {text}: a card has between 250MB and 1000GB; write a size such as 12GB")
    return size


def gigabytes(size: float) -> str:
    """Return bytes as text in GB, such as `12.9 GB`. Whole numbers have no decimals."""
    return f"{size / GB:.1f}".removesuffix(".0") + " GB"


def this_card() -> Card | None:
    """Return the first NVIDIA card that this process may use, with its usable memory. None if there is no card.

    The environment variable CUDA_VISIBLE_DEVICES, as in CUDA, chooses cards by number or UUID. Empty or -1: no card.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    first = visible.split(",")[0].strip() if visible is not None else None
    if first in ("", "-1") or not shutil.which("nvidia-smi"):
        return None
    card = ["-i", first] if first and not first.startswith("MIG-") else []  # nvidia-smi does not accept parts of a card
    try:
        # drivers before version 510 do not know all of these fields
        found = _ask_driver("memory.total,memory.reserved,compute_cap,name", card) or _ask_driver("memory.total", card)
    except (OSError, subprocess.TimeoutExpired):  # a damaged driver can block nvidia-smi
        return None
    size, reserved, capability, name = [*found, "", "", "", ""][:4]
    if not size.isdigit():
        return None
    version = re.fullmatch(r"(\d+)\.(\d+)", capability)
    usable = int(size) - (int(reserved) if reserved.isdigit() else 0)  # CUDA cannot use what the driver reserves
    return Card(usable * 2**20, name, (int(version[1]), int(version[2])) if version else None)


def _ask_driver(fields: str, card: list[str]) -> list[str]:
    """Return the values of fields of `nvidia-smi --query-gpu`. Empty if the driver refuses the query."""
    query = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits", *card]
    done = subprocess.run(query, capture_output=True, text=True, check=False, timeout=60)
    return [value.strip() for value in done.stdout.strip().split("\n")[0].split(",")] if done.returncode == 0 else []


def host_bytes() -> int:
    """Return the main memory in bytes that this process may use: the machine's memory or a control group's limit.

    A container, and a job on a cluster, is a control group of Linux.
    """
    import psutil

    return min([int(psutil.virtual_memory().total), *_control_group_limits()])


def _control_group_limits() -> list[int]:
    """Return the memory limits in bytes of this process's control groups, of version 1 and 2."""
    limits = []
    for line in _lines(OWN_CONTROL_GROUPS):  # such as `0::/job` (version 2) or `4:memory:/job` (version 1)
        _, controllers, place = [*line.split(":", 2), "", ""][:3]
        if not controllers:
            top, name = CONTROL_GROUPS, "memory.max"
        elif "memory" in controllers.split(","):
            top, name = CONTROL_GROUPS / "memory", "memory.limit_in_bytes"
        else:
            continue
        # The limits of all outer groups apply, too. In a container, the path of the own group can be missing.
        group = top / place.lstrip("/")
        for folder in (group, *group.parents):
            limits += [int(text) for text in _lines(folder / name) if text.isdigit()]  # no limit: max
    return limits


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
