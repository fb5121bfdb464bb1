"""Rows of numbers and classes: how the network sees a class, and which class it draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flowguide.condition import Condition
from flowguide.errors import UserError
from flowguide.networks.embed import ConditionEmbedding
from flowguide.schema import DataInfo, Known, Records, output, with_known
from flowguide.schema.fields import value
from flowguide.schema.standard import moments_of_classes

RNG = np.random.default_rng(0)
CITIES = ("Bonn", "Lima: old; new", "Oslo", "Rome")
CODES = RNG.choice(4, 500, p=[0.02, 0.18, 0.3, 0.5])
X = np.stack([7 + 3 * RNG.normal(size=500), CODES, RNG.random(500) < 0.1], axis=1).astype(np.float32)


def moments():
    """Mean and scale of the rows X, as ``Records`` takes them."""
    city, smoker = (moments_of_classes(np.bincount(X[:, i].astype(int))) for i in (1, 2))
    age = X[:, 0].astype(np.float64)
    return (age.mean().item(), *city[0], *smoker[0]), (age.std().item(), *city[1], *smoker[1])


PEOPLE = Records(("age", "city", "smoker"), ((), CITIES, ("False", "True")), *moments())


def test_a_column_of_two_classes_weighs_as_one_of_numbers_and_one_of_more_at_least():
    seen = np.asarray(PEOPLE.to_model(X), np.float64)
    assert seen.shape == (500, *PEOPLE.model_shape) == (500, 1 + 4 + 2)
    np.testing.assert_allclose(seen.mean(0), 0, atol=1e-5)
    age, city, smoker = (seen[:, column].var(axis=0).sum() for column in (slice(0, 1), slice(1, 5), slice(5, 7)))
    assert (age, smoker) == pytest.approx((1, 1), rel=1e-4)
    assert city == pytest.approx(2 * (1 - np.sum((np.bincount(CODES) / 500) ** 2)), rel=1e-4)
    assert city > 1


def test_classes_are_equally_far_from_each_other_and_two_are_as_far_as_the_standardised_number():
    rows = np.stack([np.zeros(4), np.arange(4), np.zeros(4)], axis=1)
    seen = np.asarray(PEOPLE.to_model(rows), np.float64)
    distances = np.linalg.norm(seen[:, None] - seen, axis=-1)[~np.eye(4, dtype=bool)]
    np.testing.assert_allclose(distances, 2, rtol=1e-5)
    no, yes = np.asarray(PEOPLE.to_model(np.array([[0, 0, 0], [0, 0, 1]])), np.float64)
    assert np.linalg.norm(yes - no) == pytest.approx(1 / X[:, 2].std(), rel=1e-4)


def test_what_the_network_draws_is_the_nearest_class():
    drawn = RNG.normal(size=(300, 7)).astype(np.float32)
    codes = np.asarray(PEOPLE.to_model(np.stack([np.zeros(4), np.arange(4), np.zeros(4)], axis=1)))[:, 1:5]
    nearest = np.linalg.norm(drawn[:, None, 1:5] - codes, axis=-1).argmin(1)
    for x in (drawn, jnp.asarray(drawn)):
        found = PEOPLE.to_output(x)
        np.testing.assert_array_equal(found[:, 1], nearest)
        np.testing.assert_allclose(found[:, 0], drawn[:, 0] * PEOPLE.scale[0] + PEOPLE.mean[0], rtol=1e-6)
    assert len(set(nearest.tolist())) == 4


def test_names_come_back_as_columns():
    rows = PEOPLE.named(X)
    assert (rows.shape, rows.dtype.names) == ((500,), ("age", "city", "smoker"))
    np.testing.assert_array_equal(rows["age"], X[:, 0])
    assert rows["city"].tolist() == [CITIES[code] for code in CODES]
    assert rows["smoker"].dtype == np.bool_
    np.testing.assert_array_equal(rows["smoker"], X[:, 2] == 1)
    np.testing.assert_array_equal(PEOPLE.named(X.reshape(5, 100, 3)), rows.reshape(5, 100))


KNOWN = Known(PEOPLE)


@pytest.mark.parametrize(
    "given",
    [
        "city:Lima: old; new; age:31.5",
        " age : 31.5;city: Lima: old; new ; smoker:?",
        {"age": np.float32(31.5), "city": "Lima: old; new", "smoker": np.nan},
        {"city": np.array(CITIES)[1], "age": 31.5},
        [31.5, 1, np.nan],
    ],
)
def test_a_known_class_is_given_by_name_or_number(given):
    found = value("known", given, KNOWN)
    np.testing.assert_array_equal(found, np.array([31.5, 1, np.nan], np.float32))
    np.testing.assert_array_equal(KNOWN.parse("known", str(KNOWN.text(found))), found)


def test_a_question_mark_may_be_a_class():
    field = Known(Records(("age", "work"), ((), ("?", "private"))))
    assert value("known", {"work": "?"}, field)[1] == 0
    assert np.isnan(value("known", {"age": 3}, field)[1])
    assert KNOWN.parse("known", "smoker:True")[2] == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("city:Rom", "unknown value 'Rom' of 'city', did you mean 'Rome'"),
        ("town:Rome", "no column 'town'"),
        ("age:old", "column 'age' takes a number; got 'old'"),
        ("31 Rome False", "takes name:value; name:value of age, city, smoker"),
        ([31.5, 4, 0], "column 'city' takes .* got 4"),
        ([31.5, 0.5, 0], "column 'city' takes .* got 0.5"),
        ([31.5, 1, -1], "column 'smoker' takes .* got -1"),
        ([np.inf, 1, 0], "got inf"),
    ],
)
def test_what_is_no_known_part_is_refused(given, message):
    with pytest.raises(UserError, match=message) as error:
        value("known", given, KNOWN)
    assert "\n" not in str(error.value)


def test_a_part_has_whole_columns_and_the_network_sees_no_more_than_it():
    part = np.asarray(KNOWN.part(jax.random.split(jax.random.key(0), 500), PEOPLE.to_model(X)))
    known = ~np.isnan(part)
    np.testing.assert_allclose(part[known], X[known], rtol=1e-5)
    assert len(np.unique(known, axis=0)) == 2**3
    counts = np.bincount(known.sum(1), minlength=4) / 500  # by column: each number of them is equally likely
    np.testing.assert_allclose(counts, 1 / 4, atol=4 * np.sqrt(3 / 16 / 500))
    embed = ConditionEmbedding({"known": KNOWN}, 4, rngs=nnx.Rngs(0))
    (beside,) = embed(Condition({"known": jnp.asarray(part)}, {"known": jnp.ones(500, bool)}), 500).beside
    columns = np.repeat(known, [1, 4, 2], axis=1)
    np.testing.assert_array_equal(beside[:, 7:], known)
    np.testing.assert_allclose(beside[:, :7], np.where(columns, PEOPLE.to_model(X), 0), atol=1e-5)


def test_what_is_known_comes_back_as_it_was_given():
    info = with_known(DataInfo("people", PEOPLE, {}))
    given = np.where(RNG.random((300, 3)) < 0.5, X[:300], np.nan).astype(np.float32)
    drawn = RNG.normal(size=(300, 7)).astype(np.float32)
    c = Condition({"known": given}, {"known": np.arange(300) % 3 > 0})
    x = output(info, drawn, c)
    kept = ~np.isnan(given) & c.present["known"][:, None]
    np.testing.assert_array_equal(x[kept], given[kept])
    np.testing.assert_array_equal(x[~kept], PEOPLE.to_output(drawn)[~kept])
    np.testing.assert_array_equal(output(info, jnp.asarray(drawn), c), x)
