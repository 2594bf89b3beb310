"""A mistake of the user at the command line leads to exit code 2 and to one line with the error.

The line names the mistake, its place, and a correction. Most mistakes are found before any file is
written.
"""

from __future__ import annotations

import errno
import functools
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import petransfer.cli
from petransfer.cli import main
from petransfer.cli.adapter import _card_options
from petransfer.cli.input_files import refuse_other_files
from petransfer.cli.text import input_lines
from petransfer.cli.train_output import _argument
from petransfer.data.encoding import Layout, encode_targets
from petransfer.errors import UserError
from petransfer.recipe.loading import find_recipe
from tests.cli import calls

Refused = Callable[..., str]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder for each test. The hub is offline."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return work


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refused:
    """A function that runs a command, checks for exit code 2 and one error line, and returns this line."""

    return functools.partial(calls.refused, monkeypatch, capsys)


@pytest.fixture
def refused_at_once(refused: Refused, elsewhere: Path) -> Refused:
    """Like `refused`, but the function also checks that no file was changed."""

    def call(*arguments: str) -> str:
        before = contents(elsewhere)
        message = refused(*arguments)
        assert contents(elsewhere) == before
        return message

    return call


def contents(folder: Path) -> dict[str, bytes | None]:
    """Return the path of everything below `folder`, with the bytes of each file and None for each folder."""
    found = sorted(folder.rglob("*"))
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in found}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-r", "lora-scn"], ["unknown recipe 'lora-scn'", "did you mean 'lora-scan'?"]),
        (["-r", "none.yaml"], ["no recipe file none.yaml", "petransfer recipes ls"]),
        (["--set", "train.stesp=3"], ["unknown key 'train.stesp'", "did you mean 'steps'?"]),
        (["--set", "methods.0.rnak=3"], ["unknown key 'methods.0.rnak'", "did you mean 'rank'?"]),
        (["--set", "tsk={}"], ["unknown key 'tsk'", "did you mean 'task'?"]),
        (["--arms", "english,scrach"], ["unknown arm of family nano 'scrach'", "did you mean 'scratch'?"]),
        (["--arms", "english,"], ["arms.1", "a name is empty"]),
        (["--set", "task.splits=[add_jmp]"], ["unknown split of scan 'add_jmp'", "did you mean 'add_jump'?"]),
        (["--set", "task.name=scam"], ["unknown task 'scam'", "did you mean 'scan'?"]),
        (["--set", "task.options.dev_siz=3"], ["unknown option of task scan 'dev_siz'", "did you mean 'dev_size'?"]),
        (["--set", "task.options.data_dir=x"], ["data_dir is not an option of the task scan", "`data_dir: FOLDER`"]),
        (["--set", "task.options.name=x"], ["unknown option of task scan 'name'", "known: dev_size"]),
        (["--family", "nanno"], ["unknown family 'nanno'", "did you mean 'nano'?"]),
        (["--set", "methods.0.name=lorra"], ["unknown method 'lorra'", "did you mean 'lora'?"]),
        (["--set", "effects=[english-scrach]"], ["'english-scrach' is not a contrast", "english, scratch"]),
        (["--set", "name=mon étude"], ["name: this is also the name of a folder; write only", "(it is 'mon étude')"]),
        (
            ["--set", "effects=[{kind: nope, of: english-scratch}]"],
            ["unknown kind of effect 'nope'", "contrast, retention, scale"],
        ),
    ],
)
@pytest.mark.parametrize("verb", ["run", "plan"])
def test_unknown_names_are_refused(
    refused_at_once: Refused, verb: str, arguments: list[str], message: list[str]
) -> None:
    error = refused_at_once(verb, "-r", "smoke", *arguments)
    for part in message:
        assert part in error


