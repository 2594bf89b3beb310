"""Compare petransfer's generated texts with those of plain transformers and peft."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import petransfer.models.bitsandbytes_import  # noqa: F401 - must precede peft

# isort: split
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from petransfer.data import Example
from petransfer.data.encoding import Encoded, encode_inputs, input_text
from petransfer.errors import UserError
from petransfer.evaluation.generation import Generation, generations
from petransfer.evaluation.one_pass import score
from petransfer.models.checkpoint_files import use_default_outputs
from petransfer.models.complete_weights import return_default_outputs
from petransfer.models.loading import DTYPES, Loaded
from petransfer.models.quantization import keep_default_packing, left_unquantized, quantization_config
from petransfer.models.registry import embedded_folder, is_embedded
from petransfer.models.rotary_positions import reset_dynamic_frequencies
from petransfer.sharing.base import AdapterBase
from petransfer.sharing.bundle import Bundle

# The number of texts that are compared, and the largest number of tokens of each.
TEXTS, TOKENS = 50, 64


@dataclass(frozen=True)
class TextComparison:
    """The texts of petransfer and of plain transformers for the same inputs.

    different: number of inputs with different texts.
    near_ties: number of these inputs whose texts begin to differ at a near-tie, where rounding decides between two
        tokens.
    """

    inputs: int
    different: int
    near_ties: int


def differing_texts(
    bundle: Bundle, base: AdapterBase, ours: Any, loaded: Loaded, examples: Sequence[Example]
) -> TextComparison:
    """Compare petransfer's texts with those of plain transformers and peft, for the first TEXTS inputs.

    Args:
        base: the base, which plain transformers loads again.
        ours: petransfer's model with the adapter.
        loaded: the base, with the layout of the adapter's examples.
        examples: examples of the adapter's own task, whose inputs are compared.

    Raises:
        UserError: plain transformers cannot load the base.
    """
    checkpoint = base.checkpoint
    if checkpoint.reinit != "none" or checkpoint.tokenizer:
        raise UserError(f"--plain: plain transformers cannot make the base of {bundle.label}; remove --plain")
    inputs = [input_text(example, bundle.prefix(), loaded.tokenizer) for example in examples[:TEXTS]]
    rows = encode_inputs(inputs, loaded.tokenizer, loaded.layout, is_rendered=bundle.chat() == "template")
    limits = [TOKENS] * len(rows)
    plain = _plain_model(bundle, base, loaded)
    expected = generations(ours, loaded, rows, limits, batch_size=1)
    found = generations(plain, replace(loaded, model=plain.get_base_model()), rows, limits, batch_size=1)
    different = [at for at, pair in enumerate(zip(expected, found, strict=True)) if pair[0].text != pair[1].text]
    ties = sum(part_at_near_tie(ours, loaded, rows[at], expected[at], found[at]) for at in different)
    return TextComparison(len(rows), len(different), ties)


def part_at_near_tie(
    model: Any, loaded: Loaded, input_ids: tuple[int, ...], expected: Generation, found: Generation
) -> bool:
    """Return whether two texts begin to differ at a near-tie, where rounding decides between two tokens.

    Args:
        model: the model that generated `expected`.
        found: a text that another program generated for the same input.
    """
    end = loaded.layout.end_ids[:1]
    one, other = ((*text.token_ids, *(end if text.ended else ())) for text in (expected, found))
    same = next((at for at, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), None)
    if same is None:  # one text was cut
        return False
    example, encoded = Example(index=0, input="", target="", category=""), Encoded(input_ids, other[: same + 1])
    (scored,) = score(model, loaded, [example], [encoded], batch_size=1, compares_texts=False)
    return scored.near_tie


def _plain_model(bundle: Bundle, base: AdapterBase, loaded: Loaded) -> Any:
    name = base.checkpoint.name
    place = str(embedded_folder(name)) if is_embedded(name) else base.checkpoint.source or name
    revision = None if base.checkpoint.source or is_embedded(name) else loaded.commit
    auto = AutoModelForSeq2SeqLM if loaded.layout.encoder_decoder else AutoModelForCausalLM
    device = str(loaded.model.device)
    config = AutoConfig.from_pretrained(place, revision=revision)
    use_default_outputs(config)  # the base can ask for FlashAttention, which is not on every machine
    if base.bits in DTYPES:
        plain = auto.from_pretrained(place, config=config, revision=revision, dtype=DTYPES[base.bits]).to(device)
    else:
        with left_unquantized(type(loaded.model), base.keep_wide):
            options = {"config": config, "quantization_config": quantization_config(base.bits), "dtype": DTYPES[16]}
            plain = auto.from_pretrained(place, revision=revision, device_map={"": device}, **options)
        keep_default_packing(plain)
    return_default_outputs(plain)
    reset_dynamic_frequencies(plain)
    folder: Path = bundle.weights.parent
    return PeftModel.from_pretrained(plain, str(folder)).eval()
