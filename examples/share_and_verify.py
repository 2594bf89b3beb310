# %% [markdown]
# # Share an adapter and check it
#
# An adapter is shared as a bundle. A bundle is one file that contains the adapter, its model card, its provenance
# (the base, the data and the settings that it was trained with) and checksums.

# %%
import subprocess
from itertools import product
from pathlib import Path

import petransfer as pt

# %% [markdown]
# ## Make an adapter
#
# The toy task is to repeat a verb as often as the adverb says.

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
# A user who receives the bundle can check it with `verify`. It checks that the files are unchanged, and that the base,
# the tokenizer and the data on this machine are the same as in training. Then it evaluates the adapter again and
# compares the scores with those in the bundle.

# %%
for check in pt.Adapter.load("share.petransfer.zip").verify():
    print("passed" if check.passed else "FAILED", "|", check.line)

# %% [markdown]
# ## Load it with plain peft
#
# A user who receives the adapter does not need petransfer to load it. The base `nano/english` ships inside petransfer,
# so the first command copies it to a folder from which transformers can load it. A base from the hub needs no copy.

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
# The result is an ordinary model without an adapter. `agree` is the share of positions, in percent, at which the merged
# model and the adapter predict the same token. `moved` is the relative change of the logits.

# %%
merged = adapter.merge("merged")
print(f"the same predicted tokens: {merged.agree:.0f} %; change of the logits: {100 * merged.moved:.5f} %")
