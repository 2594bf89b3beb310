"""Find a card by its size or its name, and find the card of this machine."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from petransfer.errors import UserError
from petransfer.memory import cards
from petransfer.memory.cards import CARDS, USABLE_MIB, Card, host_bytes, parse_card, this_card


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("12GB", 12 * 10**9),
        ("12", 12 * 10**9),
        ("0.5 GiB", 2**29),
        ("6144MiB", 6 * 2**30),
        ("RTX 3060", 12 * 2**30),
        ("rtx3060", 12 * 2**30),
        ("NVIDIA GeForce RTX 4090", 24 * 2**30),
        ("RTX 5060 Ti 16GB", 16 * 2**30),
        ("NVIDIA GeForce RTX 3060 Laptop GPU", 6 * 2**30),
        ("rtx 4090 laptop", 16 * 2**30),
        ("NVIDIA A100-SXM4-80GB", 80 * 2**30),
        ("NVIDIA A100 80GB PCIe", 80 * 2**30),
        ("NVIDIA H100 80GB HBM3", 80 * 2**30),
        ("NVIDIA GH200 480GB", 96 * 2**30),  # 480 GB is the memory of its CPU
        ("NVIDIA GH200 144G HBM3e", 144 * 2**30),
    ],
)
def test_the_memory_of_a_card_is_found_by_its_size_or_name(text: str, size: int) -> None:
    assert parse_card(text).bytes == size


@pytest.mark.parametrize("text", ["", "twelve", "12TB", "-3GB", "0", "1e3GB", "99999GB", "nan", "RTX", "RTX 3060x"])
def test_texts_that_are_no_card_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="--card"):
        parse_card(text)


@pytest.mark.parametrize(
    ("text", "capability"),
    [
        ("Tesla P100-PCIE-16GB", (6, 0)),
        ("GTX 1080 Ti", (6, 1)),
        ("Tesla V100-SXM2-32GB", (7, 0)),
        ("Tesla T4", (7, 5)),
        ("RTX 2080", (7, 5)),
        ("GeForce RTX 2070 Laptop", (7, 5)),
        ("NVIDIA A100-SXM4-40GB", (8, 0)),
        ("RTX 2050 Laptop", (8, 6)),  # an Ampere card, in spite of its name
        ("RTX 3060", (8, 6)),
        ("RTX 4070 Super", (8, 9)),
        ("NVIDIA H200", (9, 0)),
        ("RTX 5090", (12, 0)),
    ],
)
def test_the_name_of_a_card_gives_its_capability_and_whether_it_has_bf16(
    text: str, capability: tuple[int, int]
) -> None:
    card = parse_card(text)
    assert card.capability == capability
    assert card.has_bf16 == (capability >= (8, 0))
    assert parse_card("16GB").capability is None
    assert parse_card("16GB").has_bf16, "a card that is given by its size counts as a card with bf16"


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("GTX 1070", 8), ("GTX 1080", 8), ("NVIDIA GeForce GTX 1660", 6), ("Tesla P40", None), ("RTX 2060 SUPER", 8),
        ("RTX 2070 SUPER", 8), ("RTX 2080 SUPER", 8), ("Quadro RTX 6000", 24), ("Quadro RTX 8000", 48), ("A30", 24),
        ("NVIDIA RTX A2000 12GB", 12), ("RTX A4000", 16), ("RTX A4500", 20), ("RTX A5000", 24), ("H100 NVL", 94),
        ("NVIDIA RTX 6000 Ada Generation", 48), ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", 96),
        ("NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", 96), ("GH200", 96),
    ],
)  # fmt: skip
def test_common_cards_are_known(text: str, size: int | None) -> None:
    assert parse_card(text).bytes == (22_912 * 2**20 if size is None else size * 2**30)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("RTX 3070 Tie", "'RTX 3070 TI'"),
        ("RTX 4080 SUPR", "'RTX 4080 SUPER'"),
        ("RTX 2090 SUPER", ""),  # not the RTX 2080 SUPER
        ("GTX 1090 Ti", ""),
        ("GH300", ""),
        ("A31", ""),
    ],
)
def test_a_hint_never_names_a_card_with_other_digits(text: str, hint: str) -> None:
    with pytest.raises(UserError) as refused:
        parse_card(text)
    assert str(refused.value).partition("did you mean ")[2].removesuffix("?") == hint


def test_error_correction_reduces_the_usable_memory() -> None:
    """CUDA can use 15.6 to 15.8 GB of the 16 GiB of a T4."""
    for text in ("T4", "NVIDIA Tesla T4 16GB"):
        assert 15.6e9 < parse_card(text).bytes < 15_843_721_216
    nominal = {"p40": 24, "t4": 16, "a10": 24, "a10g": 24, "a40": 48, "l4": 24, "l40": 48, "l40s": 48}
    assert USABLE_MIB.keys() == nominal.keys()
    assert all(0.9 < CARDS[name].bytes / (size * 2**30) < 0.96 for name, size in nominal.items())


# Scripts in place of nvidia-smi on a machine with two cards. NEW is a new driver, OLD one that lacks some fields.
NEW = """case "$*" in
*"-i 1"|*"-i GPU-b") echo "24000, 300, 8.6, NVIDIA A10G";;
*-i*) exit 6;;
*) echo "8000, [N/A], 7.5, Tesla T4"; echo "24000, 300, 8.6, NVIDIA A10G";;
esac"""
OLD = """case "$*" in
*compute_cap*) echo 'Field "compute_cap" is not a valid field to query.'; exit 2;;
*"-i 1"|*"-i GPU-b") echo 24000;;
*-i*) exit 6;;
*) echo 8000; echo 24000;;
esac"""
T4, A10G = Card(8000 * 2**20, "Tesla T4", (7, 5)), Card(23_700 * 2**20, "NVIDIA A10G", (8, 6))


@pytest.mark.parametrize(
    ("visible", "new", "old"),
    [(None, T4, 8000), ("1", A10G, 24000), ("GPU-b,0", A10G, 24000), ("", None, 0), ("-1", None, 0), ("9", None, 0)],
)
def test_this_card_is_the_first_that_the_process_may_use(
    visible: str | None, new: Card | None, old: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    for script, expected in ((NEW, new), (OLD, Card(old * 2**20) if old else None)):
        command.write_text(f"#!/bin/sh\n{script}\n")
        command.chmod(0o755)
        assert this_card() == expected


@pytest.mark.parametrize(
    ("own", "files", "limit"),
    [
        ("0::/\n", {"memory.max": "1000000\n"}, 1_000_000),  # inside a container
        ("0::/jobs/7\n", {"jobs/7/memory.max": "max\n", "jobs/memory.max": "2000000\n"}, 2_000_000),
        ("4:cpu,memory:/docker/7\n0::/\n", {"memory/memory.limit_in_bytes": "3000000\n"}, 3_000_000),  # version 1
        ("4:memory:/a\n", {"memory/a/memory.limit_in_bytes": "9223372036854771712\n"}, None),
        ("0::/\n", {"memory.max": "max\n"}, None),
        ("", {}, None),
    ],
)
def test_the_memory_of_a_container_is_limited_by_its_control_group(
    own: str, files: dict[str, str], limit: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cards, "OWN_CONTROL_GROUPS", tmp_path / "own")
    monkeypatch.setattr(cards, "CONTROL_GROUPS", tmp_path / "groups")
    (tmp_path / "own").write_text(own)
    for name, text in files.items():
        (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name).write_text(text)
    assert host_bytes() == (limit or psutil.virtual_memory().total)
