"""Languages of mBART, M2M100 and NLLB: their tokens in inputs and before targets, in training and evaluation."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import MBartConfig

from petransfer.data.encoding import encode_examples
from petransfer.data.task import Example
from petransfer.errors import UserError
from petransfer.evaluation.exact_match import evaluate
from petransfer.evaluation.generation import generations
from petransfer.models.loading import load_checkpoint
from petransfer.models.own_families import own_family
from petransfer.models.registry import checkpoint_spec
from petransfer.recipe.run_spec import CheckpointSpec, RunSpec
from petransfer.recipe.schema import ArmPart, FamilyPart
from petransfer.sharing.adapter import Adapter
from petransfer.training.batches import IGNORED, collate
from tests.cli.calls import call
from tests.models.tokenizers import rows_needed, save_tokenizer

LANGUAGES = {"mbart": ("de_DE", "fr_XX"), "m2m100": ("de", "fr"), "nllb": ("eng_Latn", "deu_Latn")}
TOKENS = {"de": "__de__", "fr": "__fr__"}
EXAMPLES = [Example(at, f"jump {word}", word, "all") for at, word in enumerate(("left", "twice", "around"))]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small model with random weights for each kind of tokenizer."""
    made = {}
    for kind in LANGUAGES:
        made[kind] = tmp_path_factory.mktemp(kind)
        tokenizer = save_tokenizer(kind, made[kind])
        config = MBartConfig(
            vocab_size=rows_needed(tokenizer), d_model=32, encoder_layers=1, decoder_layers=1,
            encoder_ffn_dim=32, decoder_ffn_dim=32, encoder_attention_heads=2, decoder_attention_heads=2,
            max_position_embeddings=64, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
            decoder_start_token_id=tokenizer.eos_token_id, forced_eos_token_id=None,
        )  # fmt: skip
        torch.manual_seed(4)
        from transformers import MBartForConditionalGeneration

        MBartForConditionalGeneration(config).save_pretrained(made[kind])
    return made


def spec_of(kind: str, folders: dict[str, Path]) -> CheckpointSpec:
    source, target = LANGUAGES[kind]
    return replace(checkpoint_spec(str(folders[kind])), source_language=source, target_language=target)


@pytest.mark.parametrize("kind", LANGUAGES)
def test_encoder_and_decoder_get_the_tokens_of_their_languages(kind: str, folders: dict[str, Path]) -> None:
    loaded = load_checkpoint(spec_of(kind, folders), 32)
    source, target = (
        loaded.tokenizer.convert_tokens_to_ids(TOKENS.get(language, language)) for language in LANGUAGES[kind]
    )
    encoded = encode_examples(EXAMPLES, "", loaded.tokenizer, loaded.layout)
    assert all(row.input_ids[0] == source for row in encoded)
    batch = collate(encoded, loaded.layout)
    start = loaded.tokenizer.eos_token_id
    assert batch["decoder_input_ids"][:, :2].tolist() == [[start, target]] * 3
    assert batch["labels"][:, 0].tolist() == [IGNORED] * 3
    assert batch["decoder_input_ids"].shape == batch["labels"].shape
    assert batch["labels"][0, 1] == encoded[0].target_ids[0]


@pytest.mark.parametrize("kind", LANGUAGES)
def test_generation_agrees_with_transformers_and_with_one_pass_scoring(kind: str, folders: dict[str, Path]) -> None:
    loaded = load_checkpoint(spec_of(kind, folders), 32)
    encoded = encode_examples(EXAMPLES, "", loaded.tokenizer, loaded.layout)
    found = generations(loaded.model, loaded, [row.input_ids for row in encoded], [6] * 3)
    given = torch.tensor([[loaded.layout.decoder_start_id, *loaded.layout.decoder_prefix]])
    out = loaded.model.generate(  # type: ignore[operator]
        input_ids=torch.tensor([encoded[0].input_ids]), decoder_input_ids=given, max_new_tokens=6, num_beams=1
    )
    assert loaded.tokenizer.decode(out[0, 2:], skip_special_tokens=True) == found[0].text
    assert evaluate(loaded.model, loaded, EXAMPLES, encoded).disagreements == 0


def test_the_token_of_the_target_language_takes_one_position(folders: dict[str, Path]) -> None:
    loaded = load_checkpoint(spec_of("mbart", folders), 32)
    loaded.model.final_logits_bias[:, list(loaded.layout.end_ids)] = -1e9  # type: ignore[index, operator]
    (found,) = generations(loaded.model, loaded, [(5, 6, 7)], [64])
    assert (found.tokens, found.ended) == (63, False)


def test_loading_without_languages_gives_a_warning(folders: dict[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        load_checkpoint(checkpoint_spec(str(folders["nllb"])), 32)
    (message,) = caplog.messages
    assert "eng_Latn" in message
    assert "target_language" in message


def test_unknown_missing_and_unsupported_languages_are_refused(folders: dict[str, Path], tiny_t5: Path) -> None:
    base = spec_of("mbart", folders)
    with pytest.raises(UserError, match=r"unknown target_language .*'de': did you mean"):
        load_checkpoint(replace(base, target_language="de"), 32)
    with pytest.raises(UserError, match="together"):
        load_checkpoint(replace(base, target_language=None), 32)
    with pytest.raises(UserError, match="has no setting for languages"):
        load_checkpoint(replace(base, name="t5", source=str(tiny_t5)), 32)


def test_a_family_sets_languages_and_run_specs_contain_them(
    folders: dict[str, Path], tiny_spec: Callable[..., RunSpec]
) -> None:
    place = str(folders["mbart"])
    part = FamilyPart(
        name="mine", arms={"one": place, "two": ArmPart(checkpoint=place, target_language="cs_CZ")},
        source_language="de_DE", target_language="fr_XX",
    )  # fmt: skip
    family = own_family(part)
    assert family.arms["one"].target_language == "fr_XX"
    assert (family.arms["two"].source_language, family.arms["two"].target_language) == ("de_DE", "cs_CZ")
    plain = tiny_spec()
    marked = replace(plain, checkpoint=replace(plain.checkpoint, source_language="de_DE", target_language="fr_XX"))
    assert RunSpec.from_dict(marked.as_dict()) == marked
    assert marked.run_id != plain.run_id
    assert "language" not in plain.canonical_json()


@pytest.mark.parametrize("kind", LANGUAGES)
def test_train_accepts_languages_and_the_adapter_uses_them(
    kind: str, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pairs.tsv").write_text("".join(f"jump {word}\t{word}\n" for word in ("left", "twice", "around") * 4))
    source, target = LANGUAGES[kind]
    arguments = ("--source-language", source, "--target-language", target, "--steps", "2", "--cpu", "--out", "out")
    assert call(monkeypatch, "train", str(folders[kind]), "pairs.tsv", *arguments) == 0
    (run,) = (tmp_path / "out" / "runs").iterdir()
    adapter = Adapter.load(run)
    assert len(adapter.predict(["jump left"], max_new_tokens=3)) == 1
    tokenizer = adapter.predictor.loaded.tokenizer
    assert (tokenizer.src_lang, tokenizer.tgt_lang) == (source, target)  # type: ignore[attr-defined]


def test_train_refuses_languages_for_a_model_without_language_tokens(
    tiny_t5: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pairs.tsv").write_text("".join(f"a {at}\tb {at}\n" for at in range(20)))
    arguments = ("--source-language", "en", "--target-language", "de", "--steps", "2", "--cpu")
    assert call(monkeypatch, "train", str(tiny_t5), "pairs.tsv", *arguments) == 2
    assert "--source-language" in capsys.readouterr().err
