"""Published samplers against loops in NumPy, written from their papers and released code.

Data are normal given a class, so velocities are known; noise is that of flowguide, drawn from the same keys.
"""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowguide import chain, paths, sampling, solvers
from flowguide.errors import UserError
from flowguide.networks import Network, Perturbation, as_velocity, outputs
from flowguide.schema import DataInfo, Label, Vectors
from flowguide.times import grid

SHAPE, NUM, SEED = (2, 1, 5), 4, 3  # five channels, of which three are guided
MEANS, SPREAD = {0: 0.8, 1: -0.5, None: 0.1}, {0: 0.4, 1: 0.5, None: 0.7}
TILT = 0.2 * np.arange(5)  # each channel has a mean of its own
SIGNAL = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))


def predictions(alpha, sigma, x, mean, spread, xp=np):
    """E[x1|x] and E[x0|x] of normal data, at α and σ."""
    m = mean + xp.asarray(TILT)
    rest = (x - alpha * m) / (alpha**2 * spread**2 + sigma**2)
    return m + alpha * spread**2 * rest, sigma * rest


def of_class(c, x):
    """The mean and spread of each sample's class, or of all data."""
    label, shape = jnp.where(c.present["label"], c.value["label"], 2), (-1, *[1] * (x.ndim - 1))
    means, spreads = (jnp.array([table[k] for k in (0, 1, None)]) for table in (MEANS, SPREAD))
    return means[label].reshape(shape), spreads[label].reshape(shape)


def velocity(params, t, x, c):
    t = t.reshape(-1, *[1] * (x.ndim - 1))
    x1, x0 = predictions(t, 1 - t, x, *of_class(c, x), jnp)
    return x1 - x0


def epsilon_and_range(params, k, x, c):
    signal = jnp.exp(jnp.interp(k, jnp.arange(1000.0), jnp.log(SIGNAL))).reshape(-1, *[1] * (x.ndim - 1))
    _, x0 = predictions(jnp.sqrt(signal), jnp.sqrt(1 - signal), x, *of_class(c, x), jnp)
    return jnp.concatenate([x0, jnp.tanh(x + of_class(c, x)[0])], axis=-1)


INFO = DataInfo("exact", Vectors(SHAPE), {"label": Label(("a", "b"))})
FLOW = sampling.Model(INFO, Network(lambda key: {}, velocity), {}, paths.linear())
DIT = FLOW._replace(
    network=as_velocity(
        Network(lambda key: {}, epsilon_and_range),
        outputs.epsilon(learned_variance=True, time_unit=1.0),
        paths.linear(),
    )
)


def noise(steps):
    """x at the start and the noise of each step, as ``sample`` draws them."""
    keys = [jax.random.fold_in(jax.random.key(SEED), i) for i in range(NUM)]
    x = [jax.random.normal(key, SHAPE) for key in keys]
    one = jax.jit(lambda key, i: jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, 1), i), SHAPE))
    z = [[one(key, i) for key in keys] for i in range(steps)]
    return np.array(x, np.float64), np.array(z, np.float64).reshape(steps, NUM, *SHAPE)


def draw(model, name, **changes):
    """On one device, so that an adaptive solver counts the evaluations of the batch."""
    r = sampling.recipe(name)
    config, one = r.config._replace(**changes), jax.devices()[:1]
    return sampling.sample(model, "b", num=NUM, gamma=r.gamma, config=config, seed=SEED, devices=one)


def guided(t, x, gamma, channels=5):
    cond, null = (np.subtract(*predictions(t, 1 - t, x, MEANS[k], SPREAD[k])) for k in (1, None))
    return np.where(np.arange(5) < channels, null + gamma * (cond - null), cond)


