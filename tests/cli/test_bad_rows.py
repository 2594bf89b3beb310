"""Unusable rows and wrong settings of `train` give exit code 2 and one error line before any file is written."""

from __future__ import annotations

import json
import re
import shlex
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from petransfer import fit
from petransfer.cli import main
from petransfer.errors import UserError
from tests.cli import calls

Refused = Callable[..., str]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PETRANSFER_CACHE", str(tmp_path / "cache"))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return work


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], elsewhere: Path) -> Refused:
    """A function that runs `train ARGUMENTS`, checks for one error line and no new file, and returns the line."""

    def call(*arguments: str) -> str:
        before = sorted(elsewhere.rglob("*"))
        error = calls.refused(monkeypatch, capsys, "train", *arguments)
        assert sorted(elsewhere.rglob("*")) == before, "a refused command must not write files"
        return error

    return call


def rows(path: str, *more: str, count: int = 20) -> None:
    Path(path).write_text("".join(f"in {n}\tout {n}\n" for n in range(count)) + "".join(more), encoding="utf-8")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("one\n", "a.tsv:21: expected 2 columns (input, target), found 1"),
        ("one\ttwo\tthree\n", "a.tsv:21: expected 2 columns (input, target), found 3"),
        ("one\t\n", "a.tsv:21: the target is empty"),
    ],
)
def test_an_unusable_row_is_refused(refused: Refused, elsewhere: Path, more: str, message: str) -> None:
    rows("a.tsv", more)
    assert message in refused("nano/english", "a.tsv")
    assert [path.name for path in elsewhere.iterdir()] == ["a.tsv"]


