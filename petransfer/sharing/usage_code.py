"""How an adapter is used: with plain transformers and peft, and with petransfer. A test runs the code of the first."""

from __future__ import annotations

from typing import Any

from petransfer.models.registry import is_embedded
from petransfer.recipe.run_spec import RunSpec

_WIDTHS = {32: "torch.float32", 16: "torch.bfloat16"}


def base_in_words(spec: RunSpec) -> str:
    """What the base is and where it is found."""
    name = spec.checkpoint.name
    if is_embedded(name):
        return f"`{name}`, which ships with petransfer and is not on the hub"
    if len(spec.checkpoint.weights) == 64:
        return f"a checkpoint called `{name}` that was not on the hub"
    return f"[{name}](https://huggingface.co/{name})"


def usage(spec: RunSpec, provenance: dict[str, Any]) -> str:
    """Markdown."""
    commit = provenance.get("base", {}).get("commit")
    mine = "With petransfer, which checks what it was made from:\n\n"
    mine += "```\npetransfer adapter verify adapter.petransfer.zip\n"
    mine += 'petransfer predict adapter.petransfer.zip "an input"\n```'
    if spec.checkpoint.reinit != "none" or spec.checkpoint.tokenizer:
        drawn = f"Plain transformers cannot make its base, of which weights were drawn anew from seed {spec.seed}."
        return f"{drawn}\n\n{mine}"
    how, place = _base(spec, commit)
    return f"{how}\n\n```python\n{_code(spec, provenance, place, commit)}\n```\n\n{mine}"


def _base(spec: RunSpec, commit: str | None) -> tuple[str, str]:
    """How one gets the base, and the name under which plain transformers loads it."""
    name = spec.checkpoint.name
    after = "`adapter` is the unpacked bundle or this repository:"
    if is_embedded(name):
        return (
            "With plain transformers and peft. The base ships with petransfer: `petransfer checkpoints cp "
            f"{name} base` makes the folder `base`, which needs no petransfer (so does putting the files of "
            f"`petransfer/models/{name}` and `petransfer/models/nano/tokenizer` of its source into one "
            f"folder). {after}",
            "base",
        )
    if len(spec.checkpoint.weights) == 64:
        return f"With plain transformers and peft. `base` is the folder of `{name}`; {after}", "base"
    return f"With plain transformers and peft; {after}", name


def _code(spec: RunSpec, provenance: dict[str, Any], place: str, commit: str | None) -> str:
    encoder_decoder = bool(provenance.get("encoder_decoder", True))
    auto = "AutoModelForSeq2SeqLM" if encoder_decoder else "AutoModelForCausalLM"
    revision = f', revision="{commit}"' if commit else ""
    text = spec.task.prefix + "an input"
    lines = ["import torch", "from peft import PeftModel"]
    if spec.method.bits in _WIDTHS:
        lines.append(f"from transformers import {auto}, AutoTokenizer")
        width = f"dtype={_WIDTHS[spec.method.bits]}"
    else:
        lines.append(f"from transformers import {auto}, AutoTokenizer, BitsAndBytesConfig")
        width = f"dtype=torch.bfloat16, quantization_config={_quantised(spec.method.bits)}"
    if encoder_decoder:
        start, inputs = "answer[0]", repr(text)
    else:
        start, inputs = 'answer[0, inputs["input_ids"].shape[1]:]', repr(text + "\n")
    # on a CPU with avx512_bf16 bitsandbytes packs these weights otherwise, and wrongly, before it evaluates
    unpacked = ["for layer in base.modules():", "    layer.support_avx512bf16_for_cpu = False"]
    # as petransfer reads inputs: some tokenizers end them as if nothing came after
    open_ended = [
        'if inputs["input_ids"][0, -1] == tokenizer.eos_token_id:',
        "    inputs = {name: value[:, :-1] for name, value in inputs.items()}",
    ]
    return "\n".join(
        [
            *lines,
            "",
            f'base = {auto}.from_pretrained("{place}"{revision}, {width})',
            *(unpacked if spec.method.bits == 4 else []),
            f'tokenizer = AutoTokenizer.from_pretrained("{place}"{revision})',
            'model = PeftModel.from_pretrained(base, "adapter").eval()',
            f'inputs = tokenizer({inputs}, return_tensors="pt")',
            *([] if encoder_decoder else open_ended),
            "answer = model.generate(**inputs, max_new_tokens=128, do_sample=False, num_beams=1)",
            f"print(tokenizer.decode({start}, skip_special_tokens=True))",
        ]
    )


def _quantised(bits: int) -> str:
    if bits == 8:
        return "BitsAndBytesConfig(load_in_8bit=True)"
    return (
        'BitsAndBytesConfig(\n    load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,\n'
        "    bnb_4bit_compute_dtype=torch.bfloat16, bnb_4bit_quant_storage=torch.bfloat16)"
    )
