"""`petransfer pretrain` makes checkpoints from text files. The recipe of a study can use them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from petransfer.recipe.loading import load_pretraining, shipped_recipes
from tests.cli.calls import call, refused

RECIPE = """
kind: pretrain
name: two
arms: [letters, brackets]
tokens: 6000
noise: {window: 32}
train: {steps: 8, batch_size: 8}
corpora:
  letters: {path: letters, title: "random letters"}
  brackets: {brackets: 8}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a pretraining recipe and its one corpus of text files."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "two.yaml").write_text(RECIPE)
    (tmp_path / "letters").mkdir()
    rng = np.random.default_rng(0)
    for part, documents in (("train", 40), ("valid", 8)):
        texts = [" ".join(rng.choice(list("abcdefgh"), 200)) for _ in range(documents)]
        (tmp_path / "letters" / f"{part}.txt").write_text("\n\n".join(texts))
    return tmp_path


def test_a_family_is_pretrained_and_a_study_runs_on_it(
    folder: Path, tiny_rows: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "pretrain", "--recipe", "two.yaml", "--no-compile", "--cpu", "--threads", "1") == 0
    assert "2 checkpoints done" in capsys.readouterr().err
    runs = folder / "pretrained" / "two" / "runs"
    made = {run.name: json.loads((run / "checkpoint" / "pretraining.json").read_text()) for run in runs.iterdir()}
    assert made.keys() == {"letters-nano-0", "brackets-nano-0"}
    assert {card["seen_tokens"] for card in made.values()} == {8 * 8 * 32}
    assert {card["corpus_tokens"] for card in made.values()} == {6000}

    assert call(monkeypatch, "pretrain", "--recipe", "two.yaml", "--no-compile", "--cpu", "--json") == 0
    again = json.loads(capsys.readouterr().out)
    assert [run["status"] for run in again["runs"]] == ["done", "done"]

    assert call(monkeypatch, "status", "pretrained/two") == 0
    assert capsys.readouterr().out.count("2,048") == 2  # tokens seen

    (folder / "study.yaml").write_text(
        "name: study\n"
        f"task: {{name: lines, options: {{train: {tiny_rows}}}}}\n"
        "family: {name: two, arms: {letters: pretrained/two/runs/letters-nano-0/checkpoint}}\n"
        "arms: [letters]\n"
        "methods: [{name: lora, rank: 2, embeddings: new, bits: 32}]\n"
        "train: {steps: 2, batch_size: 4, learning_rate: 1.0e-3}\n"
    )
    assert call(monkeypatch, "run", "--recipe", "study.yaml", "--cpu", "--workers", "1", "--threads", "1") == 0


def test_the_seeds_of_an_arm_have_one_text_and_equal_settings(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one = ("pretrain", "--recipe", "two.yaml", "--no-compile", "--cpu", "--threads", "1", "--arms", "letters")
    assert call(monkeypatch, *one) == 0
    assert "letters-nano-0 was created with train.steps 8, not 9" in refused(
        monkeypatch, capsys, *one, "--seeds", "1", "--set", "train.steps=9"
    )
    with (folder / "letters" / "train.txt").open("a") as file:
        file.write(" more")
    assert call(monkeypatch, *one, "--seeds", "1") == 2
    changed = "error: the corpus of letters has changed since pretrained/two/runs/letters-nano-0 was created (sha256 "
    assert changed in capsys.readouterr().err


def test_the_reason_of_a_failed_pretraining_is_in_one_line_of_the_output(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    long = ("--arms", "letters", "--set", "tokens=60000", "--cpu", "--threads", "1")
    assert call(monkeypatch, "pretrain", "--recipe", "two.yaml", *long) == 2
    shown = capsys.readouterr()
    reason = "tokens, fewer than tokens: 60,000"
    progress = [line for line in shown.err.splitlines() if line.startswith("letters | nano | seed 0 | failed: ")]
    assert [line.count(reason) for line in progress] == [1]
    assert "failed" in shown.out
    assert reason not in shown.out
    assert call(monkeypatch, "status", "pretrained/two") == 0
    status = capsys.readouterr().out.replace("\n", " ")
    assert "failed: letters-nano-0: the corpus letters has" in status
    assert status.count(reason) == 1


def test_plan_lists_all_runs_and_writes_no_files(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        call(monkeypatch, "pretrain", "--recipe", "two.yaml", "--sizes", "nano,micro", "--seeds", "0,1", "--plan") == 0
    )
    output = capsys.readouterr().out
    assert output.count("letters") == output.count("brackets") == 4
    assert not (folder / "pretrained").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--arms", "leters"], "unknown arm 'leters'"),
        (["--sizes", "milli"], "'nano' or 'micro'"),
        (["--set", "noise.windw=3"], "did you mean 'window'?"),
        (["--set", "noise.window=512"], "give 154 masked tokens in 38 spans; the tokenizer can mark 32 spans"),
        (["--set", "noise.density=0.01"], "give 0 masked tokens in 1 span; each span needs a masked token"),
        (["--set", "noise.density=0.8", "--set", "noise.mean_span=1"], "an unmasked token before it"),
        (["--set", "corpora.letters.titel=x"], "did you mean 'title'?"),
        (["--corpora", "nowhere"], "no train.txt"),
    ],
)
def test_a_mistake_gives_one_error_line_and_starts_no_run(
    arguments: list[str],
    message: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    one = ["--set", "arms=[letters]"] if "--arms" not in arguments else []
    assert call(monkeypatch, "pretrain", "--recipe", "two.yaml", "--cpu", "--threads", "1", *one, *arguments) == 2
    output = capsys.readouterr().err
    assert message in output
    assert sum(line.startswith("error: ") for line in output.splitlines()) == 1
    assert not list(folder.glob("pretrained/*/runs/*/s*"))  # neither a file spec.json nor a folder state


def test_a_missing_corpus_is_refused_before_another_arm_is_trained(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "letters" / "valid.txt").unlink()
    message = refused(monkeypatch, capsys, "pretrain", "--recipe", "two.yaml", "--cpu", "--threads", "1")
    assert message.startswith("error: no valid.txt or valid.txt.xz in letters; name the folder of the corpora")
    assert not (folder / "pretrained").exists()


def test_a_recipe_of_the_wrong_kind_gives_an_error_with_the_right_verb(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "run", "--recipe", "nano") == 2
    assert "petransfer pretrain --recipe nano" in capsys.readouterr().err
    assert call(monkeypatch, "pretrain", "--recipe", "smoke") == 2
    assert "petransfer run" in capsys.readouterr().err


def test_shipped_pretraining_recipes_have_a_token_count_titles_and_licences() -> None:
    for name in ("nano", "nano-bibles"):
        assert name in shipped_recipes()
        recipe = load_pretraining(name)
        assert recipe.tokens
        for arm in recipe.arms:
            part = recipe.corpora[arm]
            assert part.title
            assert part.licence
