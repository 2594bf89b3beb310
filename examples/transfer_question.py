# %% [markdown]
# # Ask the transfer question
#
# Does pretraining on English help a model to generalise? A study trains every arm with several seeds and gives a
# verdict on each effect. This one runs on a CPU in less than a minute. It is too small to decide anything and only
# shows the way. `petransfer run --recipe lora-scan` asks the question properly.

# %%
from itertools import product
from pathlib import Path

import petransfer as pt

# %% [markdown]
# ## The data
#
# The task is to repeat the first verb as often as the adverb says. No training row has `jump` with `twice` or `thrice`;
# every test row has.

# %%
verbs = ["walk", "run", "look", "jump", "sing", "read", "write", "sleep"]
adverbs = {"once": 1, "twice": 2, "thrice": 3}
rows: dict[str, list[str]] = {"train.tsv": [], "test.tsv": []}
for verb, adverb, other in product(verbs, adverbs, verbs):
    is_new = verb == "jump" and adverb != "once"
    answer = " ".join([verb] * adverbs[adverb] + [other])
    rows["test.tsv" if is_new else "train.tsv"].append(f"{verb} {adverb} and {other}\t{answer}\n")
for name, lines in rows.items():
    Path(name).write_text("".join(lines))

# %% [markdown]
# ## The study
#
# Two arms: a small T5 pretrained on English, and the same architecture trained from scratch. All weights are trained,
# because a small model learns little from an adapter in so few steps. To ask the question under LoRA, use
# `{"name": "lora", "rank": 16, "bits": 32}` as the method and many more steps.

# %%
recipe = {
    "name": "first-study",
    "task": {"name": "lines", "options": {"train": "train.tsv", "dev": 0.1, "test": "test.tsv"}},
    "family": "nano",
    "arms": ["english", "scratch"],
    "methods": [{"name": "full", "bits": 32, "rate_scaling": "rms"}],
    "seeds": [0, 1],
    "train": {"steps": 80, "batch_size": 16, "learning_rate": {"full": 2.0e-2, "scratch": 2.0e-2}},
    "effects": ["english-scratch"],
}
study = pt.Study(recipe, out="results/first-study")
print(study.plan()[["arm", "method", "seed", "steps"]].to_string())

# %% [markdown]
# ## Run it
#
# Finished runs are kept. Running the cell again resumes what was interrupted.

# %%
results = study.run(workers=1)
print(results[["arm", "seed", "dev_em", "test_em", "trained_parameters"]].to_string())

# %% [markdown]
# ## What may be concluded
#
# `not learnt` means that an arm did not learn the training distribution (at least 90 % exact match on dev). Its test
# score then says nothing about generalisation. Two seeds per arm could not give the verdict `holds` either, because no
# difference can reach a p value below 0.33.

# %%
effects = study.effects()
print(effects[["name", "split", "difference", "verdict", "because"]].to_string())

# %% [markdown]
# ## Read the report
#
# One HTML file with all tables and plots. It needs no network.

# %%
print(study.report())
