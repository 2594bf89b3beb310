"""`petransfer.load` returns a quantised T5 that the user can train with peft and a plain loop or the Trainer."""

from __future__ import annotations

import doctest
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model

import petransfer
from petransfer.models import loading
from petransfer.models.quantization import inventory
from petransfer.recipe.run_spec import Bits

PAIRS = [("walk", "gehen"), ("run", "rennen"), ("see", "sehen"), ("hear", "horchen"), ("say", "sagen")]


def adapted(bits: Bits) -> tuple[Any, Any]:
    model, tokenizer = petransfer.load("nano/english", bits=bits, device="cpu")
    torch.manual_seed(0)
    config = LoraConfig(task_type="SEQ_2_SEQ_LM", r=8, lora_alpha=32, target_modules="all-linear")
    return get_peft_model(model, config), tokenizer


def rows(tokenizer: Any) -> list[dict[str, list[int]]]:
    return [dict(tokenizer(source), labels=tokenizer(target + "</s>")["input_ids"]) for source, target in PAIRS]


def test_the_example_in_the_docstring_runs() -> None:
    finder = doctest.DocTestFinder(recurse=False)
    (found,) = finder.find(loading.load, "load", globs={})
    assert doctest.DocTestRunner().run(found).failed == 0


def test_the_loaded_model_is_quantized_and_trains_in_a_plain_loop() -> None:
    model, tokenizer = adapted(4)
    assert inventory(model).bytes["nf4"] > 0
    inputs, labels = zip(*((row["input_ids"], row["labels"]) for row in rows(tokenizer)), strict=True)
    optimizer = torch.optim.AdamW([value for value in model.parameters() if value.requires_grad], lr=2e-3)
    losses = []
    for step in range(60):
        at = step % len(PAIRS)
        loss = model.train()(input_ids=torch.tensor([inputs[at]]), labels=torch.tensor([labels[at]])).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


@pytest.mark.parametrize("bits", [8, 4])
def test_the_loaded_model_trains_with_the_trainer_of_transformers(bits: Bits, tmp_path: Path) -> None:
    from transformers import DataCollatorForSeq2Seq, Seq2SeqTrainer, Seq2SeqTrainingArguments

    model, tokenizer = adapted(bits)
    arguments = Seq2SeqTrainingArguments(
        str(tmp_path), max_steps=25, per_device_train_batch_size=5, learning_rate=3e-3, use_cpu=True, report_to=[],
        save_strategy="no", logging_steps=1, disable_tqdm=True,
    )  # fmt: skip
    trainer = Seq2SeqTrainer(
        model=model,
        args=arguments,
        train_dataset=rows(tokenizer),
        data_collator=DataCollatorForSeq2Seq(tokenizer, model),
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize("place", ["", "/gone/site-packages/petransfer/models/nano/english"])
def test_an_adapter_saved_by_plain_peft_finds_the_shipped_base_model(place: str, tmp_path: Path) -> None:
    adapted(32)[0].save_pretrained(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = place or config["base_model_name_or_path"]
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with_base = petransfer.Adapter.load(tmp_path, checkpoint="nano/english", device="cpu")
    assert petransfer.Adapter.load(tmp_path, device="cpu").predict(["to walk"], 3) == with_base.predict(["to walk"], 3)


def test_an_unsupported_number_of_bits_is_refused() -> None:
    with pytest.raises(petransfer.UserError, match="32, 16, 8 or 4"):
        petransfer.load("nano/english", bits=5)  # type: ignore[arg-type]


@pytest.mark.parametrize("bits", [32, 16])
def test_keep_wide_is_refused_at_32_and_16_bits(bits: Bits) -> None:
    with pytest.raises(petransfer.UserError, match=f"^keep_wide names layers .* no layer is quantised at {bits} bits"):
        petransfer.load("nano/english", bits=bits, keep_wide="wo", device="cpu")


def test_loading_shows_no_progress_bar(capsys: pytest.CaptureFixture[str]) -> None:
    """Loading does not change the user's setting of the progress bars of transformers."""
    transformers.logging.enable_progress_bar()
    petransfer.load("nano/english", bits=32, device="cpu")
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "")
    assert transformers.logging.is_progress_bar_enabled()
