"""Several adapters on one base: `predict`, `eval` and weighted combinations. Also `adapter merge` and `info`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSeq2SeqLM

from petransfer.evaluation import exact_match
from petransfer.models.registry import NANO
from petransfer.sharing.attach import FIRST
from petransfer.sharing.base import AdapterBase, LoadOptions
from petransfer.sharing.bundle import open_bundle
from petransfer.sharing.combined_adapters import Combination, load_adapters
from petransfer.sharing.info import describe
from petransfer.sharing.task_data import data_of, row_hashes
from tests.sharing.conftest import ROWS, call, contents, refused, write

FROZEN = ("--set", "methods=[{name: lora, rank: 4, bits: 32}]")


@pytest.fixture(scope="session")
def two(trained: Callable[..., Path]) -> tuple[str, str]:
    """Two runs whose adapters train no rows of the embeddings."""
    return str(trained("nano/english", *FROZEN)), str(trained("nano/english", *FROZEN, "--seeds", "1"))


def answers(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, str]]:
    capsys.readouterr()
    assert call("predict", *arguments, "--json", "--max-new-tokens", "8") == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_several_adapters_predict_as_each_one_alone_and_load_the_base_once(
    two: tuple[str, str], run: Path, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [source for source, _ in ROWS[:6]]
    loads = []
    real = AdapterBase.load
    monkeypatch.setattr(AdapterBase, "load", lambda self, *rest: loads.append(self) or real(self, *rest))
    alone = {one: [row["output"] for row in answers(capsys, one, *texts)] for one in (*two, str(run))}
    assert len(loads) == 3
    together = answers(capsys, two[0], *texts, "--with", two[1], "--with", str(run))
    assert len(loads) == 4
    for one, message in alone.items():
        assert [row["output"] for row in together if row["adapter"] == one] == message
    assert len({tuple(one) for one in alone.values()}) > 1


def test_two_bundles_of_the_same_name_each_give_a_text(
    packed: Path, two: tuple[str, str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Path("other", packed.name)
    other.parent.mkdir()
    assert call("adapter", "pack", two[1], "--out", str(other)) == 0
    alone = [answers(capsys, str(one), "to walk", "to run") for one in (packed, other)]
    together = answers(capsys, str(packed), "to walk", "to run", "--with", str(other))
    expected = [row["output"] for both in zip(*alone, strict=True) for row in both]
    assert [row["output"] for row in together] == expected
    assert {row["adapter"] for row in together} == {packed.name}


def test_several_adapters_with_trained_embedding_rows_predict_as_each_one_alone(
    run: Path, trained: Callable[..., Path], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = (str(run), str(trained("nano/english", "--seeds", "1")))
    texts = [source for source, _ in ROWS[:6]]
    alone = [row["output"] for one in sources for row in answers(capsys, one, *texts)]
    together = answers(capsys, sources[0], *texts, "--with", sources[1])
    assert [row["output"] for one in sources for row in together if row["adapter"] == one] == alone
    assert "which peft leaves out of a combination" in refused(
        capsys, "eval", *sources, "--weights", "0.5,0.5", "--cpu"
    )


def test_embedding_rows_of_one_adapter_do_not_change_the_texts_of_another(
    two: tuple[str, str], run: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first adapter trains rows of the embeddings, and the second adapter does not."""
    texts = [source for source, _ in ROWS[:6]]
    sources = (str(run), two[0])
    alone = [row["output"] for one in sources for row in answers(capsys, one, *texts)]
    together = answers(capsys, sources[0], *texts, "--with", sources[1])
    assert [row["output"] for one in sources for row in together if row["adapter"] == one] == alone


