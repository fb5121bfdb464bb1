"""Optimisers: the rate over a run, clipping, decay of matrices alone, and what Muon does to kernels."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flowguide.training.optimizer import OPTIMIZERS, adamw, clipped, learning_rate, orthogonal, slower


def constant(rate):
    return learning_rate(rate, 100, decay="none")


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def tree(seed):
    """A dense kernel, stacked kernels, a table that is no kernel, and a bias."""
    return {
        "dense": {"kernel": random(6, 8, seed=seed), "bias": random(8, seed=seed + 1)},
        "blocks": {"kernel": random(3, 4, 5, seed=seed + 2), "bias": random(3, 5, seed=seed + 4)},
        "embedding": random(5, 4, seed=seed + 3),
    }


def updates(optimizer, params, gradients):
    """The update of each step."""
    state, found = optimizer.init(params), []
    for gradient in gradients:
        update, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, update)
        found.append(update)
    return found


@pytest.mark.parametrize(("decay", "end"), [("cosine", 0.0), ("linear", 0.0), ("none", 1e-2)])
def test_rate_rises_then_decays(decay, end):
    rate = learning_rate(1e-2, 100, warmup=10, decay=decay)
    np.testing.assert_allclose(np.array([rate(i) for i in range(10)]), 1e-3 * np.arange(1, 11), rtol=1e-5)
    rates = np.array([rate(i) for i in range(10, 101)])
    assert rates[0] == pytest.approx(1e-2)
    assert (np.diff(rates) <= 0).all()
    assert rates[-1] == pytest.approx(end, abs=1e-9)


def test_without_warmup_starts_at_the_peak():
    assert learning_rate(1e-2, 100)(0) == pytest.approx(1e-2)


@pytest.mark.parametrize("decay", ["cosine", "linear", "none"])
@pytest.mark.parametrize(("of_steps", "of_time"), [(0.3, 0.8), (0.8, 0.3), (0.0, 0.5), (0.2, 1.5)])
def test_a_limit_of_time_decays_as_a_limit_of_steps_does(decay, of_steps, of_time):
    """At 80 % of the time the rate is that of 80 % of the steps, if fewer of those are over."""
    rate = learning_rate(1e-2, 1000, decay=decay)
    further = rate(round(1000 * min(max(of_steps, of_time), 1.0)))
    found = rate(round(1000 * of_steps)) * slower(decay, of_steps, of_time)
    assert found == pytest.approx(np.asarray(further).item(), rel=1e-4, abs=1e-9)


@pytest.mark.parametrize(("settings", "message"), [({"decay": "sudden"}, "decay must be"), ({"warmup": 5}, "warm-up")])
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        learning_rate(1e-3, 5, **settings)


@pytest.mark.parametrize(("clip", "expected"), [(1.0, 1.0), (0.0, 200.0)])
def test_clipping(clip, expected):
    """Adam's first step has the size lr whatever the gradient, so clipping shows in its second moment."""
    params = {"w": jnp.zeros((4, 1))}
    optimizer = clipped(adamw(constant(0.1), b2=0.0), clip)
    _, state = optimizer.update({"w": jnp.full((4, 1), 100.0)}, optimizer.init(params), params)
    (nu,) = [x for x in jax.tree.leaves(state) if x.shape == (4, 1) and float(x[0, 0]) > (0.2 if clip else 1e3)]
    np.testing.assert_allclose(jnp.sqrt(nu.sum()), expected, rtol=1e-4)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_solves_a_quadratic_and_is_compiled_once(name):
    target, traces = tree(10), []
    optimizer = OPTIMIZERS[name](learning_rate(0.3, 150))

    def loss(params):
        return sum(jnp.sum((a - b) ** 2) for a, b in zip(*map(jax.tree.leaves, (params, target)), strict=True))

    @jax.jit
    def step(params, state):
        traces.append(0)
        update, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, update), state

    params = tree(0)
    state, start = optimizer.init(params), loss(params)
    for _ in range(150):
        params, state = step(params, state)
    assert loss(params) < 1e-3 * start
    assert len(traces) == 1


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weight_decay_shrinks_matrices_alone(name):
    params, make = tree(0), OPTIMIZERS[name]
    decays = "weight_decay" in inspect.signature(make).parameters
    optimizer = make(constant(0.1), **({"weight_decay": 0.5} if decays else {}))
    (update,) = updates(optimizer, params, [jax.tree.map(jnp.zeros_like, params)])
    for a, b in zip(*map(jax.tree.leaves, (update, params)), strict=True):
        np.testing.assert_allclose(a, -0.05 * b if decays and b.ndim > 1 else 0 * b, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("shape", [(8, 24), (24, 8), (16, 16)])
def test_muon_makes_updates_nearly_orthogonal(shape):
    """The update has the gradient's singular vectors, and singular values that are nearly equal.

    Five Newton-Schulz steps with Muon's coefficients bring values that span a factor of 10 to between 0.68 and 1.14.
    They are then scaled by 0.2·sqrt(max(in, out)), so that an entry is as large as with AdamW.
    """
    u, _, v = np.linalg.svd(np.asarray(random(*shape)), full_matrices=False)
    gradient = {"kernel": jnp.asarray(u * np.geomspace(1, 10, min(shape)) @ v)}
    (update,) = updates(orthogonal(constant(1.0)), gradient, [gradient])
    seen = -u.T @ np.asarray(update["kernel"]) @ v.T / (0.2 * max(shape) ** 0.5)
    values = np.diag(seen)
    np.testing.assert_allclose(seen, np.diag(values), atol=1e-5)
    assert 0.67 < values.min() < values.max() < 1.15


def test_muon_treats_stacked_kernels_layer_by_layer():
    def stack(seed):
        return {"kernel": random(3, 6, 8, seed=seed), "bias": random(3, 8, seed=seed)}

    params, gradients = stack(0), [stack(i) for i in range(1, 4)]
    together = updates(orthogonal(constant(0.1), weight_decay=0.1), params, gradients)
    for layer in range(3):

        def one(tree, layer=layer):
            return {name: a[layer] for name, a in tree.items()}

        alone = updates(orthogonal(constant(0.1), weight_decay=0.1), one(params), list(map(one, gradients)))
        for a, b in zip(together, alone, strict=True):
            np.testing.assert_allclose(one(a)["kernel"], b["kernel"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("bias", [(5,), None])
def test_muon_leaves_convolutions_over_one_axis_to_adamw(bias):
    """They have as many axes as stacked dense layers; also without a bias, which tells the two apart."""

    def layer(seed):
        return {"kernel": random(3, 4, 5, seed=seed), **({} if bias is None else {"bias": random(*bias, seed=seed)})}

    gradients = [layer(i) for i in range(1, 4)]
    by_muon = updates(orthogonal(constant(0.1), weight_decay=0.1), layer(0), gradients)
    by_adamw = updates(adamw(constant(0.1), weight_decay=0.1), layer(0), gradients)
    for a, b in zip(by_muon, by_adamw, strict=True):
        np.testing.assert_array_equal(a["kernel"], b["kernel"])


def test_muon_leaves_everything_but_kernels_to_adamw():
    params, gradients = tree(0), [tree(i) for i in range(20, 23)]
    settings = {"weight_decay": 0.1}
    by_muon = updates(orthogonal(constant(0.1), adam_b1=0.8, adam_b2=0.95, **settings), params, gradients)
    by_adamw = updates(adamw(constant(0.1), b1=0.8, b2=0.95, **settings), params, gradients)
    for a, b in zip(by_muon, by_adamw, strict=True):
        np.testing.assert_array_equal(a["dense"]["bias"], b["dense"]["bias"])
        np.testing.assert_array_equal(a["embedding"], b["embedding"])
        assert jnp.abs(a["dense"]["kernel"] - b["dense"]["kernel"]).max() > 1e-3
        assert jnp.abs(a["blocks"]["kernel"] - b["blocks"]["kernel"]).max() > 1e-3
