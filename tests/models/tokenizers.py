"""Small tokenizers, trained on a few sentences. Real checkpoints have tokenizers of the same kinds.

SentencePiece models for T5, mT5, Pegasus, Marian, mBART, M2M100 and NLLB; SentencePiece-like BPE with byte
fallback for Gemma, Mistral and Phi-3; byte-level BPE for GPT-2, BART, Llama 3, Qwen and others; bytes for ByT5.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

TEXT = [f"jump {side} {times} and walk around the {thing}" for side in ("left", "right", "opposite left")
        for times in ("once", "twice", "thrice") for thing in ("house", "tree", "river")] * 3  # fmt: skip


def save_tokenizer(kind: str, folder: Path) -> Any:
    """Write tokenizer files as checkpoints of a family on the hub have them, and return the loaded tokenizer."""
    from transformers import AutoTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    _WRITERS[kind](folder)
    return AutoTokenizer.from_pretrained(folder)


def rows_needed(tokenizer: Any) -> int:
    """Return the number of embeddings that a tokenizer needs. M2M100's languages are not in its vocabulary."""
    languages = getattr(tokenizer, "lang_token_to_id", None) or {}
    return 1 + max(*tokenizer.get_vocab().values(), *languages.values())


def _sentencepiece(path: Path, **options: Any) -> Any:
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT), model_writer=model, hard_vocab_limit=False, minloglevel=2,
        **({"vocab_size": 80, "model_type": "unigram"} | options),
    )  # fmt: skip
    path.write_bytes(model.getvalue())
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def _config(folder: Path, kind: str, **fields: Any) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind, **fields}))


def _t5(folder: Path) -> None:
    """Write spiece.model without tokenizer.json, as old T5 checkpoints have it."""
    _sentencepiece(folder / "spiece.model", pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    _config(folder, "T5Tokenizer", extra_ids=10, eos_token="</s>", pad_token="<pad>", unk_token="<unk>")


def _pegasus(folder: Path) -> None:
    _sentencepiece(folder / "spiece.model", pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    _config(folder, "PegasusTokenizer", eos_token="</s>", pad_token="<pad>", unk_token="<unk>", mask_token="<mask_2>")


def _marian(folder: Path) -> None:
    """Write two SentencePiece models and one vocabulary of their tokens, as opus-mt has them."""
    model = _sentencepiece(folder / "source.spm", unk_id=1, eos_id=0, bos_id=-1)
    (folder / "target.spm").write_bytes((folder / "source.spm").read_bytes())
    pieces = [model.id_to_piece(at) for at in range(model.get_piece_size())]
    vocabulary = {piece: at for at, piece in enumerate([*pieces, "<pad>"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    _config(
        folder,
        "MarianTokenizer",
        source_lang="en",
        target_lang="de",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
    )


def _languages(kind: str, name: str) -> Any:
    def write(folder: Path) -> None:
        _sentencepiece(folder / name, unk_id=0, bos_id=1, eos_id=2)
        extra = {"additional_special_tokens": ["eng_Latn", "deu_Latn"]} if kind == "NllbTokenizer" else {}
        _config(folder, kind, **extra)

    return write


def _m2m100(folder: Path) -> None:
    """Write a SentencePiece model and a vocabulary. The language `en` has the token `__en__`."""
    model = _sentencepiece(folder / "sentencepiece.bpe.model", model_type="bpe")
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    pieces = [model.id_to_piece(at) for at in range(model.get_piece_size())]
    vocabulary = {piece: at for at, piece in enumerate([*special, *(p for p in pieces if p not in special)])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    _config(folder, "M2M100Tokenizer")


def _byte_level(**special: str) -> Any:
    """Return a function that writes byte-level BPE, as in tokenizer.json of GPT-2, BART, Llama 3 and Qwen."""

    def write(folder: Path) -> None:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
        from transformers import PreTrainedTokenizerFast

        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=330, special_tokens=sorted(set(special.values())), show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )  # fmt: skip
        tokenizer.train_from_iterator(TEXT, trainer)
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)

    return write


def _byte_fallback(folder: Path) -> None:
    """Write BPE with "▁" for blanks and bytes for unknown characters, as in tokenizer.json of Gemma and Mistral."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special + tokens, show_progress=False)
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", unk_token="<unk>"
    ).save_pretrained(folder)


def _byt5(folder: Path) -> None:
    from transformers import ByT5Tokenizer

    ByT5Tokenizer().save_pretrained(folder)


_WRITERS: dict[str, Any] = {
    "t5": _t5,
    "byt5": _byt5,
    "pegasus": _pegasus,
    "marian": _marian,
    "mbart": _languages("MBart50Tokenizer", "sentencepiece.bpe.model"),
    "m2m100": _m2m100,
    "nllb": _languages("NllbTokenizer", "sentencepiece.bpe.model"),
    "gpt2": _byte_level(bos_token="<|endoftext|>", eos_token="<|endoftext|>", unk_token="<|endoftext|>"),
    "bart": _byte_level(bos_token="<s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>"),
    "llama3": _byte_level(bos_token="<|begin_of_text|>", eos_token="<|eot_id|>"),
    "qwen": _byte_level(pad_token="<|endoftext|>", eos_token="<|im_end|>"),
    "gemma": _byte_fallback,
}
