"""Adapters with a tokenizer in their folder, as TRL, unsloth and LLaMA-Factory save them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from petransfer.cli.serve import models_of
from petransfer.errors import UserError
from petransfer.sharing.adapter import Adapter
from petransfer.sharing.base import LoadOptions
from petransfer.sharing.combined_adapters import Combination, load_adapters
from petransfer.sharing.hub import _wanted
from petransfer.sharing.sources import opened_source
from tests.chat_models import CHATML, byte_level, chat_llama
from tests.sharing.conftest import call

OTHER = "{% for message in messages %}[{{ message['content'] }}]{% endfor %}"
NEW = ["<tool>", "</tool>", "<x>"]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base without a chat template, and the same base with embeddings for three more tokens."""
    folder = tmp_path_factory.mktemp("bases")
    small = chat_llama(folder / "small", None)
    model = AutoModelForCausalLM.from_pretrained(small)
    torch.manual_seed(0)
    for weight in model.parameters():
        weight.data += 0.5 * torch.randn(weight.shape)
    model.save_pretrained(small)
    tokenizer = AutoTokenizer.from_pretrained(small)
    model.resize_token_embeddings(len(tokenizer) + len(NEW), mean_resizing=False)
    model.save_pretrained(folder / "large")
    tokenizer.save_pretrained(folder / "large")
    return small, folder / "large"


def save_adapter(base: Path, folder: Path, tokenizer: Any = None) -> Path:
    torch.manual_seed(0)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return folder


def with_new_tokens(base: Path) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(NEW)
    tokenizer.chat_template = OTHER
    return tokenizer


def plain(base: Path, adapter: Path, text: str) -> str:
    """Return the text that plain peft generates with the adapter's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base).eval(), adapter).eval()
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
    out = model.generate(input_ids=ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
    return str(tokenizer.decode(out, skip_special_tokens=True))


def plain_log_prob(base: Path, adapter: Path, text: str, target: str) -> float:
    """Return the mean log-probability of the target's tokens and the end token, from plain peft."""
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base).eval(), adapter).eval()
    given, wanted = (tokenizer(each, add_special_tokens=False)["input_ids"] for each in (text, target))
    wanted = [*wanted, tokenizer.eos_token_id]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([given + wanted])).logits[0, len(given) - 1 : -1]
    return float(logits.log_softmax(-1)[range(len(wanted)), wanted].mean())


