"""`adapter pack` and `card`: bundles are reproducible and private; a card's code gives the predictions of `predict`."""

from __future__ import annotations

import contextlib
import getpass
import io
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results
from transformers import GPT2PreTrainedModel, T5ForConditionalGeneration

from petransfer.data import TASKS
from petransfer.errors import UserError
from petransfer.models.quantization import inventory
from petransfer.models.registry import registry
from petransfer.recipe.run_spec import CheckpointSpec, MethodSpec, RunSpec, TaskSpec, TrainSpec
from petransfer.sharing import plain_check
from petransfer.sharing.adapter import Adapter
from petransfer.sharing.base import LoadOptions
from petransfer.sharing.bundle import Bundle, bundle_of_folder, open_bundle
from petransfer.sharing.card import card
from petransfer.sharing.card_metadata import CardOptions, _datasets
from petransfer.sharing.licences import ORDER, derived_licence
from petransfer.sharing.pack import refuse_private, without_paths
from petransfer.sharing.sources import ModelSource
from petransfer.sharing.task_data import data_of
from tests.sharing.conftest import ROWS, call, contents, refused, write

# The attribute of transformers' model classes that names the layers to leave unquantised.
KEPT = "_keep_in_fp32_modules"


def test_packing_the_same_run_again_gives_the_same_bytes(packed: Path, run: Path, here: Path) -> None:
    os.utime(run / "adapter" / "adapter_model.safetensors", (1, 1))
    assert call("adapter", "pack", str(run / "adapter"), "--out", "again.petransfer.zip") == 0
    assert (here / "again.petransfer.zip").read_bytes() == packed.read_bytes()
    assert call("adapter", "pull", str(packed), "--out", "pulled") == 0
    assert {path.name: path.read_bytes() for path in (here / "pulled").iterdir()} == contents(packed)
    names = {"adapter_config.json", "adapter_model.safetensors", "README.md", "petransfer.json", "recipe.yaml"}
    assert names | {"manifest.json", "result.json", "examples.parquet"} == contents(packed).keys()


def test_a_bundle_contains_no_local_paths_and_no_rows_of_the_data(packed: Path, place: Path, here: Path) -> None:
    for name, content in contents(packed).items():
        for private in (str(place), str(Path.home()), f"/{getpass.getuser()}", "/tmp", "file://"):
            assert private.encode() not in content, name
        assert not re.search(rb"(?:to|must) (?:walk|run|see|say) \d", content), name
    (here / "examples.parquet").write_bytes(contents(packed)["examples.parquet"])
    columns = pyarrow.parquet.read_table("examples.parquet").column_names
    assert columns == ["index", "category", "correct", "margin", "log_prob", "tokens", "tokens_correct"]


def test_paths_in_a_packed_recipe_are_replaced_by_their_last_part() -> None:
    recipe = b"""
name: mine
data_dir: /home/me/data
task: {options: {train: /home/me/pairs.tsv, test: ~/test.tsv, template: "/x {a}", dev: 0.1}}
family: {arms: {one: ../models/t5, two: {checkpoint: C:\\models\\t5, tokenizer: owner/name}}}
"""
    assert without_paths(recipe.decode()).decode() == (
        "name: mine\ntask:\n  options:\n    train: pairs.tsv\n    test: test.tsv\n    template: /x {a}\n    dev: 0.1\n"
        "family:\n  arms:\n    one: t5\n    two:\n      checkpoint: t5\n      tokenizer: owner/name\n"
    )


def test_texts_of_a_packed_recipe_that_begin_like_a_path_stay_whole() -> None:
    recipe = """\
task:
  options:
    train: pairs.tsv
    delimiter: /
    input: /q/text
family:
  prefix: '~/ask '
  arms:
    one:
      checkpoint: t5
      added_tokens:
      - /
      - '~'
"""
    assert without_paths(recipe).decode() == recipe


@pytest.mark.parametrize(
    "text", ["see /home/me/x", "in ~/models", "C:\\Users\\me", "/root/data", "hf_" + "a" * 30, "key secret-token"]
)
def test_texts_with_private_paths_or_tokens_are_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret-token")
    with pytest.raises(UserError) as found:
        refuse_private("README.md", text)
    assert "secret-token" not in str(found.value)
    assert "hf_a" not in str(found.value)


