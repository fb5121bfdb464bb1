"""Samples: what they depend on, what they cost, and every solver and guidance method."""

import jax
import numpy as np
import pytest

from flowguide import sampling
from flowguide.condition import Condition, given, null
from flowguide.errors import UserError
from flowguide.sampling import draw as draw_module
from tests.support.toy import FIELDS, FREE, MODEL, NETWORK, SHAPE, draw, velocity

SHARES = [(name, 4, 2) for name in ("heun", "ab3", "unipc2", "renoise", "renoise_2m", "dopri5")]
SHARES += [(name, *share) for name in ("heun", "renoise", "dopri5") for share in ((10, 1), (3, 1), (16, 8))]


@pytest.mark.thorough
@pytest.mark.parametrize(("solver", "batch_size", "devices"), SHARES)
def test_a_sample_depends_on_its_seed_and_number_alone(solver, batch_size, devices):
    config = sampling.SamplerConfig(solver, 6)
    options = {"negative": ["beard=yes"], "gamma_negative": 0.5, "config": config}
    whole = draw(devices=jax.devices()[:1], batch_size=64, **options)
    other = draw(devices=jax.devices()[:devices], batch_size=batch_size, **options)
    np.testing.assert_allclose(whole.x, other.x, rtol=2e-5, atol=2e-6)
    more = draw(num=13, devices=jax.devices()[:devices], batch_size=batch_size, **options)
    np.testing.assert_allclose(whole.x, more.x[:10], rtol=2e-5, atol=2e-6)
    assert np.abs(draw(seed=1, **options).x - whole.x).max() > 0.1


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("solver", "steps"), [("heun", 200), ("rk4", 200), ("ab3", 200), ("unipc2", 200), ("dpmpp_2m", 600)]
)
def test_solvers_agree_with_the_adaptive_one(solver, steps):
    fine = draw(config=sampling.SamplerConfig("dopri5", tolerance=1e-6)).x
    np.testing.assert_allclose(draw(config=sampling.SamplerConfig(solver, steps)).x, fine, atol=2e-4)


@pytest.mark.thorough
@pytest.mark.parametrize("passes", ["together", "apart"])
def test_evaluations_are_counted(passes):
    def count(gamma=2.0, negative=(), **settings):
        config = sampling.SamplerConfig(passes=passes, **{"steps": 10, **settings})
        return set(draw(gamma=gamma, negative=negative, config=config).evaluations.tolist())

    assert count(solver="euler") == {20}
    assert count(solver="euler", gamma=1.0) == {10}
    assert count(solver="heun") == {40}
    assert count(solver="euler", negative=["beard=yes"]) == {30}
    assert count(solver="euler", negative=["beard=yes"], replace_null=True) == {20}
    assert count(solver="euler", interval=(0.25, 0.55)) == {13}  # at t = 0.3, 0.4, 0.5
    guided, plain = (next(iter(count(solver="dopri5", gamma=g))) for g in (2.0, 1.0))
    assert guided % 2 == 0
    assert plain > 6


def test_prompts_conditions_and_lists_are_the_same_thing():
    one = draw(cond="hat=red,beard=yes", num=4).x
    listed = sampling.sample(MODEL, ["hat=red,beard=yes"] * 4, gamma=2.0, config=sampling.SamplerConfig(steps=6)).x
    ready = draw(cond=given({"hat": np.ones(4, int), "beard": np.ones(4, int)}), num=4).x
    np.testing.assert_array_equal(one, listed)
    np.testing.assert_array_equal(one, ready)


@pytest.mark.parametrize("solver", ["heun", "renoise"])
def test_a_part_of_many_samples(solver):
    config = sampling.SamplerConfig(solver, 6)
    hats = np.arange(10) % 2
    whole = draw({"hat": hats}, config=config).x
    part = draw({"hat": hats[3:7]}, config=config, num=4, first=3).x
    np.testing.assert_allclose(part, whole[3:7], atol=1e-5)
    assert np.abs(part - whole[:4]).max() > 0.1


def test_data_without_fields_are_drawn_by_number():
    whole = sampling.sample(FREE, num=5, config=sampling.SamplerConfig("euler", 10), batch_size=2)
    assert (whole.evaluations == 10).all()
    first = sampling.sample(FREE, config=sampling.SamplerConfig("euler", 10))
    assert first.x.shape == (64, *SHAPE)
    np.testing.assert_allclose(whole.x, first.x[:5], rtol=1e-6)
    end = sampling.sample(FREE, num=5, config=sampling.SamplerConfig("euler", 1)).x  # one step of dx/dt = −x ends at 0
    np.testing.assert_allclose(end, 0, atol=1e-7)
    for cond in ("3", "hat=red", 3, {"hat": 3}):
        with pytest.raises(UserError, match="the data have no fields"):
            sampling.sample(FREE, cond, num=2)


def test_gamma_of_each_sample():
    gammas = np.linspace(0, 4, 10).astype(np.float32)
    mixed = draw(gamma=gammas).x
    for i in (0, 4, 9):
        np.testing.assert_allclose(mixed[i], draw(gamma=float(gammas[i])).x[i], rtol=1e-5, atol=1e-6)


