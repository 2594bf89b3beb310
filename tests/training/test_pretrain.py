"""Span corruption, and pretraining from a corpus to a checkpoint."""

from __future__ import annotations

import hashlib
import json
import lzma
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoTokenizer, PreTrainedTokenizerBase, T5ForConditionalGeneration

from petransfer.errors import Interrupted, RunError, UserError
from petransfer.models.loading import load_checkpoint
from petransfer.models.registry import NANO, checkpoint_spec
from petransfer.pretraining import pretrain as module
from petransfer.pretraining.corpora import bracket_ids, brackets, read_corpus, shuffle_words
from petransfer.pretraining.grid import Pretrain, PretrainCell, check_settings, expand_pretraining
from petransfer.pretraining.pretrain import Size, redraw_rows
from petransfer.pretraining.span_corruption import Noise, corrupt
from petransfer.recipe.pretraining import CorpusPart, PretrainRecipe
from petransfer.study.folders import RunFolder, StudyFolder
from petransfer.training.batches import IGNORED
from petransfer.training.execution import Execution

SENTINELS = np.arange(1000, 1032)
EOS = 1


@given(seed=st.integers(0, 10_000), noise=st.builds(Noise, st.integers(16, 128), st.floats(0.1, 0.4), st.floats(2, 5)))
@settings(max_examples=60)
def test_the_window_can_be_rebuilt_from_input_and_target(seed: int, noise: Noise) -> None:
    rng = np.random.default_rng(seed)
    window = rng.integers(2, 1000, noise.window)
    example = corrupt(window, noise, rng, SENTINELS, EOS)
    assert len(example.target_ids) == noise.target_length
    assert len(example.input_ids) == noise.window - noise.masked + noise.spans + 1
    assert example.input_ids[-1] == example.target_ids[-1] == EOS
    spans: dict[int, list[int]] = {}
    for piece in example.target_ids[:-1]:
        if piece >= 1000:
            spans[piece] = []
            last = piece
        else:
            spans[last].append(piece)
    assert all(spans.values())
    rebuilt = [piece for at in example.input_ids[:-1] for piece in (spans[at] if at >= 1000 else [at])]
    assert rebuilt == window.tolist()


def test_redrawn_embeddings_are_distributed_like_learnt_ones_and_differ() -> None:
    torch.manual_seed(0)
    weight = torch.randn(400, 64) * 2 + 0.3
    weight[200:] = weight[200]  # pretraining can make the embeddings of tokens that never occur equal
    kept = weight.clone()
    seen = torch.zeros(400, dtype=torch.bool)
    seen[:200] = True
    redraw_rows(weight, seen, keep=[300], seed=0)
    assert torch.equal(weight[:200], kept[:200])
    assert torch.equal(weight[300], kept[300])
    new = weight[200:300]
    assert float(new.std()) == pytest.approx(float(weight[:200].std()), rel=0.1)
    cosine = torch.nn.functional.normalize(new) @ torch.nn.functional.normalize(new).T
    assert float((cosine - torch.eye(100)).max()) < 0.9


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(NANO / "tokenizer")


SENTENCE = "the cat sat on a mat and saw two dogs run over there with some old hats"


@pytest.fixture
def corpora(tmp_path: Path) -> Path:
    """A folder with the text of two arms, as plain text files and as xz archives."""
    return _write_corpora(tmp_path)


