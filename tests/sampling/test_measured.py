"""What was measured, through ``sample``: the exact posterior of Gaussians in the units of the data, and refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from flowguide import guidance, paths, sampling, solvers
from flowguide.condition import given
from flowguide.errors import UserError
from flowguide.guidance import inverse
from flowguide.networks import Network
from flowguide.sampling import Deblur, Inpaint, LinearMap, SamplerConfig, Upsample
from flowguide.schema import DataInfo, Images, Vectors
from flowguide.times import grid
from tests.support.toy import MODEL, NETWORK, draw, velocity

RNG = np.random.default_rng(0)
MEAN, V = 0.3, 0.8  # of what the network sees
TABLE = Vectors((3,), (10.0, -5.0, 100.0), (2.0, 0.5, 30.0), ("alcohol", "acid", "ash"))
SIGNAL = Vectors((6, 2), (4.0, -30.0), (0.5, 20.0))
PICTURE = Images((4, 4, 1))


def gaussian(examples, variance=V):
    """The model of N(MEAN, variance·I), without conditions."""

    def u(params, t, x, c):
        t = t.reshape(-1, *(1,) * len(examples.shape))
        return MEAN + (t * variance - (1 - t)) / (t**2 * variance + (1 - t) ** 2) * (x - t * MEAN)

    return sampling.Model(DataInfo("exact", examples, {}), Network(lambda key: {}, u), {}, paths.linear())


def noise(shape, num):
    """The noise that samples start from: what a velocity of 0 makes of it."""
    still = gaussian(Vectors(shape))._replace(network=Network(lambda key: {}, lambda params, t, x, c: 0 * x))
    return sampling.sample(still, num=num, config=SamplerConfig("euler", 1)).x


def law(model, measured, config):
    """Mean and covariance of the samples. The flow is affine, so that a few samples and their noise have both."""
    size = int(np.prod(model.info.shape))
    x = model.sample(num=2 * size + 2, measured=measured, config=config).reshape(-1, size).astype(float)
    start = noise(model.info.shape, len(x)).reshape(-1, size)
    (mean, *root), *_ = np.linalg.lstsq(np.column_stack([np.ones(len(x)), start]), x, rcond=None)
    return mean, np.transpose(root) @ root


def posterior(examples, matrix, y, sd, variance=V):
    """Mean and covariance of x given y = matrix·x + sd·noise, by linear algebra in the units of the data."""
    ones = np.ones((1, *examples.shape))
    if isinstance(examples, Images):
        scale, mean = 127.5 * ones, 127.5 * (1 + MEAN) * ones
    else:
        scale, mean = ones * examples.scale, examples.mean + MEAN * ones * examples.scale
    prior, mean = np.diag(variance * scale.ravel() ** 2), mean.ravel()
    gain = prior @ matrix.T @ np.linalg.inv(matrix @ prior @ matrix.T + np.diag(np.broadcast_to(sd, len(y)) ** 2))
    return mean + gain @ (y - matrix @ mean), prior - gain @ matrix @ prior


def dense(apply, shape):
    """The matrix of a linear map."""
    size = int(np.prod(shape))
    return np.asarray(apply(jnp.eye(size).reshape(size, *shape))).reshape(size, -1).T.astype(float)


KERNEL = np.array([0.2, 0.7, 0.5])  # its sum is not 1
MATRIX = np.array([[1, 0, 0.05], [0, 2, 0.01]], np.float32)


def table(x):
    return x @ MATRIX.T


SMALL, BLURRED = np.array([[4.2, -20], [3.9, -5], [4.5, -60]]), RNG.normal(size=(6, 2)) * [1, 30] + [6, -40]
EXACT = {
    "inpaint": (TABLE, Inpaint("alcohol:13; ash:70", [1.0, 0.1, 20.0]), np.eye(3)[[0, 2]], [13, 70], [1, 20]),
    "upsample": (SIGNAL, Upsample(SMALL, [0.2, 5.0]), inverse.downsample(2).apply, SMALL, [0.2, 5.0] * 3),
    "deblur": (
        SIGNAL,
        Deblur(BLURRED, kernel=KERNEL, noise=[0.3, 8]),
        inverse.blur(KERNEL).apply,
        BLURRED,
        [0.3, 8] * 6,
    ),
    "linear": (TABLE, LinearMap([18.0, -11.0], table, 0.5), MATRIX.astype(float), [18, -11], 0.5),
}


@pytest.mark.thorough
@pytest.mark.parametrize("name", EXACT)
def test_samples_follow_the_posterior_in_the_units_of_the_data(name):
    """Channels have different means and scales, and noises of their own: each is mapped to what the network sees."""
    examples, measured, matrix, y, sd = EXACT[name]
    matrix = dense(matrix, examples.shape) if callable(matrix) else matrix
    mean, covariance = posterior(examples, matrix, np.ravel(y), sd)
    found = law(gaussian(examples), measured._replace(variance=V), SamplerConfig("rk4", 40))
    sds = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose((found[0] - mean) / sds, 0, atol=2e-3)
    np.testing.assert_allclose((found[1] - covariance) / np.outer(sds, sds), 0, atol=4e-3)


def test_samples_follow_the_posterior_in_pixels():
    """Samples are rounded to whole pixels, and the law is narrow enough for none to be clipped."""
    blurred, variance = np.array(RNG.integers(150, 180, (4, 4, 1)), np.uint8), 0.004
    matrix = dense(inverse.blur(inverse.gaussian(0.6, (4, 4))).apply, (4, 4, 1))
    mean, covariance = posterior(PICTURE, matrix, blurred.ravel().astype(float), 5.0, variance)
    measured = Deblur(blurred, sigma=0.6, noise=5.0, variance=variance)
    found = law(gaussian(PICTURE, variance), measured, SamplerConfig("rk4", 40))
    np.testing.assert_allclose(found[0], mean, atol=0.8)
    np.testing.assert_allclose(found[1], covariance, atol=3.0)
    assert np.abs(mean - 127.5 * (1 + MEAN)).max() > 5


@pytest.mark.parametrize(
    ("examples", "variance", "noise"),
    [(PICTURE, 0.25, 12**-0.5), (Vectors((4, 4, 1)), 1.0, 0.0)],
    ids=["image", "floats"],
)
def test_defaults_are_those_of_the_kind_of_example(examples, variance, noise):
    model, y = gaussian(examples, variance), np.full((2, 2, 1), 99.0)
    for measured in (Upsample(y), Deblur(np.full((4, 4, 1), 99.0), sigma=1.0)):
        read = sampling.read_measured(measured, model.info)
        assert (read.noise.item(), read.variance.item()) == pytest.approx((noise, variance))
    assert sampling.read_measured(Inpaint([[[np.nan], *[[1.0]] * 3]] * 4), model.info).noise == 0
    assert sampling.resolve_defaults(SamplerConfig(), model, measured=True).solver == "ab2"
    assert sampling.resolve_defaults(SamplerConfig("heun"), model, measured=True).solver == "heun"
    assert sampling.resolve_defaults(SamplerConfig(sampler="pc"), model, measured=True).solver == "ddim"
    assert sampling.resolve_defaults(SamplerConfig(), model).solver == "heun"


HALF = np.array(RNG.integers(0, 256, (4, 4, 1)), np.float32)
HALF[2:] = np.nan


@pytest.mark.parametrize("form", ["array", "without channels", "png", "npy", "each"])
def test_known_pixels_come_back_exactly_and_others_vary(form, tmp_path):
    model, y = gaussian(PICTURE, 0.05), HALF
    if form == "without channels":
        y = HALF[..., 0]
    elif form == "png":
        pixels = np.nan_to_num(HALF[..., 0]).astype(np.uint8)
        Image.fromarray(np.stack([pixels, np.where(np.isnan(HALF[..., 0]), 0, 255)], -1).astype(np.uint8)).save(
            tmp_path / "half.png"
        )
        y = tmp_path / "half.png"
    elif form == "npy":
        np.save(tmp_path / "half.npy", HALF)
        y = str(tmp_path / "half.npy")
    elif form == "each":
        y = np.stack([HALF, HALF[::-1]])
    x = model.sample(num=None if form == "each" else 3, measured=Inpaint(y), config=SamplerConfig(steps=4))
    assert (x.dtype, len(x)) == (np.uint8, 2 if form == "each" else 3)
    if form == "each":
        x = np.stack([x[0], x[1][::-1]])
    np.testing.assert_array_equal(x[:, :2], np.broadcast_to(HALF[:2], x[:, :2].shape))
    assert np.ptp(x[:, 2:].astype(float), axis=0).min() > 0


def test_only_what_is_known_without_noise_is_kept():
    model = gaussian(TABLE)
    x = model.sample(num=3, measured=Inpaint({"alcohol": 13.1, "ash": 70}, [0, 1, 5.0]), config=SamplerConfig(steps=8))
    np.testing.assert_array_equal(x[:, 0], np.float32(13.1))
    assert np.ptp(x[:, 2]) > 1
    each = np.array([[13.1, np.nan, 70], [np.nan, -5, np.nan], [np.nan, np.nan, 80]])
    x = model.sample(measured=Inpaint(each), config=SamplerConfig(steps=8))
    np.testing.assert_array_equal(np.where(np.isnan(each), np.nan, x), each.astype(np.float32))


FITS = [SamplerConfig(steps=12), SamplerConfig("ddim", 12), SamplerConfig("renoise_2m", 12), SamplerConfig("bosh3")]
FITS += [SamplerConfig(sampler="pc", steps=12), SamplerConfig(steps=12, jacobian_from=1.0)]


@pytest.mark.thorough
@pytest.mark.parametrize("config", FITS, ids=lambda c: f"{c.sampler} {c.solver} {c.jacobian_from}")
def test_samples_fit_what_was_measured_without_noise(config):
    """Of every kind of solver; for the 24 kinds of model and map there is one velocity."""
    y = np.array([[18.0, -11.0], [17.0, -10.5]])
    x = gaussian(TABLE).sample(measured=LinearMap(y, table), config=config)
    np.testing.assert_allclose(table(x), y, atol=2e-3)
    assert np.abs(gaussian(TABLE).sample(num=2, config=config) @ MATRIX.T - y).max() > 1


def test_the_guided_velocity_is_what_is_corrected():
    """Against the same made by hand of the core's parts, for guidance with a negative condition."""
    y = RNG.normal(size=(5, 3, 3, 1)).astype(np.float32)
    measured = Inpaint(np.where(np.arange(9).reshape(3, 3, 1) % 2, y, np.nan), noise=0.1)
    config = SamplerConfig("midpoint", 6)
    found = draw(num=5, negative=["beard=yes"], measured=measured, config=config).x

    c = given({"hat": np.ones(5, int), "beard": np.zeros(5, int)})
    c = c._replace(present={"hat": c.present["hat"], "beard": ~c.present["beard"]})
    d = c._replace(
        value={"hat": np.zeros(5, int), "beard": np.ones(5, int)},
        present={"hat": ~c.present["hat"], "beard": ~c.present["beard"]},
    )
    network = lambda t, x, c: velocity({"w": 0.5}, t, x, c)  # noqa: E731
    u = guidance.guide(network, c, guidance.classifier_free(network, c, 2.0, negative=[d], gamma_negative=1.0))
    known = inverse.mask(~np.isnan(measured.y))
    u = guidance.with_measurement(u, known, jnp.nan_to_num(measured.y), paths.linear(), noise=0.1, variance=1.0)
    by_hand = solvers.solve(solvers.midpoint(), u, jnp.asarray(noise((3, 3, 1), 5)), grid(6))
    np.testing.assert_allclose(found, by_hand, rtol=1e-4, atol=1e-5)