@pytest.mark.parametrize(
    ("option", "ours"),
    [("--lora_r", "--rank"), ("--per_device_train_batch_size", "--batch-size"), ("--output_dir", "--out"),
     ("--num_train_epochs", "--epochs"), ("--seed", "--seeds"), ("--learning_rate", "--learning-rate"),
     ("--target-modules", "--set methods.0.targets=VALUE"), ("--lora_alpha", "--set methods.0.alpha=VALUE"),
     ("--warmup_ratio", "--set train.warmup=VALUE"), ("--optimizer", "--set train.optimizer=VALUE")],
)  # fmt: skip
def test_an_option_of_another_program_gets_a_hint_to_the_equivalent_option(
    refused_at_once: Refused, option: str, ours: str
) -> None:
    message = refused_at_once("train", "nano/english", "rows.csv", option, "1")
    assert f"No such option: {option} (Possible options: {ours}); see `petransfer train --help`" in message


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.steps=many", ["train.steps", "whole number", "'many'"]),
        ("train.steps=0", ["train.steps", "greater than or equal to 1", "0"]),
        ("train.steps=2.5", ["train.steps", "whole number", "2.5"]),
        ("train.steps=true", ["train.steps", "give a number"]),
        ("train.steps=", ["train:", "give either steps or epochs"]),
        ("train.learning_rate=fast", ["train.learning_rate:", "number", "'fast'"]),
        ("train.learning_rate=20", ["train.learning_rate:", "less than 10", "20"]),
        ("train.learning_rate={lora: -1, full: 1}", ["train.learning_rate.lora:", "greater than 0", "-1"]),
        ("train.learning_rate={full: 1}", ["no learning rate for method lora (arm english)", "add lora: 1e-3"]),
        ("train.warmup=1", ["train.warmup", "less than 1"]),
        ("train.weight_decay=nan", ["train.weight_decay", "nan"]),
        ("train.schedule=linea", ["train.schedule", "'linear', 'cosine' or 'constant'", "'linea'"]),
        ("methods.0.bits=12", ["methods.0.bits", "4, 8, 16 or 32", "12"]),
        ("methods.0.rank=0", ["methods.0.rank", "greater than or equal to 1"]),
        ("methods=lora", ["methods:", "list", "'lora'"]),
        ("methods=[]", ["methods:", "at least 1 item"]),
        ("methods=[{name: full, bits: 4}]", ["methods.0:", "cannot train 4-bit", "use 16 or 32 bits, or lora"]),
        ("seeds=[-1]", ["seeds.0", "greater than or equal to 0", "-1"]),
        ("name=../x", ["name:", "'../x'"]),
        ("task.options.dev_size=-3", ["dev_size of scan is -3", "whole number from 1 to 4,000"]),
        ("family={name: mine, arms: {english: a b}}", ["'a b' is neither a folder nor a hub id", "owner/name"]),
        ("family={name: mine, arms: {english: ./none}}", ["there is no folder none", "put the checkpoint back"]),
        ("family={name: mine, arm: {}}", ["family"]),
    ],
)
def test_values_of_the_wrong_type_or_out_of_range_are_refused(
    refused_at_once: Refused, override: str, message: list[str]
) -> None:
    error = refused_at_once("run", "-r", "smoke", "--set", override)
    for part in message:
        assert part in error


@pytest.mark.parametrize("seeds", ["a", "1,,2", "-1", "3-1", "1.5"])
def test_invalid_seeds_are_refused(refused_at_once: Refused, seeds: str) -> None:
    assert "write whole numbers such as 0,1,2 or 0-5" in refused_at_once("run", "-r", "smoke", f"--seeds={seeds}")


@pytest.mark.parametrize("override", ["train.fp16=true", "methods.0.bits=fp16", "fp16=true", "methods.0.bits=float16"])
def test_fp16_is_refused_with_the_reason(refused_at_once: Refused, override: str) -> None:
    error = refused_at_once("run", "-r", "smoke", "--set", override)
    assert "fp16 overflows" in error
    assert "use bits: 16 (bf16) or bits: 32" in error


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name: [1", "is not YAML"),
        (b"name: \x00", "is not YAML"),
        (b"name: '\xff'", "is not UTF-8 at byte 8; save it as UTF-8"),
        ("name: mine\n".encode("utf-16"), "is not UTF-8 at byte 1"),
        (b"train:\n\tsteps: 1\n", "line 2, column 1; indent with spaces instead of tabs"),
        (b"", "is empty; `petransfer recipes cp lora-scan my.yaml`"),
        (b"# only a comment\n", "is empty"),
        (b"- a\n- b\n", "is not a mapping of keys to values"),
        (b"just text\n", "is not a mapping of keys to values"),
        (b"name: mine\n", "task: this key is missing; write, for example, task: {name: lines"),
    ],
)
def test_a_file_that_is_not_a_recipe_is_refused(
    refused_at_once: Refused, elsewhere: Path, content: bytes, message: str
) -> None:
    (elsewhere / "mine.yaml").write_bytes(content)
    error = refused_at_once("run", "-r", "mine.yaml")
    assert "mine.yaml" in error
    assert message in error


