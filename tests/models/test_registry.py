"""The registry: consistent entries, and architectures with the listed numbers of parameters."""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, T5Config, T5ForConditionalGeneration

from petransfer.errors import UserError
from petransfer.models.control_arms import randomly_initialized
from petransfer.models.loading import load_checkpoint
from petransfer.models.own_families import own_family
from petransfer.models.registry import (
    NANO,
    ArmEntry,
    RegistryFile,
    checkpoint_spec,
    embedded_arms,
    family_names,
    registered_family,
    registry,
)
from petransfer.models.support import supported_class
from petransfer.recipe.schema import ArmPart, FamilyPart

ENTRIES = {
    f"{family}/{arm}": entry for family, content in registry().families.items() for arm, entry in content.arms.items()
}


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=list(ENTRIES))
def test_every_architecture_has_the_listed_number_of_parameters(entry: ArmEntry) -> None:
    fields = dict(registry().architectures[entry.architecture])
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    with torch.device("meta"):
        model = randomly_initialized(
            supported_class(config, entry.checkpoint), config, fields.get("tie_word_embeddings") is False
        )
    assert sum(value.numel() for value in model.parameters()) == entry.parameters


def test_every_family_has_its_controls() -> None:
    for name in family_names():
        family = registered_family(name)
        assert {"scratch", "random"} <= set(family.arm_names)
        assert ("english-newemb" in family.arm_names) == ("english" in family.arms)
        assert family.arm("scratch").checkpoint.reinit == "all"
        assert family.arm("scratch").trained == "all"
        assert family.arm("random").trained == "method"
        if "english" in family.arms:
            assert family.arm("english-newemb").checkpoint.reinit == "embeddings"


def test_all_arms_of_a_family_have_the_same_depth() -> None:
    """Arms can be compared if they have the same depth. Their numbers of parameters may differ."""
    for name, family in registry().families.items():
        shapes = [registry().architectures[entry.architecture] for entry in family.arms.values()]
        keys = ("num_layers", "n_layer", "encoder_layers", "num_hidden_layers")
        depths = {next(shape[key] for key in keys if key in shape) for shape in shapes}
        assert len(depths) == 1, name


def test_an_arm_with_the_tokenizer_of_another_checkpoint_gets_new_embeddings() -> None:
    protein = registered_family("t5-base").arm("protein")
    assert protein.checkpoint.tokenizer == "google-t5/t5-base"
    assert protein.checkpoint.reinit == "embeddings"
    assert protein.prefix == ""
    assert registered_family("t5-base").arm("english").prefix == "translate English to English: "


def test_entries_that_were_not_verified_have_a_note() -> None:
    assert all(entry.note for entry in ENTRIES.values() if not entry.verified)


def test_unknown_arms_and_keys_in_the_registry_are_refused() -> None:
    content = registry().model_dump()
    content["families"]["nano"]["base"] = "english2"
    with pytest.raises(ValidationError, match="english2 is not one of its arms"):
        RegistryFile.model_validate(content)
    content["families"]["nano"]["base"] = "english"
    content["families"]["nano"]["arms"]["english"]["licens"] = "MIT"
    with pytest.raises(ValidationError, match="licens"):
        RegistryFile.model_validate(content)


def test_a_model_with_new_embeddings_can_use_another_tokenizer(tmp_path: Path) -> None:
    """ProtT5 needs this. Here, a model with 40 tokens gets new embeddings for the tokens of another checkpoint."""
    config = T5Config(vocab_size=40, d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2, decoder_start_token_id=0)
    torch.manual_seed(5)
    model = T5ForConditionalGeneration(config)
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(NANO / "tokenizer").save_pretrained(tmp_path)
    spec = replace(checkpoint_spec(str(tmp_path)), reinit="embeddings", tokenizer="nano/english")
    loaded = load_checkpoint(spec, 32)
    assert len(loaded.tokenizer) == loaded.model.get_input_embeddings().num_embeddings == 6176
    body = "encoder.block.0.layer.0.SelfAttention.q.weight"
    assert torch.equal(loaded.model.state_dict()[body], model.state_dict()[body])
    assert loaded.new_tokens == tuple(range(6176))
    with pytest.raises(UserError, match="needs reinit: embeddings"):
        load_checkpoint(replace(spec, reinit="none"), 32)


