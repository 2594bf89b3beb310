"""Suggest a known name for an unknown one: a similar name, or our name for a setting or method of another program."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# Names of methods in the literature and in other programs, and our names for the same methods.
_METHODS = {
    "bitfit": "bias",
    "bit_fit": "bias",
    "bias_tuning": "bias",
    "layer_norm": "ln",
    "layernorm": "ln",
    "layer_norm_tuning": "ln",
    "layernorm_tuning": "ln",
    "ln_tuning": "ln",
    "norm": "ln",
    "norm_tuning": "ln",
    "(ia)3": "ia3",
    "lora+": "loraplus",
    "lora_plus": "loraplus",
    "qlora": "lora",
    "fine_tune": "full",
    "finetune": "full",
    "fine_tuning": "full",
    "finetuning": "full",
    "full_fine_tuning": "full",
    "full_finetune": "full",
    "full_finetuning": "full",
    "ft": "full",
    "sft": "full",
}
# Settings of the trainers of transformers, TRL, LLaMA-Factory, axolotl and peft, and our names for the same settings.
_OTHER_PROGRAMS = {
    "lr": "learning_rate",
    "r": "rank",
    "lora_r": "rank",
    "lora_rank": "rank",
    "lora_alpha": "alpha",
    "lora_target": "targets",
    "lora_target_modules": "targets",
    "target_modules": "targets",
    "num_epochs": "epochs",
    "num_train_epochs": "epochs",
    "per_device_train_batch_size": "batch_size",
    "train_batch_size": "batch_size",
    "cutoff_len": "max_length",
    "max_seq_length": "max_length",
    "max_seq_len": "max_length",
    "max_source_length": "max_length",
    "model_max_length": "max_length",
    "sequence_len": "max_length",
    "output_dir": "out",
    "seed": "seeds",
    "quantization_bit": "bits",
    "load_in_4bit": "bits",
    "load_in_8bit": "bits",
    "val_set_size": "dev",
    "val_size": "dev",
    "eval_dataset": "dev",
    "validation_file": "dev",
    "test_file": "test",
    "report_to": "log_with",
    "finetuning_type": "method",
    "early_stopping_patience": "early_stopping",
    "lr_scheduler_type": "schedule",
    "lr_scheduler": "schedule",
    "lora_dropout": "dropout",
    "optim": "optimizer",
    "warmup_ratio": "warmup",
    "max_tokens": "max_new_tokens",
}


# Least similarity of a suggested name, from 0 to 1. `german` and `random` have 0.5, `spanish` and `english` 0.57.
_CUTOFF = 0.6


def similar_name(given: str, known: Iterable[str]) -> str | None:
    """Return the known name that an unknown name resembles, or that has the same meaning. None without such a name.

    Args:
        given: The unknown name.
        known: The known names, such as `batch_size` or `--batch-size`.

    >>> similar_name("--per_device_train_batch_size", ["--batch-size", "--bits"])
    '--batch-size'
    >>> similar_name("step", ["steps", "seeds"])
    'steps'
    >>> similar_name("de", ["de_DE", "fr_XX"])
    'de_DE'
    """
    by_word = {_word(name): name for name in known}
    word = _word(given)
    if word in by_word:
        return by_word[word]
    if (method := _METHODS.get(word)) in by_word:
        return by_word[method]
    if (ours := petransfer_name(given)) != word:  # a setting of another program: do not search for similar names
        return by_word.get(ours)
    near = difflib.get_close_matches(word, by_word, n=1, cutoff=_CUTOFF)
    if not near and len(word) > 1:
        longer = [name for name in by_word if name.startswith(word)]
        near = longer if len(longer) == 1 else []
    return by_word[near[0]] if near else None


def petransfer_name(given: str) -> str:
    """Return our name for a setting of another program, such as `targets` for `lora_target`.

    Other names are returned in lower case, with underscores.
    """
    word = _word(given)
    return _OTHER_PROGRAMS.get(word, word)


def _word(name: str) -> str:
    return name.lstrip("-").replace("-", "_").replace(" ", "_").lower()
