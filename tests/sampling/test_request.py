"""Requests: every form of a condition, and the guidance scale that none names."""

import jax.numpy as jnp
import numpy as np
import pytest

from flowguide import sampling
from flowguide.condition import given
from flowguide.errors import UserError
from flowguide.schema import Vector, conditions
from flowguide.schema.conditions import rows, sample_count
from tests.support.toy import FREE, MODEL, ONE, draw


@pytest.mark.parametrize(
    ("cond", "prompts"),
    [
        (3, ["3"] * 4),
        (np.int64(3), ["3"] * 4),
        ({"hat": 3}, ["3"] * 4),
        ({"hat": "3"}, ["3"] * 4),
        ([3, "0", {"hat": 7}, ""], ["3", "0", "7", ""]),
        (np.array([3, 0, 7, 9]), ["3", "0", "7", "9"]),
        (jnp.array([3, 0, 7, 9]), ["3", "0", "7", "9"]),
        ({"hat": [3, 0, 7, 9]}, ["3", "0", "7", "9"]),
        ({"hat": np.array(["3", "0", "7", "9"])}, ["3", "0", "7", "9"]),
        (given(np.array([3, 0, 7, 9])), ["3", "0", "7", "9"]),
        ({}, [""] * 4),
    ],
    ids=str,
)
def test_conditions_may_be_labels_arrays_and_dicts(cond, prompts):
    options = {"gamma": 2.0, "config": sampling.SamplerConfig("euler", 4)}
    expected = sampling.sample(ONE, prompts, **options).x
    np.testing.assert_array_equal(sampling.sample(ONE, cond, num=4, **options).x, expected)
    away = sampling.sample(ONE, "1", num=4, negative=prompts[:1], **options).x
    if isinstance(cond, int | dict) and prompts[0] == prompts[1]:
        np.testing.assert_array_equal(sampling.sample(ONE, 1, num=4, negative=cond, **options).x, away)
    if len(set(prompts)) > 1:  # one a sample: their number need not be said
        np.testing.assert_array_equal(sampling.sample(ONE, cond, **options).x, expected)


def test_one_negative_needs_no_list():
    """A string is one prompt, not one for each of its characters."""
    listed = draw(negative=["beard=yes"]).x
    np.testing.assert_array_equal(draw(negative="beard=yes").x, listed)
    np.testing.assert_array_equal(draw(negative={"beard": 1}).x, listed)
    np.testing.assert_array_equal(draw(negative=[{"beard": np.ones(10, int)}]).x, listed)
    two = draw(negative=["beard=yes", {"hat": "none"}])
    np.testing.assert_array_equal(draw(negative=["beard=yes", "hat=none"]).x, two.x)
    assert (two.evaluations == 12 * 4).all()
    with pytest.raises(UserError, match="unknown value '12' of 'hat'"):
        sampling.sample(ONE, 3, num=2, negative="12")


@pytest.mark.parametrize(
    ("cond", "message"),
    [
        (10, "field 'hat' takes a name or a number from 0 to 9; got 10"),
        (-1, "from 0 to 9; got -1"),
        (2.5, "field 'hat' takes a name or a number from 0 to 9; got 2.5"),
        (None, 'got None, expected a prompt "hat=red", a label'),
        (np.arange(3), "got 3 values of 'hat' for 4 samples"),
        (np.array([3, 0, 7, 10]), "from 0 to 9; got 10"),
        ({"hut": 3}, "unknown field 'hut', did you mean 'hat'"),
        ({"hat": np.zeros((4, 2), int)}, "field 'hat' takes a name or a number"),
        ({"hat": [[3], [1, 2]]}, "field 'hat' takes a name or a number"),
        ([3, 4], "got 2 conditions for 4 samples"),
        (given({"hut": np.arange(4)}), "got a Condition of hut, and the data have the fields hat"),
        (given(np.zeros((4, 2), int)), r"the values of 'hat' must have shape \(4,\)"),
        (given(np.array([3, 0, 7, 10])), "from 0 to 9; got 10"),
    ],
    ids=str,
)
def test_what_is_no_condition_is_refused(cond, message):
    with pytest.raises(UserError, match=message):
        sampling.sample(ONE, cond, num=4)
    with pytest.raises(UserError, match="say which, as a prompt or a dict"):
        sampling.sample(MODEL, 3)


def test_a_vector_of_one_number_needs_no_axis():
    fields = {"a": Vector(1), "v": Vector(2)}
    for one in (0.5, np.float32(0.5), [0.5], jnp.array(0.5), "0.5"):
        np.testing.assert_array_equal(conditions({"a": one}, fields, 3).value["a"], np.full((3, 1), 0.5))
    for each in ([1.0, 2.0, 3.0], np.arange(1.0, 4), np.arange(1.0, 4)[:, None]):
        np.testing.assert_array_equal(conditions({"a": each}, fields, 3).value["a"], [[1.0], [2.0], [3.0]])
        assert sample_count({"a": each, "v": [0.0, 1.0]}, None, 64, fields) == 3
        assert [float(row["a"][0]) for row in rows({"a": each, "v": [0.0, 1.0]}, fields)] == [1.0, 2.0, 3.0]
    for wrong in ({"v": 0.5}, {"v": [[0.5]]}, {"a": [[1.0], [2.0, 3.0]]}, {"a": None}, {"a": np.ones((3, 1, 1))}):
        with pytest.raises(UserError, match=r"takes \d finite numbers"):
            conditions(wrong, fields, 3)
    with pytest.raises(UserError, match="got 2 values of 'a' for 3 samples"):
        conditions({"a": [1.0, 2.0]}, fields, 3)


def conditioned(low, high):
    """A γ-conditioned model that reads its γ."""
    network = MODEL.network._replace(velocity=lambda params, t, x, c: -c.value["gamma"].reshape(-1, 1, 1, 1) * x)
    return MODEL._replace(network=network, guidance=sampling.GammaConditioned(low, high))


@pytest.mark.parametrize(
    ("model", "gamma"),
    [
        (MODEL, 2.0),
        (MODEL._replace(guidance=sampling.NoNull()), 1.0),
        (MODEL._replace(guidance=sampling.Guided(3.0)), 1.0),
        (FREE, 1.0),
        (conditioned(1.0, 4.0), 2.0),
        (conditioned(3.0, 5.0), 3.0),
        (conditioned(0.5, 1.5), 1.5),
    ],
    ids=["plain", "no null", "guided", "no fields", "conditioned", "conditioned, more", "conditioned, less"],
)
def test_the_default_of_gamma_is_that_of_the_model(model, gamma):
    def drawn(**options):
        cond = "hat=red,beard=no" if model.info.fields else ""
        return sampling.sample(model, cond, num=3, config=sampling.SamplerConfig("euler", 3), **options)

    own = drawn()
    assert sampling.default_gamma(model) == gamma
    np.testing.assert_array_equal(own.x, drawn(gamma=gamma).x)
    assert (own.evaluations == (6 if model is MODEL else 3)).all()
