# %% [markdown]
# # Share an adapter, and check one
#
# An adapter travels as a bundle: one file with the adapter, its model card, what it was made from, and checksums.

# %%
import subprocess
from pathlib import Path

import petransfer as pt

# %% [markdown]
# ## Make an adapter

# %%
Path("pairs.tsv").write_text("".join(f"say {n}\tnumber {n}\n" for n in range(30)))
adapter = pt.train("nano/english", "pairs.tsv", steps=20, out="results/share-example")

# %% [markdown]
# ## Pack and verify it
#
# `verify` compares files, base, tokenizer and data with the provenance and repeats the evaluation.

# %%
subprocess.run(["petransfer", "adapter", "pack", "results/share-example", "--out", "share.petransfer.zip"], check=True)
print(pt.Adapter.load("share.petransfer.zip").verify())

# %% [markdown]
# ## Load it with plain peft
#
# Whoever receives the adapter does not need petransfer. The embedded base is first copied to a folder that transformers
# loads; for a checkpoint of the hub that is not necessary.

# %%
subprocess.run(["petransfer", "checkpoints", "cp", "nano/english", "base"], check=True)

from peft import PeftModel
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("base")
base = AutoModelForSeq2SeqLM.from_pretrained("base")
run = next(Path("results/share-example/runs").iterdir())
model = PeftModel.from_pretrained(base, run / "adapter").eval()
output = model.generate(**tokenizer("say 7", return_tensors="pt"), max_new_tokens=8)
print(tokenizer.decode(output[0], skip_special_tokens=True))

# %% [markdown]
# ## Merge it into the base

# %%
print(adapter.merge("merged"))