def test_changing_gamma_seed_or_condition_compiles_nothing():
    draw(negative=["beard=yes"])
    program = draw_module._program(
        draw_module.functions_of(MODEL),
        sampling.resolve_defaults(sampling.SamplerConfig(steps=6), MODEL),
        jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)),
        False,
    )
    before = program._cache_size()
    draw(negative=["beard=no"], gamma=3.0, seed=5, cond="beard=yes", gamma_negative=0.1)
    assert program._cache_size() == before > 0


METHODS = [(name, {}) for name in ("zero_star", "apg", "tcfg", "mambo_g", "beta_cfg", "feedback", "icg", "tsg")]
METHODS += [(name, {"negative": ["beard=yes"], "gamma_negative": 0.7}) for name in ("perp_neg", "contrastive", "dng")]
METHODS += [("cfg", {"negative": ["beard=yes"], "compose": [("hat=none", 0.5)]}), ("autoguidance", {"weak": True})]


@pytest.mark.thorough
@pytest.mark.parametrize(("name", "asked"), METHODS)
def test_every_method_draws_and_its_samples_do_not_depend_on_the_batch(name, asked):
    worse = NETWORK._replace(velocity=lambda params, t, x, c: 0.5 * velocity(params, t, x, c))
    asked = {**asked, "weak": MODEL._replace(network=worse)} if "weak" in asked else asked
    config = sampling.SamplerConfig("ab2", 6, guidance=name)
    whole = draw(devices=jax.devices()[:1], config=config, **asked)
    other = draw(devices=jax.devices()[:4], batch_size=4, config=config, **asked)
    np.testing.assert_allclose(whole.x, other.x, rtol=1e-4, atol=1e-5)
    plain = draw(config=sampling.SamplerConfig("ab2", 6), gamma=1.0)
    assert np.abs(whole.x - plain.x).max() > 1e-3
    extra = len(asked.get("negative", [])) + len(asked.get("compose", [])) + 1
    saved = int(name == "beta_cfg")  # its scale is 0 at t = 0: there the reference is all that is needed
    assert (whole.evaluations == 6 * (1 + extra) - saved).all()


def test_reuse_and_schedules_and_cfg_pp():
    few = draw(config=sampling.SamplerConfig("ab2", 8, reuse=4))
    assert (few.evaluations == 8 + 2).all()
    assert np.abs(few.x - draw(config=sampling.SamplerConfig("ab2", 8)).x).max() < 0.3
    ramp = draw(config=sampling.SamplerConfig("ab2", 8, schedule="linear"))
    assert np.abs(ramp.x - draw(config=sampling.SamplerConfig("ab2", 8)).x).max() > 1e-3
    plus = draw(gamma=0.6, config=sampling.SamplerConfig("ddim", 8, guidance="cfg_pp"))
    assert (plus.evaluations == 16).all()


PC = sampling.SamplerConfig(steps=6, sampler="pc", corrections=2)
FKC = sampling.SamplerConfig(steps=8, sampler="fkc", particles=6, threshold=0.9)


def test_corrections_are_counted_and_drawn_alike_in_any_batch():
    whole, parts = draw(config=PC), draw(config=PC, batch_size=3, devices=jax.devices()[:2])
    np.testing.assert_allclose(whole.x, parts.x, rtol=2e-5, atol=2e-6)
    assert (whole.evaluations == 2 * (1 + 5 * 3)).all()  # none before the first step
    assert np.abs(whole.x - draw().x).max() > 0.1


def test_a_network_that_is_told_gamma_costs_one_evaluation():
    """A network whose velocity is the guided one of the γ it is told, against the guidance of the plain network."""

    def taught(params, t, x, c):
        gamma = c.value["gamma"].reshape(-1, 1, 1, 1)
        plain = Condition({k: v for k, v in c.value.items() if k != "gamma"}, {k: c.present[k] for k in FIELDS})
        return (1 - gamma) * velocity(params, t, x, null(plain)) + gamma * velocity(params, t, x, plain)

    conditioned = sampling.GammaConditioned(1.0, 4.0)
    model = MODEL._replace(network=NETWORK._replace(velocity=taught), guidance=conditioned)
    gamma, config = np.linspace(1, 4, 10), sampling.SamplerConfig(steps=6)
    told = sampling.sample(model, "hat=red", num=10, gamma=gamma, config=config)
    guided = draw(gamma=gamma)
    np.testing.assert_allclose(told.x, guided.x, rtol=1e-4, atol=1e-5)
    assert (told.evaluations == 12).all()
    assert (guided.evaluations == 24).all()
    with pytest.raises(UserError, match=r"γ-conditioned, trained for γ in \[1, 4\]"):
        sampling.sample(model, "hat=red", num=2, gamma=5.0)
    with pytest.raises(UserError, match="combines no references"):
        sampling.sample(model, "hat=red", num=2, gamma=2.0, negative=["beard=yes"])
    with pytest.raises(UserError, match="guided already, by γ = 3: use gamma 1; got 2"):
        sampling.sample(MODEL._replace(guidance=sampling.Guided(3.0)), "hat=red", num=2, gamma=2.0)
