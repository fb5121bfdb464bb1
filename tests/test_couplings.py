"""Couplings: their costs, matches and shares, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowguide import couplings
from flowguide.condition import given

B = 6
RNG = np.random.default_rng(0)
X0, X1 = RNG.normal(size=(2, B, 2, 3)).astype(np.float32) * 2
KEYS = jax.random.split(jax.random.key(0), B)
LABEL, WORDS = np.array([0, 1, 1, 2, 0, 2]), RNG.integers(0, 3, (B, 4))
VECTOR = RNG.normal(size=(B, 2)).astype(np.float32)


def distances(a, b):
    return np.array([[np.sum((x - y) ** 2) for y in b] for x in a])


DIFFERENCES = {
    "label": np.array([[float(a != b) for b in LABEL] for a in LABEL]),
    "words": np.array([[np.mean(a != b) for b in WORDS] for a in WORDS]),
    "vector": distances(VECTOR, VECTOR),
}
VALUES = {"label": LABEL, "words": WORDS, "vector": VECTOR}


def cost_of(fields, weight):
    seen = []

    def match(keys, cost):
        seen.append(np.asarray(cost))
        return jnp.arange(B)

    couplings.minibatch(match, weight)(KEYS, jnp.asarray(X0), jnp.asarray(X1), given({f: VALUES[f] for f in fields}))
    return seen[0]


@pytest.mark.parametrize("weight", [0.0, 0.7, 3.0])
@pytest.mark.parametrize("fields", [["label"], ["words"], ["vector"], ["label", "words", "vector"]], ids=",".join)
def test_cost_is_squared_distance_and_a_share_of_its_mean_for_each_changed_condition(fields, weight):
    """Row i, column j: from noise i to example j, in units of the mean cost of the batch."""
    plain = distances(X0, X1)
    expected = plain + weight * plain.mean() * sum(DIFFERENCES[f] for f in fields)
    np.testing.assert_allclose(cost_of(fields, weight), expected, rtol=1e-4, atol=1e-4)


def test_each_example_gets_the_noise_of_its_match():
    chosen = np.array([2, 0, 5, 1, 1, 3])
    got = couplings.minibatch(lambda keys, cost: jnp.asarray(chosen))(KEYS, X0, X1, given(LABEL))
    np.testing.assert_array_equal(got, X0[chosen])
    np.testing.assert_array_equal(couplings.independent()(KEYS, X0, X1, given(LABEL)), X0)


@pytest.mark.parametrize("shares", [1, 2, 3])
def test_another_example_is_the_one_before_in_the_same_share(shares):
    pairs = couplings.within(couplings.next_example(), shares)
    size = B // shares
    before = [share * size + (i - 1) % size for share in range(shares) for i in range(size)]
    assert all(i != j for i, j in enumerate(before))
    np.testing.assert_array_equal(pairs(KEYS, jnp.asarray(X0), jnp.asarray(X1), given(LABEL)), X0[before])
    with pytest.raises(ValueError, match="2 examples or more, so that each has another one; got 1"):
        couplings.within(couplings.next_example(), B)(KEYS, jnp.asarray(X0), jnp.asarray(X1), given(LABEL))


def test_assignment_gives_each_column_its_row():
    """A permutation that is not its own inverse, its pairs in any order."""
    rows, columns = jnp.array([3, 0, 2, 1]), jnp.array([1, 2, 3, 0])
    got = couplings.assigned(lambda cost: (rows, columns))(KEYS[:4], jnp.zeros((4, 4)))
    np.testing.assert_array_equal(got, [1, 3, 0, 2])


def test_a_plan_is_drawn_from_by_columns():
    """Column j of a plan, up to a factor, is the distribution of the row that goes to j."""
    plan = np.array([[0.0, 3.0, 1.0], [2.0, 1.0, 1.0], [2.0, 0.0, 6.0]])
    match = couplings.drawn(lambda cost: jnp.asarray(plan) / 7)
    keys = jax.random.split(jax.random.key(1), (4000, 3))
    drawn = np.asarray(jax.jit(jax.vmap(lambda k: match(k, jnp.zeros((3, 3)))))(keys))
    found = np.array([[np.mean(drawn[:, j] == i) for j in range(3)] for i in range(3)])
    law = plan / plan.sum(0)
    assert (abs(found - law) <= 4.5 * np.sqrt(law * (1 - law) / 4000)).all()


@pytest.mark.parametrize("shares", [1, 2, 3])
def test_shares_are_coupled_one_by_one(shares):
    """Each share reverses its own noise, with its own keys and conditions."""

    def flip(keys, x0, x1, c):
        return x0[::-1] + x1.mean() + c.value[0] + jax.random.key_data(keys)[0, 0].astype(float)

    got = couplings.within(flip, shares)(KEYS, jnp.asarray(X0), jnp.asarray(X1), given(jnp.asarray(LABEL)))
    cut = [slice(i, i + B // shares) for i in range(0, B, B // shares)]
    parts = [flip(KEYS[s], X0[s], X1[s], given(jnp.asarray(LABEL)[s])) for s in cut]
    np.testing.assert_allclose(got, np.concatenate(parts), rtol=1e-5)