def test_a_folder_given_as_a_recipe_is_refused(refused_at_once: Refused, elsewhere: Path) -> None:
    (elsewhere / "recipes").mkdir()
    error = refused_at_once("run", "-r", "recipes")
    assert "recipes is a folder; name a YAML file in it" in error
    assert "lora-scan" in error


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.steps", "write it as key=value, for example train.steps=500"),
        ("=5", "write it as key=value"),
        ("train.steps=[1", "the value is not YAML"),
        ("methods.4.rank=1", "there is no methods.4 in the recipe"),
        ("name.a.b=1", "there is no name.a in the recipe"),
    ],
)
def test_a_malformed_set_option_is_refused(refused_at_once: Refused, override: str, message: str) -> None:
    error = refused_at_once("run", "-r", "smoke", "--set", override)
    assert f"--set {override.partition('=')[0]}" in error
    assert message in error


def run_of(checkpoint: str | Path) -> list[str]:
    """Return the arguments of a command that trains LoRA on one checkpoint."""
    family = json.dumps({"name": "mine", "arms": {"english": str(checkpoint)}})
    sets = [f"family={family}", "arms=[english]", "effects=[]"]
    return ["run", "-r", "smoke", "--cpu", "--out", "study", *[part for value in sets for part in ("--set", value)]]


def test_a_hub_id_without_network_access_is_refused(refused: Refused, elsewhere: Path) -> None:
    error = refused(*run_of("some-owner/some-model"))
    assert "some-owner/some-model" in error
    assert "the hub cannot be reached" in error
    assert "name a folder" in error
    assert not (elsewhere / "study").exists()


def test_a_local_folder_without_weights_is_refused(refused: Refused, elsewhere: Path, tiny_t5: Path) -> None:
    folder = shutil.copytree(tiny_t5, elsewhere / "mine")
    (folder / "model.safetensors").unlink()
    error = refused(*run_of("./mine"))
    assert str(folder) in error
    assert "model.safetensors" in error
    assert "name a folder that save_pretrained wrote" in error
    assert not (elsewhere / "study").exists()


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_local_folder_with_truncated_weights_is_refused(
    refused: Refused, elsewhere: Path, tiny_t5: Path, share: float
) -> None:
    folder = shutil.copytree(tiny_t5, elsewhere / "mine")
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: int(share * len(weights))])
    error = refused(*run_of("./mine"))
    assert f"{folder}/model.safetensors is damaged" in error
    assert "get this file of the checkpoint again" in error
    assert not (elsewhere / "study").exists()


def test_a_missing_data_folder_is_reported_before_any_file_is_written(refused: Refused, elsewhere: Path) -> None:
    error = refused("run", "smoke", "--cpu", "--data-dir", "nowhere")
    assert error == f"error: the data folder {elsewhere}/nowhere does not exist: correct or leave out --data-dir"
    assert list(elsewhere.iterdir()) == []