@pytest.mark.parametrize("text", ["/x {a}", "https://huggingface.co/data/x", "and/or", "a ~ b", "n/a", "s:/x"])
def test_texts_that_only_resemble_private_paths_are_accepted(text: str) -> None:
    refuse_private("README.md", text)


def test_huggingface_hub_can_parse_and_rewrite_the_card(packed: Path) -> None:
    """Parse the card's metadata and results and write them back. The checks of the hub's server need a network."""
    text = contents(packed)["README.md"].decode()
    made = ModelCard(text)
    data = made.data
    kinds = [data.get(key) for key in ("library_name", "pipeline_tag")]
    assert kinds == ["peft", "text-generation"]
    assert data.base_model is None, "an embedded base is not on the hub"
    assert data.license == "other", "only the user knows the licence of the rows"
    base = registry().families["nano"].arms["english"].licence.lower()
    assert f"Licences: of the base: {base}; of the data: not known; of the adapter: not stated; choose one" in text
    assert "`nano/english`, which ships with petransfer and is not on the hub" in text
    result = json.loads(contents(packed)["result.json"])
    figures = {one.dataset_split: one.metric_value for one in data.eval_results or []}
    assert figures == {"validation": result["dev"]["exact_match"], "test": result["test"]["exact_match"]}
    index = eval_results_to_model_index(str(data.model_name), data.eval_results or [])
    name, back = model_index_to_eval_results(index)
    assert (name, back) == (data.model_name, data.eval_results)
    assert str(ModelCard(str(made))) == str(made)


def test_a_base_on_the_hub_is_named_in_the_metadata(trained: Callable[..., Path], here: Path) -> None:
    """The spec of a local run is changed: the base is on the hub, and the task is the benchmark SCAN."""
    from dataclasses import replace

    with open_bundle(str(trained("nano/english"))) as bundle:
        assert bundle.spec is not None
        spec = replace(
            bundle.spec,
            checkpoint=replace(bundle.spec.checkpoint, name="google-t5/t5-base", weights="main"),
            task=replace(bundle.spec.task, name="scan", split="around_right"),
        )
        text = card(replace(bundle, spec=spec, here=None), CardOptions(tags=("mine",)))
    data = ModelCard(text).data
    assert (data.base_model, data.base_model_relation) == ("google-t5/t5-base", "adapter")
    assert (data.license, data.datasets, data.language) == ("apache-2.0", ["scan"], ["en"])
    assert data.tags == ["petransfer", "lora", "scan", "mine"]
    assert "Licences: of the base: apache-2.0; of the data: bsd; of the adapter: apache-2.0." in text


def test_html_and_table_separators_are_escaped_in_a_card(trained: Callable[..., Path], here: Path) -> None:
    from dataclasses import replace

    with open_bundle(str(trained("nano/english"))) as bundle:
        assert bundle.spec is not None
        result = dict(bundle.result() or {})
        environment = {"device": "<script>alert(1)</script> | \x1b[31m", "packages": {"a|b": "<img>"}}
        evil = "x|<b>y</b>\x1b[2J\nz"
        row = {"exact_match": 1.0, "examples": 1}
        test = result["test"] | {"categories": {evil: row, "b": row}}
        (here / "result.json").write_text(json.dumps(result | {"environment": environment, "test": test}))
        files = {**bundle.files, "result.json": here / "result.json"}
        text = card(replace(bundle, files=files, here=None))
    assert not any(one in text for one in ("<script", "<img", "<b>", "\x1b"))
    assert "x\\|&lt;b&gt;y&lt;/b&gt;" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in rows} <= {3, 4}


def test_a_card_lists_the_seeds_and_effects_of_its_study(here: Path, place: Path) -> None:
    (here / "mine.yaml").write_text(
        "name: mine\ntask: {name: lines, options: {train: pairs.tsv, test: 10, dev: 5}, metrics: [exact_match]}\n"
        "family: {name: two, arms: {one: nano/english, other: nano/german}}\narms: [one, other]\n"
        "methods: [{name: lora, rank: 2, bits: 32}]\nseeds: [0, 1]\ntrain: {steps: 3, learning_rate: 1.0e-3}\n"
        "effects: [one-other]\n"
    )
    assert call("run", "--recipe", "mine.yaml", "--cpu", "--workers", "1") == 0
    runs = [path.parent for path in (here / "results" / "mine" / "runs").glob("*/spec.json")]
    for run in runs:
        assert call("adapter", "card", str(run)) == 0
        text = (run / "adapter" / "README.md").read_text()
        seed = json.loads((run / "spec.json").read_text())["seed"]
        assert f"| {seed} (this adapter) |" in text
        assert re.search(rf"\| {1 - seed} \|", text)
        sentences = json.loads((here / "results" / "mine" / "effects.json").read_text())["sentences"]
        assert all(f"- {one}" in text for one in sentences[:12])
        assert sentences
    assert call("adapter", "verify", str(runs[0]), "--cpu") == 0, "a card beside the adapter must not fail a check"


