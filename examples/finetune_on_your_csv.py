# %% [markdown]
# # Fine-tune on your csv
#
# From a csv file with two columns to an adapter that answers. This uses a model of 1.7M parameters that ships with
# petransfer, so that it runs on a CPU in about a minute. With a GPU, replace `nano/english` by a checkpoint such as
# `google/flan-t5-large` and add `bits=4`.

# %%
import csv
import random

import petransfer as pt

# %% [markdown]
# ## The data
#
# A toy task: repeat a verb as often as the adverb says.

# %%
random.seed(0)
verbs = ["walk", "run", "look", "jump", "sing", "read", "write", "sleep"]
adverbs = {"once": 1, "twice": 2, "thrice": 3}
rows = [(f"{verb} {adverb}", " ".join([verb] * times)) for verb in verbs for adverb, times in adverbs.items()]
random.shuffle(rows)
with open("commands.csv", "w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(["input", "target"])
    writer.writerows(rows * 4)

# %% [markdown]
# ## Train
#
# `train` holds out a tenth of the rows for dev and a tenth for test, trains a LoRA adapter and scores it.

# %%
adapter = pt.train("nano/english", "commands.csv", steps=100, out="results/commands")

# %% [markdown]
# ## Use it

# %%
for question, answer in zip(["walk twice", "read thrice"], adapter.predict(["walk twice", "read thrice"]), strict=True):
    print(f"{question!r} -> {answer!r}")

# %%
print(adapter.evaluate("commands.csv"))
