"""The guidance interval and the cost of guidance: every method, with its evaluations counted as they are made."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowguide import guidance, paths, sampling, solvers, times
from flowguide.condition import bind, given, null
from flowguide.errors import UserError
from flowguide.networks import Network
from flowguide.sampling.guided import guided_velocity, weak_velocity
from flowguide.schema import DataInfo, Label, Vectors
from flowguide.solvers.solver import as_stateful
from tests.support.plain import plain_velocity

P = paths.linear()
B, SHAPE, STEPS = 3, (4, 4, 1), 10
FIELDS = {"kind": Label(("a", "b", "c", "d"))}
X = jax.random.normal(jax.random.key(0), (B, *SHAPE))
C, D, E = (given({"kind": jnp.full(B, i)}) for i in range(3))
MAPS = jax.random.normal(jax.random.key(1), (5, 16, 16)) / 4
TS = times.grid(STEPS)
INTERVAL, INSIDE = (0.35, 0.65), 3  # t = 0.4, 0.5, 0.6


def velocity(params, t, x, c):
    """A made-up network: another nonlinear map for each label and for null."""
    own = MAPS[jnp.where(c.present["kind"], c.value["kind"], 4)]
    h = jnp.einsum("bij,bj->bi", own, x.reshape(x.shape[0], -1))
    return params * jnp.tanh(h).reshape(x.shape) + jnp.sin(3 * t)[:, None, None, None] * x


field = partial(velocity, jnp.float32(1.0))


def counted(calls):
    """The network; called outside of jit, so that each call is an evaluation that was really made."""

    def counting(params, t, x, c):
        calls.append(x.shape[0] // B)
        return velocity(params, t, x, c)

    return Network(lambda key: jnp.float32(1.0), counting)


def guided(config, gamma, calls, negatives=(), n=0.5, composed=()):
    """As ``sampling.sample`` makes it."""
    network = counted(calls)
    further, weights = zip(*composed, strict=True) if composed else ((), ())
    request = sampling.SampleRequest(
        C, negatives, further, np.full(B, gamma, np.float32), np.float32(n), np.array(weights, np.float32)
    )
    weak = weak_velocity(network, jnp.float32(1.0), network, jnp.float32(0.5), config.perturbation)
    keys = jax.random.split(jax.random.key(2), B)
    return guided_velocity(partial(network.velocity, jnp.float32(1.0)), P, config, request, weak, keys, FIELDS)


def toy(network):
    """A model of the network, as ``sampling.load`` returns it."""
    return sampling.Model(DataInfo("toy", Vectors(SHAPE), FIELDS), network, jnp.float32(1.0), P)


def settings(**numbers):
    return {"settings": tuple(numbers.items())}


# name: (options of SamplerConfig, options of guided, evaluations of one guided step at γ = 0, 1 and 3).
# 1 is the conditional velocity alone (at γ = 1) or the one reference alone (at γ = 0), where the formula says so.
TABLE = {
    "cfg": ({}, {}, (1, 1, 2)),
    "cfg, negative for null": ({"replace_null": True}, {"negatives": (D,)}, (1, 1, 2)),
    "cfg, negative": ({}, {"negatives": (D,)}, (2, 3, 3)),
    "cfg, negative of no weight": ({}, {"negatives": (D,), "n": 0.0}, (2, 1, 3)),
    "cfg, composed": ({}, {"composed": ((E, 0.5),)}, (2, 3, 3)),
    "cfg, composed with no weight": ({}, {"composed": ((E, 0.0),)}, (2, 1, 3)),
    "cfg, composed with a negative": ({}, {"composed": ((E, 0.5),), "negatives": (D,)}, (3, 4, 4)),
    "cfg, rescaled": ({"rescale": 0.7}, {}, (2, 1, 2)),
    "cfg, channels": ({"channels": 1}, {}, (2, 1, 2)),  # the others are conditional, even at γ = 0
    "apg, momentum on channels": ({"channels": 1, **settings(momentum=-0.5)}, {}, (2, 1, 2)),
    "zero_star": ({}, {}, (2, 1, 2)),
    "zero_star, waiting": (settings(zero_init=1.0), {}, (2, 2, 2)),  # for its velocity is 0, even at γ = 1
    "apg": ({}, {}, (2, 1, 2)),
    "apg, momentum": (settings(momentum=-0.5), {}, (2, 1, 2)),
    "tcfg": ({}, {}, (2, 1, 2)),
    "fdg": ({}, {}, (2, 1, 2)),
    "mambo_g": (settings(alpha=1.0), {}, (2, 1, 2)),
    "beta_cfg": ({}, {}, (1, 2, 2)),
    "cfg_pp": ({"solver": "ddim"}, {}, (1, 2, 2)),
    "feedback": ({}, {}, (1, 2, 2)),  # γ multiplies its extra guidance: 0 is conditional sampling
    "feedback, pi of 1": (settings(pi=1.0), {}, (1, 1, 1)),
    "perp_neg": ({}, {"negatives": (D, E)}, (4, 4, 4)),
    "perp_neg of no weight": ({}, {"negatives": (D, E), "n": 0.0}, (3, 1, 4)),
    "contrastive": ({}, {"negatives": (D, E)}, (3, 4, 4)),
    "contrastive, tau of 0": (settings(tau=0.0), {"negatives": (D, E), "n": 0.0}, (3, 1, 4)),
    "dng": ({}, {"negatives": (D,)}, (2, 3, 3)),
    "dng of no weight": ({}, {"negatives": (D,), "n": 0.0}, (2, 1, 3)),
    "autoguidance": ({}, {}, (1, 1, 2)),
    "icg": ({}, {}, (1, 1, 2)),
    "tsg": ({}, {}, (1, 1, 2)),
    "perturbed": ({}, {}, (3, 3, 3)),
    "perturbed of no strength": (settings(strength=0.0), {}, (1, 1, 2)),
}


def test_every_method_is_in_the_table():
    assert {name.split(",")[0].split(" ")[0] for name in TABLE} == set(guidance.methods.METHODS)


def of(name, interval=INTERVAL):
    options, inputs, costs = TABLE[name]
    config = sampling.SamplerConfig(guidance=name.split(",")[0].split(" ")[0], steps=STEPS, interval=interval)
    return config._replace(**{"solver": "euler", **options}), inputs, costs


@pytest.mark.thorough
@pytest.mark.parametrize("name", sorted(TABLE))
def test_evaluations_made_are_those_needed_and_those_reported(name):
    config, inputs, costs = of(name)
    with jax.disable_jit():
        for gamma, cost in zip((0.0, 1.0, 3.0), costs, strict=True):
            calls = []
            u, rules = guided(config, gamma, calls, **inputs)
            calls.clear()
            solvers.solve(solvers.euler(), u, X, TS)
            assert sum(calls) == (STEPS - INSIDE) + cost * INSIDE
            assert sum(calls) == guidance.network_evaluations(solvers.euler(), rules, TS)


@pytest.mark.thorough
@pytest.mark.parametrize("name", sorted(TABLE))
def test_outside_the_interval_there_is_the_conditional_velocity_alone(name):
    """Exactly, for every method and memory; in a batch of times, for those outside."""
    config, inputs, (*_, cost) = of(name)
    times_of_each = jnp.array([0.1, 0.5, 0.9])
    with jax.disable_jit():
        u, _ = guided(config, 3.0, [], **inputs)
        u = as_stateful(u)
        start = u.init(X)
        conditional = bind(field, C)
        inside, memory = u.apply(start, jnp.float32(0.5), X)
        if cost > 1:
            assert np.abs(inside - conditional(jnp.float32(0.5), X)).max() > 0.03
        for t in (0.0, 0.1, 0.34, 0.66, 0.9, 1.0):
            for past in (start, memory):
                np.testing.assert_array_equal(
                    u.apply(past, jnp.float32(t), X)[0], conditional(jnp.float32(t), X), strict=True
                )
        mixed = u.apply(start, times_of_each, X)[0]
        np.testing.assert_allclose(mixed[1], inside[1], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(mixed[::2], conditional(times_of_each, X)[::2], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 3.0])
def test_a_batch_of_times_needs_what_any_of_them_needs(gamma):
    """At γ = 0 only the reference inside the interval, and only the conditional velocity outside."""
    times_of_each = jnp.array([0.1, 0.5, 0.9])
    u, rules = guided(of("cfg")[0], gamma, [])
    assert guidance.evaluations_at(rules, times_of_each) == (1 if gamma == 1 else 2)
    found, conditional = plain_velocity(u)(times_of_each, X), bind(field, C)(times_of_each, X)
    expected = gamma * conditional + (1 - gamma) * bind(field, null(C))(times_of_each, X)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found[::2], conditional[::2], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("steps", [10, 20, 25])
def test_both_ends_are_inside(steps):
    """Also at grid nodes, whose floats equal the written decimals."""
    ts, whole = times.grid(steps), guided(sampling.SamplerConfig(solver="euler"), 3.0, [])[0]
    for first in range(steps // 2):
        last = steps - 1 - first
        config = sampling.SamplerConfig(solver="euler", interval=(first / steps, last / steps))
        u, rules = guided(config, 3.0, [])
        assert guidance.network_evaluations(solvers.euler(), rules, ts) == steps + last - first + 1
    for t in (ts[first], ts[last]):
        np.testing.assert_array_equal(plain_velocity(u)(t, X), plain_velocity(whole)(t, X))


@pytest.mark.parametrize("name", ["dng", "feedback", "apg, momentum"])
def test_a_memory_pauses_outside_and_starts_at_the_edge(name):
    """Inside, the steps equal those of a solve that starts at the first node of the interval with a new memory."""
    config, inputs, _ = of(name)
    with jax.disable_jit():
        u, _ = guided(config, 3.0, [], **inputs)
        whole, _ = guided(config._replace(interval=None), 3.0, [], **inputs)
        states = solvers.solve(solvers.heun(), u, X, TS, trajectory=True)
        # The second stage of the step to 0.4 is already inside, with an empty memory.
        inside = solvers.solve(solvers.euler(), whole, states[4], TS[4:7], trajectory=True)
        own = solvers.solve(solvers.euler(), u, states[4], TS[4:7], trajectory=True)
    np.testing.assert_allclose(own, inside, rtol=1e-5, atol=1e-6)


def test_posterior_estimates_leave_out_the_step_across_a_pause():
    """A step whose start was not recorded adds nothing to the estimate; without the pause it would."""
    for rule, refs in (
        (guidance.feedback(guidance.constant(2.0), P, pi=0.9, drift=-0.03), (null(C),)),
        (guidance.dynamic_negative(guidance.constant(2.0), 2.0, P, prior=0.3), (null(C), D)),
    ):
        found = [bind(field, c)(jnp.float32(0.5), X) for c in (C, *refs)]

        def at(memory, t, x, rule=rule, found=found):
            return rule.apply(memory, jnp.float32(t), x, found[0], tuple(found[1:]))

        _, seen = at(rule.init(X), 0.4, X)
        fresh, _ = at(rule.init(X), 0.8, 2 * X)
        paused, _ = at(rule.pause(seen), 0.8, 2 * X)
        across, _ = at(seen, 0.8, 2 * X)
        np.testing.assert_array_equal(paused, fresh)
        assert np.abs(across - fresh).max() > 0.01
        # The previous estimate is kept.
        _, estimate = at(seen, 0.5, 1.2 * X)
        np.testing.assert_array_equal(rule.pause(estimate)[1], estimate[1])
        assert np.abs(estimate[1] - seen[1]).max() > 0.01


@pytest.mark.parametrize("name", ["feedback", "apg, momentum"])
def test_a_scale_that_is_neutral_at_some_step_does_not_pause_the_memory(name):
    """--schedule=linear is 1 at t = 0, and the memory still records that step."""
    config, inputs, _ = of(name, interval=None)
    with jax.disable_jit():
        u, rules = guided(config._replace(schedule="linear"), 3.0, [], **inputs)
        assert isinstance(u, solvers.StatefulVelocity)
        assert isinstance(rules.rule, guidance.StatefulRule)
        memory = u.init(X)
        _, memory = u.apply(memory, jnp.float32(0.0), X)
        got, _ = u.apply(memory, jnp.float32(0.1), X)
        past = rules.rule.init(X)
        for t in (0.0, 0.1):
            v, ref = (bind(field, c)(jnp.float32(t), X) for c in (C, null(C)))
            expected, past = rules.rule.apply(past, jnp.float32(t), X, v, (ref,))
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("solver", ["heun", "ab3"])
@pytest.mark.parametrize("name", ["dng", "beta_cfg"])
def test_compiled_solves_make_the_evaluations_they_report(name, solver):
    """γ is traced: one program for all its values."""
    config, inputs, _ = of(name)
    calls, s = [], solvers.SOLVERS[solver](P)

    def counting(params, t, x, c):
        jax.debug.callback(lambda: calls.append(x.shape[0] // B))
        return velocity(params, t, x, c)

    @jax.jit
    def run(gamma):
        request = sampling.SampleRequest(C, inputs.get("negatives", ()), (), jnp.full(B, gamma), 0.5, np.zeros(0))
        u, rules = guided_velocity(partial(counting, jnp.float32(1.0)), P, config, request)
        return solvers.solve(s, u, X, TS), guidance.network_evaluations(s, rules, TS)

    for gamma in (0.0, 1.0, 3.0):
        calls.clear()
        _, reported = jax.block_until_ready(run(gamma))
        jax.effects_barrier()
        assert sum(calls) == reported
    assert run._cache_size() == 1  # pyright: ignore[reportAttributeAccessIssue]  # which JAX does not declare


@pytest.mark.parametrize("name", ["autoguidance", "beta_cfg"])
def test_an_adaptive_solver_reports_the_evaluations_it_makes(name):
    calls = []

    def counting(params, t, x, c):
        jax.debug.callback(lambda: calls.append(x.shape[0] // B))
        return velocity(params, t, x, c)

    model = toy(Network(lambda key: jnp.float32(1.0), counting))
    config = sampling.SamplerConfig("dopri5", guidance=name, interval=(0.5, 0.9), tolerance=1e-2)
    weak = model if name == "autoguidance" else None
    drawn = sampling.sample(model, "kind=a", num=B, gamma=3.0, weak=weak, config=config, devices=jax.devices()[:1])
    jax.effects_barrier()
    assert set(drawn.evaluations) == {sum(calls)}


@pytest.mark.parametrize("schedule", sorted(set(guidance.SCHEDULES) - {"constant"}))
def test_the_strength_of_cfg_pp_is_not_scheduled(schedule):
    model = toy(counted([]))
    config = sampling.SamplerConfig("ddim", guidance="cfg_pp", schedule=schedule)
    with pytest.raises(UserError, match="use schedule 'constant', not"):
        sampling.sample(model, "kind=a", num=2, gamma=0.6, config=config)
