# %% [markdown]
# # Ask the transfer question
#
# Does pretraining on English help a model to generalise? A study compares arms, that is, kinds of pretraining. It
# trains every arm with several seeds. An effect is the difference between the scores of two arms, and the study gives a
# verdict on each effect. The study of this example runs on a CPU in less than a minute. It is too small to answer the
# question and only shows how a study works. `petransfer run --recipe lora-scan` runs a larger study.

# %%
from itertools import product
from pathlib import Path

import petransfer as pt

# %% [markdown]
# ## The data
#
# The task is to repeat the first verb as often as the adverb says. Every test row begins with `jump twice` or
# `jump thrice`. No training row does.

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
# The study has two arms: a small T5 pretrained on English, and the same architecture trained from scratch. All weights
# are trained, because an adapter on a small model learns little in so few steps. To ask the question for LoRA, use
# `{"name": "lora", "rank": 16, "bits": 32}` as the method, and many more steps.

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
# If you run this cell again, finished runs are skipped and interrupted runs resume.

# %%
results = study.run(workers=1)
print(results[["arm", "seed", "dev_em", "test_em", "trained_parameters"]].to_string())

# %% [markdown]
# ## What may be concluded
#
# The verdict `not learnt` means that an arm stayed below 90 % exact match on dev, so it did not learn the task. The
# test score of such an arm says nothing about generalisation. The verdict `holds` is impossible with two seeds per arm,
# because no difference can then have a p value below 0.33.

# %%
effects = study.effects()
print(effects[["name", "split", "difference", "verdict", "because"]].to_string())

# %% [markdown]
# ## Read the report
#
# The report is one HTML file with all tables and plots. It can be read without a network connection.

# %%
print(study.report())
