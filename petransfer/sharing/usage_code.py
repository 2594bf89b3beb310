"""The section of a card that shows how to use the adapter.

The section has code for plain transformers and peft, and commands of petransfer. A test runs the code.
"""

from __future__ import annotations

import json
import re
import shlex
from typing import Any

from petransfer.data.layout import OTHER_ENDS, Layout
from petransfer.data.templates import fields_of, given_text, render
from petransfer.models.registry import is_embedded
from petransfer.recipe.run_spec import RunSpec
from petransfer.report.tables import markdown_text

_DTYPES = {32: "torch.float32", 16: "torch.bfloat16"}

_WITH_PETRANSFER = """\
With petransfer, which checks what the adapter was made from:

```
petransfer adapter verify adapter.petransfer.zip
petransfer predict adapter.petransfer.zip {argument}
```"""

# Quantise the same layers as petransfer does: transformers would not quantise some layers of T5. The parts of a model
# inherit the list of these layers from a common class.
_SAME_LAYERS = """\
from transformers import AutoConfig

model_class = {auto}._model_mapping[type(AutoConfig.from_pretrained({place}))]
for owner in model_class.__mro__:
    if hasattr(owner, "_keep_in_fp32_modules"):
        owner._keep_in_fp32_modules = {wide}  # quantise the same layers as in training
"""

# On a CPU with avx512_bf16, bitsandbytes would repack 4-bit weights in a way that gives wrong results.
_NOT_REPACKED = """\
for layer in base.modules():
    layer.support_avx512bf16_for_cpu = False
"""

_ENCODER_DECODER = """\
own = base.generation_config  # its penalties, minimum lengths, beams, ... would change the answers
base.generation_config = GenerationConfig(
    eos_token_id={ends}, pad_token_id=tokenizer.pad_token_id,
    decoder_start_token_id=own.decoder_start_token_id)
"""

_DECODER_ONLY = """\
base.generation_config = GenerationConfig(  # the base's own penalties, minimum lengths, ... would change the answers
    eos_token_id={ends}, pad_token_id=tokenizer.pad_token_id)
"""

# A chat's answer ends with the first special token that the chat template writes after it.
_END_OF_TURN = """\
turns = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "ANSWER"}]
tail = tokenizer.apply_chat_template(turns, tokenize=False).rpartition("ANSWER")[2]
special = {at for at, token in tokenizer.added_tokens_decoder.items() if token.special} | {tokenizer.eos_token_id}
after = [token for token in tokenizer(tail, add_special_tokens=False)["input_ids"] if token in special]
end = after[0] if after else tokenizer.eos_token_id
"""

_CHAT = """\
chat = [{{"role": "user", "content": {text}}}]
text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt")
"""

# Some tokenizers append an end token to the input; it is removed because the generated text follows.
_OPEN_ENDED = """\
if inputs["input_ids"][0, -1] == tokenizer.eos_token_id:
    inputs = {name: value[:, :-1] for name, value in inputs.items()}
"""


def base_in_words(spec: RunSpec) -> str:
    """Return a phrase in Markdown that names the base and its place."""
    name = _escaped(spec.checkpoint.name)
    if is_embedded(name):
        return f"`{name}`, which ships with petransfer and is not on the hub"
    if len(spec.checkpoint.weights) == 64:
        return f"a checkpoint called `{name}` that was not on the hub"
    return f"[{name}](https://huggingface.co/{name})"


def usage(spec: RunSpec, provenance: dict[str, Any]) -> str:
    """Return the card's section about how to use the adapter, in Markdown."""
    template = str(spec.task.options.get("template", ""))
    argument = shlex.quote(given_text(template)) if template else '"an input"'
    with_petransfer = _WITH_PETRANSFER.format(argument=argument)
    commit = provenance.get("base", {}).get("commit")
    if spec.checkpoint.reinit != "none" or spec.checkpoint.tokenizer:
        random = f"Plain transformers cannot make its base: some weights were drawn at random from seed {spec.seed}."
        return f"{random}\n\n{with_petransfer}"
    if spec.checkpoint.added_tokens:
        named = markdown_text(", ".join(map(repr, spec.checkpoint.added_tokens)))
        return (
            f"Its tokenizer has added tokens ({named}), which petransfer adds to the base's own.\n\n{with_petransfer}"
        )
    if spec.checkpoint.target_language:
        named = markdown_text(f"{spec.checkpoint.source_language} and {spec.checkpoint.target_language}")
        return (
            f"Its inputs and targets are marked with their languages ({named}), which petransfer does as in training."
            f"\n\n{with_petransfer}"
        )
    how, place = _base(spec)
    parts = [how, f"```python\n{_code(spec, provenance, place, commit)}\n```"]
    if spec.method.bits < 16:
        parts.append(
            f"At {spec.method.bits} bits, plain transformers and peft round some intermediate results differently from "
            "petransfer, so that a few answers can differ. `petransfer adapter verify --plain` counts how many."
        )
    return "\n\n".join([*parts, with_petransfer])


