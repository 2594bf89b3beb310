"""The name that a user meant: a similar one, or ours for a setting of another program."""

from __future__ import annotations

from petransfer.similar_names import similar_name


def test_names_of_other_programs_come_before_similar_ones() -> None:
    known = ["--rank", "--lr", "--epochs", "--early-stopping", "--max-length", "--max-steps"]
    asked = {"--lora_r": "--rank", "--num_train_epochs": "--epochs", "--max-seq-length": "--max-length", "--LR": "--lr"}
    asked |= {"--max_steps": "--max-steps", "--max-step": "--max-steps"}
    assert {given: similar_name(given, known) for given in asked} == asked
    assert similar_name("--fsdp", known, 0.6) is None