def test_skip_bad_rows_counts_the_rows_left_out_and_names_the_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows("a.tsv", "one\n", "two\t\n")
    monkeypatch.setattr(sys, "argv", ["petransfer", "train", "nano/english", "a.tsv", "--skip-bad-rows", "--plan"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    assert re.search(r"2 bad rows left out: \S*a\.tsv:21: expected 2 columns", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nano/english", "none.tsv"], "no file none.tsv"),
        (["nano/englsh", "a.tsv"], "unknown checkpoint 'nano/englsh'"),
        (["nano/english", "a.tsv", "--method", "lorra"], "unknown method 'lorra'"),
        (["nano/english", "a.tsv", "--method", "LoRA"], "unknown method 'LoRA': did you mean 'lora'?"),
        (["nano/english", "a.tsv", "--bits", "5"], "--bits 5: the value should be 4, 8, 16 or 32"),
        (["nano/english", "a.tsv", "--steps", "5", "--epochs", "1"], "give one of them"),
        (["nano/english", "a.tsv", "--lr", "20"], "--learning-rate 20: the value should be less than 10"),
        (["nano/english", "a.tsv", "--lr", "0"], "--learning-rate 0: the value should be greater"),
        (["nano/english", "a.tsv", "--epochs", "0"], "--epochs 0: give a number above 0"),
        (["nano/english", "a.tsv", "--bits", "0"], "--bits 0: the value should be 4"),
        (["nano/english", "a.tsv", "--method", "full", "--rank", "8"], "the method full has no rank"),
        (["nano/english", "a.tsv", "--seeds", "0,0"], "--seeds: 0 is given twice; keep one"),
        (["nano/english", "a.tsv", "--rank", "5000"], "--rank 5000: the value should be less than or equal to 4096"),
        (["nano/english", "a.tsv", "--metric", "bluer"], "--metric: unknown metric 'bluer': did you mean 'bleu'?"),
        (["nano/english", "a.tsv", "--method", "full", "--bits", "4"], "--method full: full fine-tuning cannot train"),
        (["nano/english", "a.tsv", "--max-steps", "2000000000"], "--max-steps 2000000000: the value should be less"),
        (["nano/english", "a.tsv", "--set", "methods.0.bits=5"], "--set methods.0.bits=5: the value should be 4"),
        (["nano/english", "a.tsv", "--set", "train.stepps=5"], "--set train.stepps=5: unknown key 'train.stepps'"),
        (["nano/english", "a.tsv", "--set", "task.metrics=[bluu]"], "--set task.metrics=[bluu]: unknown metric"),
        (["nano/english", "a.tsv", "--set", "task.options.inptu=x"], "did you mean 'input'?"),
        (["nano/english", "a.tsv", "--dev", "0"], "dev is 0"),
        (["nano/english", "a.tsv", "--dev", ""], "--dev is empty: give a share"),
        (["nano/english", "a.tsv", "--test", "10%"], "test is 10%: give a share"),
        (["nano/english", "a.tsv", "--dev", "nan"], "dev is nan: give a share"),
        (["nano/english", "a.tsv", "--dev", "inf"], "dev is inf: give a share"),
        (["nano/english", "a.tsv", "--dev", "1e9"], "a.tsv: no row is left for train (20 usable rows in all); hold"),
        (["nano/english", "a.tsv", "--dev", "0.6", "--test", "0.6"], "hold out fewer rows, for example with --dev 0.1"),
        (["nano/english", "a.tsv", "--dev", "1.0"], "dev is 1.0, which can mean one row or all rows"),
        (["nano/english", "a.tsv", "--test", "1e0"], "give 1 for one row, a share below 1"),
        (
            ["nano/english", "a.tsv", "--template", "{input:>999999999}"],
            "formats 'input'; write only the column's name",
        ),
        (["nano/english", "a.tsv", "--template", "{input!r}"], "formats 'input'"),
    ],
)
def test_a_mistake_in_the_command_is_refused(refused: Refused, arguments: list[str], message: str) -> None:
    rows("a.tsv")
    assert message in refused(*arguments)


def test_rows_longer_than_max_length_are_refused_not_cut(refused: Refused) -> None:
    rows("a.tsv", f"long\t{'word ' * 40}end\n")
    error = refused("nano/english", "a.tsv", "--max-length", "30", "--cpu")  # the limit counts tokens
    assert "a.tsv:21: the target has more tokens than --max-length 30 (42 tokens)" in error
    assert "(tokenizer: nano/english)" in error
    advice = "increase or remove --max-length, or skip these rows with --skip-bad-rows (in a recipe: bad_rows: skip)"
    assert error.endswith(advice)


def test_rows_longer_than_the_positions_of_the_model_are_refused(refused: Refused, tiny_gpt2: Path) -> None:
    rows("a.tsv", f"long\t{'word ' * 140}end\n")
    error = refused(str(tiny_gpt2), "a.tsv", "--cpu")
    assert "a.tsv:21: the input and target have more tokens than" in error
    assert "of 128" in error


@pytest.mark.parametrize(
    "method",
    ["name: prompt, virtual_tokens: 20", "name: prefix, virtual_tokens: 20", "name: prompt, match_parameters: 640"],
)
def test_virtual_tokens_reduce_the_positions_for_rows(method: str, refused: Refused, tiny_gpt2: Path) -> None:
    rows("a.tsv", f"long\t{'word ' * 100}end\n")
    error = refused(str(tiny_gpt2), "a.tsv", "--cpu", "--set", f"methods=[{{{method}, bits: 32}}]")
    assert "a.tsv:21: the input and target have more tokens than" in error
    assert "of 128, of which 8 are kept for generation and 20 for virtual tokens" in error
    assert "or use fewer virtual tokens" in error


@pytest.mark.parametrize("method", ["prompt", "prefix"])
def test_too_many_virtual_tokens_for_the_model_are_refused_by_train_and_fit(
    method: str, refused: Refused, tiny_gpt2: Path
) -> None:
    rows("a.tsv", "one\ttwo\n")
    message = "119 virtual tokens are too many: "
    assert message in refused(
        str(tiny_gpt2), "a.tsv", "--cpu", "--set", f"methods=[{{name: {method}, virtual_tokens: 119, bits: 32}}]"
    )
    with pytest.raises(UserError, match=message):
        fit(tiny_gpt2, method=method, bits=32, virtual_tokens=119, device="cpu")


def test_a_target_that_the_tokenizer_changes_is_refused(refused: Refused, tiny_t5: Path, elsewhere: Path) -> None:
    """A tokenizer that lowercases its text loses the capital letters."""
    import shutil

    from tokenizers import normalizers
    from transformers import AutoTokenizer

    folder = elsewhere.parent / "small-letters"
    shutil.copytree(tiny_t5, folder)
    tokenizer = AutoTokenizer.from_pretrained(tiny_t5)
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Prepend(" ")])
    tokenizer.save_pretrained(folder)
    rows("a.tsv", "in\tOUT\n")
    error = refused(str(folder), "a.tsv", "--cpu")
    assert "a.tsv:21: the tokenizer loses characters of the target ('O' 'T' 'U' in 'OUT')" in error