def test_eval_shows_the_score_and_the_claim_of_each_adapter(
    two: tuple[str, str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("eval", *two, "--weights", "0.5,0.5", "--cpu", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["label"] for row in rows[:2]] == list(two)
    assert [row["examples"] for row in rows] == [10, 10, 10]
    for row, one in zip(rows, two, strict=False):
        result = json.loads((Path(one) / "result.json").read_text())
        assert row["exact_match"] == row["claimed"] == result["test"]["exact_match"]
        assert row["log_prob_per_token"] == pytest.approx(result["test"]["log_prob_per_token"], abs=1e-5)
    assert rows[0]["same"] == 100
    assert rows[2]["label"].startswith("linear: 0.5 x ")
    assert call("eval", *two, "--data", "pairs.tsv", "--cpu") == 0
    assert "pairs.tsv, 40 examples" in capsys.readouterr().out


@pytest.mark.parametrize("method", ["lora", "full"])
def test_eval_by_generation_scores_a_run_on_its_task_and_reports_contradictions(
    method: str,
    run: Path,
    trained: Callable[..., Path],
    here: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = run if method == "lora" else trained("nano/english", "--method", "full")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    claimed = json.loads((folder / "result.json").read_text())["test"]
    capsys.readouterr()
    assert call("eval", str(folder), "--by-generation", "--cpu", "--json") == 0
    message = capsys.readouterr()
    (row,) = json.loads(message.out)
    assert (row["exact_match"], row["claimed"], row["examples"]) == (claimed["exact_match"],) * 2 + (10,)
    assert row["log_prob_per_token"] == pytest.approx(claimed["log_prob_per_token"], abs=1e-5)
    assert (row["generated"], row["disagreements"]) == (10, 0)
    assert "contradict" not in message.err
    real = exact_match.score

    def lying(*arguments: Any) -> list[exact_match.ScoredExample]:
        first, *rest = real(*arguments)
        return [replace(first, correct=not first.correct, near_tie=False), *rest]

    monkeypatch.setattr(exact_match, "score", lying)
    assert call("eval", str(folder), "--by-generation", "--cpu") == 0
    message = capsys.readouterr()
    assert "1 of 10 generated texts contradict the scores" in message.err
    assert f"{claimed['exact_match']:.1f}" in message.out
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_eval_scores_several_whole_models_side_by_side(
    trained: Callable[..., Path], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [str(trained("nano/english", "--method", "full", *more)) for more in ((), ("--seeds", "1"))]
    capsys.readouterr()
    assert call("eval", *runs, "--data", "pairs.tsv", "--cpu", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["label"], row["examples"], row["claimed"]) for row in rows] == [(one, 40, None) for one in runs]
    assert rows[0]["log_prob_per_token"] != rows[1]["log_prob_per_token"]
    assert "is a whole model; leave it out" in refused(capsys, "eval", runs[0], "--revision", "main")


def refused_together(capsys: pytest.CaptureFixture[str], *sources: str) -> str:
    """Return the errors of the commands that need both adapters on one base."""
    first, second = sources
    return "".join(
        refused(capsys, *command, "--cpu")
        for command in (
            ("predict", first, "to walk", "--with", second),
            ("serve", first, second, "--port", "0"),
            ("eval", first, second, "--weights", "1,1"),
        )
    )


def assert_scores_are_as_recorded(capsys: pytest.CaptureFixture[str], *sources: str) -> None:
    """Check the scores of `eval` on the test rows of the first adapter. All adapters must have the same test rows."""
    capsys.readouterr()
    assert call("eval", *sources, "--cpu", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["label"] for row in rows] == list(sources)
    for row in rows:
        recorded = json.loads((Path(row["label"]) / "result.json").read_text())["test"]
        assert row["exact_match"] == row["claimed"] == recorded["exact_match"]
        assert row["log_prob_per_token"] == pytest.approx(recorded["log_prob_per_token"], abs=1e-5)


def test_adapters_of_different_types_are_scored_side_by_side_but_cannot_share_a_base(
    two: tuple[str, str], trained: Callable[..., Path], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scales = str(trained("nano/english", "--method", "ln"))
    assert_scores_are_as_recorded(capsys, two[0], scales, two[1])
    errors = refused_together(capsys, two[0], scales)
    assert errors.count(f"of the type LORA and {scales} of the type LN_TUNING") == 3


def test_vera_adapters_of_two_seeds_are_scored_side_by_side_but_cannot_share_a_base(
    trained: Callable[..., Path], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = [str(trained("nano/english", "--method", "vera", "--steps", "3", "--seeds", seed)) for seed in "01"]
    assert_scores_are_as_recorded(capsys, *sources)
    assert refused_together(capsys, *sources).count("are VeRA adapters with different random matrices") == 3


def test_the_biases_of_one_adapter_do_not_change_the_scores_of_another(
    trained: Callable[..., Path], here: Path, tiny_gpt2: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The method `bias` trains the biases of the base itself, and peft does not keep them for each adapter."""
    options = ("--steps", "3", "--lr", "0.3")
    sources = [str(trained(str(tiny_gpt2), *options, "--method", method)) for method in ("lora", "bias")]
    assert_scores_are_as_recorded(capsys, *sources)
    assert_scores_are_as_recorded(capsys, *reversed(sources))
    assert refused_together(capsys, *sources).count(f"; use {sources[1]} alone") == 3


@pytest.mark.parametrize("kind", ["cat", "svd", "linear", "ties"])
def test_a_combination_equals_the_combination_by_plain_peft(two: tuple[str, str], kind: str, here: Path) -> None:
    """Compare the update of one layer. For `cat`, it must also be the weighted sum of the adapters' updates."""
    weights = (0.7, 0.3)
    with open_bundle(two[0]) as first, open_bundle(two[1]) as second:
        model = load_adapters([first, second], LoadOptions(device="cpu"), Combination(weights, kind)).model
    base = AutoModelForSeq2SeqLM.from_pretrained(NANO / "english", dtype=torch.float32)
    plain = PeftModel.from_pretrained(base, f"{two[0]}/adapter", adapter_name="a")
    plain.load_adapter(f"{two[1]}/adapter", adapter_name="b")
    density = {"density": 0.5} if kind == "ties" else {}
    plain.add_weighted_adapter(["a", "b"], list(weights), "both", combination_type=kind, **density)
    plain.set_adapter("both")
    name = "encoder.block.0.layer.0.SelfAttention.q"
    added = model.get_base_model().get_submodule(name).get_delta_weight(model.active_adapter)
    layer: Any = plain.get_base_model().get_submodule(name)
    torch.testing.assert_close(added, layer.get_delta_weight("both"), atol=1e-5, rtol=1e-4)
    if kind == "cat":
        exact = weights[0] * layer.get_delta_weight("a") + weights[1] * layer.get_delta_weight("b")
        torch.testing.assert_close(added, exact, atol=1e-5, rtol=1e-4)


def test_adapters_that_do_not_fit_together_and_wrong_weights_are_refused(
    two: tuple[str, str], run: Path, trained: Callable[..., Path], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    german = str(trained("nano/german", *FROZEN))
    assert "were trained on different bases" in refused(capsys, "eval", two[0], german)
    assert "(bits: (32, ()) and (4, ()))" in refused(
        capsys, "eval", two[0], str(trained("nano/english", "--bits", "4"))
    )
    assert "train rows of the embeddings" in refused(capsys, "eval", two[0], str(run), "--weights", "1,1", "--cpu")
    assert "--weights has 1 number for 2 adapters" in refused(capsys, "eval", *two, "--weights", "1")
    assert "--weights a,b: write numbers" in refused(
        capsys, "predict", two[0], "x", "--with", two[1], "--weights", "a,b"
    )
    assert "--weights: nan is no weight" in refused(capsys, "eval", *two, "--weights", "nan,1")
    assert "no combination 'mean'" in refused(capsys, "eval", *two, "--weights", "1,1", "--combination", "mean")


@pytest.mark.parametrize("bits", [32, 16])
def test_merging_changes_the_logits_by_no_more_than_rounding(
    run: Path, bits: int, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("adapter", "merge", str(run), "merged", "--bits", str(bits), "--cpu", "--json") == 0
    done = json.loads(capsys.readouterr().out)
    assert done["bits"] == bits
    assert done["moved"] < (1e-5 if bits == 32 else 0.02)
    assert done["agree"] > (99.9 if bits == 32 else 95)
    merged = AutoModelForSeq2SeqLM.from_pretrained("merged", dtype=torch.float32)
    base = AutoModelForSeq2SeqLM.from_pretrained(NANO / "english", dtype=torch.float32)
    model = PeftModel.from_pretrained(base, str(run / "adapter")).eval()
    ids = torch.arange(3, 23).reshape(2, 10)
    with torch.inference_mode():
        before = model(input_ids=ids, decoder_input_ids=ids).logits
        after = merged(input_ids=ids, decoder_input_ids=ids).logits
    assert float((before - after).square().mean().sqrt() / before.square().mean().sqrt()) < done["moved"] * 3 + 1e-6
    assert "exists" in refused(capsys, "adapter", "merge", str(run), "merged")


def test_merge_refuses_a_link_to_a_missing_folder(run: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "link").symlink_to("nowhere")
    assert "link exists; delete it or use another folder" in refused(
        capsys, "adapter", "merge", str(run), "link", "--cpu"
    )


def test_merge_refuses_a_quantised_base(run: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, "adapter", "merge", str(run), "merged", "--bits", "4")
    assert "cannot be merged into a base of 4 bits: the sum would be rounded to a few levels" in message
    assert not (here / "merged").exists()


def test_a_merged_model_that_differs_from_the_adapter_is_not_kept(
    run: Path, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PeftModel, "merge_and_unload", lambda model, **_: model.unload(), raising=False)
    assert call("adapter", "merge", str(run), "merged", "--cpu") == 1
    assert "the merged model differs from the adapter" in capsys.readouterr().err
    assert [path.name for path in here.iterdir()] == ["pairs.tsv"]


def test_info_describes_adapters_of_other_programs(
    packed: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = contents(packed)
    plain = {name: files[name] for name in ("adapter_config.json", "adapter_model.safetensors")}
    write(here / "f.petransfer.zip", plain)
    assert call("adapter", "info", "f.petransfer.zip", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["made by"] == "not petransfer: there is no petransfer.json"
    assert (found["method"], found["base"], found["rank"]) == ("LORA", "nano/english", 16)
    assert found["sound"] == "tensors fit the configuration"
    tensors = load_file(_in(here, "w", plain["adapter_model.safetensors"]))
    assert found["parameters"] == sum(value.numel() for value in tensors.values())
    save_file({"base_model.model.x.lora_A.weight": torch.ones(16, 2)}, here / "w")
    write(here / "g.petransfer.zip", plain | {"adapter_model.safetensors": (here / "w").read_bytes()})
    assert call("adapter", "info", "g.petransfer.zip") == 0
    assert "no: the adapter is refused: target_modules does not name 'x'" in capsys.readouterr().out
    assert call("predict", "f.petransfer.zip", "to walk 1", "--max-new-tokens", "4") == 0


def _in(folder: Path, name: str, content: bytes) -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def test_the_name_of_the_first_adapter_is_not_a_number() -> None:
    assert not FIRST.isdigit(), "peft would drop the tensors of the layer with this number"


@pytest.mark.parametrize("method", ["pissa", "vera"])
def test_info_counts_the_parameters_that_were_trained(method: str, trained: Callable[..., Path]) -> None:
    """Files of PiSSA (a LoRA of twice the rank) and VeRA (with frozen tensors) have more numbers than were trained."""
    run = trained("nano/english", "--method", method, "--steps", "2")
    with open_bundle(str(run)) as bundle:
        found, result = describe(bundle), bundle.result() or {}
        stored = sum(prod(shape) for _, shape in bundle.tensors.values())
    assert found["parameters"] == result["trained_parameters"]
    assert found["stored parameters"] == stored > found["parameters"]


def test_eval_scores_test_rows_that_another_adapter_was_trained_on_separately(
    two: tuple[str, str], trained: Callable[..., Path], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second adapter was trained on some test rows of the first, and its own claim is for other rows."""
    other = str(trained("nano/english", *FROZEN, "--test", "20"))
    held_out = {}
    for one in (two[0], other):
        with open_bundle(one) as bundle:
            data = data_of(bundle, None)
        held_out[one] = (row_hashes(data.test), row_hashes(data.train))
    seen = len(held_out[other][0] & held_out[two[0]][1])
    assert 0 < seen < 20
    capsys.readouterr()
    assert call("eval", other, two[0], "--weights", "0.5,0.5", "--cpu", "--json") == 0
    message = capsys.readouterr()
    first, second, combined = json.loads(message.out)
    assert [len(row["seen_rows"]) for row in (first, second, combined)] == [0, seen, seen]
    assert (first["claimed"], second["claimed"]) == (first["exact_match"], None)
    assert second["exact_match"] == pytest.approx((second["seen"] * seen + second["unseen"] * (20 - seen)) / 20)
    assert first["task"] == second["task"] == f"test rows of the data of {other}"
    assert f"{two[0]} was trained on {seen} of these 20 rows" in message.err