def _write_corpora(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    for part, documents in (("train", 60), ("valid", 6)):
        texts = ["\n".join(" ".join(rng.choice(SENTENCE.split(), 12)) for _ in range(8)) for _ in range(documents)]
        for arm in ("plain", "packed"):
            (folder / arm).mkdir(exist_ok=True)
        (folder / "plain" / f"{part}.txt").write_text("\n\n".join(texts))
        (folder / "packed" / f"{part}.txt.xz").write_bytes(lzma.compress("\n".join(texts).encode()))
    return folder


def _recipe(**changes: object) -> PretrainRecipe:
    content: dict[str, object] = {
        "kind": "pretrain",
        "name": "words",
        "arms": ["plain", "packed"],
        "tokens": 2000,
        "noise": {"window": 32},
        "train": {"steps": 16, "batch_size": 8},
        "corpora": {"plain": {"path": "plain"}, "packed": {"path": "packed", "documents": "line"}},
    }
    return PretrainRecipe.model_validate(content | changes)


@pytest.fixture(scope="module")
def tiny() -> Iterator[None]:
    """Replace the size `nano` by one that trains in seconds, and lower the limit for rare tokens."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(module.SIZES, "nano", Size(32, 1, 64, 1))
        patch.setattr(module, "RARE", 5)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny: None) -> Path:
    """The folder of an uninterrupted run of the plain arm."""
    folder = tmp_path_factory.mktemp("whole")
    _carry_out(folder / "run", _write_corpora(folder), _recipe(), set())
    return folder / "run"


def _carry_out(folder: Path, corpora: Path, recipe: PretrainRecipe, stop_at: set[int], arm: str = "plain") -> None:
    at = {"step": 0}

    def progress(step: int, loss: float, seconds: float) -> None:
        at["step"] = step

    def should_stop() -> bool:
        return at["step"] in stop_at and not stop_at.discard(at["step"])

    folder.mkdir(parents=True, exist_ok=True)
    job = Pretrain(Execution(log_every=10, save_every=0.0), corpora, cpu=True)
    job(PretrainCell(arm, "nano", 0, recipe), RunFolder(folder), 1, progress, should_stop)


def test_pretraining_lowers_the_loss_and_interruptions_change_nothing(
    whole: Path, tmp_path: Path, corpora: Path
) -> None:
    stops = {3, 10}
    for _ in range(2):
        with pytest.raises(Interrupted):
            _carry_out(tmp_path / "cut", corpora, _recipe(), stops)
    _carry_out(tmp_path / "cut", corpora, _recipe(), stops)
    left, right = (_weights(run) for run in (whole, tmp_path / "cut"))
    assert [name for name in left if not torch.equal(left[name], right[name])] == []
    assert left["shared.weight"].dtype == torch.bfloat16
    hashes = {checkpoint_spec(str(run / "checkpoint")).weights for run in (whole, tmp_path / "cut")}
    assert len(hashes) == 1, "equal pretrainings must give equal checkpoints"
    card = json.loads((whole / "checkpoint" / "pretraining.json").read_text())
    lines = [[json.loads(line) for line in (run / "metrics.jsonl").open()] for run in (whole, tmp_path / "cut")]
    assert [{**line, "seconds": 0} for line in lines[0]] == [{**line, "seconds": 0} for line in lines[1]]
    losses = [line["valid_loss"] for line in lines[0] if "valid_loss" in line]
    assert len(losses) == 8
    assert losses[-1] < losses[0] - 0.1
    assert card["valid_loss"] == pytest.approx(losses[-1])
    assert card["seen_tokens"] == 16 * 8 * 32
    assert card["corpus_tokens"] == 2000
    assert "seconds" not in card, "with the time, equal pretrainings would have different hashes"


def _weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoint" / "model.safetensors")


def test_a_finished_pretraining_leaves_a_loadable_checkpoint_and_no_state(
    whole: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    folder = whole / "checkpoint"
    loaded = load_checkpoint(checkpoint_spec(str(folder)), 32)
    new = loaded.new_tokens
    assert tokenizer.convert_tokens_to_ids("Ġcat") not in new
    assert tokenizer.convert_tokens_to_ids("ĠI_JUMP") in new
    assert loaded.tokenizer("the cat")["input_ids"] == tokenizer("the cat")["input_ids"]
    card = (folder / "README.md").read_text()
    assert hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest() in card
    assert "2,000 tokens" in card
    assert not (whole / "state").exists()


def test_tokens_that_only_the_validation_text_has_hardly_change_its_loss(
    whole: Path, tmp_path: Path, corpora: Path
) -> None:
    valid = corpora / "plain" / "valid.txt"
    valid.write_text(valid.read_text().replace("hats", "zebra"))
    _carry_out(tmp_path / "other", corpora, _recipe(), set())
    losses = [json.loads((run / "result.json").read_text())["valid_loss"] for run in (whole, tmp_path / "other")]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], abs=0.3)


def test_cards_of_two_arms_differ_only_in_their_text_and_its_results(
    whole: Path, tmp_path: Path, corpora: Path
) -> None:
    _carry_out(tmp_path / "other" / "run", corpora, _recipe(), set(), "packed")
    folders = [run / "checkpoint" for run in (whole, tmp_path / "other" / "run")]
    cards = [json.loads((folder / "pretraining.json").read_text()) for folder in folders]
    assert {key for key in cards[0] if cards[0][key] != cards[1][key]} <= {
        "arm", "corpus_sha256", "valid_loss", "new_pieces"
    }  # fmt: skip
    configs = [(folder / "config.json").read_text() for folder in folders]
    assert configs[0] == configs[1]


def test_an_interrupted_pretraining_does_not_resume_with_a_changed_corpus(
    tmp_path: Path, corpora: Path, tiny: None
) -> None:
    with pytest.raises(Interrupted):
        _carry_out(tmp_path / "run", corpora, _recipe(), {5})
    text = corpora / "plain" / "train.txt"
    before = text.read_text()
    text.write_text(before.replace("cat", "cow", 1))
    with pytest.raises(UserError, match=r"has changed since .*sha256 [0-9a-f]{12}, now [0-9a-f]{12}"):
        _carry_out(tmp_path / "run", corpora, _recipe(), set())
    text.write_text(before)
    with pytest.raises(Interrupted):  # training resumes at step 5
        _carry_out(tmp_path / "run", corpora, _recipe(), {6})


def test_other_settings_in_the_same_folder_are_refused(tmp_path: Path, corpora: Path, tiny: None) -> None:
    study, recipe = StudyFolder(tmp_path / "out"), _recipe(arms=["plain"])
    with pytest.raises(Interrupted):
        _carry_out(study.run("plain-nano-0").path, corpora, recipe, {5})
    check_settings(expand_pretraining(recipe), study)
    other = _recipe(arms=["plain"], train={"steps": 17, "batch_size": 8})
    with pytest.raises(UserError, match=r"was created with train.steps 16, not 17.*--out"):
        check_settings(expand_pretraining(other), study)


def test_pretraining_stops_at_a_loss_of_nan_and_keeps_the_last_good_state(
    whole: Path, tmp_path: Path, corpora: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = module._loss_over

    def broken(seen: torch.Tensor, *, bf16: bool) -> Callable[..., torch.Tensor]:
        loss, calls = plain(seen, bf16=bf16), iter(range(10_000))

        def call(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            value = loss(model, batch)
            return value * float("nan") if next(calls) >= 10 else value

        return call

    with monkeypatch.context() as patch:
        patch.setattr(module, "_loss_over", broken)
        with pytest.raises(RunError, match="the loss is nan at step"):
            _carry_out(tmp_path / "run", corpora, _recipe(), set())
    assert list((tmp_path / "run" / "state").glob("step-*"))
    _carry_out(tmp_path / "run", corpora, _recipe(), set())
    left, right = (_weights(run) for run in (tmp_path / "run", whole))
    assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("compiled", [False, True])
def test_the_loss_uses_a_softmax_over_the_tokens_of_the_training_text(compiled: bool, tiny_t5: Path) -> None:
    model = T5ForConditionalGeneration.from_pretrained(tiny_t5).eval()
    size = model.config.vocab_size
    seen = torch.rand(size, generator=torch.Generator().manual_seed(0)) < 0.5
    seen[[0, 1]] = True
    ids = torch.randint(size, (3, 7), generator=torch.Generator().manual_seed(1))
    labels = torch.cat([ids, torch.full((3, 2), IGNORED)], dim=1)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "decoder_input_ids": labels.clamp(min=0)}

    logits = model(**batch).logits.masked_fill(~seen, -1e9)
    left = module.without_unseen(labels, seen)
    assert (left == IGNORED).sum() > 6  # some labels are not in the training text
    expected = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), left.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    (gradient,) = torch.autograd.grad(expected, model.shared.weight)
    with module._without_head(model):
        loss = module._loss_over(seen, bf16=False)
        # traced by torch.compile as in a compiled run, but without code generation
        found = (torch.compile(loss, backend="eager", dynamic=False) if compiled else loss)(
            model, batch | {"labels": labels}
        )
        (other,) = torch.autograd.grad(found, model.shared.weight)
    assert float(found) == pytest.approx(float(expected), rel=1e-5)
    assert torch.allclose(other, gradient, atol=1e-4)
    assert torch.equal(model(**batch).logits.masked_fill(~seen, -1e9), logits)  # the head is restored


def test_a_disk_too_small_for_the_weights_is_refused_before_training(
    tmp_path: Path, corpora: Path, tiny: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="MB of free disk"):
        _carry_out(tmp_path / "run", corpora, _recipe(), set())
    assert not (tmp_path / "run" / "state").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\n\n\n", "holds no text"),
        (b"\xff\xfe\x00bad", "is not UTF-8 at byte 0"),
        (None, "no train.txt"),
        (b"over and over\n\n" * 50, "repeats one line"),
        (b"short", "fewer than tokens: 2,000"),
    ],
)
def test_a_bad_corpus_is_refused(
    content: bytes | None, message: str, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    for part in ("train", "valid"):
        if content is not None:
            (tmp_path / f"{part}.txt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_corpus(CorpusPart(path="."), tmp_path, tokenizer, 2000)


def test_a_corpus_shorter_than_two_batches_is_refused(tmp_path: Path, corpora: Path, tiny: None) -> None:
    with pytest.raises(UserError, match="the training text of plain has 400 tokens but needs 512"):
        _carry_out(tmp_path / "run", corpora, _recipe(tokens=400), set())


def test_a_damaged_archive_is_refused(corpora: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    path = corpora / "packed" / "train.txt.xz"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"train.txt.xz cannot be read"):
        read_corpus(CorpusPart(path="packed"), corpora, tokenizer, None)


def test_the_end_of_a_single_file_is_the_validation_text(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    verses = [f"verse number {number}" for number in range(100)]
    (tmp_path / "verses.txt").write_text("\n".join(verses))
    part = CorpusPart(path=".", files=["verses"], documents="line")
    corpus = read_corpus(part, tmp_path, tokenizer, None)
    output = [tokenizer.decode(ids, skip_special_tokens=False) for ids in (corpus.train, corpus.valid)]
    assert output[0].count("verse") == 97
    assert output[1].split("</s>")[:3] == ["verse number 97", " verse number 98", " verse number 99"]


def test_text_files_of_windows_and_linux_give_the_same_tokens(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    text = "".join(f"verse number {number}\n\n" for number in range(100))
    (tmp_path / "linux.txt").write_text(text)
    (tmp_path / "windows.txt").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    one, other = (
        read_corpus(CorpusPart(path=".", files=[name]), tmp_path, tokenizer, None) for name in ("linux", "windows")
    )
    assert other.train.tolist() == one.train.tolist()
    assert other.valid.tolist() == one.valid.tolist()


def test_one_file_with_one_document_is_refused(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    (tmp_path / "one.txt").write_text("all in one\nline after line\n")
    with pytest.raises(UserError, match=r"one.txt holds one document; .* a blank line between them"):
        read_corpus(CorpusPart(path=".", files=["one"]), tmp_path, tokenizer, None)


@given(text=st.lists(st.lists(st.sampled_from(["a", "b", "c.", "dd!", "e"]), min_size=1).map(" ".join), min_size=1))
def test_shuffling_keeps_the_words_of_each_line(text: list[str]) -> None:
    (shuffled,) = shuffle_words(["\n".join(text)], seed=1)
    assert [Counter(line.split(" ")) for line in shuffled.split("\n")] == [Counter(line.split(" ")) for line in text]


def test_words_are_shuffled_only_within_their_sentence() -> None:
    sentence = " ".join(f"w{number}" for number in range(30))
    (shuffled,) = shuffle_words([f"{sentence}. {sentence.upper()}"], seed=0)
    assert shuffled != f"{sentence}. {sentence.upper()}"
    assert all(word.islower() for word in shuffled.split(" ")[:30])
    assert shuffle_words([sentence], seed=0) == shuffle_words([sentence], seed=0) != shuffle_words([sentence], seed=1)


def test_brackets_are_nested_correctly() -> None:
    kinds = np.arange(100, 132).reshape(16, 2)
    ids = bracket_ids(kinds, 20_000, np.random.default_rng(3), EOS)
    closes = dict(kinds.tolist())
    stack: list[int] = []
    depths = []
    for piece in ids.tolist():
        if piece in closes:
            stack.append(closes[piece])
        elif piece == EOS:
            assert not stack
        else:
            assert stack.pop() == piece
        depths.append(len(stack))
    assert set(ids.tolist()) == {EOS, *range(100, 132)}
    assert 5 < max(depths) <= 64


def test_brackets_are_determined_by_the_seed(tokenizer: PreTrainedTokenizerBase) -> None:
    first, again, other = (brackets(16, 5000, tokenizer, seed) for seed in (3, 3, 4))
    assert len(first.train) == 5000
    assert np.array_equal(first.train, again.train)
    assert first.sha256 == again.sha256 != other.sha256
    pieces = set(tokenizer.convert_ids_to_tokens(sorted(set(first.train.tolist()))))
    assert all(piece[1:].isalpha() for piece in pieces - {"</s>"})
    with pytest.raises(UserError, match="word tokens"):
        brackets(1_000_000, 5000, tokenizer, 3)
