"""How well a model completes partly known examples: digits from their upper half, wines from some of their columns.

python benchmarks/completion.py [--minutes=5]

It needs scikit-learn for its data. Digits: a logistic regression, trained on real digits, reads the class of real
and of completed ones, which share the upper half. Wines: the log-score of each hidden number under a kernel density
(Silverman's rule) of 100 completions, of the values of the 10 nearest wines by the known columns, and of all wines.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from absl import app, flags
from scipy.special import logsumexp
from sklearn.datasets import load_digits, load_wine
from sklearn.linear_model import LogisticRegression

import flowguide as fg

MINUTES = flags.DEFINE_float("minutes", 5.0, "minutes of training for each data set", lower_bound=0.1)


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
    order = np.random.default_rng(0).permutation(len(x))
    train, test = x[order[30:]], x[order[:30]]
    mean, scale = train.mean(0), train.std(0)
    model = fg.fit(train, minutes=MINUTES.value, known=True)
    rng, scores = np.random.default_rng(1), {"completions": [], "nearest 10": [], "all wines": []}
    for _ in range(3):
        hidden = rng.random(test.shape) < 0.5
        hidden[:, 0] = False  # something is known of each
        given = np.where(hidden, np.nan, test)
        draws = np.stack(
            [model.sample({"known": given}, num=len(test), gamma=1.0, seed=seed) for seed in range(100)], axis=1
        )
        for row in range(len(test)):
            known, wanted = ~hidden[row], np.flatnonzero(hidden[row])
            distance = np.square((train[:, known] - test[row, known]) / scale[known]).sum(1)
            nearest = train[np.argsort(distance)[:10]]
            for name, values in (("completions", draws[row]), ("nearest 10", nearest), ("all wines", train)):
                standard = (values[:, wanted] - mean[wanted]) / scale[wanted]
                scores[name].append(_log_scores(standard, (test[row, wanted] - mean[wanted]) / scale[wanted]))
    print(f"\nwines: mean log-score of {sum(map(len, scores['all wines']))} hidden numbers, in standard deviations\n")
    for name, found in scores.items():
        print(f"  {name:12} {np.mean(np.concatenate(found)):.3f}")


def _log_scores(values: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Returns the log-density of each truth ``(d,)`` under a kernel density of values ``(n, d)``."""
    width = np.maximum(1.06 * values.std(0) * len(values) ** -0.2, 0.02)
    each = -0.5 * np.square((truth - values) / width) - np.log(width * np.sqrt(2 * np.pi))
    return logsumexp(each, axis=0) - np.log(len(values))


def main(_: Any) -> None:
    digits()
    wines()


if __name__ == "__main__":
    app.run(main)