def test_the_embedded_arms_differ_only_in_their_corpus_and_weights() -> None:
    cards = embedded_arms()
    assert set(cards) == set(registry().families["nano"].arms)
    own = {"arm", "corpus_sha256", "valid_loss", "seconds", "new_pieces"}
    common = [{key: value for key, value in card.items() if key not in own} for card in cards.values()]
    assert all(card == common[0] for card in common)
    assert len({card["corpus_sha256"] for card in cards.values()}) == len(cards)
    configs = [(NANO / arm / "config.json").read_text() for arm in cards]
    assert len(set(configs)) == 1
    assert not [path for arm in cards for path in (NANO / arm).glob("tokenizer*")]
    sizes = [(NANO / arm / "model.safetensors").stat().st_size for arm in cards]
    assert max(sizes) < 16_000_000
    assert sum(sizes) < 100_000_000
    for arm in cards:
        weights = hashlib.sha256((NANO / arm / "model.safetensors").read_bytes()).hexdigest()
        assert weights in (NANO / arm / "README.md").read_text()


def test_a_missing_embedded_weight_file_is_reported_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(NANO / "tokenizer", tmp_path / "tokenizer")
    shutil.copytree(NANO / "english", tmp_path / "english")
    (tmp_path / "english" / "model.safetensors").unlink()
    monkeypatch.setattr("petransfer.models.registry.NANO", tmp_path)
    embedded_sha256 = checkpoint_spec.__globals__["_embedded_sha256"]
    embedded_sha256.cache_clear()
    try:
        with pytest.raises(UserError, match=r"nano/english: .*model\.safetensors.*install") as error:
            checkpoint_spec("nano/english")
        assert "\n" not in str(error.value)
    finally:
        embedded_sha256.cache_clear()


def test_a_damaged_embedded_weight_file_is_reported_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(*_: object, **__: object) -> None:
        raise SafetensorError("invalid header")

    monkeypatch.setattr("transformers.modeling_utils.safe_open", damaged)
    with pytest.raises(UserError, match=r"weights in nano/english are damaged") as error:
        load_checkpoint(checkpoint_spec("nano/english"), 32)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["merges.txt", "tokenizer.model", "vocab.txt"])
def test_every_file_identifies_a_tokenizer_unless_it_has_tokenizer_json(name: str, tmp_path: Path) -> None:
    def spec(content: str) -> str | None:
        (tmp_path / name).write_text(content)
        part = FamilyPart(name="mine", arms={"a": ArmPart(checkpoint="nano/english", tokenizer=str(tmp_path))})
        return own_family(part).arms["a"].tokenizer

    if name == "merges.txt":
        (tmp_path / "vocab.json").write_text("{}")
    assert spec("a b") != spec("b a")
    (tmp_path / "tokenizer.json").write_text("{}")  # it contains the content of the other files
    assert spec("a b") == spec("b a")


def test_an_adapter_as_checkpoint_is_refused_with_the_command_that_merges_it(tmp_path: Path) -> None:
    folder, bundle = tmp_path / "adapter", tmp_path / "lines.petransfer.zip"
    folder.mkdir()
    with zipfile.ZipFile(bundle, "w") as archive:
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            (folder / name).write_text("{}")
            archive.write(folder / name, name)
    for given, named in ((bundle, bundle), (folder, folder), (folder / "adapter_model.safetensors", folder)):
        with pytest.raises(UserError, match=f"an adapter, .*`petransfer adapter merge {named} merged`"):
            checkpoint_spec(str(given))
    rows = tmp_path / "rows.csv"
    rows.write_text("input,target\n")
    with pytest.raises(UserError, match=f"if it holds your rows, .*`petransfer train MODEL {rows}`"):
        checkpoint_spec(str(rows))
