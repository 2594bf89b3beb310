"""Write the card of a pretrained checkpoint: README.md in the folder of the weights."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch

from petransfer.plurals import count
from petransfer.pretraining.pretrain import RARE
from petransfer.recipe.pretraining import CorpusPart
from petransfer.study.environment import environment
from petransfer.training.metrics_file import read_metrics


def write_card(card: dict[str, Any], source: CorpusPart, folder: Path, device: torch.device, threads: int) -> None:
    """Write the card of a pretrained checkpoint to `folder/checkpoint/README.md`.

    Args:
        card: The result of `pretrain`.
        source: The corpus of the arm.
        device: The device of the training.
        threads: CPU threads of the training. 0: torch's number.
    """
    weights = folder / "checkpoint" / "model.safetensors"
    lines = {line["step"]: line["loss"] for line in read_metrics(folder / "metrics.jsonl")}
    # about eight steps, the last one always among them
    shown = sorted(lines)[:: -max(1, len(lines) // 8)][::-1]
    made_on = environment(device, threads)
    rows = {
        **_description(card, source),
        "training loss, in nats per target token": "; ".join(f"{lines[step]:.2f} at step {step:,}" for step in shown),
        "validation loss at the end, in nats per target token": f"{card['valid_loss']:.3f}",
        "duration": f"{card['seconds'] / 60:.0f} minutes on {made_on['device']}, {count(made_on['threads'], 'thread')}",
        "sha256 of the weights": f"`{hashlib.sha256(weights.read_bytes()).hexdigest()}`",
    }
    head = ["---", "license: mit", "library_name: transformers"]
    if source.languages:
        head.append(f"language: [{', '.join(source.languages)}]")
    text = [
        *(*head, "---", f"# {card['size']}/{card['arm']}", ""),
        f"A T5 v1.0 with {card['parameters']:,} parameters, pretrained by petransfer. The models of its family differ",
        "only in their corpus.",
        *("", "| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows.items()), ""),
        f"{len(card['new_pieces']):,} tokens occur fewer than {RARE} times in the corpus. Their embeddings were",
        "replaced by random numbers with the mean and standard deviation of the other embeddings.",
        "`new_pieces` in `pretraining.json` lists the ids of these tokens.",
    ]
    (folder / "checkpoint" / "README.md").write_text("\n".join(text) + "\n", encoding="utf-8")


def _description(card: dict[str, Any], source: CorpusPart) -> dict[str, str]:
    noise, train = card["noise"], card["train"]
    return {
        "corpus": f"{source.title or card['arm']}; {card['corpus_tokens']:,} tokens were used",
        "licence of the text": source.licence or "not stated",
        "sha256 of the corpus": f"`{card['corpus_sha256']}`",
        "objective": f"span corruption: windows of {noise['window']} tokens, {noise['density']:.0%} masked in spans of "
        f"{noise['mean_span']:g} on average, {train['batch_size']} windows per step",
        "steps": f"{train['steps']:,}",
        "tokens seen": f"{card['seen_tokens']:,} tokens of the corpus; the targets had {card['target_tokens']:,} "
        "tokens, including sentinel and end tokens",
        "optimiser": f"AdamW; learning rate of each tensor: {train['learning_rate']:g} times its root mean square at "
        f"the start, {train['schedule']} schedule down to {train['final']:.0%} of that; weight decay: "
        f"{train['weight_decay']:g} divided by the same root mean square; {card['bits']} bits",
    }
