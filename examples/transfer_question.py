# %% [markdown]
# # Ask the transfer question
#
# Does pretraining on English help on a split of SCAN, when only a LoRA adapter is trained? A study trains every arm
# with several seeds and gives a verdict on each effect. Twenty steps and two seeds decide nothing: this example only
# shows the way.

# %%
import petransfer as pt

# %% [markdown]
# ## The study

# %%
recipe = {
    "name": "first-study",
    "task": {"name": "scan", "splits": ["jump_around_right"], "options": {"dev_size": 20}},
    "family": "nano",
    "arms": ["english", "scratch"],
    "methods": [{"name": "lora", "rank": 8, "bits": 32}],
    "seeds": [0, 1],
    "train": {"steps": 20, "batch_size": 8, "learning_rate": {"lora": 2.0e-3, "scratch": 2.0e-2}},
    "effects": ["english-scratch"],
}
study = pt.Study(recipe, out="results/first-study")
print(study.plan())

# %% [markdown]
# ## Run it
#
# Finished runs are kept. Running the cell again resumes what was interrupted.

# %%
study.run()
print(study.results())

# %% [markdown]
# ## What may be concluded
#
# With two seeds a side no difference can reach a p value below 0.33, so the verdict is never `holds` here.

# %%
print(study.effects())

# %%
print(study.report())
