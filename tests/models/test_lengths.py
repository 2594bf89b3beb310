"""The numbers of positions of encoders, decoders and decoder-only models, and messages about rows that are too long."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import BartConfig, CTRLConfig, LEDConfig, MptConfig, T5Config

from petransfer.data.encoding import Encoded
from petransfer.models.lengths import VirtualTokens, length_check, positions


@pytest.mark.parametrize(
    ("config", "of_encoder", "of_decoder"),
    [
        (LEDConfig(max_encoder_position_embeddings=96, max_decoder_position_embeddings=32), 96, 32),
        (BartConfig(max_position_embeddings=64), 64, 64),
        (MptConfig(max_seq_len=48), 48, 48),
        (CTRLConfig(n_positions=40), 40, 40),
        (T5Config(), None, None),
    ],
)
def test_encoder_and_decoder_have_their_own_numbers_of_positions(
    config: Any, of_encoder: int | None, of_decoder: int | None
) -> None:
    assert (positions(config, of_encoder=True), positions(config)) == (of_encoder, of_decoder)


@pytest.mark.parametrize(
    ("virtual", "source", "target", "message"),
    [
        (VirtualTokens(), 96, 24, None),
        (VirtualTokens(), 97, 24, "the input has more tokens than led accepts (97 of 96)"),
        (VirtualTokens(), 96, 25, "the target has more tokens than led accepts (25 of 32, {8 are kept for generation)"),
        (
            VirtualTokens(4),
            93,
            5,
            "the input has more tokens than led accepts (93 of 96, {4 are kept for virtual tokens)",
        ),
    ],
)
def test_inputs_and_targets_are_compared_with_the_positions_of_their_side(
    virtual: VirtualTokens, source: int, target: int, message: str | None
) -> None:
    config = LEDConfig(max_encoder_position_embeddings=96, max_decoder_position_embeddings=32)
    problem = length_check(config, "led", 0, virtual)(Encoded((1,) * source, (1,) * target))
    assert (str(problem) if problem else None) == (message and message.replace("{", "of which "))
