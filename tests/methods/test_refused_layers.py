"""Methods that peft cannot apply to an architecture: the message names options of petransfer that work."""

from __future__ import annotations

import re

import pytest
from transformers import MambaConfig

from petransfer.errors import UserError
from petransfer.memory.step_memory import meta_model
from petransfer.methods import apply_method
from petransfer.recipe.run_spec import MethodSpec

SIZES = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1, "state_size": 4}


def test_layers_that_peft_refuses_are_left_out_by_the_option_in_the_message() -> None:
    config = MambaConfig(**SIZES, eos_token_id=1)
    with pytest.raises(UserError, match=r"^LoRA cannot be put on the layers all-linear of this model") as error:
        apply_method(meta_model(config, "mamba", MethodSpec("lora", rank=4), False), MethodSpec("lora", rank=4), 0)
    said = str(error.value)
    assert "out_proj" in said
    assert "Please" not in said
    assert "PEFT:" not in said
    found = re.search(r"--set 'methods\.0\.targets=\[(.*)\]'", said)
    assert found is not None
    method = MethodSpec("lora", rank=4, targets=tuple(found[1].split(", ")))
    apply_method(meta_model(config, "mamba", method, False), method, 0)
