# %% [markdown]
# # Files and folders
#
# Data on disk need no Python: this notebook stays on the command line. It writes a folder of pictures by class, a
# table, and pictures with masks beside them, looks at what flowguide makes of each, trains and samples.
#
# The three trainings take six minutes together on one CPU core.

# %%
import csv
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits, load_wine

MINUTES = float(os.environ.get("FLOWGUIDE_NOTEBOOK_MINUTES", 1))
os.chdir(tempfile.mkdtemp())  # the files of this notebook go to a new folder


def run(command):
    """Runs a flowguide command and prints what it says; in a terminal, type what follows the $."""
    print(f"$ {command}")
    words = [sys.executable, "-m", *shlex.split(command)]
    print(subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout)


# %% [markdown]
# ## A folder of pictures for each class
#
# The name of the folder is the class.

# %%
digits = load_digits()
names = np.array(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"])
for i, (image, name) in enumerate(zip(digits.images, names[digits.target], strict=True)):
    folder = Path("photos") / name
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray((image / 16 * 255).astype(np.uint8)).save(folder / f"{i:04}.png")

run("flowguide data describe photos/")

# %%
run(f"flowguide train --data=photos/ --workdir=runs/photos --minutes={2 * MINUTES}")

# %% [markdown]
# One `--cond` for each column, one γ for each row. The figure is `grid.png`, and each sample is a PNG of its own
# beside it.

# %%
run("flowguide sample --workdir=runs/photos --cond=two --cond=five --cond=nine --gamma=1,3 --num=16")
print(*sorted(map(str, Path("runs/photos/samples").rglob("*")))[:6], "...", sep="\n")

# %%
Image.open("runs/photos/samples/grid.png")

# %% [markdown]
# ## A table
#
# A CSV file with names in its first line. Columns of fractions are the example, all others the condition; `--fields`
# and `--example` choose differently.

# %%
wine = load_wine()
grower = np.array(["Ada", "Bea", "Cyd"])[wine.target]
with open("wine.csv", "w", newline="") as file:
    table = csv.writer(file)
    table.writerow([*wine.feature_names, "grower"])
    table.writerows([*row, name] for row, name in zip(wine.data, grower, strict=True))

print(*Path("wine.csv").read_text().splitlines()[:3], "...", sep="\n", end="\n\n")
run("flowguide data describe wine.csv --fields=grower")

# %%
run(f"flowguide train --data=wine.csv --fields=grower --workdir=runs/wine --minutes={MINUTES}")

# %% [markdown]
# Samples can be a table too, with the same columns. Its rows are wines of growers that were asked for.

# %%
run("flowguide sample --workdir=runs/wine --cond=Ada --cond=Cyd --gamma=1 --num=200 --save=csv")
rows = list(csv.DictReader(Path("runs/wine/samples/samples.csv").read_text().splitlines()))
print("alcohol, %     real          samples")
for name in ("Ada", "Cyd"):
    real = wine.data[grower == name, wine.feature_names.index("alcohol")]
    drawn = np.array([float(row["alcohol"]) for row in rows if row["grower"] == name])
    print(f"{name:10} {real.mean():6.2f} ± {real.std():.2f} {drawn.mean():7.2f} ± {drawn.std():.2f}")

# %% [markdown]
# ## Pictures with masks beside them
#
# A `metadata.csv` names the pictures in its column `file_name`. Other columns are conditions, and those that end in
# `_file_name` name pictures beside them. Here: digits in colour on a wall, a mask that says where the paint is, and the
# name of the colour.

# %%
PAINTS = {"red": (220, 50, 40), "yellow": (240, 200, 40), "blue": (50, 80, 220)}
rng = np.random.default_rng(0)
Path("walls").mkdir()
with open("walls/metadata.csv", "w", newline="") as file:
    table = csv.writer(file)
    table.writerow(["file_name", "mask_file_name", "colour"])
    for i, image in enumerate(digits.images):
        colour = rng.choice(list(PAINTS))
        wall = np.full((8, 8, 1), rng.uniform(100, 200)) + rng.normal(0, 12, (8, 8, 1))
        paint = image[..., None] / 16
        picture = (1 - paint) * wall + paint * PAINTS[colour]
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(f"walls/{i:04}.png")
        Image.fromarray((image / 16 * 255).astype(np.uint8)).save(f"walls/{i:04}_mask.png")
        table.writerow([f"{i:04}.png", f"{i:04}_mask.png", colour])

print(*Path("walls/metadata.csv").read_text().splitlines()[:3], "...", sep="\n", end="\n\n")
run("flowguide data describe walls/")

# %%
run(f"flowguide train --data=walls/ --workdir=runs/walls --minutes={3 * MINUTES}")

# %% [markdown]
# We draw a mask of our own, and ask for it in three colours.

# %%
smile = [
    "..####..",
    ".#....#.",
    "#.#..#.#",
    "#......#",
    "#.#..#.#",
    "#..##..#",
    ".#....#.",
    "..####..",
]
Image.fromarray(np.array([[255 * (c == "#") for c in row] for row in smile], np.uint8)).save("smile.png")
conds = " ".join(f"--cond=mask=smile.png,colour={colour}" for colour in PAINTS)
run(f"flowguide sample --workdir=runs/walls {conds} --gamma=1 --num=9 --save=none")

# %%
Image.open("runs/walls/samples/grid.png")

# %% [markdown]
# ## Imported once, read by name
#
# A large set, or one for a pod, is better imported once. That writes a prepared TFDS set, which every process reads by
# name, also from a bucket. Types, scales and vocabularies stay the same.

# %%
run("flowguide data import walls/ walls_of_digits --data_dir=prepared")
run("flowguide data describe walls_of_digits --data_dir=prepared")

# %% [markdown]
# [Your own data](../your-data.md#from-files) lists all kinds of files. Mistakes are found before training, in one line:

# %%
Path("wine.csv").write_text(Path("wine.csv").read_text().replace("14.23", "about 14"))
words = [sys.executable, "-m", *shlex.split("flowguide data describe wine.csv --fields=grower")]
print(subprocess.run(words, capture_output=True, text=True).stderr)
