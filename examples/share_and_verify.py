# %% [markdown]
# # Share an adapter, and check one
#
# An adapter travels as a bundle: one file with the adapter, its model card, what it was made from, and checksums.

# %%
import subprocess
from itertools import product
from pathlib import Path

import petransfer as pt

# %% [markdown]
# ## Make an adapter
#
# The toy task: repeat a verb as often as the adverb says.

# %%
verbs = ["walk", "run", "look", "jump", "sing", "read", "write", "sleep"]
adverbs = {"once": 1, "twice": 2, "thrice": 3}
rows = [f"{verb} {adverb}\t{' '.join([verb] * adverbs[adverb])}" for verb, adverb in product(verbs, adverbs)]
Path("pairs.tsv").write_text("\n".join(rows) + "\n")
adapter = pt.train("nano/english", "pairs.tsv", steps=80, out="results/share-example")
print(adapter.predict(["walk twice"]))

# %% [markdown]
# ## Pack it

# %%
subprocess.run(["petransfer", "adapter", "pack", "results/share-example", "--out", "share.petransfer.zip"], check=True)

# %% [markdown]
# ## Verify it
#
# Whoever receives the bundle can check it. `verify` compares files, base, tokenizer and data with those that the bundle
# names, and repeats the evaluation.

# %%
for check in pt.Adapter.load("share.petransfer.zip").verify():
    print("passed" if check.passed else "FAILED", "|", check.line)

# %% [markdown]
# ## Load it with plain peft
#
# The receiver does not need petransfer. The embedded base is first copied to a folder that transformers loads; this is
# not necessary for a checkpoint of the hub.

# %%
subprocess.run(["petransfer", "checkpoints", "cp", "nano/english", "base"], check=True)

from peft import PeftModel
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("base")
base = AutoModelForSeq2SeqLM.from_pretrained("base")
run = next(Path("results/share-example/runs").iterdir())
model = PeftModel.from_pretrained(base, run / "adapter").eval()
output = model.generate(**tokenizer("walk twice", return_tensors="pt"), max_new_tokens=8)
print(tokenizer.decode(output[0], skip_special_tokens=True))

# %% [markdown]
# ## Merge it into the base
#
# The result is an ordinary model without an adapter. `agree` is the share of tokens, in percent, that both models
# predict alike.

# %%
merged = adapter.merge("merged")
print(f"the same predicted tokens: {merged.agree:.0f} %; change of the logits: {100 * merged.moved:.5f} %")
