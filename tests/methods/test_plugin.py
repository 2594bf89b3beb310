"""Train, save, use and merge a method of another installed package, and load its adapter with plain peft."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

METHOD = """
from petransfer.recipe.methods import LAYER_KEYS, Method, Option

def apply(loaded, method, seed):
    from peft import LoHaConfig
    from petransfer.methods.shared.attach import attach_adapter, task_type
    from petransfer.methods.shared.target_layers import target_layers
    config = LoHaConfig(task_type=task_type(loaded), r=method.rank, alpha=2 * method.rank,
                        target_modules=target_layers(loaded, method), module_dropout=method.options["drop"])
    return attach_adapter(loaded, method, config, seed)

METHOD = Method(name="loha", title="LoHa", source="", apply=apply, keys=LAYER_KEYS | {"rank"}, size="rank",
                peft_type="LOHA", options={"drop": Option(0.0, "share of layers left out", minimum=0, maximum=0.5)},
                not_merged="its package says so")
"""
SCRIPT = """
import sys
from pathlib import Path
from petransfer.errors import UserError
from petransfer.recipe.loading import validate
from petransfer.study.grid import expand
from petransfer.study.folders import RunFolder

def recipe(**method):
    return validate({
        "name": "plugin", "task": {"name": "lines", "options": {"train": sys.argv[2]}}, "arms": ["mine"],
        "family": {"name": "tiny", "arms": {"mine": sys.argv[1]}}, "methods": [{"name": "loha", "bits": 32, **method}],
        "train": {"steps": 2, "batch_size": 4, "learning_rate": 1e-3},
    }, "here")

(cell,) = expand(recipe(rank=3, drop=0.125))
assert cell.method == "loha r3 drop-0.125 32-bit", cell.method
assert cell.run_id != expand(recipe(rank=3))[0].run_id
for method, said in ({"drop": 0.7}, "drop must be from 0 to 0.5"), ({"alpha": 3.0}, "the method loha has no alpha"), (
    {"dorp": 0.1}, "did you mean 'drop'"):
    try:
        recipe(**method)
    except UserError as error:
        assert said in str(error), error
    else:
        raise AssertionError(said)
assert "torch" not in sys.modules

from petransfer.study.single_run import Settings, run_one
from petransfer.training.execution import Execution
from peft import PeftModel
from transformers import AutoModelForSeq2SeqLM

folder = Path("run")
result = run_one(cell.spec, RunFolder(folder), Settings(Execution(threads=1), cpu=True, dev_only=False))
assert result["trained_parameters"] > 0
plain = PeftModel.from_pretrained(AutoModelForSeq2SeqLM.from_pretrained(sys.argv[1]), str(folder / "adapter"))
assert plain.peft_config["default"].peft_type.value == "LOHA"
assert "torch._inductor.compile_fx" not in sys.modules, "torch's compiler was imported, which takes a second"

import petransfer
from dataclasses import replace
from petransfer.recipe.methods import METHODS

adapter = petransfer.Adapter.load(folder, device="cpu")
assert len(adapter.predict(["jump"], max_new_tokens=2)) == 1
assert all(check.passed for check in adapter.verify(evaluate=False))
try:
    adapter.merge("merged")
except UserError as error:
    assert "as LoHa never can: its package says so" in str(error), error
else:
    raise AssertionError("merged")
METHODS._loaded["loha"] = replace(METHODS["loha"], not_merged="")
assert adapter.merge("merged").moved < 1e-3
print("plugin works")
"""


def test_a_method_of_another_package_is_trained_saved_and_loaded(
    tmp_path: Path, tiny_t5: Path, tiny_rows: Path
) -> None:
    (tmp_path / "their_method.py").write_text(METHOD)
    installed = tmp_path / "their_method-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: their-method\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text("[petransfer.methods]\nloha = their_method:METHOD\n")
    # a new process in this folder, which finds the package as an installed one
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tiny_t5), str(tiny_rows)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.endswith("plugin works\n"), done.stderr[-3000:]