@pytest.mark.thorough
def test_sit_sde_is_249_steps_of_euler_maruyama_and_one_to_the_mean():
    x, z = noise(249)
    t = np.linspace(0, 0.96, 250)
    dt = t[1] - t[0]

    def drift(t, x):
        u = guided(t, x, 1.5, channels=3)
        return u + (1 - t) * (t * u - x) / (1 - t)  # the score of a velocity on the linear path is (tu − x)/(1 − t)

    for i in range(249):
        x = x + drift(t[i], x) * dt + np.sqrt(2 * (1 - t[i]) * dt) * z[i]
    x = x + drift(0.96, x) * 0.04
    s = draw(FLOW, "sit-sde")
    np.testing.assert_allclose(s.x, x, atol=1e-4)
    assert set(s.evaluations.tolist()) == {500}


def test_jit_heun_is_49_steps_of_heun_and_one_of_euler_guided_after_a_tenth():
    x, _ = noise(0)
    t = np.linspace(0, 1, 51)

    def u(t, x):
        return guided(t, x, 3.0 if 0.1 + 1e-7 < t < 1 else 1.0)

    for start, end in pairwise(t[:-1]):
        first = u(start, x)
        x = x + (end - start) * (first + u(end, x + (end - start) * first)) / 2
    x = x + (t[-1] - t[-2]) * u(t[-2], x)
    np.testing.assert_allclose(draw(FLOW, "jit-heun").x, x, atol=1e-4)


@pytest.mark.thorough
def test_lightningdit_is_euler_on_250_shifted_nodes():
    x, _ = noise(0)
    t = np.linspace(0, 1, 250)
    t = 0.3 * t / (1 - 0.7 * t)
    for start, end in pairwise(t):
        x = x + (end - start) * guided(start, x, 6.7 if start >= 0.125 else 1.0, channels=3)
    np.testing.assert_allclose(draw(FLOW, "lightningdit").x, x, atol=1e-4)


@pytest.mark.thorough
def test_dit_ddpm_is_250_ancestral_steps_with_learned_variances():
    """Nichol & Dhariwal 2021 in the terms of the chain: ε, β of the kept steps, posterior mean, interpolated log Σ."""
    x, z = noise(250)
    kept = sorted({round(i * 999 / 249) for i in range(250)})
    signal = SIGNAL[kept]
    before = np.concatenate([[1.0], signal[:-1]])
    beta = 1 - signal / before
    for n, i in enumerate(reversed(range(250))):
        a, s = np.sqrt(signal[i]), np.sqrt(1 - signal[i])
        eps = [predictions(a, s, x, MEANS[k], SPREAD[k])[1] for k in (1, None)]
        e = np.where(np.arange(5) < 3, eps[1] + 1.5 * (eps[0] - eps[1]), eps[0])
        v = np.tanh(x + MEANS[1])
        x1 = (x - s * e) / a
        mean = (
            np.sqrt(before[i]) * beta[i] * x1 + np.sqrt(1 - beta[i]) * (1 - before[i]) * x
        ) / (1 - signal[i])  # fmt: skip
        if i == 0:
            x = mean
            break
        small, large = np.log(beta[i] * (1 - before[i]) / (1 - signal[i])), np.log(beta[i])
        x = mean + np.exp(((v + 1) / 2 * large + (1 - v) / 2 * small) / 2) * z[n]
    s = draw(DIT, "dit-ddpm")
    np.testing.assert_allclose(s.x, x, atol=1e-4)
    assert set(s.evaluations.tolist()) == {500}


@pytest.mark.thorough
def test_sit_ode_is_dopri5_to_its_two_tolerances():
    x, _ = noise(0)

    def u(t, x):
        t = jnp.reshape(t, (-1, 1, 1, 1))
        cond, null = (jnp.subtract(*predictions(t, 1 - t, x, MEANS[k], SPREAD[k], jnp)) for k in (1, None))
        return jnp.where(jnp.arange(5) < 3, null + 1.5 * (cond - null), cond)

    x = jnp.asarray(x, jnp.float32)
    same = solvers.solve_adaptive(u, x, jnp.array([0.0, 1.0]), rtol=1e-3, atol=1e-6, per_sample=True)
    s, loose = draw(FLOW, "sit-ode"), draw(FLOW, "sit-ode", absolute_tolerance=None)
    np.testing.assert_allclose(s.x, same.x, atol=1e-4)
    np.testing.assert_allclose(s.x, solvers.solve(solvers.rk4(), u, x, grid(200)), atol=5e-3)
    # Of a step of six stages: at this tolerance rounding decides on the last one.
    assert abs(s.evaluations[0] / 2 - int(same.evaluations[0])) <= 6
    assert loose.evaluations[0] < s.evaluations[0]
    assert np.abs(loose.x - s.x).max() > 1e-5


