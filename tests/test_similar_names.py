"""Test suggestions for unknown names: a similar name, or our name for a setting of another program."""

from __future__ import annotations

from petransfer.recipe.methods import METHODS
from petransfer.similar_names import similar_name


def test_settings_of_other_programs_have_priority_over_similar_names() -> None:
    known = ["--rank", "--lr", "--epochs", "--early-stopping", "--max-length", "--max-steps"]
    asked = {"--lora_r": "--rank", "--num_train_epochs": "--epochs", "--max-seq-length": "--max-length", "--LR": "--lr"}
    asked |= {"--max_steps": "--max-steps", "--max-step": "--max-steps"}
    assert {given: similar_name(given, known) for given in asked} == asked
    assert similar_name("--fsdp", known) is None


def test_the_names_of_methods_in_the_literature_lead_to_our_names() -> None:
    asked = {"BitFit": "bias", "LoRA+": "loraplus", "(IA)3": "ia3", "norm tuning": "ln", "layer-norm": "ln"}
    asked |= {"QLoRA": "lora", "full fine-tuning": "full", "prompt-tuning": "prompt", "prefix tuning": "prefix"}
    asked |= {"PiSSA": "pissa", "distillation": None, "bit-fit": "bias", "finetune": "full", "full finetuning": "full"}
    asked |= {"SFT": "full", "LayerNorm tuning": "ln"}
    assert {given: similar_name(given, METHODS) for given in asked} == asked


def test_the_name_of_a_method_can_be_a_similar_name_of_something_else() -> None:
    assert similar_name("LayerNorm", ["layer_norm", "q"]) == "layer_norm"  # a layer of T5
    assert similar_name("full_fine_tuning", ["--full-fine-tune"]) == "--full-fine-tune"


def test_a_distant_name_is_not_suggested() -> None:
    arms = ["english", "random", "scratch", "turkish"]
    assert [similar_name(given, arms) for given in ("german", "spanish", "xyz")] == [None, None, None]
    assert {given: similar_name(given, arms) for given in ("randm", "eng", "tur")} == {
        "randm": "random",
        "eng": "english",
        "tur": "turkish",
    }
