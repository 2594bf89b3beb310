"""The methods by name: what a recipe may say of each, and what can be done with what it trains. Imports no torch.

How each marks what is trained stands in `petransfer/methods/`, a file a method.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Size = Literal["rank", "virtual_tokens", ""]

# Keys that every method takes.
EVERYWHERE = frozenset({"name", "bits", "keep_wide", "rate_scaling"})
_ON_LAYERS = frozenset({"targets", "layers"})
_LORA = _ON_LAYERS | {"rank", "alpha", "dropout", "embeddings", "match_parameters"}
_TOKENS = frozenset({"virtual_tokens", "match_parameters"})

_INPUTS = "its virtual tokens are put before what the model reads, not into its weights; keep it beside its base"


_VIEWS = "what it trains in 32 bits it computes with in 16, for which FSDP takes the tensor itself; take bits: 32"


@dataclass(frozen=True)
class Form:
    """A method's own schema.

    keys: of a recipe's method that it takes beside those that all take. size: the key that decides how many parameters
    are trained, which `match_parameters` finds. not_at: bits of the base that it cannot go on, and why. no_merge: why
    its adapter cannot be merged into the base's weights. no_stack: why several cannot be trained on one base at once.
    no_split: bits at which its tensors cannot be split among processes, and why.
    """

    title: str
    source: str
    keys: frozenset[str] = frozenset()
    size: Size = ""
    not_at: Mapping[int, str] = field(default_factory=dict)
    no_merge: str = ""
    no_stack: str = ""
    no_split: Mapping[int, str] = field(default_factory=dict)


FORMS: dict[str, Form] = {
    "lora": Form("LoRA", "Hu et al. 2021", _LORA, "rank"),
    "rslora": Form("rank-stabilised LoRA", "Kalajdzievski 2023", _LORA, "rank"),
    "loraplus": Form(
        "LoRA+",
        "Hayou et al. 2024",
        _LORA | {"rate_ratio"},
        "rank",
        no_stack="its two matrices have rates of their own",
    ),
    "dora": Form(
        "DoRA",
        "Liu et al. 2024",
        _LORA,
        "rank",
        not_at={8: "peft cannot take the norms of 8-bit weights"},
        no_stack="its norms are taken over base and adapter together",
    ),
    "pissa": Form(
        "PiSSA",
        "Meng et al. 2024",
        _LORA - {"embeddings", "dropout"},
        "rank",
        no_stack="each takes its start from the base with a second adapter",
    ),
    "vera": Form(
        "VeRA",
        "Kopiczko et al. 2024",
        _ON_LAYERS | {"rank", "dropout", "match_parameters"},
        "rank",
        no_stack="its random matrices are shared by all layers and drawn from the seed",
    ),
    "ia3": Form(
        "(IA)3",
        "Liu et al. 2022",
        _ON_LAYERS,
        not_at=dict.fromkeys((8, 4), "what peft scales on a quantised base is fp32, which the rest of it cannot take"),
        no_stack="it scales what the base's own layers give",
    ),
    "prompt": Form(
        "prompt tuning",
        "Lester et al. 2021",
        _TOKENS,
        "virtual_tokens",
        no_merge=_INPUTS,
        no_stack="its virtual tokens change what the base reads",
    ),
    "prefix": Form(
        "prefix tuning",
        "Li and Liang 2021",
        _TOKENS,
        "virtual_tokens",
        no_merge=_INPUTS.replace("reads", "attends to"),
        no_stack="its virtual tokens change what the base attends to",
    ),
    "ln": Form("norm tuning", "Zhao et al. 2023", no_stack="it replaces the base's own norms", no_split={16: _VIEWS}),
    "bias": Form(
        "BitFit", "Ben Zaken et al. 2022", no_stack="it changes the base's own biases or norms", no_split={16: _VIEWS}
    ),
    "full": Form(
        "all weights",
        "",
        not_at=dict.fromkeys((8, 4), "8 and 4 bits are too coarse to train the weights themselves"),
        no_merge="it leaves a whole model, not an adapter",
        no_stack="it changes the base itself",
    ),
}
METHODS = tuple(FORMS)


def does_not_take(name: str, key: str) -> str:
    """The line for a key that belongs to other methods."""
    takes = ", ".join(sorted(FORMS[name].keys)) or "nothing but bits"
    return f"{key} does not belong to {name}, which takes {takes}"
