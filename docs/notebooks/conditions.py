# %% [markdown]
# # Every kind of condition
#
# A condition can be a class, several classes, numbers, a series, an image beside the example, a class map, or a part
# of the example itself. Dtype and shape say which it is. Each field may be left out when you sample: training drops
# fields now and then, so one model answers many questions.
#
# Four fits, six minutes of training together on one CPU core.

# %%
import os
import tempfile

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits, load_wine

import flowguide as fg

MINUTES = float(os.environ.get("FLOWGUIDE_NOTEBOOK_MINUTES", 1))
os.chdir(tempfile.mkdtemp())  # the runs of this notebook go to a new folder
rng = np.random.default_rng(0)


def show_rows(rows, vmax=255):
    """Draws rows of images (n, H, W[, C]) by title; NaN is blue."""
    count = max(len(images) for images in rows.values())
    grey = plt.get_cmap("gray").with_extremes(bad="#4c72b0")
    _, axes = plt.subplots(len(rows), count, figsize=(0.75 * count + 1.5, 0.75 * len(rows)), layout="constrained")
    for row, (title, images) in zip(axes, rows.items(), strict=True):
        for ax, image in zip(row, images, strict=True):
            ax.imshow(image, cmap=grey, vmin=0, vmax=vmax)
            ax.set(xticks=[], yticks=[])
        row[0].set_ylabel(title, rotation=0, ha="right", va="center")
    plt.show()


# %% [markdown]
# ## Several classes, numbers, a series
#
# Signals of 16 steps, with three conditions:
#
# - `waves`: which waves there are, any of "slow" and "fast". Texts with "|" between names are several classes at once;
# - `level`: a number, about which they swing;
# - `peaks`: up to three peaks, each with a time and a height. Rows of NaN end the shorter lists. This is a series.
#
# The phases of the waves are random, so even all three conditions leave many possible signals.

# %%
t = np.linspace(0, 1, 16)
SIZES, FREQUENCIES = {"slow": 0.5, "fast": 0.3}, {"slow": 1, "fast": 4}


def padded(*peaks):
    """Returns peaks (time, height) as rows of an array (3, 2), with NaN below."""
    return np.array([*peaks, *[(np.nan, np.nan)] * (3 - len(peaks))])


def signal(waves, level, peaks):
    """Returns a signal (16, 1)."""
    x = level + 0.03 * rng.normal(size=16)
    for wave in filter(None, waves.split("|")):
        x += SIZES[wave] * np.sin(2 * np.pi * (FREQUENCIES[wave] * t + rng.random()))
    for time, height in peaks:
        x += np.nan_to_num(height * np.exp(-0.5 * ((t - time) / 0.06) ** 2))
    return x[:, None]


waves = rng.choice(["", "slow", "fast", "slow|fast"], 4000)
level = rng.uniform(-1, 1, 4000)
peaks = np.stack([padded(*rng.uniform((0.1, 1), (0.9, 2), (n, 2))) for n in rng.integers(0, 4, 4000)])  # (4000, 3, 2)
signals = np.stack([signal(*each) for each in zip(waves, level, peaks, strict=True)])  # (4000, 16, 1)
model = fg.fit(signals, {"waves": waves, "level": level, "peaks": peaks}, workdir="runs/signals", minutes=2 * MINUTES)

# %%
questions = {
    "waves: slow": {"waves": "slow"},
    "waves: slow|fast, level: 0.5": {"waves": "slow|fast", "level": 0.5},
    "no waves, level: −0.5, a peak": {"waves": "", "level": -0.5, "peaks": padded((0.3, 1.5))},
    "two peaks": {"peaks": padded((0.2, 1.0), (0.7, 2.0))},
}
_, axes = plt.subplots(1, 4, figsize=(12, 2.6), sharey=True, layout="constrained")
for ax, (title, question) in zip(axes, questions.items(), strict=True):
    ax.plot(t, model.sample(question, num=6, gamma=1.0)[..., 0].T, lw=1)
    ax.set_title(title, fontsize=10)
plt.show()

# %% [markdown]
# Is the level right? We ask for 200 levels, without waves and peaks, and compare each signal with its level.

# %%
levels = np.linspace(-1, 1, 200)
x = model.sample({"level": levels, "waves": "", "peaks": padded()}, gamma=1.0, batch_size=200)
print(f"the mean of a signal is off by {np.abs(x.mean((1, 2)) - levels).mean():.3f}; levels go from −1 to 1")

# %% [markdown]
# ## An image beside the example, and parts of the example
#
# Digits once more, with two fields: `digit`, the class, and `small`, the same digit in 4 × 4 pixels, which lies beside
# the example. `known=True` adds a third, `known`: any part of the digit itself. One model enlarges and completes.

# %%
digits = load_digits()
images = (digits.images / 16 * 255).astype(np.uint8)
small = images.reshape(-1, 4, 2, 4, 2).mean((2, 4)).round().astype(np.uint8)  # (1797, 4, 4)
fields = {"digit": digits.target[:1500], "small": small[:1500]}
model = fg.fit(images[:1500], fields, workdir="runs/digits", known=True, minutes=2 * MINUTES)