def test_a_gamma_conditioned_network_and_one_without_null_take_it():
    y = np.where(np.arange(9).reshape(3, 3, 1) % 2, 0.5, np.nan)

    def taught(params, t, x, c):
        return -c.value["gamma"].reshape(-1, 1, 1, 1) * x

    told = MODEL._replace(network=NETWORK._replace(velocity=taught), guidance=sampling.GammaConditioned(1.0, 4.0))
    blind = MODEL._replace(guidance=sampling.NoNull())
    for model in (told, blind):
        x = model.sample("hat=red,beard=no", num=2, measured=Inpaint(y), config=SamplerConfig(steps=4))
        np.testing.assert_array_equal(x[:, ~np.isnan(y)], 0.5)


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["inpaint", "linear"])
def test_a_sample_depends_on_its_own_measurement_alone(kind):
    """Not on the batch or the number of devices that it is drawn with."""
    y = RNG.normal(size=(10, 3, 3, 1))
    measured = Inpaint(np.where(RNG.random(y.shape) < 0.5, y, np.nan), 0.1)
    if kind == "linear":
        measured = LinearMap(y.sum((1, 3)), _columns, 0.1)
    options = {"measured": measured, "negative": ["beard=yes"]}
    whole = draw(devices=jax.devices()[:1], **options)
    parts = draw(devices=jax.devices()[:4], batch_size=4, **options)
    np.testing.assert_allclose(whole.x, parts.x, rtol=1e-4, atol=1e-5)
    one = draw(num=1, measured=measured._replace(y=measured.y[:1]), negative=["beard=yes"])
    np.testing.assert_allclose(whole.x[:1], one.x, rtol=1e-4, atol=1e-5)


