# %% [markdown]
# # Fine-tune on your csv
#
# This example trains a model on a csv file with two columns, and then asks the model questions. The model is a
# checkpoint of 1.7M parameters that ships with petransfer, so the example runs on a CPU in less than a minute. If you
# have a GPU, replace `nano/english` by a checkpoint such as `google/flan-t5-large`, leave out `method="full"`, and add
# `bits=4`. This trains a LoRA adapter.

# %%
import csv
import random

import petransfer as pt

# %% [markdown]
# ## The data
#
# The toy task is to repeat a verb as often as the adverb says. Each of the 192 rows has two columns, `input` and
# `target`.

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
# `train` sets aside a tenth of the rows for dev and a tenth for test, trains on the other rows, and scores the result.
# Such a small model learns this task fastest if all its weights are trained. This is what `method="full"` does.

# %%
model = pt.train("nano/english", "commands.csv", method="full", steps=120, batch_size=16, out="results/commands")

# %% [markdown]
# ## Use it

# %%
questions = ["walk twice and run", "read thrice and sleep"]
for question, answer in zip(questions, model.predict(questions), strict=True):
    print(f"{question!r} -> {answer!r}")

# %% [markdown]
# `evaluate` scores the rows of a file. It knows which rows were used for training, and gives them a separate score.
# Only the score of the other rows shows how well the model answers new inputs.

# %%
scores = model.evaluate("commands.csv")
print(f"exact match on rows used for training: {scores.seen:.1f} %")
print(f"exact match on all other rows:         {scores.unseen:.1f} %")