# %% [markdown]
# Super-resolution of digits that training has not seen. What γ = 1 draws are digits that could be behind the small one,
# not their mean.

# %%
new = slice(1500, 1508)
draws = [model.sample({"small": small[new]}, gamma=1.0, seed=seed) for seed in range(3)]
show_rows({"small": small[new], **{f"sample {i + 1}": x for i, x in enumerate(draws)}, "real": images[new]})

again = np.stack(draws)[..., 0].reshape(3, 8, 4, 2, 4, 2).mean((3, 5))
print(
    f"samples made small again differ from what was asked by {np.abs(again - small[new]).mean():.0f} of 255,", end=" "
)
print(f"samples from each other by {np.abs(np.float32(draws[0]) - draws[1]).mean():.0f}")

# %% [markdown]
# Inpainting: NaN marks what is unknown. What is known comes back exactly as given. Add the class, and the rest of the
# digit follows it.

# %%
half = images[new].astype(np.float32)
half[:, 4:] = np.nan
free = model.sample({"known": half}, gamma=1.0)
told = model.sample({"known": half, "digit": 3}, gamma=1.0)
show_rows({"known": half, "completed": free, 'with digit "3"': told, "real": images[new]})
print("the upper halves are kept:", all(np.array_equal(x[:, :4, :, 0], images[new][:, :4]) for x in (free, told)))

# %% [markdown]
# ## A class map
#
# Whole numbers on the pixels of the example are a class for each pixel. Here they say where water, sand and forest
# are, and the pictures are maps from above. In every third picture it is autumn.


# %%
def land(num, side=12):
    """Returns maps (num, side, side) of smooth regions: 0 water, 1 sand, 2 forest."""
    waves = np.fft.fftfreq(side)[:, None] ** 2 + np.fft.fftfreq(side) ** 2
    smooth = np.fft.ifft2(np.fft.fft2(rng.normal(size=(num, side, side))) * np.exp(-waves / 0.02)).real
    return np.digitize(smooth / smooth.std((1, 2), keepdims=True), [-0.1, 0.4])


def seen_from_above(maps):
    """Returns pictures (num, side, side, 3) of maps."""
    summer = np.array([[40, 90, 170], [225, 205, 150], [50, 120, 50]])
    autumn = np.array([[40, 90, 170], [225, 205, 150], [190, 80, 30]])
    colours = np.where(rng.random((len(maps), 1, 1, 1)) < 1 / 3, autumn[maps], summer[maps])
    return (colours + rng.normal(0, 12, (*maps.shape, 1))).clip(0, 255).astype(np.uint8)


maps = land(3000)
model = fg.fit(seen_from_above(maps), {"map": maps}, workdir="runs/land", minutes=MINUTES)

# %% [markdown]
# We draw an island and let the model paint it.

# %%
rows = [
    "000000000000",
    "000000000000",
    "000111110000",
    "001122211100",
    "001222222110",
    "011222222210",
    "011221122210",
    "001221122110",
    "001122221100",
    "000111111000",
    "000000000000",
    "000000000000",
]
island = np.array([list(row) for row in rows], int)
painted = model.sample({"map": island}, num=8, gamma=1.0)
show_rows({"map": np.repeat(island[None] * 120, 8, 0), "samples": painted})

# %% [markdown]
# ## A table with gaps
#
# `known=True` for vectors is imputation. We hide the colour and the proline of 40 wines that training has not seen,
# and complete each 100 times. Intervals that hold 80 % of the completions should hold the truth of 80 % of the wines.

# %%
wine = load_wine()
order = np.random.default_rng(0).permutation(len(wine.data))
train, test = wine.data[order[40:]], wine.data[order[:40]]
model = fg.fit(train, workdir="runs/wine", known=True, minutes=MINUTES)

# %%
hidden = [wine.feature_names.index(name) for name in ("color_intensity", "proline")]
gaps = np.repeat(test, 100, 0)
gaps[:, hidden] = np.nan
completed = model.sample({"known": gaps}, gamma=1.0, batch_size=4000).reshape(40, 100, 13)
low, middle, high = np.quantile(completed, [0.1, 0.5, 0.9], axis=1)
_, axes = plt.subplots(1, 2, figsize=(8, 3.4), layout="constrained")
for ax, i in zip(axes, hidden, strict=True):
    bars = np.stack([middle[:, i] - low[:, i], high[:, i] - middle[:, i]])
    ax.errorbar(test[:, i], middle[:, i], bars, fmt=".", lw=1)
    ax.axline([test[:, i].mean()] * 2, slope=1, color="0.7", zorder=0)
    inside = np.mean((low[:, i] <= test[:, i]) & (test[:, i] <= high[:, i]))
    ax.set(
        title=f"{inside:.0%} of the intervals hold the truth",
        xlabel=f"true {wine.feature_names[i]}",
        ylabel="completed",
    )
plt.show()

# %% [markdown]
# [Your own data](../your-data.md) has the table of what becomes what, and the same conditions on the command line.