def test_a_missing_tensor_is_reported_before_any_file_is_written(
    refused: Refused, elsewhere: Path, tiny_t5: Path
) -> None:
    folder = shutil.copytree(tiny_t5, elsewhere / "mine")
    weights = load_file(folder / "model.safetensors")
    del weights["encoder.final_layer_norm.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    for arguments in (run_of("./mine"), ("train", "mine", "gone.tsv", "--cpu"), ("fit", "mine", "--bits", "32")):
        text = refused(*arguments)
        assert all(part in text for part in ("mine lack encoder.final_layer_norm.weight", "get the checkpoint again"))
    assert "mine lack encoder.final_layer_norm.weight" in refused("predict", "mine", "to walk", "--cpu")
    assert [path.name for path in elsewhere.iterdir()] == ["mine"], "a refused command must not write files"


def test_a_missing_tensor_found_during_loading_leaves_only_the_failure_file(
    refused: Refused, elsewhere: Path, tiny_t5: Path, tiny_rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check before the run is switched off. The folder of the failed run must not look interrupted."""
    monkeypatch.setattr("petransfer.models.complete_weights.refuse_missing_tensors", lambda checkpoint: None)
    folder = shutil.copytree(tiny_t5, elsewhere / "mine")
    few_rows = f"task={{name: lines, options: {{train: {tiny_rows}}}}}"
    weights = load_file(folder / "model.safetensors")
    for name in ("encoder.final_layer_norm.weight", "decoder.final_layer_norm.weight"):
        del weights[name]
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        assert "final_layer_norm.weight" in refused(*run_of("./mine"), "--set", few_rows, begun=True)
    study = elsewhere / "study"
    runs = list((study / "runs").iterdir())
    assert len(runs) == 2, "a changed checkpoint must give another run"
    for run in runs:
        assert {path.name for path in run.iterdir()} == {".claim", "failed.json"}
        assert json.loads((run / "failed.json").read_text())["kind"] == "mistake"
    assert {path.name for path in study.iterdir()} <= {".lock", "recipe.yaml", "runs", "table.csv"}


@pytest.mark.parametrize("verb", [("run",), ("plan",), ("sweep", "--plan")])
@pytest.mark.parametrize("out", ["taken", "taken/below", "/proc/none"])
def test_an_unwritable_output_folder_is_refused(
    refused_at_once: Refused, elsewhere: Path, verb: tuple[str, ...], out: str
) -> None:
    (elsewhere / "taken").write_text("a file")
    error = refused_at_once(*verb, "-r", "smoke", "--out", out)
    assert f"{out} cannot be written to" in error
    assert "--out" in error
    assert [path.name for path in elsewhere.iterdir()] == ["taken"]


def test_train_plan_refuses_an_output_folder_that_is_a_file(refused: Refused, elsewhere: Path) -> None:
    (elsewhere / "taken").write_text("a file")
    (elsewhere / "d.tsv").write_text("".join(f"a {at}\tb {at}\n" for at in range(20)))
    assert "taken cannot be written to" in refused(
        "train", "nano/english", "d.tsv", "--plan", "--cpu", "--out", "taken"
    )


def test_the_output_folder_of_another_recipe_is_refused(refused_at_once: Refused, elsewhere: Path) -> None:
    (elsewhere / "study").mkdir()
    (elsewhere / "study" / "recipe.yaml").write_text("name: other\n")
    error = refused_at_once("plan", "-r", "smoke", "--out", "study")
    assert error == refused_at_once("run", "-r", "smoke", "--out", "study")
    assert "study belongs to the recipe 'other', not 'smoke'" in error
    assert "--out" in error


@pytest.mark.parametrize("content", [b"", b"[1", b"\xff", b"- a"])
def test_an_output_folder_with_a_damaged_recipe_is_refused(
    refused_at_once: Refused, elsewhere: Path, content: bytes
) -> None:
    (elsewhere / "study").mkdir()
    (elsewhere / "study" / "recipe.yaml").write_bytes(content)
    assert "cannot be read as a recipe" in refused_at_once("run", "-r", "smoke", "--out", "study")
    assert "recipe.yaml" in refused_at_once("status", "study")


def test_an_output_folder_with_other_files_is_refused(refused_at_once: Refused, elsewhere: Path) -> None:
    (elsewhere / "study").mkdir()
    (elsewhere / "study" / "thesis.tex").write_text("precious")
    error = refused_at_once("plan", "-r", "smoke", "--out", "study")
    assert error == refused_at_once("run", "-r", "smoke", "--out", "study")
    assert "study holds thesis.tex and no recipe.yaml" in error
    assert "--out" in error


def test_predict_refuses_a_folder_without_a_finished_run(refused_at_once: Refused, elsewhere: Path) -> None:
    (elsewhere / "runs").mkdir()
    for folder in ("runs", "none"):
        error = refused_at_once("predict", folder, "jump twice")
        assert f"{folder} holds no finished adapter or model; name the folder of a training run, such as" in error


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_input_files_are_read_in_utf_8_utf_16_and_utf_32(elsewhere: Path, encoding: str, end: str) -> None:
    lines = ["walk twice", "", "größer \u010a\u0a0a\u2028 \U0001f44d", "  jump\u0085", "last"]
    for last in ("", end):
        text = end.join(lines) + last
        if encoding in ("utf-32", "utf-32-be"):
            text = "\ufeff" * (encoding == "utf-32-be") + text
        (elsewhere / "inputs.txt").write_bytes(text.encode(encoding))
        assert list(input_lines(elsewhere / "inputs.txt")) == lines
        refuse_other_files(elsewhere / "inputs.txt", [None])


def test_utf_16_tables_and_truncated_utf_16_texts_are_refused_as_inputs(elsewhere: Path) -> None:
    (elsewhere / "t.csv").write_bytes("input,target\na,b\n".encode("utf-16"))
    with pytest.raises(UserError, match="holds a table with the columns 'input', 'target'"):
        refuse_other_files(elsewhere / "t.csv", [None])
    (elsewhere / "cut.txt").write_bytes("walk\njump".encode("utf-16")[:-1])
    with pytest.raises(UserError, match=r"cut\.txt is not UTF-16 at line 2"):
        list(input_lines(elsewhere / "cut.txt"))


def test_input_lines_refuses_invalid_utf_8_missing_files_and_endless_lines(elsewhere: Path) -> None:
    (elsewhere / "inputs.txt").write_bytes(b"jump\n\xff\n")
    with pytest.raises(UserError, match="not UTF-8 at line 2, byte 1"):
        list(input_lines(elsewhere / "inputs.txt"))
    with pytest.raises(UserError, match=r"none\.txt cannot be read"):
        list(input_lines(elsewhere / "none.txt"))
    with pytest.raises(UserError, match=r"line 1 of /dev/zero has more than 16,000,000 bytes; give one input per line"):
        list(input_lines(Path("/dev/zero")))


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "~nobody-here/x", "d.tsv"),
        ("train", "nano/english", "~nobody-here/x"),
        ("train", "nano/english", "d.tsv", "--dev", "~nobody-here/x"),
        ("run", "~nobody-here/x"),
        ("predict", "~nobody-here/x", "text"),
        ("adapter", "info", "~nobody-here/x"),
        ("fit", "~nobody-here/x"),
    ],
)
def test_a_path_in_the_home_folder_of_an_unknown_user_is_refused(
    refused: Refused, elsewhere: Path, arguments: tuple[str, ...]
) -> None:
    (elsewhere / "d.tsv").write_text("".join(f"a {at}\tb {at}\n" for at in range(20)))
    assert "there is no home folder for ~nobody-here; write the whole path" in refused(*arguments)


def test_a_path_that_begins_with_a_hyphen_is_printed_with_a_leading_dot() -> None:
    assert _argument(Path("-x/runs/a b")) == "'./-x/runs/a b'"
    assert _argument(Path("results/x")) == "results/x"


def test_status_and_report_refuse_a_path_that_is_not_a_study(refused_at_once: Refused, elsewhere: Path) -> None:
    (elsewhere / "folder").mkdir()
    (elsewhere / "study" / "runs").mkdir(parents=True)
    (elsewhere / "study" / "recipe.yaml").touch()
    for verb in ("status", "report"):
        assert "study/recipe.yaml is a file, not the folder" in refused_at_once(verb, "study/recipe.yaml")
        assert "study/recipe.yaml is empty; restore it" in refused_at_once(verb, "study")
        assert "name one, here study" in refused_at_once(verb, "study/runs")
        assert "folder has no recipe.yaml" in refused_at_once(verb, "folder")
        assert "there is no folder none; name the folder of a run" in refused_at_once(verb, "none")


def test_copying_a_recipe_does_not_overwrite_a_file(refused_at_once: Refused, elsewhere: Path) -> None:
    (elsewhere / "mine.yaml").write_text("precious")
    assert "mine.yaml exists; name another file" in refused_at_once("recipes", "cp", "smoke", "mine.yaml")
    assert "none/mine.yaml cannot be written" in refused_at_once("recipes", "cp", "smoke", "none/mine.yaml")


def test_a_failed_copy_leaves_no_files(
    refused_at_once: Refused, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (elsewhere / "wrong.yaml").write_text("name: wrong")
    assert "this key is missing" in refused_at_once("recipes", "cp", "wrong.yaml", "mine.yaml")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", lambda *places: (_ for _ in ()).throw(OSError(errno.ENOSPC, "disk full")))
        assert "disk full" in refused_at_once("checkpoints", "cp", "nano/english", "base")


def test_debug_adds_the_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["petransfer", "plan", "-r", "smok", "--debug"])
    with pytest.raises(SystemExit, match="2"):
        main()
    written = capsys.readouterr().err
    assert written.startswith("Traceback")
    assert written.splitlines()[-1].startswith("error: unknown recipe 'smok'")


LAYOUT = Layout(encoder_decoder=True, pad_id=0, eos_id=1)


def word_level(*words: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per word. Decoding joins the words with a blank."""
    pieces = {piece: place for place, piece in enumerate(("<pad>", "</s>", "<unk>", *words))}
    tokenizer = Tokenizer(models.WordLevel(pieces, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def test_targets_that_decoding_reproduces_are_encoded() -> None:
    assert encode_targets(["jump walk", "walk"], word_level("jump", "walk"), LAYOUT) == [(3, 4, 1), (4, 1)]


@pytest.mark.parametrize(
    ("target", "lost"),
    [("jump {run}", ["'{'", "'}'"]), ("jump <unk>", []), ("jump  walk", [])],
)
def test_targets_that_decoding_does_not_reproduce_are_refused(target: str, lost: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        encode_targets(["jump walk", target], word_level("jump", "walk"), LAYOUT)
    error = str(caught.value)
    assert f"cannot reproduce the target {target!r}" in error
    assert "use a checkpoint whose tokenizer has these characters" in error
    assert "\n" not in error
    for sign in lost:
        assert sign in error


def test_predict_reports_a_damaged_provenance_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "petransfer.json").write_text('{"spec": {')
    monkeypatch.setattr(sys, "argv", ["petransfer", "predict", str(tmp_path), "jump"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert "petransfer.json is damaged" in capsys.readouterr().err


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EIO, errno.ESTALE, errno.EXDEV])
def test_an_error_of_the_file_system_gives_one_error_line(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), "there/file")

    with pytest.raises(SystemExit) as stop:
        petransfer.cli.call(fail, [])
    assert stop.value.code == 2
    written = capsys.readouterr().err
    assert written == f"error: there/file cannot be used ({os.strerror(number)}); use another folder or file\n"


def test_a_recipe_in_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "recipe.yaml")
    with pytest.raises(UserError, match=r"recipe\.yaml is a pipe or a device; save the recipe in a file"):
        find_recipe(str(tmp_path / "recipe.yaml"))


def test_too_many_open_files_give_the_advice_to_raise_the_limit(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), "file")

    with pytest.raises(SystemExit) as stop:
        petransfer.cli.call(fail, [])
    assert stop.value.code == 2
    assert "`ulimit -n 4096`" in capsys.readouterr().err


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA out of memory. Tried to allocate 20 MiB")])
def test_running_out_of_memory_gives_one_error_line(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    import torch  # noqa: F401 - without torch, a RuntimeError is never treated as a lack of memory

    def fail(*_: object, **__: object) -> None:
        raise error

    with pytest.raises(SystemExit) as stop:
        petransfer.cli.call(fail, [])
    assert stop.value.code == 1
    written = capsys.readouterr().err
    assert written.startswith("error: out of memory; ")
    assert written.count("\n") == 1


def test_other_system_errors_are_not_hidden() -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ECHILD, "No child processes")

    with pytest.raises(OSError, match="No child processes"):
        petransfer.cli.call(fail, [])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--language", "en,,de"), "--language: '' is no language code"),
        (("--language", "English text"), "--language: 'English text' is no language code"),
        (("--licence", "mit\nor not"), "is no licence's identifier"),
        (("--licence", "a" * 200), "is no licence's identifier"),
    ],
)
def test_languages_and_licences_of_a_model_card_are_checked(options: tuple[str, str], message: str) -> None:
    named = dict(zip(options[::2], options[1::2], strict=True))
    with pytest.raises(UserError, match=message):
        _card_options(named.get("--licence"), named.get("--language"), None)


def test_blanks_between_the_languages_of_a_model_card_are_allowed() -> None:
    assert _card_options("cc-by-4.0", "en, pt-BR", None).language == ("en", "pt-BR")
