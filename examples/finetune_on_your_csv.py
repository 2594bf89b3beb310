# %% [markdown]
# # Fine-tune on your csv
#
# From a csv file with two columns to a model that answers. This uses a checkpoint of 1.7M parameters that ships with
# petransfer, so that it runs on a CPU in less than a minute. With a GPU, replace `nano/english` by a checkpoint such as
# `google/flan-t5-large`, leave out `method="full"`, and add `bits=4`: this trains a LoRA adapter.

# %%
import csv
import random

import petransfer as pt

# %% [markdown]
# ## The data
#
# A toy task: repeat a verb as often as the adverb says. Each of the 192 rows has two columns, `input` and `target`.

# %%
random.seed(0)
verbs = ["walk", "run", "look", "jump", "sing", "read", "write", "sleep"]
adverbs = {"once": 1, "twice": 2, "thrice": 3}
rows = [
    (f"{verb} {adverb} and {other}", " ".join([verb] * times + [other]))
    for verb in verbs
    for adverb, times in adverbs.items()
    for other in verbs
]
random.shuffle(rows)
with open("commands.csv", "w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(["input", "target"])
    writer.writerows(rows)

# %% [markdown]
# ## Train
#
# `train` holds out a tenth of the rows for dev and a tenth for test, trains, and scores the result. So small a model
# learns this task fastest if all of its weights are trained, hence `method="full"`.

# %%
model = pt.train("nano/english", "commands.csv", method="full", steps=120, batch_size=16, out="results/commands")

# %% [markdown]
# ## Use it

# %%
questions = ["walk twice and run", "read thrice and sleep"]
for question, answer in zip(questions, model.predict(questions), strict=True):
    print(f"{question!r} -> {answer!r}")

# %% [markdown]
# `evaluate` scores a file. It knows which rows were used for training and scores the other rows separately. Only their
# score shows how well the model answers new inputs.

# %%
scores = model.evaluate("commands.csv")
print(f"exact match on rows used for training: {scores.seen:.1f} %")
print(f"exact match on all other rows:         {scores.unseen:.1f} %")
