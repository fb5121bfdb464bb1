"""Every metric sees the faults it is for, on real digits with the features of a small scikit-learn classifier."""

import warnings

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier

from flowguide.metrics import (
    accuracy,
    authenticity,
    density_coverage,
    expected_calibration_error,
    frechet_distance,
    inception_score,
    kid,
    moments,
    precision_recall,
    sliced_wasserstein,
)


def blurred(images):
    padded = np.pad(images.reshape(-1, 8, 8), ((0, 0), (1, 1), (1, 1)), mode="edge")
    windows = [padded[:, i : i + 8, j : j + 8] for i in range(3) for j in range(3)]
    return np.mean(windows, 0).reshape(-1, 64)


@pytest.fixture(scope="module")
def numbers():
    """name of a set of samples -> metric -> its value."""
    rng = np.random.default_rng(0)
    x, y = load_digits(return_X_y=True)
    order = rng.permutation(len(x))
    x, y = x[order] / 16, y[order]
    real, held_out, held_out_y = x[:898], x[898:], y[898:]
    classifier = MLPClassifier((32,), learning_rate_init=5e-3, max_iter=80, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        classifier.fit(real, y[:898])

    def features(images):
        return np.maximum(0, images @ classifier.coefs_[0] + classifier.intercepts_[0])

    wrong = np.where(rng.uniform(size=len(held_out)) < 0.3, (held_out_y + 1) % 10, held_out_y)
    kept = np.isin(held_out_y, (3, 5, 8), invert=True)
    sets = {
        "good": (held_out, held_out_y),
        "blur": (blurred(held_out), held_out_y),
        "noise": (np.clip(held_out + 0.3 * rng.normal(size=held_out.shape), 0, 1), held_out_y),
        "dropped": (held_out[kept], held_out_y[kept]),
        "copies": (real[rng.integers(0, len(real), len(held_out))], None),
        "few copies": (real[rng.integers(0, 20, len(held_out))], None),
        "wrong labels": (held_out, wrong),
    }
    reference = features(real)

    def measured(images, labels):
        found, p = features(images), classifier.predict_proba(images)
        precision, recall = precision_recall(reference, found)
        density, coverage = density_coverage(reference, found)
        values = {
            "frechet": frechet_distance(moments([reference]), moments([found])),
            "kid": kid(reference, found, size=100, subsets=40).mean,
            "sliced": sliced_wasserstein(reference, found, directions=64),
            "inception": inception_score(p, splits=2).mean,
            "precision": precision,
            "recall": recall,
            "density": density,
            "coverage": coverage,
            "authenticity": authenticity(reference, found),
        }
        if labels is not None:
            values |= {"accuracy": accuracy(p, labels), "calibration": expected_calibration_error(p, labels)}
        return values

    return {name: measured(*samples) for name, samples in sets.items()}


DISTANCES = ("frechet", "kid", "sliced")
# fault -> metrics that must rise by half and a little, metrics that must fall by a tenth or more
SEEN = {
    "blur": ((*DISTANCES, "calibration"), ("inception", "precision", "recall", "density", "coverage", "accuracy")),
    "noise": ((*DISTANCES, "calibration"), ("inception", "precision", "density", "coverage", "accuracy")),
    "dropped": (DISTANCES, ("recall", "coverage", "inception")),
    "few copies": (DISTANCES, ("recall", "coverage", "authenticity", "inception")),
    "copies": ((), ("authenticity",)),
    "wrong labels": (("calibration",), ("accuracy",)),
}


@pytest.mark.parametrize("fault", SEEN)
def test_a_planted_fault_moves_the_metrics_that_are_for_it(numbers, fault):
    rises, falls = SEEN[fault]
    good, bad = numbers["good"], numbers[fault]
    assert not [(m, good[m], bad[m]) for m in rises if not bad[m] > 1.5 * good[m] + 0.02]
    assert not [(m, good[m], bad[m]) for m in falls if not bad[m] < 0.9 * good[m]]


def test_what_a_metric_is_not_for_it_does_not_see(numbers):
    """Dropped digits leave the others realistic, noise reaches everywhere, and copies of real data look perfect."""
    good = numbers["good"]
    assert numbers["dropped"]["precision"] == pytest.approx(good["precision"], abs=0.05)
    assert numbers["dropped"]["density"] == pytest.approx(good["density"], abs=0.05)
    assert numbers["noise"]["recall"] > good["recall"] - 0.05
    copies = numbers["copies"]
    assert copies["precision"] == 1
    assert copies["authenticity"] == 0
    assert copies["frechet"] < 1.2 * good["frechet"]
    assert copies["coverage"] > good["coverage"] - 0.02
