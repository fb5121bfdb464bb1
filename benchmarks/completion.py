"""How well a model completes partly known examples: digits from their upper half, wines from some of their columns.

python benchmarks/completion.py [--minutes=5]

It needs scikit-learn for its data. Digits: a logistic regression, trained on real digits, reads the class of real
and of completed ones, which share the upper half. Wines: half of the columns are hidden. The log-score of each hidden
number is its log-density under a kernel density (Silverman's rule) of 500 completions, of the values of the k nearest
wines by the known columns, and of all wines.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from absl import app, flags
from scipy.special import logsumexp
from sklearn.datasets import load_digits, load_wine
from sklearn.linear_model import LogisticRegression

import flowguide as fg

MINUTES = flags.DEFINE_float(
    "minutes", 5.0, "minutes of training: of digits, and of five splits of wines", lower_bound=0.1
)
SPLITS = flags.DEFINE_integer("splits", 5, "splits of the wines into 148 to train on and 30 to complete", lower_bound=2)
ONLY = flags.DEFINE_enum("only", None, ["digits", "wines"], "one of the data sets")
DRAWS = 500  # completions of each wine
NEAREST = (5, 10, 20, 30)  # 5 is scikit-learn's default for imputation


def digits() -> None:
    data: Any = load_digits()
    x, labels = (data.images / 16 * 255).astype(np.uint8), data.target
    split = 1500
    model = fg.fit(x[:split], labels[:split], minutes=MINUTES.value, known=True)
    judge = LogisticRegression(max_iter=2000).fit(x[:split].reshape(split, -1) / 255, labels[:split])
    real, asked = x[split:], labels[split:]
    half = real.astype(np.float32)[..., None]
    half[:, 4:] = np.nan

    def read(images: np.ndarray) -> float:
        return float(np.mean(judge.predict(images.reshape(len(images), -1) / 255) == asked))

    upper = LogisticRegression(max_iter=2000).fit(x[:split, :4].reshape(split, -1) / 255, labels[:split])
    print(f"\n{len(real)} held-out digits: share whose class the judge reads correctly\n")
    print(f"  real                              {read(real):.3f}")
    for gamma in (1.0, 2.0):
        given = model.sample({"known": half, "label": asked}, num=len(real), gamma=gamma)
        print(f"  completed, class given, γ = {gamma:g}      {read(given):.3f}")
    print(f"  completed, class not given, γ = 1  {read(model.sample({'known': half}, num=len(real), gamma=1.0)):.3f}")
    seen = np.mean(upper.predict(real[:, :4].reshape(len(real), -1) / 255) == asked)
    print(f"  (a judge of upper halves alone     {seen:.3f})")


def wines() -> None:
    data: Any = load_wine()
    x = data.data.astype(np.float32)
    means: dict[str, list[float]] = {}
    for split in range(SPLITS.value):
        order = np.random.default_rng(split).permutation(len(x))
        for name, scores in _of_split(x[order[30:]], x[order[:30]]).items():
            means.setdefault(name, []).append(float(np.mean(scores)))
    print(f"\nwines: log-score of hidden numbers, in standard deviations; mean of {SPLITS.value} splits\n")
    print("  completed by                  log-score   ours is better in")
    ours = np.array(means["flowguide"])
    for name, found in means.items():
        error = np.std(found) / max(len(found) - 1, 1) ** 0.5
        better = "" if name == "flowguide" else f"{np.sum(ours > found)} of {len(ours)}"
        print(f"  {name:28} {np.mean(found):6.3f} ± {error:.3f}   {better}")


def _of_split(train: np.ndarray, test: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the log-scores of all numbers that are hidden, by method."""
    mean, scale = train.mean(0), train.std(0)
    model = fg.fit(train, minutes=MINUTES.value / 5, known=True)
    rng, scores = np.random.default_rng(1), {}
    hidden = rng.random((2, *test.shape)) < 0.5
    hidden[..., 0] = False  # something is known of each
    given = np.where(hidden, np.nan, test)  # (2, 30, 13)
    draws = model.sample({"known": np.repeat(given.reshape(-1, 13), DRAWS, 0)}, gamma=1.0, batch_size=6000)
    draws = draws.reshape(*given.shape[:2], DRAWS, 13)
    for which, row in np.ndindex(given.shape[:2]):
        wanted = hidden[which, row]
        distance = np.square((train[:, ~wanted] - test[row, ~wanted]) / scale[~wanted]).sum(1)
        nearest = train[np.argsort(distance)]
        for name, values in {
            "flowguide": draws[which, row],
            **{f"the {k} nearest wines": nearest[:k] for k in NEAREST},
            "all wines": train,
        }.items():
            standard = (values[:, wanted] - mean[wanted]) / scale[wanted]
            truth = (test[row, wanted] - mean[wanted]) / scale[wanted]
            scores.setdefault(name, []).append(_log_scores(standard, truth))
    return {name: np.concatenate(found) for name, found in scores.items()}


def _log_scores(values: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Returns the log-density of each truth ``(d,)`` under a kernel density of values ``(n, d)``."""
    width = np.maximum(1.06 * values.std(0) * len(values) ** -0.2, 0.02)
    each = -0.5 * np.square((truth - values) / width) - np.log(width * np.sqrt(2 * np.pi))
    return logsumexp(each, axis=0) - np.log(len(values))


def main(_: Any) -> None:
    if ONLY.value != "wines":
        digits()
    if ONLY.value != "digits":
        wines()


if __name__ == "__main__":
    app.run(main)
