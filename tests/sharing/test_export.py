"""A merged model gives the same results in plain transformers and llama.cpp, and has the files that vLLM reads."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    pipeline,
)

import petransfer
from petransfer.data import Example
from petransfer.sharing.gguf_comparison import GgufComparison
from tests.chat_models import chat_llama
from tests.sharing.conftest import ROWS, call, refused

# The folder of llama.cpp, with convert_hf_to_gguf.py. Some tests are skipped without it.
LLAMA_CPP = Path(os.environ.get("PETRANSFER_LLAMA_CPP", "llama.cpp"))
needs_llama_cpp = pytest.mark.skipif(
    not (LLAMA_CPP / "convert_hf_to_gguf.py").is_file() or importlib.util.find_spec("llama_cpp") is None,
    reason="needs llama-cpp-python, and PETRANSFER_LLAMA_CPP with the folder of llama.cpp",
)
TEXTS = [source for source, _ in ROWS[:6]]


def _sentencepiece(folder: Path, name: str, **options: Any) -> int:
    """Train a SentencePiece model on the rows, and return the size of its vocabulary."""
    import sentencepiece

    corpus = folder / "corpus.txt"
    corpus.write_text("".join(f"{source} {target}\n" for source, target in ROWS * 5), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(folder / "made"), hard_vocab_limit=False, minloglevel=2, **options
    )
    (folder / "made.model").rename(folder / name)
    corpus.unlink()
    return int(sentencepiece.SentencePieceProcessor(model_file=str(folder / name)).get_piece_size())


def _make_t5(folder: Path) -> None:
    size = _sentencepiece(folder, "spiece.model", vocab_size=60, pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    names = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "eos_token": "</s>", "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names | {"unk_token": "<unk>"}))
    config = T5Config(
        vocab_size=size, d_model=48, d_kv=16, d_ff=64, num_layers=1, num_heads=4, decoder_start_token_id=0,
        pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    T5ForConditionalGeneration(config).save_pretrained(folder)


def _make_llama(folder: Path) -> None:
    options = {"model_type": "bpe", "byte_fallback": True}
    size = _sentencepiece(folder, "tokenizer.model", vocab_size=320, pad_id=-1, bos_id=1, eos_id=2, unk_id=0, **options)
    names = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "legacy": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(names | {"unk_token": "<unk>", "add_bos_token": True}))
    config = LlamaConfig(
        vocab_size=size, hidden_size=48, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)


@pytest.fixture(scope="module")
def merged(
    tmp_path_factory: pytest.TempPathFactory, trained: Callable[..., Path]
) -> Callable[[str], tuple[Path, Path, Path]]:
    """A function that returns the folders of a base, a run and a merged model of a kind, `t5` or `llama`."""
    made: dict[str, tuple[Path, Path, Path]] = {}

    def make(kind: str) -> tuple[Path, Path, Path]:
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            base = folder / "base"
            base.mkdir()
            torch.manual_seed(5)
            {"t5": _make_t5, "llama": _make_llama}[kind](base)
            run, target = trained(str(base)), folder / "merged"
            assert call("adapter", "merge", str(run), str(target), "--separate-head", "--cpu") == 0
            made[kind] = base, run, target
        return made[kind]

    return make


@pytest.fixture
def rows(tmp_path: Path) -> str:
    """The path of a file with all rows of the task."""
    path = tmp_path / "rows.tsv"
    path.write_text("".join(f"{source}\t{target}\n" for source, target in ROWS), encoding="utf-8")
    return str(path)


def test_plain_transformers_generates_the_same_texts_as_predict(
    merged: Callable[[str], tuple[Path, Path, Path]],
) -> None:
    _, run, folder = merged("t5")
    expected = petransfer.Adapter.load(run, device="cpu").predict(TEXTS, 8)
    assert len(set(expected)) > 1
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(TEXTS, return_tensors="pt", padding=True)
    found = model.generate(**batch, max_new_tokens=8, do_sample=False, num_beams=1)
    assert tokenizer.batch_decode(found, skip_special_tokens=True) == expected


def test_the_pipeline_of_transformers_generates_the_same_texts_as_predict(
    merged: Callable[[str], tuple[Path, Path, Path]],
) -> None:
    _, run, folder = merged("llama")
    expected = petransfer.Adapter.load(run, device="cpu").predict(TEXTS, 8)
    write = pipeline("text-generation", model=str(folder), device="cpu")
    found = [write(f"{text}\n", max_new_tokens=8, do_sample=False, return_full_text=False) for text in TEXTS]
    assert [one[0]["generated_text"] for one in found] == expected


@pytest.mark.parametrize("method", ["{name: lora, bits: 32, embeddings: trained}", "{name: full, bits: 32}"])
def test_chats_end_in_plain_transformers_where_they_end_in_predict(method: str, here: Path) -> None:
    """The base declares another end token than the one that its chat template writes after an answer."""
    chat_llama(Path("base"))
    chats = [[{"role": "user", "content": f"Hi {n}"}, {"role": "assistant", "content": "Yes"}] for n in range(30)]
    Path("chats.jsonl").write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    arguments = ("--cpu", "--steps", "100", "--lr", "0.03", "--set", f"methods=[{method}]", "--out", "study")
    assert call("train", "base", "chats.jsonl", *arguments) == 0
    (run,) = Path("study/runs").iterdir()
    folder = run / "model"
    if "lora" in method:
        folder = Path("merged")
        assert call("adapter", "merge", str(run), str(folder), "--cpu") == 0
    ends = [json.loads((one / "generation_config.json").read_text())["eos_token_id"] for one in (Path("base"), folder)]
    assert ends == [0, [0, 2]]
    assert petransfer.Adapter.load(run, device="cpu").predict(["Hi 3"], 16) == ["Yes"]
    assert petransfer.Adapter.load(folder, device="cpu").predict(["Hi 3"], 16) == ["Yes"]
    write = pipeline("text-generation", model=str(folder), device="cpu")
    ((found,),) = write([chats[3][:1]], max_new_tokens=16, do_sample=False, return_full_text=False)
    assert found["generated_text"] == "Yes"


def test_a_separate_output_head_contains_the_output_scale_of_t5(
    merged: Callable[[str], tuple[Path, Path, Path]],
) -> None:
    _, run, folder = merged("t5")
    tensors = load_file(folder / "model.safetensors")
    assert torch.allclose(tensors["lm_head.weight"], tensors["shared.weight"] * 48**-0.5)
    assert json.loads((folder / "config.json").read_text())["scale_decoder_outputs"] is False
    whole = petransfer.Adapter.load(folder, device="cpu").predictor.model
    adapter = petransfer.Adapter.load(run, device="cpu").predictor.model
    batch = {"input_ids": torch.tensor([[5, 6, 1]]), "decoder_input_ids": torch.tensor([[0, 7, 8]])}
    with torch.inference_mode():
        torch.testing.assert_close(whole(**batch).logits, adapter(**batch).logits, rtol=1e-4, atol=1e-4)


def test_the_merged_folder_has_the_files_that_llama_cpp_and_vllm_read(
    merged: Callable[[str], tuple[Path, Path, Path]],
) -> None:
    base, _, folder = merged("t5")
    assert (folder / "spiece.model").read_bytes() == (base / "spiece.model").read_bytes()
    base, _, folder = merged("llama")
    assert (folder / "tokenizer.model").read_bytes() == (base / "tokenizer.model").read_bytes()
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["dtype"] == "float32"
    assert "quantization_config" not in config
    assert {"tokenizer.json", "tokenizer_config.json", "generation_config.json"} <= {
        one.name for one in folder.iterdir()
    }
    names = set(AutoModelForCausalLM.from_pretrained(base).state_dict())
    assert set(load_file(folder / "model.safetensors")) == names


@needs_llama_cpp
@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_llama_cpp_computes_the_same_loss(
    kind: str, merged: Callable[[str], tuple[Path, Path, Path]], tmp_path: Path, rows: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    *_, folder = merged(kind)
    file = _converted(folder, tmp_path)
    capsys.readouterr()
    assert call("adapter", "compare", str(folder), str(file), "--data", rows, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert abs(found["loss"] - found["gguf_loss"]) < 1e-3
    assert (found["rows"], found["agree"], found["same_tokens"]) == (40, 100.0, 100.0)


@needs_llama_cpp
def test_compare_reports_different_losses_if_the_output_scale_of_t5_is_missing(
    merged: Callable[[str], tuple[Path, Path, Path]], tmp_path: Path, rows: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _, run, _ = merged("t5")
    folder = tmp_path / "scaled"
    assert call("adapter", "merge", str(run), str(folder), "--cpu") == 0
    file = _converted(folder, tmp_path)
    capsys.readouterr()
    assert call("adapter", "compare", str(folder), str(file), "--data", rows, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert abs(found["loss"] - found["gguf_loss"]) > 0.05
    assert found["agree"] > 99


def test_compare_refuses_wrong_files_in_one_line(
    merged: Callable[[str], tuple[Path, Path, Path]], tmp_path: Path, rows: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("llama_cpp")
    _, run, folder = merged("t5")
    missing, broken = tmp_path / "missing.gguf", tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF, but not really")
    assert "there is no file" in refused(capsys, "adapter", "compare", str(folder), str(missing), "--data", rows)
    assert "cannot be loaded" in refused(capsys, "adapter", "compare", str(folder), str(broken), "--data", rows)
    assert "merge it first" in refused(capsys, "adapter", "compare", str(run), str(broken), "--data", rows)


def test_compare_reads_the_named_columns_of_a_file(
    merged: Callable[[str], tuple[Path, Path, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    found: list[Example] = []

    def compare(_: Any, examples: list[Example], file: Path) -> GgufComparison:
        found.extend(examples)
        return GgufComparison(1, 1.0, 1.0, 100.0, 100.0)

    monkeypatch.setattr("petransfer.sharing.gguf_comparison.compare_gguf", compare)
    *_, folder = merged("t5")
    (tmp_path / "qa.csv").write_text("question,answer\na,b\n")
    asked = ("adapter", "compare", str(folder), "x.gguf", "--data", str(tmp_path / "qa.csv"))
    assert "name the columns of the file with --input-column" in refused(capsys, *asked)
    assert call(*asked, "--input-column", "question", "--target-column", "answer") == 0
    assert [(one.input, one.target) for one in found] == [("a", "b")]


def _converted(folder: Path, place: Path) -> Path:
    """Convert a model with llama.cpp's own script, and return the path of the GGUF file."""
    file = place / f"{folder.name}.gguf"
    command = [
        sys.executable,
        str(LLAMA_CPP / "convert_hf_to_gguf.py"),
        str(folder),
        "--outfile",
        str(file),
        "--outtype",
        "f32",
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    return file