def _base(spec: RunSpec) -> tuple[str, str]:
    """Return the text before the code, and the base's name or folder in the code."""
    name = _escaped(spec.checkpoint.name)
    after = "`adapter` is the unpacked bundle or this repository:"
    if is_embedded(name):
        return (
            "With plain transformers and peft. The base model ships with petransfer. `petransfer checkpoints cp "
            f"{name} base` copies it into the folder `base`, which plain transformers can load. Without petransfer, "
            f"copy the files in `petransfer/models/{name}` and in `petransfer/models/nano/tokenizer` of petransfer's "
            f"source code into this folder. {after}",
            "base",
        )
    if len(spec.checkpoint.weights) == 64:
        return f"With plain transformers and peft. `base` is the folder of `{name}`; {after}", "base"
    return f"With plain transformers and peft; {after}", spec.checkpoint.name


def _escaped(name: str) -> str:
    """Return a checkpoint's name for Markdown, in which it can end neither code nor a link."""
    return re.sub(r"[`\[\]()]", "_", markdown_text(name))


def _input(spec: RunSpec, encoder_decoder: bool) -> str:
    """Return an input as petransfer gives it to the model, without the tokenizer's chat template."""
    template, chat = str(spec.task.options.get("template", "")), spec.task.options.get("chat")
    text = render(template, {name: f"the {name}" for name in fields_of(template)}) if template else "an input"
    text = spec.task.prefix + text
    if chat == "plain":
        text = f"user: {text}\nassistant:"
    return text if encoder_decoder or chat == "template" else text + Layout.input_end


def _code(spec: RunSpec, provenance: dict[str, Any], name: str, commit: str | None) -> str:
    encoder_decoder, bits = bool(provenance.get("encoder_decoder", True)), spec.method.bits
    auto = "AutoModelForSeq2SeqLM" if encoder_decoder else "AutoModelForCausalLM"
    place = json.dumps(name, ensure_ascii=False) + (f', revision="{commit}"' if commit else "")
    chat, text = spec.task.options.get("chat") == "template", _input(spec, encoder_decoder)
    quantised = bits not in _DTYPES
    more = ", BitsAndBytesConfig" if quantised else ""
    width = f"dtype=torch.bfloat16, quantization_config={_quantised(bits)}" if quantised else f"dtype={_DTYPES[bits]}"
    lines = [
        "import torch",
        "from peft import PeftModel",
        f"from transformers import {auto}, AutoTokenizer{more}, GenerationConfig",
    ]
    if quantised:
        wide = list(spec.method.keep_wide) or None
        lines += _SAME_LAYERS.format(auto=auto, place=place, wide=wide).splitlines()
    lines += ["", f"base = {auto}.from_pretrained({place}, {width})"]
    lines += _NOT_REPACKED.splitlines() if bits == 4 else []
    lines += [f"tokenizer = AutoTokenizer.from_pretrained({place})"]
    lines += _END_OF_TURN.splitlines() if chat else []
    decoding = _ENCODER_DECODER if encoder_decoder else _DECODER_ONLY
    lines += decoding.format(ends=_ends(provenance, chat)).splitlines()
    lines += ['model = PeftModel.from_pretrained(base, "adapter").eval()']
    if chat:
        lines += _CHAT.format(text=repr(text)).splitlines()
    else:
        lines += [f'inputs = tokenizer({text!r}, return_tensors="pt")']
        lines += [] if encoder_decoder else _OPEN_ENDED.splitlines()
    answer = "answer[0]" if encoder_decoder else 'answer[0, inputs["input_ids"].shape[1]:]'
    lines += ["answer = model.generate(**inputs, max_new_tokens=128)"]
    lines += [f"print(tokenizer.decode({answer}, skip_special_tokens=True))"]
    return "\n".join(lines)


def _ends(provenance: dict[str, Any], chat: bool) -> str:
    """Return the code for the ids of the tokens at which generation stops. `end` is the end of a turn in a chat."""
    tokens = provenance.get("base", {}).get("configuration", {}).get("tokens", {})
    others = "".join(f", {token}" for token in tokens.get(OTHER_ENDS, ()) if type(token) is int)
    others = f"tokenizer.eos_token_id{others}"
    return f"[end, {others}]" if chat else f"[{others}]" if "," in others else others


def _quantised(bits: int) -> str:
    if bits == 8:
        return "BitsAndBytesConfig(load_in_8bit=True)"
    return (
        'BitsAndBytesConfig(\n    load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,\n'
        "    bnb_4bit_compute_dtype=torch.bfloat16, bnb_4bit_quant_storage=torch.bfloat16)"
    )