@pytest.mark.thorough
def test_ddpm_without_guidance_samples_the_data():
    """At γ = 1 with the smaller variance, which is exact for a point and too small by O(β) for the data."""

    def smaller(params, k, x, c):
        out = epsilon_and_range(params, k, x, c)
        return jnp.concatenate([out[..., :5], -jnp.ones_like(x)], axis=-1)

    network = as_velocity(
        Network(lambda key: {}, smaller), outputs.epsilon(learned_variance=True, time_unit=1.0), paths.linear()
    )
    config = sampling.recipe("dit-ddpm").config
    x = sampling.sample(DIT._replace(network=network), "a", num=2000, gamma=1.0, config=config, batch_size=2000).x
    x = x.reshape(-1, 5)
    np.testing.assert_allclose(x.mean(0), MEANS[0] + TILT, atol=5 * 0.4 / 4000**0.5)
    np.testing.assert_allclose(x.std(0), 0.4, rtol=5 / 8000**0.5 + 0.03)


REFUSED = {
    "an unknown name": (lambda: sampling.recipe("sit"), "unknown recipe 'sit', did you mean"),
    "no variances": (lambda: draw(FLOW, "dit-ddpm"), "solver 'ddpm' draws with predicted variances, and this network"),
    "another network": (
        lambda: draw(DIT, "dit-ddpm", guidance="perturbed", perturbation=Perturbation(skip=(0,))),
        "solver 'ddpm' takes no velocity without variances, as of guidance 'perturbed'",
    ),
    "a measurement": (
        lambda: sampling.sample(
            DIT,
            "b",
            num=1,
            measured=sampling.Inpaint(np.where(np.arange(10).reshape(SHAPE) < 5, 0.5, np.nan)[None]),
            config=sampling.recipe("dit-ddpm").config,
        ),
        "as of what was measured",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_recipe_cannot_draw_is_refused(name):
    ask, message = REFUSED[name]
    with pytest.raises(UserError, match=message):
        ask()


def test_every_recipe_can_be_resolved_and_names_its_source():
    for name in sampling.RECIPES:
        r = sampling.recipe(name)
        sampling.resolve_defaults(r.config)
        assert "20" in r.source  # a year
        assert r.gamma > 1


def test_a_chain_of_other_steps_is_respaced():
    from flowguide.sampling.recipes import respaced

    every = chain.times(chain.linear(10, 0.01, 0.3))
    np.testing.assert_allclose(respaced(4, chain.linear(10, 0.01, 0.3)), [0.0, every[6], every[3], every[0], 1.0])


@pytest.mark.thorough
def test_a_trajectory_and_momentum_go_with_variances():
    config = sampling.SamplerConfig("ddpm", steps=6, guidance="apg", settings=(("momentum", -0.5),), reuse=2)
    path = sampling.trajectory(DIT, "b", num=3, gamma=2.0, config=config, seed=SEED)
    assert path.x.shape == (7, 3, *SHAPE) or path.x.shape == (3, 7, *SHAPE)
    x = sampling.sample(DIT, "b", num=3, gamma=2.0, config=config, seed=SEED).x
    last = path.x[-1] if path.x.shape[0] == 7 else path.x[:, -1]
    np.testing.assert_allclose(last, x, atol=1e-5)
    assert np.isfinite(x).all()
