"""Metrics of class probabilities, by hand."""

import numpy as np
import pytest

from flowguide.errors import UserError
from flowguide.metrics import accuracy, expected_calibration_error, inception_score


def test_one_clear_class_for_each_is_the_number_of_classes():
    sure = np.eye(5)[np.arange(100) % 5]
    assert inception_score(sure, splits=1) == pytest.approx((5, 0))
    assert inception_score(np.full((100, 5), 0.2)) == pytest.approx((1, 0))
    assert inception_score(np.tile([0.7, 0.3, 0], (50, 1))) == pytest.approx((1, 0))


def test_the_score_is_the_exponent_of_the_mutual_information():
    p = np.random.default_rng(0).dirichlet(np.ones(4), 30)
    parts = p[:10], p[10:20], p[20:]
    information = [np.mean([sum(r[k] * np.log(r[k] / q[:, k].mean()) for k in range(4)) for r in q]) for q in parts]
    found = inception_score(p, splits=3, seed=None)
    assert found == pytest.approx((np.mean(np.exp(information)), np.std(np.exp(information))))


def test_samples_sorted_by_class_are_shuffled():
    ordered = np.eye(10)[np.repeat(np.arange(10), 100)]
    assert inception_score(ordered, seed=None).mean == pytest.approx(1)
    assert inception_score(ordered).mean > 9


def test_accuracy_counts_the_top_classes():
    p = np.array([[0.5, 0.3, 0.2], [0.2, 0.5, 0.3], [0.1, 0.2, 0.7], [0.6, 0.3, 0.1]])
    labels = np.array([0, 2, 0, 1])
    assert [accuracy(p, labels, top=k) for k in (1, 2, 3)] == [1 / 4, 3 / 4, 1]


def test_calibration_error_by_hand():
    """Confidence 0.75 is right in 3 of 4, as it says; confidence 1 in 3 of 5: Σ = 4/9·0 + 5/9·0.4."""
    p = np.array([[0.75, 0.25]] * 4 + [[0.0, 1.0]] * 5)
    labels = np.array([0, 0, 0, 1, 1, 1, 1, 0, 0])
    assert expected_calibration_error(p, labels) == pytest.approx(5 / 9 * 0.4)
    # In one bin the two are right in 6 of 9, with a mean confidence of 8/9.
    assert expected_calibration_error(p, labels, bins=1) == pytest.approx(2 / 9)


def test_a_calibrated_classifier_has_a_small_error_and_an_overconfident_one_not():
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(3), 20_000)
    labels = (rng.uniform(size=(len(p), 1)) > np.cumsum(p, 1)[:, :2]).sum(1)
    sharper = p**3 / (p**3).sum(1, keepdims=True)
    assert expected_calibration_error(p, labels) < 0.015
    assert expected_calibration_error(sharper, labels) > 0.1


REFUSED = {
    "shape": (lambda: inception_score([0.5, 0.5]), r"\(N, K\); got \(2,\)"),
    "logits": (lambda: inception_score([[0.5, 0.5], [-1, 3.0]]), "sum 2 in row 1"),
    "negative": (lambda: inception_score([[-1.0, 2.0]]), "row 0"),
    "nan": (lambda: inception_score([[0.5, 0.5], [np.nan, 1]]), "row 1"),
    "splits": (lambda: inception_score(np.eye(3), splits=4), "1 to N splits"),
    "label": (lambda: accuracy(np.eye(3), [0, 1, 3]), "labels in 0..2; got 0..3"),
    "labels": (lambda: accuracy(np.eye(3), [0.0, 1.0, 2.0]), "integer label"),
    "top": (lambda: accuracy(np.eye(3), [0, 1, 2], top=4), "top 1 to 3"),
    "bins": (lambda: expected_calibration_error(np.eye(3), [0, 1, 2], bins=0), "1 bin"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name):
    call, message = REFUSED[name]
    with pytest.raises(UserError, match=message):
        call()
