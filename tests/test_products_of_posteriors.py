"""The posterior of several independent observations, against its closed form for a linear Gaussian simulator."""

import numpy as np
import pytest

from flowguide import analytic, paths, sampling
from flowguide.errors import UserError
from flowguide.model import Model, NoNull
from flowguide.networks import Network
from flowguide.schema import DataInfo, Vector, Vectors

# θ ~ N(0, P), x|θ ~ N(Aθ, R). The observations agree with each other and lie far out in the prior.
P, A, R = np.array([[1.0, 0.3], [0.3, 0.6]]), np.array([[1.0, 0.5], [-0.3, 1.2]]), np.array([[0.5, 0.1], [0.1, 0.3]])
XS = np.array([[3.0, 2.0], [2.5, 2.6], [3.4, 1.7], [2.2, 2.9]], np.float32)
GAIN = A.T @ np.linalg.inv(R)
COVARIANCE = np.linalg.inv(np.linalg.inv(P) + len(XS) * GAIN @ A)
MEAN = COVARIANCE @ GAIN @ XS.sum(0)

FIELD = analytic.velocity(analytic.joint([0.0, 0.0], [0.0, 0.0], P, P @ A.T, A @ P @ A.T + R), paths.linear())
MODEL = Model(
    DataInfo("exact", Vectors((2,)), {"x": Vector(2)}),
    Network(lambda key: {}, lambda params, t, x, c: FIELD(t, x, c)),
    {},
    paths.linear(),
)


@pytest.mark.thorough
def test_samples_have_the_mean_and_covariance_of_the_closed_form():
    """The mean is 2.8 prior deviations out. Guidance without weights misses it by 2, with 7 % of the variance."""
    posterior = MODEL.given_all(x=XS)
    theta = posterior.sample(4000)
    assert theta.shape == (4000, 2)
    root = np.linalg.cholesky(COVARIANCE)
    white = np.linalg.solve(root, (theta - MEAN).T)  # of mean 0 and covariance 1
    np.testing.assert_allclose(white.mean(1), 0, atol=0.15)  # 700 ancestors
    np.testing.assert_allclose(np.cov(white), np.eye(2), atol=0.15)
    assert len(np.unique(theta, axis=0)) > 1000
    np.testing.assert_array_equal(theta, posterior.sample(4000))
    assert np.abs(posterior.sample(10, seed=1) - theta[:10]).max() > 0.1


def test_fewer_samples_than_particles_are_any_of_them():
    theta = MODEL.given_all(x=XS).sample(50)
    assert theta.shape == (50, 2)
    white = np.linalg.solve(np.linalg.cholesky(COVARIANCE), (theta - MEAN).T)
    assert np.abs(white.mean(1)).max() < 0.6
    assert 0.6 < white.std() < 1.4


def test_the_density_is_the_closed_form_plus_a_constant():
    theta = MEAN + np.random.default_rng(0).normal(size=(20, 2)) * 0.3
    found = MODEL.given_all(x=XS).log_prob(theta)
    expected = -0.5 * np.einsum("ni,ij,nj->n", theta - MEAN, np.linalg.inv(COVARIANCE), theta - MEAN)
    np.testing.assert_allclose(found - found[0], expected - expected[0], atol=1e-2)
    single = MODEL.given_all(x=XS[:1]).log_prob(theta)
    np.testing.assert_allclose(single, MODEL.given(x=XS[0]).log_prob(theta), atol=1e-5)


def test_what_cannot_be_multiplied_is_refused():
    with pytest.raises(UserError, match="unknown field 'y'"):
        MODEL.given_all(y=XS)
    with pytest.raises(UserError, match="field 'x' takes 2 finite numbers"):
        MODEL.given_all(x=np.full((2, 2), np.nan))
    with pytest.raises(UserError, match="knows no p"):
        MODEL._replace(guidance=NoNull()).given_all(x=XS).sample(10)
    with pytest.raises(UserError, match="call sample"):
        MODEL.given_all(x=XS).sample(10, config=sampling.SamplerConfig())
