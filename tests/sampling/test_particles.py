"""Weighted particles of the sampler "fkc"."""

import jax
import numpy as np
import pytest

from flowguide import sampling
from flowguide.errors import UserError
from flowguide.sampling.draw import PARTICLES
from flowguide.schema import Images, Vectors
from tests.support.toy import FKC, MODEL, SHAPE, draw, draw_laws


@pytest.mark.thorough
@pytest.mark.parametrize("options", [{}, {"negative": ["beard=yes"]}, {"compose": [("beard=yes", -0.4)]}], ids=str)
def test_a_law_depends_on_its_seed_and_number_alone(options):
    whole = draw_laws(devices=jax.devices()[:1], batch_size=64, **options)
    other = draw_laws(num=7, devices=jax.devices()[:2], batch_size=13, **options)
    assert whole.x.shape == (5, 6, *SHAPE)
    assert whole.ess.shape == (5, 8)
    for a, b in zip(whole[:5], other[:5], strict=True):
        np.testing.assert_allclose(a, b[:5], rtol=1e-4, atol=1e-4)
    assert whole.evaluations == 8 * (3 if options else 2)
    np.testing.assert_allclose(np.exp(whole.log_weights).sum(1), 1, rtol=1e-5)
    assert np.abs(whole.log_z).max() > 1e-3
    samples = sampling.resample_equal(whole)
    assert samples.shape == (30, *SHAPE)
    assert all(any((s == x).all() for x in whole.x[i // 6]) for i, s in enumerate(samples))


@pytest.mark.thorough
def test_a_law_in_the_place_of_null_and_a_proposal():
    """p(x|d)^(1−γ)·p(x|c)^γ with d = c is p(x|c): no weights. At γ' = γ another proposal is the usual one."""
    config = FKC._replace(replace_null=True)
    same = draw_laws(cond="hat=red", negative=["hat=red"], config=config)
    np.testing.assert_allclose(same.log_weights, -np.log(6), rtol=1e-5)
    one, other = (draw_laws(config=FKC._replace(eta=1.0, proposal=p)) for p in (None, 2.5))
    np.testing.assert_allclose(one.x, other.x, atol=1e-4)
    np.testing.assert_allclose(one.log_z, other.log_z, atol=1e-4)
    assert np.abs(draw_laws(config=FKC._replace(proposal=1.0)).x - one.x).max() > 1e-2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"config": sampling.SamplerConfig()}, "call sample"),
        ({"config": FKC._replace(solver="heun")}, "sampler 'fkc' has no solver 'heun': there are euler_maruyama"),
        ({"config": FKC._replace(guidance="apg")}, "guidance = 'apg' is none"),
        ({"config": FKC._replace(interval=(0.2, 0.8))}, "interval = .* is none"),
        ({"config": FKC._replace(particles=1)}, "at least 2 particles; got 1"),
        ({"config": FKC._replace(until=2.0)}, r"until is the last time at which .* 0 < until <= 1; got 2.0$"),
        ({"config": FKC._replace(until=0.0)}, "0 < until <= 1"),
        ({"config": FKC._replace(clip=-1.0)}, "clip > 0"),
        ({"config": FKC._replace(proposal=1.0, eta=2.0)}, "memoryless noise, eta = 1; got 2"),
        ({"cond": ["hat=red"], "num": 2}, "1 conditions for 2 samples"),
        ({"gamma": 3e38}, "not finite"),
    ],
)
def test_laws_that_cannot_be_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        draw_laws(**options)


def test_laws_need_a_plain_network():
    for other, message in (
        (MODEL._replace(guidance=sampling.NoNull()), "knows no p"),
        (MODEL._replace(guidance=sampling.Guided(2.0)), "guided velocity already"),
    ):
        with pytest.raises(UserError, match=message):
            sampling.sample_particles(other, "hat=red", config=FKC)
    with pytest.raises(UserError, match="call sample_particles"):
        draw(config=FKC)
    with pytest.raises(UserError, match="unknown sampler 'smc': there are flow, pc, fkc"):
        draw(config=sampling.SamplerConfig(sampler="smc"))


@pytest.mark.parametrize(
    ("examples", "until"),
    [
        (Vectors(()), 1.0),
        (Vectors((63,)), 1.0),
        (Vectors((64,)), 0.7),
        (Images((3, 3, 1)), 1.0),
        (Images((8, 8, 1)), 0.7),
    ],
    ids=str,
)
def test_weights_of_large_examples_are_gathered_early(examples, until):
    model = MODEL._replace(info=MODEL.info._replace(examples=examples))
    assert sampling.resolve_defaults(FKC, model).until == until
    assert sampling.resolve_defaults(FKC._replace(until=0.5), model).until == 0.5
    assert sampling.resolve_defaults(FKC).until is None


def test_defaults_of_laws_are_two_for_gamma_and_the_sampler_fkc():
    own = sampling.sample_particles(MODEL, "hat=red", config=FKC)
    assert own.x.shape == (1, 6, *SHAPE)
    np.testing.assert_array_equal(own.x, draw_laws(num=1, gamma=2.0).x)
    assert sampling.SamplerConfig(sampler="fkc") == PARTICLES
