# %% [markdown]
# # Your own arrays in ten minutes
#
# `fit` takes arrays and returns a model of p(x | condition). This notebook fits handwritten digits with their class,
# draws from the model, guides it, and lets a classifier say whether the digits are what was asked for. Then it fits a
# table of wines and evaluates densities.
#
# The fits take three minutes together, on one CPU core. Give them more and the samples get better.

# %%
import os
import tempfile

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits, load_wine
from sklearn.naive_bayes import GaussianNB
from sklearn.svm import SVC

import flowguide as fg

MINUTES = float(os.environ.get("FLOWGUIDE_NOTEBOOK_MINUTES", 1))
os.chdir(tempfile.mkdtemp())  # the runs of this notebook go to a new folder

# %% [markdown]
# ## Images with a class
#
# 1,797 digits of 8 × 8 pixels, from scikit-learn. `fit` recognises uint8 images and whole numbers of few different
# values, and says so. We keep the last 297 digits for later.

# %%
digits = load_digits()
images = (digits.images / 16 * 255).astype(np.uint8)  # (1797, 8, 8)
labels = digits.target  # 0 to 9
model = fg.fit(images[:1500], labels[:1500], workdir="runs/digits", minutes=2 * MINUTES)

# %% [markdown]
# `show` draws samples and returns a picture. Beside 16 threes, 16 digits of any class: an empty condition is ∅.

# %%
model.show("3")

# %%
model.show("")

# %% [markdown]
# ## Guidance
#
# γ says how much the condition counts: 0 ignores it, 1 is the law p(x|c), more exaggerates what is typical of c. Each
# column starts from the same noise, so you see what γ changes.

# %%
gammas, asked = (0.0, 1.0, 2.0, 4.0), np.arange(10)
_, axes = plt.subplots(len(gammas), 10, figsize=(8, 3.5), layout="constrained")
for row, gamma in zip(axes, gammas, strict=True):
    for ax, image in zip(row, model.sample(asked, gamma=gamma, seed=1), strict=True):
        ax.imshow(image, cmap="gray")
        ax.set(xticks=[], yticks=[])
    row[0].set_ylabel(f"γ = {gamma:g}", rotation=0, ha="right", va="center")
plt.show()

# %% [markdown]
# Do not trust your eyes alone. A classifier that has learned from the real digits, a *judge*, reads 50 samples of each
# class. It can only judge what it reads well itself, so we first look at its accuracy on real digits that neither it
# nor the model has seen.

# %%
judge = SVC().fit(images[:1500].reshape(1500, -1), labels[:1500])
print(f"real digits read correctly: {judge.score(images[1500:].reshape(297, -1), labels[1500:]):.1%}\n")

asked = np.repeat(np.arange(10), 50)
real_spread = np.mean([images[labels == digit].std(0).mean() for digit in range(10)])
print("γ    read as asked   spread within a class (real digits: 1)")
for gamma in (0.0, 1.0, 1.5, 2.0, 4.0):
    x = model.sample(asked, gamma=gamma, batch_size=500)
    right = np.mean(judge.predict(x.reshape(500, -1)) == asked)
    spread = np.mean([x[asked == digit].std(0).mean() for digit in range(10)]) / real_spread
    print(f"{gamma:3g}  {right:12.1%}   {spread:8.2f}")

# %% [markdown]
# That is the bargain of guidance: more samples are what you asked for, and they differ less from each other.
#
# ## Away from a condition
#
# `negative` names what to move away from, here from two digits at once, with no wish otherwise.

# %%
plain = model.sample("", num=500, batch_size=500)
without = model.sample("", num=500, negative=["1", "8"], batch_size=500)
_, ax = plt.subplots(figsize=(7, 2.8), layout="constrained")
for offset, (name, x) in zip((-0.2, 0.2), {"∅": plain, "away from 1 and 8": without}.items(), strict=True):
    counts = np.bincount(judge.predict(x.reshape(500, -1)), minlength=10)
    ax.bar(np.arange(10) + offset, counts, 0.4, label=name)
ax.set(xticks=range(10), xlabel="class that the judge reads", ylabel="of 500 samples")
ax.legend()
plt.show()

# %% [markdown]
# ## Later, and elsewhere
#
# The run is a folder. `load` finds the model again, in another program too, and the same seed gives the same samples.

# %%
again = fg.load("runs/digits")
print(again)
print("same samples:", np.array_equal(again.sample("7", num=4, seed=5), model.sample("7", num=4, seed=5)))

# %% [markdown]
# ## A table
#
# 178 wines with 13 measurements each and one of three growers. Numbers are standardised for the network, and samples
# are in your units again. 40 wines are held out.

# %%
wine = load_wine()
order = np.random.default_rng(0).permutation(len(wine.data))
train, test = order[40:], order[:40]
grower = np.array(["Ada", "Bea", "Cyd"])[wine.target]
wines = fg.fit(wine.data[train], {"grower": grower[train]}, workdir="runs/wine", minutes=MINUTES)

# %%
first, second = wine.feature_names.index("alcohol"), wine.feature_names.index("color_intensity")
drawn = {name: wines.sample(name, num=60, gamma=1.0) for name in np.unique(grower)}
_, axes = plt.subplots(1, 2, figsize=(8, 3.2), sharex=True, sharey=True, layout="constrained")
for name, x in drawn.items():
    real = wine.data[grower == name]
    axes[0].scatter(real[:, first], real[:, second], s=9, label=name)
    axes[1].scatter(x[:, first], x[:, second], s=9)
axes[0].set(title="178 wines", xlabel="alcohol, %", ylabel="colour intensity")
axes[1].set(title="180 samples, γ = 1", xlabel="alcohol, %")
axes[0].legend()
plt.show()

# %% [markdown]
# A model of vectors has exact log-densities, in nats and in your units. By Bayes' rule, log p(x|grower) makes a
# classifier of the held-out wines. It also knows that a wine whose measurements come from different wines is none.

# %%
names = np.unique(grower)
log_p = np.stack([wines.log_prob(wine.data[test], name) for name in names], 1)  # (40, 3)
right = np.mean(names[log_p.argmax(1)] == grower[test])
bayes = GaussianNB().fit(wine.data[train], grower[train]).score(wine.data[test], grower[test])
print(f"grower of 40 held-out wines: {right:.0%} correct (naive Bayes: {bayes:.0%})")

rng = np.random.default_rng(1)
mixed = np.stack([rng.permutation(column) for column in wine.data[test].T], 1)
for name, x in {"held-out wines": wine.data[test], "mixed wines": mixed}.items():
    print(f"mean log p(x) of {name:15} {wines.log_prob(x).mean():8.1f}")

# %% [markdown]
# [Your own data](../your-data.md) says what `fit` recognises and what it chooses. Next:
# [files](files.ipynb), [conditions](conditions.ipynb), [inference with simulators](inference.ipynb).