def test_the_licence_of_the_user_s_own_data_is_named_with_the_option_licence(
    run: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert call("adapter", "card", str(run), "--out", "-") == 0
    message = capsys.readouterr()
    assert "license: other" in message.out
    assert "the licence of its data is not known; name one with --licence" in message.err
    assert call("adapter", "pack", str(run), "--out", "a.petransfer.zip") == 0
    assert "name one with --licence" in capsys.readouterr().err
    assert call("adapter", "card", str(run), "--out", "-", "--licence", "cc-by-4.0") == 0
    message = capsys.readouterr()
    assert "license: cc-by-4.0" in message.out
    assert "of the data: not known; of the adapter: cc-by-4.0." in message.out
    assert "--licence" not in message.err


def test_a_new_card_can_be_written_into_a_pulled_folder(
    packed: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The manifest gets the sha256 of the new card. A changed card can be replaced."""
    assert call("adapter", "pull", str(packed), "--out", "pulled") == 0
    before = json.loads((here / "pulled" / "manifest.json").read_text())
    for licence in ("cc-by-4.0", "mit"):
        assert call("adapter", "card", "pulled", "--licence", licence) == 0
        assert f"license: {licence}" in (here / "pulled" / "README.md").read_text()
        assert call("adapter", "pack", "pulled", "--out", f"{licence}.petransfer.zip") == 0
        (here / "pulled" / "README.md").write_text("another card")
    assert call("adapter", "card", "pulled", "--out", "pulled/README.md") == 0
    after = json.loads((here / "pulled" / "manifest.json").read_text())
    own = sha256((here / "pulled" / "README.md").read_bytes()).hexdigest()
    assert after == before | {"files": before["files"] | {"README.md": own}}
    config = here / "pulled" / "adapter_config.json"
    config.write_text(config.read_text() + " ")
    assert "adapter_config.json is not the file" in refused(capsys, "adapter", "card", "pulled")


def test_a_local_folder_of_rows_is_not_listed_as_a_dataset_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("name: mine\ntask: {name: lines, options: {train: data/rows}}\n")
    bundle = Bundle("mine", {"recipe.yaml": recipe}, {}, {}, None, None, None)
    made = CheckpointSpec("nano/english"), TaskSpec("lines", "held-out"), MethodSpec("lora"), TrainSpec(1, 1, 0.1)
    assert _datasets(bundle, RunSpec(*made, seed=0)) == ["data/rows"]
    (tmp_path / "data" / "rows").mkdir(parents=True)
    assert _datasets(bundle, RunSpec(*made, seed=0)) == []


def test_one_language_or_tag_given_to_push_is_not_split_into_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[CardOptions] = []
    monkeypatch.setattr("petransfer.sharing.adapter.contents", lambda bundle, card_options: given.append(card_options))
    monkeypatch.setattr("petransfer.sharing.hub.push", lambda *arguments: None)
    adapter = Adapter(ModelSource("mine", "adapter", Bundle("mine", {}, {}, {}, None, None, None)), LoadOptions())
    adapter.push("user/name", language="en", tags="one")
    adapter.push("user/name", language=["en", "de"])
    assert given == [CardOptions(None, ("en",), ("one",)), CardOptions(None, ("en", "de"))]
    for wrong in ({"language": "English"}, {"licence": "my own"}):
        with pytest.raises(UserError, match=f"'{next(iter(wrong))}'"):
            adapter.push("user/name", **wrong)


def test_the_derived_licence_is_the_stricter_one_or_unknown() -> None:
    assert derived_licence("mit", "apache-2.0") == derived_licence("apache-2.0", "mit") == "apache-2.0"
    assert derived_licence("gpl-3.0", "cc-by-sa-4.0") is None
    assert derived_licence("gpl-3.0", "cc-by-nc-4.0") is None
    assert derived_licence("mit", None) is derived_licence("bigcode-openrail-m", "mit") is None
    assert {task.licence for task in TASKS.values() if task.published} <= set(ORDER)


def test_pack_refuses_adapters_of_other_programs_and_whole_models(
    packed: Path, run: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = contents(packed)
    weights = "adapter_model.safetensors"
    write(here / "f.petransfer.zip", {name: files[name] for name in ("adapter_config.json", weights)})
    assert "not made by" in refused(capsys, "adapter", "pack", "f.petransfer.zip", "--out", "x.petransfer.zip")
    assert "the file name must end in" in refused(capsys, "adapter", "pack", str(run), "--out", "x.zip")
    assert "no-such holds no finished adapter" in refused(capsys, "adapter", "pack", "no-such")
    (here / "model").mkdir()
    assert "whole model" in refused(capsys, "adapter", "pack", str(here))
    assert not list(here.glob("x.*"))


def test_the_code_in_the_card_gives_the_same_predictions_as_predict(
    packed: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Run the card's code on an unpacked bundle and a copied base, in a process that cannot import petransfer."""
    assert call("checkpoints", "cp", "nano/english", "base") == 0
    texts = [source for source, _ in ROWS]
    plain = plainly(packed, here, texts, apart=True)
    capsys.readouterr()
    assert call("predict", str(packed), *texts) == 0
    ours = capsys.readouterr().out.splitlines()
    assert plain == ours
    assert sum(answer == target for answer, (_, target) in zip(ours, ROWS, strict=True)) > 20


def test_the_code_in_the_card_of_a_decoder_gives_the_same_predictions_as_predict(
    tiny_gpt2: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The bundle does not contain the path of the base, so the user has to name the base."""
    (here / "base").symlink_to(tiny_gpt2)
    assert call("train", str(tiny_gpt2), "pairs.tsv", "--steps", "30", "--lr", "0.01", "--cpu", "--out", "study") == 0
    (run,) = (here / "study" / "runs").iterdir()
    assert call("adapter", "pack", str(run), "--out", "a.petransfer.zip") == 0
    assert all(
        str(tiny_gpt2.parent).encode() not in content for content in contents(here / "a.petransfer.zip").values()
    )
    message = refused(capsys, "adapter", "verify", "a.petransfer.zip", "--cpu")
    assert f"was a local folder called {tiny_gpt2.name}" in message
    assert call("adapter", "verify", "a.petransfer.zip", "--cpu", "--checkpoint", "./base") == 0
    texts = [source for source, _ in ROWS[:8]]
    plain = plainly(here / "a.petransfer.zip", here, texts)
    capsys.readouterr()
    assert call("predict", "a.petransfer.zip", *texts, "--checkpoint", "./base", "--max-new-tokens", "64") == 0
    assert plain == capsys.readouterr().out.splitlines()


def test_the_code_in_the_card_ignores_the_generation_defaults_of_the_base(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("checkpoints", "cp", "nano/english", "base") == 0
    own = {"eos_token_id": 1, "pad_token_id": 0, "decoder_start_token_id": 0}
    defaults = {"min_length": 12, "no_repeat_ngram_size": 1, "forced_bos_token_id": 77, "repetition_penalty": 9.0}
    (here / "base" / "generation_config.json").write_text(json.dumps(own | defaults | {"num_beams": 4}))
    options = ("--steps", "40", "--lr", "0.01", "--test", "10", "--cpu", "--out", "study")
    assert call("train", "./base", "pairs.tsv", *options) == 0
    assert call("adapter", "pack", "study", "--out", "a.petransfer.zip") == 0
    texts = [source for source, _ in ROWS[:12]]
    capsys.readouterr()
    assert call("predict", "a.petransfer.zip", *texts, "--checkpoint", "./base", "--cpu") == 0
    ours = capsys.readouterr().out.splitlines()
    assert plainly(here / "a.petransfer.zip", here, texts) == ours
    assert len(set(ours)) > 1


@pytest.mark.parametrize("bits", ["4", "8"])
def test_the_code_in_the_card_quantises_the_same_layers_as_petransfer(
    bits: str,
    trained: Callable[..., Path],
    here: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = trained("nano/english", "--bits", bits)
    assert call("checkpoints", "cp", "nano/english", "base") == 0
    assert call("adapter", "pack", str(run), "--out", "a.petransfer.zip") == 0
    adapter = Adapter.load(run, device="cpu")
    texts = [example.input for example in data_of(bundle_of_folder(run), None).test]
    plain, base = executed(script(here / "a.petransfer.zip", here, texts))
    assert inventory(base).bytes == inventory(adapter.predictor.loaded.model).bytes
    ours = [adapter.predict([text], max_new_tokens=64)[0] for text in texts]
    same = sum(one == other for one, other in zip(plain, ours, strict=True))
    assert same >= 8
    capsys.readouterr()
    make, made = plain_check._plain_model, []
    monkeypatch.setattr(plain_check, "_plain_model", lambda *given: made.append(make(*given)) or made[-1])
    assert call("adapter", "verify", str(run), "--no-evaluate", "--plain", "--cpu") == 0
    assert inventory(made[0].get_base_model()).bytes == inventory(adapter.predictor.loaded.model).bytes
    message = f"plain transformers and peft generate the same text for {same} of 10 test inputs"
    assert message in capsys.readouterr().out


@pytest.mark.parametrize("layer", ["wo", "c_proj"])
def test_the_code_in_the_card_leaves_the_layers_of_keep_wide_unquantised(
    layer: str, trained: Callable[..., Path], tiny_gpt2: Path, here: Path
) -> None:
    if layer == "wo":
        assert call("checkpoints", "cp", "nano/english", "base") == 0
    else:
        (here / "base").symlink_to(tiny_gpt2)
    model = "nano/english" if layer == "wo" else str(tiny_gpt2)
    run = trained(model, "--bits", "4", "--set", f"methods.0.keep_wide=[{layer}]")
    assert call("adapter", "pack", str(run), "--out", "a.petransfer.zip") == 0
    _, base = executed(script(here / "a.petransfer.zip", here, ["to walk"]))
    found, expected = inventory(base), inventory(Adapter.load(run, device="cpu").predictor.loaded.model)
    assert found.bytes == expected.bytes
    assert any(f".{layer}.weight" in tensor.name for tensor in found.wide)


def plainly(bundle: Path, here: Path, texts: list[str], *, apart: bool = False) -> list[str]:
    """Return the texts that the card's code generates without petransfer. apart: run the code in a new process."""
    code = script(bundle, here, texts)
    if not apart:
        return executed(code)[0]
    (here / "plain.py").write_text(code)
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    plain = subprocess.run(
        [sys.executable, "-I", "plain.py"], env=environment, capture_output=True, text=True, check=True
    )
    return plain.stdout.splitlines()


def script(bundle: Path, here: Path, texts: list[str]) -> str:
    """Return the card's code, changed to use `texts` as inputs and to fail if it imports petransfer."""
    with zipfile.ZipFile(bundle) as archive:
        archive.extractall("adapter")
    (code,) = re.findall(r"```python\n(.*?)```", (here / "adapter" / "README.md").read_text(), flags=re.DOTALL)
    once = code.index("inputs = ")
    looped = "".join(f"    {line}\n" for line in code[once:].splitlines())
    looped = re.sub(r"tokenizer\('an input(.*?)'", r"tokenizer(text + '\1'", looped).replace("=128", "=64")
    before = "import sys\nsys.modules['petransfer'] = None  # importing it fails\n" + code[:once]
    return f"{before}for text in {texts!r}:\n{looped}"


def executed(code: str) -> tuple[list[str], Any]:
    """Run the code of a card, and return the lines that it prints and the base that it loads."""
    message, names = io.StringIO(), {"__name__": "__main__"}
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(message):
        patch.setitem(sys.modules, "petransfer", None)  # undone at the end of the context
        for model_class in (*T5ForConditionalGeneration.__mro__, GPT2PreTrainedModel):
            if hasattr(model_class, KEPT):  # the code changes it for the whole process; the context restores it
                patch.setattr(model_class, KEPT, getattr(model_class, KEPT))
        exec(compile(code, "plain.py", "exec"), names)
    return message.getvalue().splitlines(), names["base"]


def test_adapter_card_never_replaces_a_folder(run: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "folder").mkdir()
    (here / "folder" / "kept").write_text("x")
    for out in ("folder", "."):
        assert call("adapter", "card", str(run), "--out", out, "--licence", "mit") == 2
        assert f"error: {out} cannot be used" in capsys.readouterr().err
    assert (here / "folder" / "kept").read_text() == "x"
