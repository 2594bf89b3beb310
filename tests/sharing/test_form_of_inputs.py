"""The form of a decoder-only model's inputs: as in training for an adapter, exactly as given for a base."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers.processors import Sequence
from transformers import AutoModelForCausalLM, AutoTokenizer

from petransfer.cli.serve import models_of
from petransfer.errors import UserError
from petransfer.sharing.adapter import Adapter
from petransfer.sharing.base import LoadOptions
from petransfer.sharing.scoring import EvaluationRequest, side_by_side
from petransfer.sharing.sources import opened_source
from tests.sharing.conftest import call, refused

TEXTS = ["to walk", "must say", "run and see", "look"]
PAIRS = [(text, "gehen") for text in TEXTS]
TOKENS = 6
WHERE = LoadOptions(device="cpu")


@pytest.fixture(scope="module")
def base(tiny_gpt2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder-only model whose generated texts depend on each token of the input."""
    folder = tmp_path_factory.mktemp("form") / "base"
    shutil.copytree(tiny_gpt2, folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    torch.manual_seed(0)
    for weight in model.parameters():
        weight.data += 0.5 * torch.randn(weight.shape)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["plain peft", "petransfer"])
def adapter(request: pytest.FixtureRequest, base: Path, trained: Callable[..., Path]) -> tuple[Path, str]:
    """The folder of an adapter of plain peft or petransfer, and the text that follows each input in its training."""
    if request.param == "petransfer":
        return trained(str(base)), "\n"
    torch.manual_seed(0)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["c_attn"], init_lora_weights=False)
    folder = base.parent / "adapter"
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(folder)
    return folder, ""


def plain(base: Path, adapter: Path | None = None) -> Any:
    """Return the model as plain transformers and peft load it."""
    model = AutoModelForCausalLM.from_pretrained(base).eval()
    inner = adapter / "adapter" if adapter and (adapter / "adapter").is_dir() else adapter
    return PeftModel.from_pretrained(model, inner).eval() if inner else model


