"""Adherence: counting, by hand."""

import math

import numpy as np
import pytest

from flowguide.condition import Condition
from flowguide.metrics import adherence, joint_adherence, share, standard_error, standard_errors
from flowguide.metrics.adherence import shows

SEEN = {"hat": [1, 1, 0, 2], "beard": [0, 1, 1, 0], "skin": [0, 0, 0, 0]}
ASKED = Condition(
    {"hat": np.array([1, 0, 0, 2]), "beard": np.array([0, 0, 1, 1]), "skin": np.array([1, 1, 1, 1])},
    {"hat": np.array([True] * 4), "beard": np.array([True, False, True, True]), "skin": np.zeros(4, bool)},
)


def test_counts_only_what_was_present():
    assert adherence(SEEN, ASKED) == {"hat": 3 / 4, "beard": 2 / 3}
    assert standard_errors(SEEN, ASKED)["beard"] == pytest.approx(math.sqrt(2 / 27))


def test_values_alone_are_all_present():
    assert adherence(SEEN, {"hat": [1, 1, 0, 0]}) == {"hat": 3 / 4}


def test_joint_asks_for_everything_that_was_present():
    assert joint_adherence(SEEN, ASKED) == 2 / 4
    assert math.isnan(joint_adherence(SEEN, Condition({"hat": np.zeros(4, int)}, {"hat": np.zeros(4, bool)})))


def test_standard_error_is_binomial():
    draws = np.random.default_rng(0).binomial(200, 0.3, 20_000) / 200
    assert standard_error(0.3, 200) == pytest.approx(draws.std(), rel=0.03)


def test_share():
    assert share([0, 1, 2, 1], 1) == 0.5
    assert share([0, 1, 2, 1], [1, 2]) == 0.75
    with pytest.raises(ValueError, match="no predictions"):
        share([], 1)


def test_refusals():
    with pytest.raises(ValueError, match="not predicted"):
        adherence({}, {"hat": [1]})
    with pytest.raises(ValueError, match="one shape"):
        adherence({"hat": [1, 2]}, {"hat": [1]})
    with pytest.raises(ValueError, match="named fields"):
        adherence({"hat": [1]}, Condition(np.zeros(1, int), np.ones(1, bool)))


def test_a_field_that_was_not_asked_for_does_not_matter():
    """By hand: hat 1 is asked of the first three, beard 0 of the first alone, nothing of the last."""
    value = {"hat": np.array([1, 1, 1, 0]), "beard": np.array([0, 1, 0, 0])}
    present = {"hat": np.array([True, True, True, False]), "beard": np.array([True, False, False, False])}
    predicted = {"hat": np.array([1, 1, 0, 1]), "beard": np.array([0, 0, 0, 1])}
    anything, everything = shows(predicted, Condition(value, present))
    np.testing.assert_array_equal(anything, [True, True, True, False])
    np.testing.assert_array_equal(everything, [True, True, False, False])
    assert joint_adherence(predicted, Condition(value, present)) == 2 / 3