def test_the_tokenizer_of_the_adapter_is_used_by_predict_evaluate_serve_and_merge(
    bases: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = bases[1]
    folder = save_adapter(base, tmp_path / "adapter", with_new_tokens(base))
    wanted, wanted_chat = plain(base, folder, "a <tool> b"), plain(base, folder, "[a <tool> b]")
    assert wanted != wanted_chat
    adapter = Adapter.load(folder, checkpoint=str(base), device="cpu")
    assert adapter.predict(["a <tool> b"], 8) == [wanted]
    assert adapter.predict(["a <tool> b"], 8, chat=True) == [wanted_chat]
    scores = adapter.evaluate([("a <tool> b", "<x> c")])
    expected = plain_log_prob(base, folder, "a <tool> b", "<x> c")
    assert scores.log_prob_per_token == pytest.approx(expected, rel=1e-4)
    options = ("--checkpoint", str(base), "--cpu", "--max-new-tokens", "8", "--json")
    capsys.readouterr()
    assert call("predict", str(folder), "a <tool> b", *options) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["output"] == wanted
    assert "has a chat template; --chat writes each input with it" in printed.err
    assert call("predict", str(folder), "a <tool> b", "--chat", *options) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["output"] == wanted_chat
    assert "--chat" not in printed.err
    with opened_source(str(folder)) as source:
        (served,) = models_of([source], LoadOptions(checkpoint=str(base), device="cpu")).values()
    assert served.predictor(["a <tool> b"], 8) == [wanted]
    assert served.chat is not None
    assert served.chat(["a <tool> b"], 8) == [wanted_chat]
    assert call("adapter", "pull", str(folder), "--out", str(tmp_path / "pulled")) == 0
    pulled = Adapter.load(tmp_path / "pulled", checkpoint=str(base), device="cpu")
    assert pulled.predict(["a <tool> b"], 8) == [wanted]
    adapter.merge(tmp_path / "merged", bits=32)
    merged = Adapter.load(tmp_path / "merged", device="cpu")
    assert merged.predict(["a <tool> b"], 8) == [wanted]
    assert merged.predict(["a <tool> b"], 8, chat=True) == [wanted_chat]


def test_adapters_on_one_base_keep_different_tokenizers_and_cannot_be_combined(
    bases: tuple[Path, Path], tmp_path: Path
) -> None:
    base = bases[1]
    one = save_adapter(base, tmp_path / "one", with_new_tokens(base))
    other = save_adapter(base, tmp_path / "other")
    sources = []
    for place in (one, other):
        with opened_source(str(place)) as source:
            sources.append(source)
    served = models_of(sources, LoadOptions(checkpoint=str(base), device="cpu"))
    rows = [
        model.predictor.loaded.tokenizer("<tool>", add_special_tokens=False)["input_ids"] for model in served.values()
    ]
    assert len(rows[0]) == 1
    assert len(rows[1]) == len("<tool>")
    with pytest.raises(UserError, match="different tokenizers"):
        load_adapters(
            [source.adapter() for source in sources],
            LoadOptions(checkpoint=str(base), device="cpu"),
            Combination((0.5, 0.5)),
        )


def test_a_tokenizer_with_more_tokens_than_the_base_has_embeddings_is_refused(
    bases: tuple[Path, Path], tmp_path: Path
) -> None:
    small = bases[0]
    folder = save_adapter(small, tmp_path / "adapter", with_new_tokens(small))
    with pytest.raises(UserError, match=r"the token '<tool>'.*embeddings for 259 tokens; resize the base") as error:
        Adapter.load(folder, checkpoint=str(small), device="cpu").predict(["a"])
    assert "name it with 'checkpoint'" in str(error.value)
    # a padding token alone needs no embedding
    padded = AutoTokenizer.from_pretrained(small)
    padded.add_special_tokens({"pad_token": "<pad>"})
    folder = save_adapter(small, tmp_path / "padded", padded)
    assert len(Adapter.load(folder, checkpoint=str(small), device="cpu").predict(["a", "longer"], 4)) == 2


def test_a_chat_template_without_a_tokenizer_is_used_and_a_damaged_tokenizer_refused(
    bases: tuple[Path, Path], tmp_path: Path
) -> None:
    base = bases[0]
    folder = save_adapter(base, tmp_path / "adapter")
    (folder / "chat_template.jinja").write_text(CHATML)
    chat = Adapter.load(folder, checkpoint=str(base), device="cpu").predictor.for_chats(by_default=True)
    assert chat is not None
    assert chat.loaded.tokenizer.chat_template == CHATML
    assert byte_level().convert_tokens_to_ids("<|im_end|>") == chat.loaded.layout.eos_id
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=r"the tokenizer of .*adapter cannot be loaded"):
        Adapter.load(folder, checkpoint=str(base), device="cpu").predict(["a"])


def test_code_beside_a_tokenizer_is_not_run(bases: tuple[Path, Path], tmp_path: Path) -> None:
    base = bases[0]
    folder = save_adapter(base, tmp_path / "adapter", with_new_tokens(base))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}, "tokenizer_class": "Evil"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "evil.py").write_text("raise SystemExit('code was run')")
    with pytest.raises(UserError, match="cannot be loaded"):
        Adapter.load(folder, checkpoint=str(base), device="cpu").predict(["a"])


def test_a_tokenizer_is_downloaded_only_with_an_adapter_of_another_program() -> None:
    files = dict.fromkeys(("adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "other.bin"), 10)
    assert "tokenizer.json" in _wanted("user/name", files)
    assert "tokenizer.json" not in _wanted("user/name", files | {"petransfer.json": 10})
    assert "other.bin" not in _wanted("user/name", files)


def test_the_base_s_tokenizer_is_used_if_the_adapter_s_tokenizer_is_equal(
    bases: tuple[Path, Path], tmp_path: Path
) -> None:
    base = bases[0]
    folder = save_adapter(base, tmp_path / "adapter")
    shutil.copy(base / "tokenizer.json", folder)
    shutil.copy(base / "tokenizer_config.json", folder)
    predictor = Adapter.load(folder, checkpoint=str(base), device="cpu").predictor
    assert predictor.loaded.tokenizer.name_or_path == str(base)
