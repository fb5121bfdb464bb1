"""Conditions: random dropout to the null token, and tree operations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowguide import condition, losses, paths, times
from flowguide.condition import Condition
from flowguide.losses import example_keys

N = 20_000


def keys(n=N, step=0):
    return example_keys(jax.random.key(0), step, jnp.arange(n))


def within_binomial_error(hits, n, p, sigmas=4.5):
    return abs(hits / n - p) < sigmas * np.sqrt(p * (1 - p) / n)


def test_single_field_is_dropped_at_the_rate_by_one_coin():
    c = condition.given(jnp.arange(N))
    present = condition.drop(keys(), c, rate=0.1).present
    assert within_binomial_error(int((~present).sum()), N, 0.1)


def test_fields_have_coins_of_their_own_and_one_in_common():
    c = condition.given({"a": jnp.arange(N), "b": jnp.zeros((N, 3)), "c": jnp.ones(N)})
    p = condition.drop(keys(), c, rate=0.1, field_rate=0.2).present
    absent = {name: ~np.asarray(v) for name, v in p.items()}
    for a in absent.values():
        assert within_binomial_error(a.sum(), N, 0.1 + 0.9 * 0.2)
    assert within_binomial_error((absent["a"] & absent["b"]).sum(), N, 0.1 + 0.9 * 0.2**2)
    assert within_binomial_error((absent["a"] & absent["b"] & absent["c"]).sum(), N, 0.1 + 0.9 * 0.2**3)


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_a_range_of_rates_makes_every_number_of_fields_equally_likely(rate):
    """Also among examples that do not lose everything at once, which is a separate draw."""
    c = condition.given({str(i): jnp.arange(N) for i in range(4)})
    present = condition.drop(keys(), c, rate=rate, field_rate=(0.0, 1.0)).present
    number = np.sum([np.asarray(p) for p in present.values()], axis=0)  # ∫ C(4, k) r^(4−k) (1 − r)^k dr = 1/5
    for k in range(5):
        assert within_binomial_error((number == k).sum(), N, (1 - rate) / 5 + rate * (k == 0))


def test_by_default_a_tenth_loses_all_and_a_tenth_each_field():
    c = condition.given({"a": jnp.arange(N), "b": jnp.arange(N)})
    a, b = (~np.asarray(p) for p in condition.drop(keys(), c).present.values())
    assert within_binomial_error(a.sum(), N, 0.1 + 0.9 * 0.1)
    assert within_binomial_error((a & b).sum(), N, 0.1 + 0.9 * 0.1**2)
    recipe = losses.Recipe(paths.linear(), times.uniform())
    assert (recipe.drop_rate, recipe.drop_field_rate) == (0.1, 0.1)


def test_neighbours_are_independent():
    """One draw per example, not per batch: the number dropped in batches of 16 is binomial."""
    present = condition.drop(keys(), condition.given(jnp.arange(N)), rate=0.1).present
    dropped = 16 - np.asarray(present).reshape(-1, 16).sum(1)
    expected = 16 * 0.1 * 0.9
    assert abs(dropped.var() - expected) < 5 * expected * np.sqrt(2 / dropped.size)


def test_draw_depends_on_the_example_alone():
    c = condition.given(jnp.arange(N))
    whole = condition.drop(keys(), c).present
    half = condition.drop(keys()[N // 2 :], condition.given(jnp.arange(N // 2))).present
    np.testing.assert_array_equal(whole[N // 2 :], half)
    assert (whole != condition.drop(keys(step=1), c).present).any()


@pytest.mark.parametrize(("rate", "left"), [(0.0, N), (1.0, 0)])
def test_rates_at_the_ends_are_exact(rate, left):
    c = condition.given(jnp.arange(N))
    assert int(condition.drop(keys(), c, rate=rate).present.sum()) == left


def test_what_is_absent_stays_absent():
    c = Condition(jnp.arange(8), jnp.arange(8) % 2 == 0)
    kept = condition.drop(keys(8), c, rate=0.0)
    np.testing.assert_array_equal(kept.present, c.present)


def test_null_and_concatenate():
    c = condition.given({"a": jnp.arange(3), "b": jnp.ones((3, 2))})
    n = condition.null(c)
    assert not any(p.any() for p in jax.tree.leaves(n.present))
    assert jax.tree.structure(n) == jax.tree.structure(c)
    both = condition.concatenate(c, n)
    np.testing.assert_array_equal(both.value["a"], [0, 1, 2, 0, 0, 0])
    np.testing.assert_array_equal(both.present["b"], [True] * 3 + [False] * 3)


def test_bind_gives_the_network_one_time_a_sample():
    seen = []
    u = condition.bind(lambda t, x, c: seen.append(t.shape) or x, condition.given(jnp.arange(4)))
    u(jnp.float32(0.5), jnp.ones((4, 2)))
    u(jnp.full(4, 0.5), jnp.ones((4, 2)))
    assert seen == [(4,), (4,)]
