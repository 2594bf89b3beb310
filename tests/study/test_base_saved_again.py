"""A base that is saved again with equivalent content keeps its runs. A changed base has new runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from petransfer.atomic_files import write_text
from petransfer.errors import UserError
from petransfer.models.base_record import BASE_RECORD, base_record
from petransfer.models.checkpoint_files import load_tokenizer
from petransfer.recipe.loading import recipe_yaml, validate
from petransfer.recipe.schema import Recipe
from petransfer.sharing.run_folders import run_folder
from petransfer.study.grid import Cell
from petransfer.study.recorded_bases import cells_of
from petransfer.study.study import grid_of
from petransfer.study.train_folder import choose_folder
from tests.chat_models import chat_llama


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = chat_llama(tmp_path_factory.mktemp("saved") / "base")
    (folder / "generation_config.json").write_text('{"transformers_version": "4.1"}')
    return folder


@pytest.fixture
def base(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "base")


def recipe_for(base: Path) -> Recipe:
    content = {
        "name": "again",
        "task": {"name": "scan", "splits": ["simple"]},
        "family": {"name": "mine", "arms": {"base": str(base)}},
        "arms": ["base"],
        "methods": [{"name": "lora", "rank": 4, "bits": 32}],
        "train": {"steps": 10, "learning_rate": 0.1},
    }
    return validate(content, "here")


def begin(recipe: Recipe, study: Path, recorded: bool = True) -> Cell:
    """Write the files of an interrupted run."""
    (cell,) = grid_of(recipe, study).cells
    tokenizer = load_tokenizer(cell.spec.checkpoint)
    record = base_record(cell.spec, tokenizer) if recorded else {}
    folder = study / "runs" / cell.run_id
    folder.mkdir(parents=True)
    write_text(folder / "spec.json", json.dumps(cell.spec.as_dict() | record))
    write_text(study / "recipe.yaml", recipe_yaml(recipe))
    return cell


def edit(name: str, indent: int | None = None, **values: object) -> Callable[[Path], None]:
    def change(base: Path) -> None:
        path = base / name
        content = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(content | values, indent=indent))

    return change


def resave(base: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer("a", max_length=5, truncation=True)  # changes the truncation settings in tokenizer.json
    tokenizer.save_pretrained(base)


EQUAL = {
    "other indentation": edit("tokenizer_config.json", indent=7),
    "padding side": edit("tokenizer_config.json", padding_side="left", model_max_length=77),
    "other chat template, without chats": lambda base: (base / "chat_template.jinja").write_text("{{ messages }}"),
    "saved by transformers": resave,
    "a field of the tokenizer's class": edit("tokenizer_config.json", anything="else"),
    "version in config.json": edit("config.json", transformers_version="9"),
    "a file of the trainer": edit("trainer_state.json", epoch=3),
    "a list of packages": lambda base: (base / "requirements.txt").write_text("peft"),
}


@pytest.mark.parametrize("change", EQUAL.values(), ids=EQUAL)
def test_a_base_saved_again_keeps_its_runs(
    change: Callable[[Path], object], base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe, study = recipe_for(base), tmp_path / "study"
    begun = begin(recipe, study)
    change(base)
    assert [cell.run_id for cell in grid_of(recipe, study).cells] == [begun.run_id]
    assert choose_folder(recipe, study) == (study, "")
    assert not caplog.text


OTHER = {
    "dropout": (edit("config.json", attention_dropout=0.1), "config.json"),
    "decoding": (edit("generation_config.json", forced_bos_token_id=3), "generation_config.json"),
    "weights": (lambda base: (base / "model.safetensors").write_bytes(b"other"), "model.safetensors"),
    "tokens": (edit("tokenizer_config.json", unk_token="<|im_end|>"), "tokenizer_config.json"),
    "no tokenizer": (lambda base: (base / "tokenizer.json").write_text("{"), "tokenizer.json"),
}


@pytest.mark.parametrize(("change", "file"), OTHER.values(), ids=OTHER)
def test_a_changed_base_has_new_runs_and_is_reported(
    change: Callable[[Path], object], file: str, base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe, study = recipe_for(base), tmp_path / "study"
    begun = begin(recipe, study)
    change(base)
    assert [cell.run_id for cell in grid_of(recipe, study).cells] != [begun.run_id]
    assert f"runs of base before its {file} changed; these runs do not count in this study" in caplog.text
    with pytest.raises(
        UserError, match=f"holds a training run with the base base before its {file} changed; use --out"
    ):
        choose_folder(recipe, study)


def test_two_bases_with_the_same_folder_name_have_separate_runs(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """For example the folders one/checkpoint-500 and two/checkpoint-500."""
    recipe, study = recipe_for(base), tmp_path / "study"
    begun = begin(recipe, study)
    other = shutil.copytree(base, tmp_path / "two" / "base")
    edit("tokenizer_config.json", indent=7)(other)
    content = recipe.model_dump() | {"arms": ["base", "two"]}
    content["family"] = {"name": "mine", "arms": {"base": str(base), "two": str(other)}}
    ids = [cell.run_id for cell in grid_of(validate(content, "here"), study).cells]
    assert begun.run_id in ids
    assert len(set(ids)) == 2
    assert not caplog.text
    shutil.rmtree(base)  # as if the base was moved to the other folder and its tokenizer was saved again
    content |= {"arms": ["two"], "family": {"name": "mine", "arms": {"two": str(other)}}}
    assert [cell.run_id for cell in grid_of(validate(content, "here"), study).cells] == [begun.run_id]


def test_an_arm_keeps_its_runs_if_its_tokenizer_is_saved_again(base: Path, tmp_path: Path) -> None:
    tokens, study = shutil.copytree(base, tmp_path / "tokens"), tmp_path / "study"
    content = recipe_for(base).model_dump()
    ids = []
    # a base from a folder, and a base that is shipped with petransfer
    bases = (("own", str(base), "<|im_end|>"), ("nano", "nano/english", "<|end|>"))
    for name, arm, other in bases:
        content["family"]["arms"]["base"] = {"checkpoint": arm, "tokenizer": str(tokens), "reinit": "all"}
        recipe = validate(content, "here")
        begun = begin(recipe, study / name)
        resave(tokens)
        edit("tokenizer_config.json", indent=7)(tokens)
        ids.append((begun.run_id, [cell.run_id for cell in grid_of(recipe, study / name).cells]))
        edit("tokenizer_config.json", unk_token=other)(tokens)
        assert [cell.run_id for cell in grid_of(recipe, study / name).cells] != [begun.run_id]
    assert [found for _, found in ids] == [[begun] for begun, _ in ids]


def test_runs_without_a_base_record_are_reported_after_the_base_changed(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # older versions did not record the base
    recipe, study = recipe_for(base), tmp_path / "study"
    begin(recipe, study, recorded=False)
    assert cells_of(recipe, grid_of(recipe, study).folder)[1] == grid_of(recipe, study).cells
    assert not caplog.text
    edit("tokenizer_config.json", indent=7)(base)
    grid_of(recipe, study)
    assert "runs of base before its files changed" in caplog.text


def test_a_base_is_recorded_only_if_it_is_a_folder(base: Path, tmp_path: Path) -> None:
    cell = begin(recipe_for(base), tmp_path / "study")
    (path,) = (tmp_path / "study" / "runs").glob("*/spec.json")
    files = json.loads(path.read_text())[BASE_RECORD]["files"]
    assert "generation_config.json" not in files  # none of its values is used
    assert {"config.json", "tokenizer.json", "model.safetensors"} <= files.keys()
    tokenizer = AutoTokenizer.from_pretrained(base)
    shipped = validate(recipe_for(base).model_dump() | {"family": "nano", "arms": ["english"]}, "here")
    assert base_record(grid_of(shipped, tmp_path / "other").cells[0].spec, tokenizer) == {}
    assert path.parent.name == cell.run_id


def test_the_error_for_several_finished_runs_names_the_weights_of_each(base: Path, tmp_path: Path) -> None:
    recipe, study = recipe_for(base), tmp_path / "study"
    runs = [begin(recipe, study)]
    (base / "model.safetensors").write_bytes(b"other")
    runs.append(begin(recipe, study))
    for cell in runs:
        (study / "runs" / cell.run_id / "adapter").mkdir()
        (study / "runs" / cell.run_id / "DONE").touch()
    with pytest.raises(
        UserError, match=r"holds 2 finished runs; name the folder of one, such as .*/runs/.*, or give --run ID"
    ) as refusal:
        run_folder(study)
    for cell in runs:
        assert f"{cell.run_id} (base, lora, seed 0, weights {cell.spec.checkpoint.weights[:8]})" in str(refusal.value)
