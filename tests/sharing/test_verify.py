"""`adapter verify` passes on an unchanged adapter, and reports each kind of change in a separate check."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pyarrow
import pyarrow.parquet
import pytest
import torch
from safetensors.torch import load, save

from petransfer.models.registry import NANO
from petransfer.sharing import verify
from petransfer.sharing.bundle import bundle_of_folder
from tests.sharing.conftest import call, contents, listed, refused, sealed, write

WEIGHTS = "adapter_model.safetensors"


def failures(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, str]:
    """Return the text of each failed check of `adapter verify ARGUMENTS`, by the name of the check."""
    capsys.readouterr()
    code = call("adapter", "verify", "--cpu", "--json", *arguments)
    found = {one["what"]: one["line"] for one in json.loads(capsys.readouterr().out) if not one["passed"]}
    assert code == (1 if found else 0)
    return found


def test_verify_passes_on_a_bundle_its_run_and_its_pulled_folder(
    packed: Path, run: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("adapter", "pull", str(packed), "--out", "pulled") == 0
    for source in (packed, run, here / "pulled"):
        assert failures(capsys, str(source)) == {}
    assert call("adapter", "verify", str(packed), "--cpu") == 0
    message = capsys.readouterr()
    assert "all 10 test examples have the result that is recorded in examples.parquet" in message.out
    assert "all checks of " in message.err
    assert " passed" in message.err
    claims = json.loads((run / "adapter" / "petransfer.json").read_text())["claims"]
    assert claims["test"]["exact_match"] > 0


TEXTS = (".json", ".yaml", ".md")


def test_line_ends_that_git_changed_are_accepted(
    packed: Path, run: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With autocrlf, git writes CRLF in text files. A bundle packed from such files has LF and the same records."""
    assert call("adapter", "pull", str(packed), "--out", "pulled") == 0
    shutil.copytree(run, here / "study" / "runs" / run.name)
    for path in (*(here / "pulled").iterdir(), *(here / "study").rglob("*")):
        if path.suffix in TEXTS:
            path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    for source in ("pulled", "study"):
        assert failures(capsys, source) == {}
        assert call("adapter", "verify", source, "--cpu", "--no-evaluate") == 0
        assert re.search(r"line ends are not compared \(.*adapter_config\.json.*: CRLF", capsys.readouterr().out)
        assert call("predict", source, "to walk", "--max-new-tokens", "4", "--cpu") == 0
    assert call("adapter", "pack", "pulled", "--out", "again.petransfer.zip") == 0
    again, before = contents(here / "again.petransfer.zip"), contents(packed)
    same = ("adapter_config.json", "petransfer.json", "result.json", "recipe.yaml", WEIGHTS)
    assert [again[name] for name in same] == [before[name] for name in same]

    config = here / "pulled" / "adapter_config.json"
    config.write_bytes(config.read_bytes().replace(b'"lora_dropout": 0', b'"lora_dropout":  0'))
    message = refused(capsys, "predict", "pulled", "to walk", "--cpu")
    assert all(part in message for part in ("adapter_config.json is not the file that was packed", "restore this file"))