@torch.inference_mode()
def texts_of(model: Any, base: Path, end: str) -> list[str]:
    """Return the texts that plain transformers generates greedily for each text in TEXTS, followed by `end`."""
    tokenizer, found = AutoTokenizer.from_pretrained(base), []
    for text in TEXTS:
        ids = tokenizer(text + end, add_special_tokens=False, return_tensors="pt")["input_ids"]
        out = model.generate(input_ids=ids, max_new_tokens=TOKENS, do_sample=False)
        found.append(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
    return found


@torch.inference_mode()
def log_prob(model: Any, base: Path, end: str) -> float:
    """Return the mean log-probability of the target tokens of PAIRS."""
    tokenizer, found = AutoTokenizer.from_pretrained(base), []
    for text, target in PAIRS:
        read, wanted = (tokenizer(one, add_special_tokens=False)["input_ids"] for one in (text + end, target))
        wanted = [*wanted, tokenizer.eos_token_id]
        logits = model(torch.tensor([read + wanted])).logits[0, len(read) - 1 : -1].log_softmax(-1)
        found += logits[range(len(wanted)), wanted].tolist()
    return sum(found) / len(found)


def test_an_adapter_gets_inputs_in_the_form_of_its_training(
    adapter: tuple[Path, str], base: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, end = adapter
    expected = texts_of(plain(base, folder), base, end)
    assert expected != texts_of(plain(base, folder), base, "" if end else "\n")
    ours = Adapter.load(folder, checkpoint=str(base), device="cpu")
    assert ours.predict(TEXTS, TOKENS) == expected
    capsys.readouterr()
    arguments = ("--checkpoint", str(base), "--max-new-tokens", str(TOKENS), "--json", "--cpu")
    assert call("predict", str(folder), *TEXTS, *arguments) == 0
    assert [json.loads(line)["output"] for line in capsys.readouterr().out.splitlines()] == expected
    with opened_source(str(folder)) as source:
        (served,) = models_of([source], LoadOptions(str(base), device="cpu")).values()
        assert served.predictor(TEXTS, TOKENS) == expected
        rows = side_by_side([source], LoadOptions(str(base), device="cpu"), EvaluationRequest(PAIRS, with_base=True))
    alone, scores, merged = (row.log_prob_per_token for row in rows)
    assert scores == pytest.approx(log_prob(plain(base, folder), base, end), abs=1e-4)
    assert alone == pytest.approx(log_prob(plain(base), base, end), abs=1e-4), (
        "the base must get its inputs in the same form as the adapter"
    )
    assert merged == pytest.approx(scores, abs=0.05)  # the merged model is rounded to 16 bits
    ours.merge(here / "merged", bits=32)
    assert Adapter.load(here / "merged", device="cpu").predict(TEXTS, TOKENS) == expected


def test_a_base_alone_gets_each_input_exactly_as_given(base: Path) -> None:
    expected = texts_of(plain(base), base, "")
    assert Adapter.load(base, device="cpu").predict(TEXTS, TOKENS) == expected
    with opened_source(str(base)) as source:
        (served,) = models_of([source], WHERE).values()
        assert served.predictor(TEXTS, TOKENS) == expected
        (scores,) = side_by_side([source], WHERE, EvaluationRequest(PAIRS))
    assert scores.log_prob_per_token == pytest.approx(log_prob(plain(base), base, ""), abs=1e-4)


def test_a_base_beside_adapters_gets_inputs_in_the_same_form_as_the_adapters(
    base: Path, trained: Callable[..., Path], tmp_path: Path
) -> None:
    with opened_source(str(trained(str(base)))) as adapter, opened_source(str(base)) as alone:
        rows = side_by_side([adapter, alone], WHERE, EvaluationRequest(PAIRS))
    assert rows[1].log_prob_per_token == pytest.approx(log_prob(plain(base), base, "\n"), abs=1e-4)


def test_a_merged_model_on_the_hub_gets_inputs_in_the_form_of_its_training(
    base: Path, trained: Callable[..., Path], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained(str(base), "--prefix", "say: ")
    commit = "c" * 40
    folder = here / "hub" / "models--me--merged" / "snapshots" / commit
    merged = Adapter.load(run, device="cpu").merge(here / "merged", bits=32)
    assert merged.bits == 32
    shutil.copytree(here / "merged", folder)
    (folder.parent.parent / "refs").mkdir()
    (folder.parent.parent / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(here / "hub"))
    expected = Adapter.load(here / "merged", device="cpu").predict(TEXTS, TOKENS)
    assert Adapter.load("me/merged", device="cpu").predict(TEXTS, TOKENS) == expected
    (folder / "petransfer.json").unlink()
    assert Adapter.load("me/merged", device="cpu").predict(TEXTS, TOKENS) == texts_of(plain(folder), folder, "")


def test_an_input_without_tokens_is_refused(base: Path, here: Path) -> None:
    """The tokenizer here adds no special token to an input, like GPT-2's own tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.backend_tokenizer.post_processor = Sequence([])
    shutil.copytree(base, here / "bare")
    tokenizer.save_pretrained(here / "bare")
    with pytest.raises(UserError, match=r"the input has no tokens: .*write a text"):
        Adapter.load(here / "bare", device="cpu").predict(["walk", ""])


@pytest.mark.parametrize("number", [0, -1, 10**12, True, 1.5, "8"])
def test_an_invalid_number_of_new_tokens_is_refused(number: Any, base: Path) -> None:
    with pytest.raises(UserError, match=r"max_new_tokens is .*from 1 to 131,072"):
        Adapter.load(base, device="cpu").predict(["walk"], max_new_tokens=number)


def test_adapters_of_petransfer_and_of_another_program_cannot_be_used_together(
    base: Path, trained: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["c_attn"])
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(tmp_path / "plain")
    run, plain_one = str(trained(str(base))), str(tmp_path / "plain")
    for first, second in ((run, plain_one), (plain_one, run)):
        message = refused(capsys, "predict", first, "to walk", "--with", second, "--checkpoint", str(base), "--cpu")
        assert f"{run} was trained by petransfer and {plain_one} by another program" in message
        assert "one after the other" in message


def test_adapters_with_different_base_names_can_share_the_base_in_checkpoint(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["c_attn"], init_lora_weights=False)
    for name in ("one", "two"):
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
        model.save_pretrained(tmp_path / name)
        path = tmp_path / name / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": f"me/{name}"}))
    both = (str(tmp_path / "one"), "walk", "--with", str(tmp_path / "two"))
    assert "different bases" in refused(capsys, "predict", *both, "--cpu")
    arguments = ("--checkpoint", str(base), "--max-new-tokens", str(TOKENS), "--json", "--cpu")
    assert call("predict", *both, *arguments) == 0
    found = [json.loads(line)["output"] for line in capsys.readouterr().out.splitlines()]
    alone = [Adapter.load(tmp_path / name, checkpoint=str(base), device="cpu") for name in ("one", "two")]
    assert found == [adapter.predict(["walk"], TOKENS)[0] for adapter in alone]