def _columns(x):
    return x.sum((1, 3))


def test_other_values_noise_and_variance_trace_nothing():
    traces = []

    def counted(params, t, x, c):
        traces.append(None)
        return velocity(params, t, x, c)

    model = MODEL._replace(network=NETWORK._replace(velocity=counted))
    y = np.where(np.arange(9).reshape(3, 3, 1) % 2, 0.5, np.nan)

    def drawn(measured):
        before = len(traces)
        x = model.sample("hat=red", num=2, measured=measured, config=SamplerConfig("euler", 3))
        return x, len(traces) - before

    first, traced = drawn(Inpaint(y))
    second, again = drawn(Inpaint(y[::-1] + 1, 0.3, 0.5))
    assert traced > again == 0
    assert np.abs(first - second).max() > 0.1
    assert drawn(LinearMap(np.zeros(3), _columns))[1] > 0
    assert drawn(LinearMap(np.ones(3), _columns, 0.2))[1] == 0


def fitted(examples, measured, **options):
    return lambda: gaussian(examples).sample(num=2, measured=measured, **options)


FULL = np.zeros((4, 4, 1))
REFUSED = [
    (fitted(PICTURE, HALF), "measured takes Inpaint(y), Upsample(y), Deblur(y, sigma=...) or LinearMap(y, function)"),
    (
        fitted(PICTURE, Inpaint(np.full((5, 4, 1), np.nan))),
        "inpaint takes an array (4, 4, 1), or one for each sample; got (5, 4, 1)",
    ),
    (fitted(PICTURE, Inpaint(np.stack([HALF] * 3))), "got 3 measured values for 2 samples"),
    (fitted(PICTURE, Inpaint(np.nan * FULL)), "got a y that is NaN or transparent everywhere"),
    (fitted(PICTURE, Inpaint(FULL)), "nothing is left to inpaint"),
    (fitted(PICTURE, Inpaint(HALF + 300)), "inpaint without noise takes numbers from 0 to 255; got"),
    (fitted(TABLE, Inpaint([np.inf, np.nan, 1])), "inpaint takes finite numbers; got inf"),
    (fitted(TABLE, Inpaint("alchol:13")), "inpaint has no column 'alchol', did you mean 'alcohol'?"),
    (fitted(TABLE, Inpaint("13 2")), "inpaint takes 3 numbers, ? for those unknown"),
    (
        fitted(TABLE, Inpaint("13 ? 2", -0.1)),
        "the noise of inpaint is a standard deviation of 0 or more, or one for each of 3",
    ),
    (fitted(TABLE, Inpaint("13 ? 2", [1, 2])), "or one for each of 3 channels; got [1, 2]"),
    (fitted(TABLE, Inpaint(3.0)), "inpaint takes an array (3,), or one for each sample; got ()"),
    (fitted(TABLE, Inpaint(np.zeros((0, 3)))), "inpaint takes an array (3,), or one for each sample; got (0, 3)"),
    (fitted(TABLE, Inpaint("13 ? 2", "low")), "of 3 channels; got 'low'"),
    (fitted(TABLE, Inpaint("13 ? 2", variance="low")), "is a positive number, as the network sees them; got 'low'"),
    (fitted(TABLE, Inpaint("13 ? 2", variance=0)), "the variance of the data is a positive number"),
    (fitted(TABLE, Inpaint(["13", "?"])), "inpaint takes an array of numbers, or the name of a file"),
    (fitted(PICTURE, Inpaint("nowhere.png")), "inpaint takes an image file; 'nowhere.png' cannot be read"),
    (
        fitted(PICTURE, Upsample(np.zeros((3, 2, 1)))),
        "upsample takes an array whose sides divide those of (4, 4, 1), with 1 channels; got (3, 2, 1)",
    ),
    (fitted(PICTURE, Upsample(FULL)), "sides divide those of (4, 4, 1)"),
    (fitted(SIGNAL, Upsample(np.zeros((3, 1)))), "with 2 channels; got (3, 1)"),
    (
        fitted(SIGNAL, Upsample(np.full((3, 2), np.nan))),
        "upsample takes finite numbers; got nan, or a transparent pixel",
    ),
    (
        fitted(TABLE, Upsample(np.zeros(1))),
        "upsample needs examples with axes beside the channels; exact has shape (3,)",
    ),
    (fitted(TABLE, Deblur(np.zeros(3), sigma=1)), "deblur needs examples with axes beside the channels"),
    (fitted(PICTURE, Deblur(FULL)), "give sigma, in pixels, or a kernel, and not both"),
    (fitted(PICTURE, Deblur(FULL, sigma=1, kernel=KERNEL)), "and not both"),
    (fitted(PICTURE, Deblur(FULL, sigma=0)), "the sigma of a blur is positive"),
    (fitted(PICTURE, Deblur(FULL, kernel=KERNEL)), "the kernel of a blur has 2 axes, at most (4, 4); got shape (3,)"),
    (fitted(TABLE, LinearMap([1.0], table)), "a linear map takes an array (2,), or one for each sample; got (1,)"),
    (fitted(TABLE, LinearMap([1.0], lambda x: x**2)), "no linear map of x (B, 3)"),
    (fitted(TABLE, LinearMap([1.0, 1.0, 1.0], lambda x: x + 1)), "a linear map is 0 at 0; got 1"),
    (fitted(TABLE, LinearMap([1.0], 3)), "no linear map of x (B, 3)"),  # pyright: ignore[reportArgumentType]
    (fitted(Vectors(()), Inpaint(3.0)), "exact has single numbers: give them an axis"),
    (lambda: draw(measured=Inpaint([[[0.0], [np.nan], [1]]] * 3), config=SamplerConfig(reuse=2)), "and reuse 1"),
    (
        lambda: draw(measured=Inpaint([[[0.0], [np.nan], [1]]] * 3), config=SamplerConfig(guidance="feedback")),
        "guidance feedback remembers its steps",
    ),
    (fitted(TABLE, Inpaint("1 ? 1"), config=SamplerConfig(jacobian_from=2.0)), "between 0 and 1; got 2.0"),
    (fitted(TABLE, Inpaint("1 ? 1"), config=SamplerConfig(sampler="fkc")), "call sample_particles"),
]


@pytest.mark.parametrize(("act", "message"), REFUSED, ids=[message[:40] for _, message in REFUSED])
def test_what_cannot_be_measured_is_refused_in_one_line(act, message):
    with pytest.raises(UserError) as error:
        act()
    assert message in str(error.value)
    assert "\n" not in str(error.value)
