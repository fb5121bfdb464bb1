"""From your data to conditional samples in five lines: nine data sets, timed from the call of ``fit`` to the samples.

python benchmarks/first_samples.py [--minutes=1] [--only=digits,wine]

For each: ``fit`` with its defaults, then samples of every condition at γ = 1. ``first samples`` counts from the call to
the samples on the host, compilation included. ``as asked`` judges them: for classes, how many of the samples a
classifier gives the class that was asked for, beside how many of the held-out data it gets right; for numbers, the
correlation of what was asked for and what a judge measures in the samples, beside that in the held-out data.
The judges are scikit-learn's, and see only data that ``fit`` trains on.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import app, flags
from PIL import Image
from sklearn import datasets
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

import flowguide as fg
from flowguide.data.builders import avatars

MINUTES = flags.DEFINE_float("minutes", 1.0, "minutes of each fit", lower_bound=0.05)
ONLY = flags.DEFINE_list("only", [], "names of data sets; all by default")
LIMIT = 120  # seconds to first samples


class Trial(NamedTuple):
    """A data set, how it is given to ``fit``, and how it is judged.

    Attributes:
      x: examples ``(N, ...)``.
      asked: classes or numbers ``(N,)``.
      fit: arguments of ``fit``.
      prompt: a class or number -> prompt.
      judge: an estimator of scikit-learn that reads ``asked`` from flattened examples.
    """

    x: np.ndarray
    asked: np.ndarray
    fit: dict[str, Any]
    prompt: Callable[[Any], str]
    judge: Any


def of_arrays(x: Any, asked: Any, judge: Any) -> Trial:
    prompt = (lambda value: f"{value:.7g}") if asked.dtype.kind == "f" else str
    return Trial(x, asked, {"x": x, "condition": asked}, prompt, judge)


def linear() -> Any:
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=3000))


def measure() -> Any:
    return make_pipeline(StandardScaler(), RidgeCV(np.logspace(-3, 3, 13)))


def digits() -> Trial:
    data: Any = datasets.load_digits()
    return of_arrays((data.images / 16 * 255).astype(np.uint8), data.target, linear())


def wine() -> Trial:
    data: Any = datasets.load_wine()
    return of_arrays(data.data, data.target_names[data.target], linear())


def diabetes() -> Trial:
    """Ten measurements of 442 patients given how far the disease went in a year."""
    data: Any = datasets.load_diabetes()
    return of_arrays(data.data, data.target, measure())


def two_moons() -> Trial:
    x, asked = datasets.make_moons(5000, noise=0.05, random_state=0)
    return of_arrays(x, np.array(["upper", "lower"])[asked], RandomForestClassifier(random_state=0))


def faces() -> Trial:
    images, fields, names = avatars.load()
    return of_arrays(images, np.array(names["hat"])[fields["hat"]], linear())


def png_folder(folder: Path) -> Trial:
    data: Any = datasets.load_digits()
    for number, (image, label) in enumerate(zip(data.images, data.target, strict=True)):
        place = folder / "digits" / f"digit_{label}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image / 16 * 255).astype(np.uint8)).save(place / f"{number}.png")
    asked = np.array([f"digit_{label}" for label in data.target])
    return Trial(data.images / 16 * 255, asked, {"x": str(folder / "digits")}, str, linear())


def csv(folder: Path) -> Trial:
    """Four measurements of 150 irises, and the species by name."""
    data: Any = datasets.load_iris()
    asked = data.target_names[data.target]
    lines = [",".join(map(str, [*row, name])) for row, name in zip(data.data, asked, strict=True)]
    header = "sepal_length,sepal_width,petal_length,petal_width,species"
    (folder / "iris.csv").write_text("\n".join([header, *lines]) + "\n")
    return Trial(data.data, asked, {"x": str(folder / "iris.csv"), "fields": ["species"]}, str, linear())


def sine_waves() -> Trial:
    """Waves of 64 steps with 2 to 8 periods and a random phase, given the frequency."""
    rng = np.random.default_rng(0)
    frequency, phase = rng.uniform(2, 8, 4000), rng.uniform(0, 2 * np.pi, 4000)
    angle = 2 * np.pi * frequency[:, None] * np.linspace(0, 1, 64) + phase[:, None]
    spectrum = FunctionTransformer(lambda x: np.abs(np.fft.rfft(x * np.hanning(64), axis=1))[:, :16] ** 0.5)
    return of_arrays(np.sin(angle)[..., None], frequency, make_pipeline(spectrum, measure()))


def volumes() -> Trial:
    """Balls, cubes and octahedra of random size in 12³ voxels."""
    rng = np.random.default_rng(0)
    power, size = rng.integers(0, 3, 3000), rng.uniform(2, 4.5, 3000)
    centre = rng.uniform(5, 6, (3000, 3))
    grid = np.stack(np.meshgrid(*[np.arange(12)] * 3, indexing="ij"), -1)
    away = np.abs(grid - centre[:, None, None, None])
    norms = np.stack([away.sum(-1) / 1.4, np.sqrt(np.square(away).sum(-1)), away.max(-1) * 1.2])
    soft = np.clip(size[:, None, None, None] - norms[power, np.arange(3000)] + 0.5, 0, 1)
    names = np.array(["octahedron", "ball", "cube"])
    return of_arrays(soft[..., None].astype(np.float32), names[power], RandomForestClassifier(random_state=0))


TRIALS: dict[str, Callable[..., Trial]] = {
    "digits": digits,
    "wine": wine,
    "diabetes": diabetes,
    "two_moons": two_moons,
    "faces": faces,
    "png_folder": png_folder,
    "csv": csv,
    "sine_waves": sine_waves,
    "volumes": volumes,
}


def run(name: str) -> str:
    """Fits and judges one data set; returns its line of the table."""
    with tempfile.TemporaryDirectory() as folder:
        make = TRIALS[name]
        trial = make(Path(folder)) if make in (png_folder, csv) else make()
        rng = np.random.default_rng(0)
        order = rng.permutation(len(trial.x))
        train, held_out = order[len(order) // 10 :], order[: max(len(order) // 10, 20)]
        judge = trial.judge.fit(trial.x[train].reshape(len(train), -1), trial.asked[train])
        wanted = trial.asked[rng.permutation(len(trial.x))[:100]]
        started = time.perf_counter()
        model = fg.fit(**trial.fit, workdir=f"{folder}/run", minutes=MINUTES.value)
        first = model.sample([trial.prompt(value) for value in wanted[:16]], gamma=1.0)
        seconds = time.perf_counter() - started
        samples = np.concatenate([first, model.sample([trial.prompt(v) for v in wanted[16:]], gamma=1.0)])
    if not np.isfinite(samples).all():
        raise SystemExit(f"{name}: samples that are not finite")
    real = judge.predict(trial.x[held_out].reshape(len(held_out), -1))
    read = judge.predict(samples.reshape(len(samples), -1).astype(np.float64))
    scores = _agreement(read, wanted), _agreement(real, trial.asked[held_out])
    late = " missed" if seconds > LIMIT else ""
    return f"| {name} | {seconds:.0f} s{late} | {scores[0]:.2f} | {scores[1]:.2f} | {model.step} |"


def _agreement(found: np.ndarray, asked: np.ndarray) -> float:
    """Returns the share of equal classes, or the correlation of numbers."""
    return float(np.corrcoef(found, asked)[0, 1] if asked.dtype.kind == "f" else np.mean(found == asked))


def main(_: Any) -> None:
    print(
        f"| data | first samples (limit {LIMIT} s) | as asked | real data | steps |\n|---|---|---|---|---|", flush=True
    )
    for name in ONLY.value or TRIALS:
        print(run(name), flush=True)


if __name__ == "__main__":
    app.run(main)