def test_accuracy_is_refused_for_more_than_200_different_targets(refused: Refused) -> None:
    rows("a.tsv", count=5000)
    error = refused("nano/english", "a.tsv", "--set", "task.metrics=[accuracy]")
    assert "a.tsv has 5,000 different targets, more than 200" in error


def test_accuracy_is_refused_for_a_benchmark_without_labels(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["petransfer", "plan", "--recipe", "smoke", "--set", "task.metrics=[accuracy]"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "scan has no closed set of targets" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ({"arms": {"scratch": "nano/english"}}, "'scratch' is a control arm that every family has"),
        ({"arms": {"one": "nano/english"}, "base": "two"}, "unknown base of family mine 'two'"),
        ({"arms": {"one": {"checkpoint": "nano/english", "revision": "v2"}}}, "revision can only be set for a hub id"),
        ({"arms": {"one": {"checkpoint": "a/b@v1", "revision": "v2"}}}, "revision can only be set for a hub id"),
        ({"arms": {"one": {"checkpoint": "a/b", "tokenizer": "./none"}}}, "none holds no tokenizer"),
        ({"arms": {"one": {"checkpoint": "a/b", "tokenizer": "a/c", "reinit": "body"}}}, "needs new embeddings"),
        ({"arms": {"one": {"checkpoint": "a/b", "tokeniser": "a/c"}}}, "unknown key 'family.arms.one.tokeniser'"),
        ({"arms": {"one": {"revision": "v1"}}}, "family.arms.one.checkpoint"),
    ],
)
def test_mistakes_in_a_family_are_refused(
    family: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    setting = f"family={json.dumps({'name': 'mine'} | family)}"
    arguments = ["plan", "--recipe", "smoke", "--set", setting, "--set", "arms=[one]", "--set", "effects=[]"]
    monkeypatch.setattr(sys, "argv", ["petransfer", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    written = capsys.readouterr().err
    assert ended.value.code == 2
    assert message in written
    assert len([line for line in written.splitlines() if line.startswith("error: ")]) == 1


def test_an_unwritable_home_folder_gives_an_error_with_a_command_that_works(
    refused: Refused, elsewhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows("a.tsv")
    monkeypatch.delenv("PETRANSFER_CACHE")
    (tmp_path / "home").write_text("a file")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "a folder").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "a folder"))
    Path("a.tsv").write_text("input\ttarget\n" + Path("a.tsv").read_text())
    error = refused("nano/english", "a.tsv", "--cpu", "--template", "say: {input}", "--plan")
    assert "cannot be kept in" in error
    setting, *command = shlex.split(error.partition("use another folder: ")[2])
    name, _, folder = setting.partition("=")
    assert (name, folder) == ("PETRANSFER_CACHE", str(tmp_path / "a folder" / "petransfer-cache"))
    assert command == ["petransfer", "train", "nano/english", "a.tsv", "--cpu", "--template", "say: {input}", "--plan"]
    monkeypatch.setenv(name, folder)
    assert calls.call(monkeypatch, *command[1:]) == 0
    assert Path(folder).is_dir()


def test_an_account_without_a_home_folder_gives_one_error_line(
    refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    rows("a.tsv")
    monkeypatch.delenv("PETRANSFER_CACHE")
    monkeypatch.setattr(Path, "home", home)
    assert re.search(
        r"no home folder for the cache; .*PETRANSFER_CACHE=\S+ petransfer train",
        refused("nano/english", "a.tsv", "--cpu"),
    )


def test_rows_with_a_special_token_are_refused_before_any_file_is_written(refused: Refused, tiny_t5: Path) -> None:
    rows("a.tsv", "in x\tends with a blank </s>\n")
    for model in ("nano/english", str(tiny_t5)):
        assert "a.tsv:21: the target contains a special token" in refused(model, "a.tsv", "--cpu", "--steps", "2")
