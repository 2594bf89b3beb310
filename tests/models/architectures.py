"""Small models of the architectures that petransfer supports, and the numbers of bits in which each is tested.

`test_coverage` tests them.
"""

from __future__ import annotations

from typing import Any

from petransfer.recipe.run_spec import Bits

T5 = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 1, "num_heads": 4, "decoder_start_token_id": 0}
GATED = T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
BART = {
    "d_model": 64, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "max_position_embeddings": 128,
    "decoder_start_token_id": 0, "forced_eos_token_id": None, "encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0,
}  # fmt: skip
BERT = {"model_type": "bert", "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
USUAL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4}
GROUPED = USUAL | {"num_key_value_heads": 2, "max_position_embeddings": 128}
GEMMA = GROUPED | {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 32}
VISION = {
    "model_type": "siglip_vision_model", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
    "num_attention_heads": 2, "image_size": 28, "patch_size": 14,
}  # fmt: skip
MROPE = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}
IMAGES = {"mm_tokens_per_image": 4, "image_token_index": 4, "boi_token_index": 5, "eoi_token_index": 6}
# name: (model_type, its configuration, its name in the table of support)
SMALL: dict[str, tuple[str, dict[str, Any], str]] = {
    "t5": ("t5", T5, "T5, CodeT5, CodeT5+ (220M, 770M), ProtT5"),
    "t5-v1.1": ("t5", GATED, "T5 v1.1, FLAN-T5"),
    "byt5": ("t5", GATED, "ByT5"),
    "mt5": ("mt5", GATED, "mT5"),
    "longt5": ("longt5", T5 | {"local_radius": 16}, "LongT5"),
    "marian": ("marian", BART | {"share_encoder_decoder_embeddings": True}, "Marian (opus-mt)"),
    "bart": ("bart", BART, "BART"),
    "mbart": ("mbart", BART, "mBART"),
    "pegasus": ("pegasus", BART, "Pegasus"),
    "m2m_100": ("m2m_100", BART, "M2M100"),
    "nllb": ("m2m_100", BART, "NLLB"),
    "gpt2": ("gpt2", {"n_embd": 64, "n_layer": 1, "n_head": 4, "n_positions": 128}, "GPT-2"),
    "llama": ("llama", GROUPED, "Llama"),
    "mistral": ("mistral", GROUPED, "Mistral"),
    "qwen2": ("qwen2", GROUPED, "Qwen2, Qwen2.5"),
    "qwen3": ("qwen3", GROUPED | {"head_dim": 16}, "Qwen3"),
    "gemma": ("gemma", GROUPED | {"head_dim": 16}, "Gemma"),
    "gemma2": ("gemma2", GROUPED | {"head_dim": 16}, "Gemma 2"),
    "phi": ("phi", GROUPED, "Phi-1, Phi-2"),
    "phi3": ("phi3", GROUPED, "Phi-3, Phi-4"),
    "starcoder2": ("starcoder2", GROUPED, "StarCoder2"),
    "opt": ("opt", {
        "hidden_size": 64, "ffn_dim": 128, "num_hidden_layers": 1, "num_attention_heads": 4, "word_embed_proj_dim": 64,
        "max_position_embeddings": 128,
    }, "OPT"),
    "bloom": ("bloom", {"hidden_size": 64, "n_layer": 1, "n_head": 4}, "BLOOM"),
    "gpt_neox": ("gpt_neox", USUAL | {"max_position_embeddings": 128}, "GPT-NeoX, Pythia"),
    "smollm3": ("smollm3", GROUPED, "SmolLM3"),
    "gemma3": ("gemma3_text", GEMMA, "Gemma 3 (270M, 1B)"),
    "gemma4": ("gemma4_text", GROUPED | {
        "head_dim": 16, "layer_types": ["full_attention"], "per_layer_config": {"0": {"head_dim": 32}},
        "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0,
    }, "Gemma 4, text only"),
    "gemma3-multimodal": (
        "gemma3", {"text_config": GEMMA, "vision_config": VISION, **IMAGES}, "Gemma 3 (4B and larger), text only",
    ),
    "qwen2_vl": ("qwen2_vl", {
        "text_config": GROUPED | {"rope_parameters": MROPE},
        "vision_config": {"depth": 1, "embed_dim": 16, "hidden_size": 64, "num_heads": 2, "patch_size": 14},
    }, "Qwen2-VL, text only"),
    "mllama": ("mllama", {
        "text_config": GROUPED | {"num_hidden_layers": 2, "cross_attention_layers": [1]},
        "vision_config": {
            "hidden_size": 16, "num_hidden_layers": 1, "num_global_layers": 1, "attention_heads": 2,
            "intermediate_size": 32, "vision_output_dim": 32, "image_size": 28, "patch_size": 14, "max_num_tiles": 1,
            "intermediate_layers_indices": [0], "supported_aspect_ratios": [[1, 1]],
        },
        "image_token_index": 4,
    }, "Llama 3.2 Vision, text only"),
    "t5gemma": ("t5gemma", {"encoder": GEMMA, "decoder": GEMMA}, "T5Gemma"),
    "t5gemma2": ("t5gemma2", {
        "encoder": {"text_config": GEMMA, "vision_config": VISION, **IMAGES}, "decoder": GEMMA,
        "image_token_index": 4, "eoi_token_index": 6,
    }, "T5Gemma 2, text only"),
}  # fmt: skip
REFUSED = {
    "umt5": ("umt5", GATED, "umT5", "scales"),
    "bert": ("bert", USUAL | {"architectures": ["BertModel"]}, "BERT, ProtT5 encoders and other encoders", "encoder"),
    "whisper": ("whisper", {"d_model": 32}, "Whisper and other models for sound", "sound"),
    "modernbert": ("modernbert", USUAL, "ModernBERT", "encoder"),
    "encoder-decoder": ("encoder-decoder", {"encoder": BERT, "decoder": BERT}, "pairs of BERT models", "use a T5"),
}
# The kind of tokenizer of each architecture (see tokenizers.py).
TOKENIZERS = {
    **dict.fromkeys(("t5", "t5-v1.1", "mt5", "longt5"), "t5"),
    **dict.fromkeys(
        ("gemma", "gemma2", "gemma3", "gemma4", "gemma3-multimodal", "t5gemma", "t5gemma2", "mistral", "phi3"), "gemma"
    ),
    **dict.fromkeys(("qwen2", "qwen3", "qwen2_vl"), "qwen"),
    **dict.fromkeys(("llama", "smollm3", "mllama"), "llama3"),
    **dict.fromkeys(("gpt2", "phi", "starcoder2", "gpt_neox"), "gpt2"),
    **dict.fromkeys(("bart", "opt", "bloom"), "bart"),
    **{name: name for name in ("byt5", "marian", "mbart", "nllb", "pegasus")},
    "m2m_100": "m2m100",
}

WIDTHS: tuple[Bits, ...] = (32, 16, 8, 4)
TRIED = [(name, bits) for name in SMALL for bits in WIDTHS]


def support_rows() -> list[list[str]]:
    """Return the rows of the table of support: the architecture's name, then yes or no for each number of bits."""
    labels = {name: made[2] for name, made in (SMALL | REFUSED).items()}
    return [[label, *("yes" if (name, bits) in TRIED else "no" for bits in WIDTHS)] for name, label in labels.items()]


def support() -> str:
    """Return the table of support in Markdown."""
    head = [["architecture", *map(str, WIDTHS)], ["---"] * (1 + len(WIDTHS))]
    return "\n".join(f"| {' | '.join(row)} |" for row in head + support_rows())