def test_a_changed_byte_of_the_weights_fails_the_check_of_files(
    packed: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = contents(packed)
    changed = bytearray(files[WEIGHTS])
    changed[-1] ^= 1
    bundle = write(here / "changed.petransfer.zip", files | {WEIGHTS: bytes(changed)})
    found = failures(capsys, str(bundle))
    assert list(found) == ["files"]
    assert "adapter_model.safetensors is not the file that was packed: its sha256 is" in found["files"]
    assert "is refused: adapter_model.safetensors is not" in refused(capsys, "predict", str(bundle), "to walk")


def test_other_weights_with_fitting_hashes_fail_the_check_of_examples(
    packed: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = contents(packed)
    tensors = {name: -2 * value if "lora_B" in name else value for name, value in load(files[WEIGHTS]).items()}
    bundle = write(here / "forged.petransfer.zip", sealed(files | {WEIGHTS: save(tensors)}))
    found = failures(capsys, str(bundle))
    assert set(found) <= {"score", "examples"}
    assert "test examples do not have the result that is recorded in examples.parquet" in found["examples"]


def test_another_base_fails_the_check_of_the_base(packed: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = failures(capsys, str(packed), "--checkpoint", "nano/german")
    assert list(found) == ["base"]
    assert "nano/german is not the base model of the training, nano/english: model.safetensors has" in found["base"]


def test_another_tokenizer_fails_the_check_of_the_tokenizer(
    packed: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("checkpoints", "cp", "nano/english", "base") == 0
    assert failures(capsys, str(packed), "--checkpoint", "./base") == {}
    rules = json.loads((here / "base" / "tokenizer.json").read_text())
    pieces = rules["model"]["vocab"]
    first, second = list(pieces)[300:302] if isinstance(pieces, dict) else (300, 301)
    pieces[first], pieces[second] = pieces[second], pieces[first]
    (here / "base" / "tokenizer.json").write_text(json.dumps(rules))
    found = failures(capsys, str(packed), "--checkpoint", "./base")
    assert list(found) == ["tokenizer"]
    assert "the tokenizer of base has changed: its SHA-256 is now" in found["tokenizer"]


def test_a_changed_score_fails_the_checks_of_examples_and_score(
    packed: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = contents(packed)
    provenance = json.loads(files["petransfer.json"])
    true = provenance["claims"]["test"]["exact_match"]
    claimed = true - 20 if true >= 50 else true + 20
    provenance["claims"]["test"]["exact_match"] = claimed
    result = json.loads(files["result.json"])
    result["test"]["exact_match"] = claimed
    card = files["README.md"].replace(f"value: {true}".encode(), f"value: {claimed}".encode())
    changed = {"petransfer.json": json.dumps(provenance).encode(), "result.json": json.dumps(result).encode()}
    bundle = write(here / "claim.petransfer.zip", sealed(files | changed | {"README.md": card}))
    found = failures(capsys, str(bundle))
    assert list(found) == ["examples", "score"]
    recorded = (
        f"{true:.2f} % exact match on test; the recorded value is {claimed:.2f} %, a difference of 2 of 10 examples"
    )
    assert recorded in found["score"]
    plain = write(here / "plain.petransfer.zip", files | {"petransfer.json": changed["petransfer.json"]})
    assert {"files", "card", "score"} <= set(failures(capsys, str(plain)))


def test_examples_that_are_all_marked_correct_fail_the_check_of_examples(
    run: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(run, here / "runs" / run.name))
    table = pyarrow.parquet.read_table(copy / "examples.parquet")
    at = table.column_names.index("correct")
    right = table.set_column(at, "correct", pyarrow.array([True] * len(table)))
    pyarrow.parquet.write_table(right, copy / "examples.parquet")
    found = failures(capsys, str(copy), "--no-evaluate")
    assert list(found) == ["examples"]
    claim = json.loads((run / "result.json").read_text())["test"]["exact_match"]
    line = f"exact match on test is 100.00 % in examples.parquet, but {claim:.2f} % in petransfer.json"
    assert line in found["examples"]


def test_a_swapped_card_fails_the_check_of_the_card(
    packed: Path, trained: Callable[..., Path], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("adapter", "pack", str(trained("nano/english", "--seeds", "1")), "--out", "o.petransfer.zip") == 0
    files, other = contents(packed), contents(here / "o.petransfer.zip")["README.md"]
    swapped = files | {"README.md": other}
    found = failures(capsys, str(write(here / "swapped.petransfer.zip", swapped)), "--no-evaluate")
    assert list(found) == ["card"]
    forged = write(here / "forged.petransfer.zip", listed(swapped))
    found = failures(capsys, str(forged), "--no-evaluate")
    assert list(found) == ["card"]
    first = "card was swapped or changed: README.md is not the file that was packed"
    assert call("adapter", "verify", str(here / "swapped.petransfer.zip"), "--no-evaluate", "--cpu") == 1
    assert first in capsys.readouterr().out


def test_a_16_bit_base_of_an_adapter_trained_at_4_bits_fails_the_check_of_bits(
    trained: Callable[..., Path], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained("nano/english", "--bits", "4")
    assert call("adapter", "verify", str(run), "--cpu") == 0
    (moved,) = re.findall(r"differ by at most (\S+) nats", capsys.readouterr().out)
    assert float(moved) < 1e-4, "verify must compute with the same bits as training"
    found = failures(capsys, str(run), "--bits", "16")
    assert list(found) == ["bits"]
    assert "the base model has 16 bits (100 % bfloat16); in training it had 4 bits" in found["bits"]
    assert "nf4" in found["bits"]
    files = run / "adapter" / "petransfer.json"
    wide = json.loads(files.read_text())
    wide["base"]["bytes"] = {"bfloat16": 1}
    shutil.copytree(run, here / "run")
    (here / "run" / "adapter" / "petransfer.json").write_text(json.dumps(wide))
    assert list(failures(capsys, str(here / "run"), "--no-evaluate")) == ["bits"]


COMMITS = ("a" * 40, "b" * 40)


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache with two commits of `me/tiny`. The first commit is main."""
    from transformers import AutoModelForSeq2SeqLM

    repository = tmp_path / "hub" / "models--me--tiny"
    for at, commit in enumerate(COMMITS):
        folder = repository / "snapshots" / commit
        shutil.copytree(NANO / "english", folder)
        shutil.copytree(NANO / "tokenizer", folder, dirs_exist_ok=True)
        (folder / "pretraining.json").unlink()
        if at:
            model = AutoModelForSeq2SeqLM.from_pretrained(folder)
            model.get_input_embeddings().weight.data += 0.1 * torch.ones(1)
            model.save_pretrained(folder)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMITS[0])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return repository


def test_another_revision_fails_the_checks_of_revision_and_base(
    hub_cache: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--steps", "6", "--cpu", "--test", "10", "--out", "study")
    assert call("train", "me/tiny", "pairs.tsv", *options) == 0
    (run,) = (here / "study" / "runs").iterdir()
    assert json.loads((run / "adapter" / "adapter_config.json").read_text())["revision"] == COMMITS[0]
    assert call("adapter", "pack", str(run), "--out", "a.petransfer.zip") == 0
    assert f'revision="{COMMITS[0]}"' in contents(here / "a.petransfer.zip")["README.md"].decode()
    (hub_cache / "refs" / "main").write_text(COMMITS[1])
    assert failures(capsys, "a.petransfer.zip") == {}, "the commit of the training must be used"
    found = failures(capsys, "a.petransfer.zip", "--revision", COMMITS[1])
    assert list(found) == ["revision", "base"]
    assert found["revision"] == f"me/tiny is at commit {'b' * 12}; the adapter was trained at {'a' * 12}"
    ask = ("predict", "a.petransfer.zip", "to walk", "--max-new-tokens", "2")
    assert "me/tiny is at commit bbbbbbbbbbbb" in refused(capsys, *ask, "--checkpoint", "me/tiny@main")
    assert call(*ask, "--revision", COMMITS[1]) == 0
    assert call(*ask) == 0


def test_adapters_of_other_programs_and_missing_data_are_refused(
    packed: Path, here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = contents(packed)
    plain = {name: files[name] for name in ("adapter_config.json", WEIGHTS)}
    foreign = write(here / "foreign.petransfer.zip", plain)
    assert "was not made by petransfer" in refused(capsys, "adapter", "verify", str(foreign))
    for verb in ("pack", "card"):
        message = refused(capsys, "adapter", verb, str(foreign))
        assert "was not made by petransfer, so there are no records to" in message
        assert "`hf upload USER/NAME foreign.petransfer.zip`" in message
    (here / "pairs.tsv").unlink()
    assert "pairs.tsv" in refused(capsys, "adapter", "verify", str(packed), "--cpu")
    assert failures(capsys, str(packed), "--no-evaluate") == {}


def test_another_readme_is_accepted_and_another_adapter_s_card_fails(
    run: Path, packed: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run / "adapter", here / "mine")
    (here / "mine" / "README.md").write_text("## My notes\nIt works.\n", encoding="utf-8")
    asked = ("adapter", "verify", "mine", "--cpu", "--no-evaluate")
    assert call(*asked) == 0
    message = capsys.readouterr().out
    assert "README.md is not a card of petransfer" in message
    assert "petransfer adapter card mine" in message
    card = contents(packed)["README.md"].decode()
    sha = json.loads((run / "adapter" / "petransfer.json").read_text())["files"][WEIGHTS]
    assert sha in card
    (here / "mine" / "README.md").write_text(card.replace(sha, "0" * 64), encoding="utf-8")
    (line,) = failures(capsys, "mine", "--no-evaluate").values()
    assert "README.md does not contain the SHA-256 of these weights" in line
    assert "petransfer adapter card mine" in line


def test_recorded_sizes_of_the_base_that_include_the_adapter_are_accepted(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = bundle_of_folder(run / "adapter")
    base = SimpleNamespace(bits=bundle.spec.method.bits)
    loaded = SimpleNamespace(model=None)
    monkeypatch.setattr(verify, "inventory", lambda model: SimpleNamespace(bytes={"bfloat16": 1_000_000}))
    for own, passes in ((400, True), (900_000, False)):
        kept = {"bfloat16": 1_000_000, "float32": own}
        assert verify._width(kept, base, loaded, bundle).passed is passes
    assert not verify._width({"nf4": 1_000_000, "float32": 400}, base, loaded, bundle).passed
