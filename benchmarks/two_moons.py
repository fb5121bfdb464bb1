"""Two moons: samples and exact log-densities of ``fit`` against the true law.

python benchmarks/two_moons.py [--minutes=3]

scikit-learn's ``make_moons`` draws a point on a half circle by class, plus noise of .05. The density of that is an
integral over the angle, computed here with 4,000 nodes. ``fit`` sees 10,000 points with their class. C2ST is the
accuracy of a classifier of samples and new points, ½ is perfect; the distance of log-densities is the mean over new
points of log p(x) − log q(x), which is the Kullback-Leibler divergence, and of its absolute value.
"""

from __future__ import annotations

import argparse

import numpy as np
from scipy.special import logsumexp
from sklearn.datasets import make_moons

import flowguide as fg
from flowguide.metrics import c2st

NOISE, NAMES = 0.05, np.array(["upper", "lower"])


def true_log_density(x: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Returns log p(x|class) of points ``(N, 2)`` of classes ``(N,)``, in nats."""
    angle = (np.arange(4000) + 0.5) * np.pi / 4000
    upper = np.stack([np.cos(angle), np.sin(angle)], 1)
    lower = np.stack([1 - np.cos(angle), 0.5 - np.sin(angle)], 1)
    curve = np.where((label == 0)[:, None, None], upper, lower)  # (N, 4000, 2)
    square = np.square(x[:, None] - curve).sum(-1)
    return logsumexp(-0.5 * square / NOISE**2, axis=1) - np.log(len(angle)) - np.log(2 * np.pi * NOISE**2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=3.0, help="of the fit")
    options = parser.parse_args()
    x, label = make_moons(10_000, noise=NOISE, random_state=0)
    new, asked = map(np.asarray, make_moons(4000, noise=NOISE, random_state=1))
    model = fg.fit(x, NAMES[label], minutes=options.minutes)
    names = NAMES[asked].tolist()
    truth = true_log_density(new[:1000], asked[:1000])
    gap = truth - np.asarray(model.log_prob(new[:1000], names[:1000]))
    drawn = model.sample(names, gamma=1.0, batch_size=1000)
    print(f"C2ST of 4,000 samples: {c2st(new, np.asarray(drawn), jobs=2):.3f}")
    print(
        f"log p - log q of 1,000 points: {gap.mean():.3f} nats on average, {np.abs(gap).mean():.3f} in absolute value"
    )


if __name__ == "__main__":
    main()
