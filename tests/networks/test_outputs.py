"""What networks predict: the velocity that follows is the formula's, wherever flowguide takes a network."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

import flowguide
from flowguide import analytic, build, chain, config, losses, paths, sampling, times
from flowguide.condition import Condition, given
from flowguide.errors import UserError
from flowguide.model import from_config
from flowguide.networks import MLP, OUTPUTS, Network, Perturbation, as_network, as_velocity, outputs
from flowguide.schema import Batch, DataInfo, Images, Label
from flowguide.solvers import rk4, solve
from flowguide.training import ema
from flowguide.training.step import init_state, make_loss, make_step
from tests.support.tiny_networks import build as tiny
from tests.support.tiny_networks import draw, full_condition, inputs, noisy

NOTHING = Condition({}, {})
M, S = 0.7, 0.3  # of the normal data whose predictions are known
SIGNAL = np.array(chain.linear().signal)


def toy(predict):
    """A network without parameters."""
    return Network(lambda key: {}, lambda params, t, x, c: predict(t, x))


def whole(t, x):
    return t.reshape(-1, *[1] * (x.ndim - 1))


def exact_velocity(p, t, x):
    t = whole(t, x)
    a, s = p.alpha(t), p.sigma(t)
    v = a**2 * S**2 + s**2
    return p.d_alpha(t) * (M + a * S**2 / v * (x - a * M)) + p.d_sigma(t) * s / v * (x - a * M)


def exact_epsilon(k, x):
    """E[ε|x] at a step of the chain, whole or, with constant β within a step, between two."""
    signal = whole(jnp.exp(jnp.interp(k, jnp.arange(1000.0), jnp.log(SIGNAL))), x)
    a, s = jnp.sqrt(signal), jnp.sqrt(1 - signal)
    return s * (x - a * M) / (a**2 * S**2 + s**2)


@pytest.mark.parametrize("name", sorted(paths.PATHS))
@pytest.mark.parametrize("floor", [0.05, 0.3])
def test_x1_divides_by_sigma_but_not_by_less_than_the_floor(name, floor):
    p, x, data = paths.PATHS[name](), draw(1, 6, 3, 2), draw(2, 6, 3, 2)
    t = jnp.array([0.0, 0.2, 0.69, 0.8, 0.97, 1.0])
    got = as_velocity(toy(lambda t, x: data), outputs.x1(floor), p).velocity({}, t, x, NOTHING)
    a, s, da, ds = (np.asarray(f(whole(t, x)), np.float64) for f in p)
    expected = (ds * x + (da * s - a * ds) * data) / np.maximum(s, floor)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    if name == "linear":  # Li & He 2025, to the bit
        np.testing.assert_array_equal(got, (data - x) / jnp.maximum(1 - whole(t, x), floor))


@pytest.mark.parametrize("name", sorted(paths.PATHS))
def test_x1_of_normal_data_is_their_velocity(name):
    with jax.enable_x64(True):
        p, x = paths.PATHS[name](), jnp.asarray(draw(3, 5, 4), float)

        def data(t, x):
            a, s = p.alpha(whole(t, x)), p.sigma(whole(t, x))
            return M + a * S**2 / (a**2 * S**2 + s**2) * (x - a * M)

        t = jnp.array([0.0, 0.1, 0.4, 0.7, 0.9])
        u = as_velocity(toy(data), outputs.x1(), p).velocity({}, t, x, NOTHING)
        np.testing.assert_allclose(u, exact_velocity(p, t, x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", sorted(paths.PATHS))
def test_epsilon_of_normal_data_is_their_velocity_at_the_steps_and_between_them(name):
    with jax.enable_x64(True):
        p, x = paths.PATHS[name](), jnp.asarray(draw(3, 6, 4), float)
        t = jnp.array([0.05, 0.3, 0.5, 0.7, 0.9, 0.97])
        if name == "linear":
            t = jnp.asarray(chain.times(chain.linear())[[0, 1, 13, 400, 998, 999]])
        network = as_velocity(toy(exact_epsilon), outputs.epsilon(time_unit=1.0), p)
        np.testing.assert_allclose(network.velocity({}, t, x, NOTHING), exact_velocity(p, t, x), rtol=1e-7, atol=1e-7)
        between = (t[1:] + t[:-1]) / 2
        u = network.velocity({}, between, x[1:], NOTHING)
        np.testing.assert_allclose(u, exact_velocity(p, between, x[1:]), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("unit", [1.0, 1000.0])
def test_epsilon_is_the_formula_of_the_linear_path_and_sees_whole_steps_at_their_times(unit):
    k = np.array([0, 3, 250, 999])
    alpha, sigma = np.sqrt(SIGNAL[k]), np.sqrt(1 - SIGNAL[k])
    t, x = alpha / (alpha + sigma), np.asarray(draw(4, 4, 3))
    seen = []

    def predict(k, x):
        seen.append((np.asarray(k), np.asarray(x)))
        return jnp.sin(3 * x) + 0.01 * unit * whole(k, x)

    network = as_velocity(toy(predict), outputs.epsilon(time_unit=unit), paths.linear())
    u = network.velocity({}, jnp.asarray(t, jnp.float32), jnp.asarray(x), NOTHING)
    np.testing.assert_allclose(seen[0][0] * unit, k, atol=2e-4)
    np.testing.assert_allclose(seen[0][1], (alpha + sigma)[:, None] * x, rtol=1e-5)
    noise = np.sin(3 * (alpha + sigma)[:, None] * x) + 0.01 * k[:, None]
    np.testing.assert_allclose(u, (x - noise) / t[:, None], rtol=2e-4)


@pytest.mark.parametrize("name", sorted(paths.PATHS))
@pytest.mark.parametrize("output", sorted(OUTPUTS))
def test_velocities_are_finite_at_both_ends(name, output):
    network = as_velocity(toy(lambda t, x: jnp.cos(x) + 0.001 * whole(t, x)), OUTPUTS[output](), paths.PATHS[name]())
    t, x = jnp.array([0.0, 1.0]), draw(5, 2, 3)
    u, slope = jax.jvp(lambda t: network.velocity({}, t, x, NOTHING), (t,), (jnp.ones(2),))
    assert np.isfinite(u).all()
    assert np.isfinite(slope).all()
    assert np.abs(u).max() < 1500


def test_the_flow_of_exact_epsilon_has_the_moments_of_the_data():
    """The flow of normal data on the linear path maps x0 to m + s·x0; outside of the chain its ends are an O(1e-4)."""
    network = as_velocity(toy(exact_epsilon), outputs.epsilon(time_unit=1.0), paths.linear())
    x0 = jnp.array([[-2.0], [-0.5], [0.0], [1.0], [2.5]])

    def velocity(t, x):
        return network.velocity({}, jnp.broadcast_to(t, x.shape[:1]), x, NOTHING)

    x1 = jax.jit(lambda x: solve(rk4(), velocity, x, times.grid(100)))(x0)
    np.testing.assert_allclose(x1, M + S * x0, atol=5e-4)


# ------------------------------------------------------------------ networks


@pytest.mark.parametrize("output", sorted(OUTPUTS))
def test_a_perturbed_network_is_converted_too(output):
    plain, weak = toy(lambda t, x: jnp.sin(3 * x)), toy(lambda t, x: jnp.cos(x) + x**2)
    network = plain._replace(perturbed=lambda p: weak.velocity if p.skip else plain.velocity)
    made, p, (t, x) = OUTPUTS[output](), paths.linear(), (jnp.array([0.3, 0.98]), draw(8, 2, 3))
    converted = as_velocity(network, made, p)
    got = converted.perturbed(Perturbation(skip=(1,)))({}, t, x, NOTHING)
    np.testing.assert_array_equal(got, as_velocity(weak, made, p).velocity({}, t, x, NOTHING))
    assert np.abs(got - converted.velocity({}, t, x, NOTHING)).max() > 0.01
    assert converted.perturbed(Perturbation()) is converted.velocity
    if output == "velocity":
        assert converted.velocity is network.velocity


@pytest.mark.thorough
def test_variances_are_further_channels_that_the_velocity_does_not_see():
    plain, double = tiny("dit"), tiny("dit", variance=True)
    params = noisy(double.init(jax.random.key(0)))
    (t, x), c, p = inputs(), full_condition(), paths.linear()
    predicted = double.velocity(params, t, x, c)
    assert predicted.shape == (*x.shape[:-1], 4)
    # Peebles & Xie 2023: the last axis of a row of the outlet is the channel, so the first two of four are plain's.
    kernel, bias = params["outlet"]["kernel"], params["outlet"]["bias"]
    first = {
        "kernel": kernel.reshape(-1, 4, 4)[..., :2].reshape(-1, 8),
        "bias": bias.reshape(4, 4)[:, :2].reshape(-1),
    }
    np.testing.assert_allclose(
        predicted[..., :2], plain.velocity({**params, "outlet": first}, t, x, c), rtol=1e-5, atol=1e-5
    )
    network = as_velocity(double, outputs.epsilon(learned_variance=True), p)
    assert network.ancestral is not None
    whole_output = network.ancestral.velocity(params, t, x, c)
    np.testing.assert_array_equal(network.velocity(params, t, x, c), whole_output[..., :2])
    at = chain.level(network.ancestral.chain, p, t)
    seen = at.scale[:, None, None, None] * x
    expected = double.velocity(params, at.step / 1000, seen, c)[..., 2:]
    np.testing.assert_allclose(whole_output[..., 2:], expected, atol=1e-4)
    weak = jax.eval_shape(network.perturbed(Perturbation(skip=(1,))), params, t, x, c)
    assert weak.shape == x.shape
    assert as_velocity(plain, outputs.epsilon(), p).ancestral is None


# ------------------------------------------------------------------ configs and runs

INFO = DataInfo("toy", Images((8, 8, 3)), {"label": Label(("a", "b"))})


def settings(output, **network):
    c = config.default()
    c.network = {"name": "mlp", "width": 8, "depth": 1} | network
    c.output = output
    return config.complete(c)


@pytest.mark.thorough
def test_a_config_names_what_the_network_predicts():
    c = settings({"name": "x1", "floor": 0.2})
    assert c.output.to_dict() == {"name": "x1", "floor": 0.2}
    network = from_config(c, INFO).network
    params = noisy(network.init(jax.random.key(0)))
    t, x = jnp.array([0.1, 0.99]), draw(6, 2, 8, 8, 3)
    condition = given({"label": jnp.array([0, 1])})
    data = from_config(settings({"name": "velocity"}), INFO).network.velocity(params, t, x, condition)
    expected = (data - x) / jnp.maximum(1 - whole(t, x), 0.2)
    np.testing.assert_allclose(network.velocity(params, t, x, condition), expected, rtol=1e-5)


def test_a_dit_with_learned_variance_is_built_with_twice_the_channels():
    dit = {"name": "dit", "width": 24, "depth": 1, "heads": 2}
    network = from_config(settings({"name": "epsilon", "learned_variance": True}, **dit), INFO).network
    assert jax.eval_shape(network.init, jax.random.key(0))["outlet"]["bias"].shape == (2 * 2 * 6,)
    assert network.ancestral is not None
    assert network.ancestral.chain == chain.linear()


REFUSED = {
    "a name": ({"name": "v"}, "unknown output 'v'"),
    "a floor": ({"name": "x1", "floor": 0.0}, "output 'x1': floor, the smallest σ to divide by, must be above 0"),
    "a chain": ({"name": "epsilon", "steps": 1}, "output 'epsilon': a chain has 2 steps or more"),
    "a unit": ({"name": "epsilon", "time_unit": 0.0}, "output 'epsilon': time_unit, by which steps are divided"),
    "variances": ({"name": "epsilon", "learned_variance": True}, "network 'mlp' predicts no variances"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_output_that_cannot_be_is_refused(name):
    output, message = REFUSED[name]
    with pytest.raises(UserError, match=message):
        from_config(settings(output), INFO)


def test_a_classifier_predicts_no_velocity():
    c = settings({"name": "x1"})
    c.task = "classifier"
    with pytest.raises(UserError, match="output 'x1' is one of velocities; got task 'classifier'"):
        build.output(c)


def test_a_network_of_ones_own_must_predict_variances_if_the_output_has_them():
    c, fields = settings({"name": "epsilon", "learned_variance": True}), INFO.fields
    one = as_network(lambda rngs: MLP((8, 8, 3), fields, width=8, depth=1, rngs=rngs))
    with pytest.raises(UserError, match=r"expected float32 \(2, 8, 8, 6\), as its output has variances"):
        from_config(c, INFO, one)
    two = one._replace(velocity=lambda *inputs: jnp.concatenate([one.velocity(*inputs)] * 2, axis=-1))
    model = from_config(c, INFO, two)
    u = jax.eval_shape(
        model.network.velocity, model.network.init(jax.random.key(0)), jnp.ones(1), jnp.ones((1, 8, 8, 3)),
        given({"label": jnp.array([0])}),
    )  # fmt: skip
    assert u.shape == (1, 8, 8, 3)


@pytest.mark.slow
@pytest.mark.parametrize("output", [{"name": "x1", "floor": 0.2}, {"name": "epsilon", "steps": 50, "beta_end": 0.2}])
def test_a_run_is_trained_loaded_and_evaluated_by_its_velocity(output, tmp_path):
    """The velocity that ``fit`` returns is the formula of what its own network predicts; ``load`` knows it again."""
    c = config.default()
    c.update({"batch_size": 8, "steps": 2, "eval_examples": 8, "evaluators": ("validation",)})
    c.output = ml_collections.ConfigDict(output)
    own = as_network(lambda rngs: MLP((2,), {}, width=8, depth=1, rngs=rngs))
    data = np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32)
    model = flowguide.fit(data, workdir=tmp_path, config=c, network=own)
    t, x = jnp.array([0.3, 0.9]), draw(7, 2, 2)
    expected = as_velocity(own, OUTPUTS[c.output.name](**{k: v for k, v in output.items() if k != "name"}), model.path)
    for each in (model, sampling.load(tmp_path, network=own)):
        got = each.network.velocity(each.params, t, x, NOTHING)
        np.testing.assert_allclose(got, expected.velocity(each.params, t, x, NOTHING), rtol=1e-6)
        assert np.abs(got - own.velocity(each.params, t, x, NOTHING)).max() > 0.1
    assert np.isfinite(model.log_prob(data[:3])).all()
    assert np.isfinite(model.sample(num=3)).all()


@pytest.mark.slow
@pytest.mark.parametrize("output", ["x1", "epsilon"])
def test_training_another_output_reaches_the_velocity_of_a_gaussian(output):
    """A small network on N(m, Σ), trained by the error of velocities, at times below and above the floor of x1."""
    law, p, size = analytic.mixture([1.0], [[0.5, -1.0]], jnp.array([[[0.5, 0.2], [0.2, 1.0]]])), paths.linear(), 512
    network = as_velocity(as_network(lambda rngs: MLP((2,), {}, width=64, depth=2, rngs=rngs)), OUTPUTS[output](), p)
    loss = make_loss(network, losses.Recipe(p, times.uniform()), lambda keys, x, coins: x, jax.random.key(1))
    optimizer = optax.adamw(optax.cosine_decay_schedule(5e-3, 1500))
    step = make_step(loss, optimizer, ema.constant(0.99))(lambda tree: tree)
    label = given(jnp.zeros(size, int))

    @jax.jit
    def train(state):
        def one(state, key):
            return step(state, Batch(analytic.sample(key, law, label), {}, jnp.arange(size)))

        return jax.lax.scan(one, state, jax.random.split(jax.random.key(2), 1500))

    state, _ = train(init_state(network, optimizer, jax.random.key(0)))
    exact, x0 = analytic.velocity(law, p), jax.random.normal(jax.random.key(3), (size, 2))
    x1 = analytic.sample(jax.random.key(4), law, label)
    for t in (0.1, 0.3, 0.5, 0.8, 0.93):
        ts = jnp.full(size, t)
        x = paths.interpolate(p, ts, x0, x1)
        u, v = network.velocity(state.ema, ts, x, NOTHING), exact(ts, x, label)
        error = float(jnp.mean((u - v) ** 2) / jnp.mean(v**2))
        assert error < 0.01, (t, error)
