"""Training targets: their minimisers are the exact guided fields, and no others."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flowguide import analytic, condition, losses, paths, targets, times
from flowguide.condition import Condition, given
from flowguide.networks import MLP, as_network
from flowguide.schema import Batch, Label, Vector
from flowguide.targets import GAMMA, with_gamma
from flowguide.training import ema
from flowguide.training.step import init_state, make_loss, make_step

N, P = 4096, paths.linear()
LAW = analytic.mixture(
    [0.3, 0.7], [[1.0, -0.5], [-0.8, 0.4]], jnp.array([[[0.5, 0.1], [0.1, 0.3]], [[0.4, 0], [0, 0.6]]])
)
EXACT = analytic.velocity(LAW, P)
INDEX = jnp.arange(N)
KEYS = losses.example_keys(jax.random.key(3), 0, INDEX)
C = given({"label": jax.random.choice(jax.random.key(1), 2, (N,), p=LAW.weights)})  # as p(x) has them
X1 = analytic.sample(jax.random.key(2), LAW, C)


def guided(gamma):
    """The velocity of CFG with γ, of the exact fields; for None, the γ that the condition tells."""

    def u(t, x, c):
        scale = c.value[GAMMA] if gamma is None else gamma
        c = Condition({"label": c.value["label"]}, {"label": c.present["label"]})
        return (1 - scale) * EXACT(t, x, condition.null(c)) + scale * EXACT(t, x, c)

    return u


def loss(velocity, target, teacher=None):
    recipe = losses.Recipe(P, times.uniform(), drop_rate=0.25, target=target)
    return losses.flow_matching(velocity, recipe, KEYS, INDEX, X1, C, teacher)


def contrasted(t, x, c):
    """The minimiser of |u − v|² − 0.4|u − ũ|², (E[v|x] − 0.4·E[ũ])/0.6; on the linear path E[ũ] = E[x1]."""
    return (EXACT(t, x, c) - 0.4 * LAW.weights @ LAW.means) / 0.6


def as_the_paper_has_it(velocity, path, weight):
    """|u − v|² − λ|u − ũ|² + λ|v − ũ|²/(1 − λ) of each example, ũ from the one before it in the batch, in NumPy."""
    t_keys, x_keys, c_keys = jnp.moveaxis(jax.vmap(lambda key: jax.random.split(key, 3))(KEYS), 1, 0)
    t = times.draw(t_keys, times.uniform())
    x0 = jax.vmap(lambda key: jax.random.normal(key, (2,)))(x_keys)
    x = paths.interpolate(path, t, x0, X1)
    u = np.asarray(velocity(t, x, condition.drop(c_keys, C, 0.25, 0.1)), np.float64)
    d_alpha, d_sigma = (np.asarray(f(t), np.float64)[:, None] for f in (path.d_alpha, path.d_sigma))
    x0, x1 = np.asarray(x0), np.asarray(X1)
    before = np.arange(N) - 1
    own, other = d_alpha * x1 + d_sigma * x0, d_alpha * x1[before] + d_sigma * x0[before]
    toward, away, apart = (np.mean(a**2, axis=1) for a in (u - own, u - other, own - other))
    return toward - weight * away + weight / (1 - weight) * apart


PLAIN = jax.jit(lambda: loss(EXACT, targets.plain()))()
CASES = {
    "contrastive": (targets.contrastive(0.4), contrasted, None, as_the_paper_has_it(contrasted, P, 0.4)),
    "model_guidance": (targets.model_guidance(2.5), guided(2.5), guided(2.5), PLAIN),
    "guidance_free": (targets.guidance_free(0.3), guided(None), None, PLAIN),
    "distilled": (targets.distilled((1.0, 4.0)), guided(None), EXACT, jnp.zeros(N)),
}


def test_plain_is_flow_matching_as_written_out():
    recipe = losses.Recipe(P, times.logit_normal(), drop_rate=0.25)
    t_keys, x_keys, c_keys = jnp.moveaxis(jax.vmap(lambda key: jax.random.split(key, 3))(KEYS), 1, 0)
    t = times.draw(t_keys, recipe.warp)
    x0 = jax.vmap(lambda key: jax.random.normal(key, (2,)))(x_keys)
    c = condition.drop(c_keys, C, 0.25, 0.1)
    u = EXACT(t, paths.interpolate(P, t, x0, X1), c)
    expected = jnp.mean(jnp.square(u - paths.conditional_velocity(P, t, x0, X1)), axis=1)
    np.testing.assert_array_equal(losses.flow_matching(EXACT, recipe, KEYS, INDEX, X1, C), expected)


@pytest.mark.parametrize("name", CASES)
def test_guided_fields_have_the_error_of_the_exact_ones(name):
    """The residual of a guided field is that of the plain velocity, with the least mean square; 0 with a teacher.

    That of the contrastive one is the paper's loss, up to what does not depend on the network.

    This holds for each example separately, including those that lost their condition.
    """
    target, exact, teacher, expected = CASES[name]
    np.testing.assert_allclose(jax.jit(lambda: loss(exact, target, teacher))(), expected, rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_the_guided_fields_are_stationary_and_others_are_not(name):
    """The slope of the loss in several directions is 0 up to the error of its mean, and not 0 away from the field."""
    target, exact, teacher, _ = CASES[name]
    weight = jnp.where(c_present := C.value["label"][:, None] == 1, 1.0, -0.5)
    directions = [lambda x: jnp.ones_like(x), lambda x: x, lambda x: jnp.tanh(x[:, ::-1]) * weight]
    assert c_present.any()

    @jax.jit
    def slopes(away):
        def along(direction):
            def at(e):
                return loss(lambda t, x, c: exact(t, x, c) + (e + away) * direction(x), target, teacher)

            return jax.jvp(at, (0.0,), (1.0,))[1]

        return jnp.stack([along(d) for d in directions])

    here, beside = slopes(0.0), slopes(0.4)
    error = here.std(axis=1) / N**0.5
    assert (jnp.abs(here.mean(axis=1)) < 4 * error + 1e-5).all()
    assert (beside.mean(axis=1) > here.mean(axis=1) + 4 * error + 1e-2).all()


@pytest.mark.parametrize("path", ["trig", "vp"])
def test_contrastive_is_the_loss_of_its_paper_on_curved_paths(path):
    """There the velocity of the other example depends on t, which is that of the example itself."""
    p = paths.PATHS[path]()
    recipe = losses.Recipe(p, times.uniform(), drop_rate=0.25, target=targets.contrastive(0.3))

    def field(t, x, c):
        return 0.7 * x + t[:, None] - jnp.where(c.present["label"], c.value["label"] + 1.0, -2.0)[:, None]

    got, expected = losses.flow_matching(field, recipe, KEYS, INDEX, X1, C), as_the_paper_has_it(field, p, 0.3)
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-3)


def test_the_contrastive_field_is_the_best_that_a_line_can_be():
    """Least squares in t-bins of Gaussian data: (E[v|x] − λE[ũ])/(1 − λ), in closed form, to the error of the draws."""
    n, weight, mean, variance = 200_000, 0.5, 1.5, 0.6
    keys = losses.example_keys(jax.random.key(8), 0, jnp.arange(n))
    x1 = mean + variance**0.5 * jax.random.normal(jax.random.key(9), (n, 1))
    seen = {}

    def spy(t, x, c):
        seen["t"], seen["x"] = np.asarray(t, np.float64), np.asarray(x[:, 0], np.float64)
        return jnp.zeros_like(x)

    shown = []
    target = targets.contrastive(weight)
    contrast: Any = target.contrast
    shows = target._replace(contrast=lambda u, other: shown.append(contrast(u, other)) or u)
    recipe = losses.Recipe(P, times.uniform(), target=shows)
    losses.flow_matching(spy, recipe, keys, jnp.arange(n), x1, Condition({}, {}))
    goal = np.asarray(shown[0][:, 0], np.float64)
    for low in (0.2, 0.6):
        t, x, y = (a[(seen["t"] > low) & (seen["t"] < low + 0.02)] for a in (seen["t"], seen["x"], goal))
        at = t.mean()
        slope, start = np.polyfit(x - at * mean, y, 1)
        gain = (at * variance - (1 - at)) / (at**2 * variance + (1 - at) ** 2)  # of E[v|x] = m + gain·(x − tm)
        assert abs(slope - gain / (1 - weight)) < 0.15
        assert abs(start - (mean - weight * mean) / (1 - weight)) < 0.15


@pytest.mark.parametrize("name", ["model_guidance", "guidance_free"])
def test_gradients_do_not_go_through_what_teaches(name):
    """A network with a slope only in the passes that act as teacher has gradient 0."""
    target, exact, teacher, _ = CASES[name]
    only_null = losses.Recipe(P, times.uniform(), drop_rate=0.0, target=target)

    def at(e):
        def u(t, x, c):
            away = jnp.where(c.present["label"], 0.0, e)[:, None]
            return exact(t, x, c) + away

        return losses.flow_matching(u, only_null, KEYS, INDEX, X1, C, u if teacher else None).mean()

    assert float(jax.grad(at)(0.0)) == 0
    assert abs(float(at(1.0) - at(0.0))) > 1e-2


def test_residuals_are_their_formulas():
    """Each pass answers differently, depending on its condition and γ: the null pass of GFT gets γ = 1, for example."""
    label, present = np.array([0, 1, 1]), np.array([True, True, False])
    u, gamma = np.array([[0.3], [-1.0], [0.7]]), np.array([1.5, 4.0, 2.5])
    t, x = np.array([0.2, 0.5, 0.9]), np.array([[1.0], [-2.0], [0.4]])

    def network(base):
        def answer(t, x, c):
            told = 0.1 * c.value[GAMMA][:, 0] * c.present[GAMMA] if GAMMA in c.value else 0.0
            mark = jnp.where(c.present["label"], c.value["label"] + 2.0, -3.0)
            return (base + t * 0.5 + mark + told)[:, None] * x

        return answer

    def of(base, present, told: float | np.ndarray = 0.0):
        return (base + t * 0.5 + np.where(present, label + 2.0, -3.0) + 0.1 * told)[:, None] * x

    seen = targets.Seen(jnp.asarray(t), jnp.asarray(x), Condition({"label": label}, {"label": jnp.asarray(present)}))
    nowhere, g, beta = np.zeros(3, bool), gamma[:, None], 1 / gamma[:, None]
    expected = {
        "plain": of(5, present) - u,
        "contrastive": 0.95**0.5 * (of(5, present) - u),
        "model_guidance": of(5, present) - (u + 0.6 * (of(9, present) - of(9, nowhere))),
        "guidance_free": beta * of(5, present, gamma) + (1 - beta) * of(5, nowhere, 1.0) - u,
        "distilled": of(5, present, gamma) - ((1 - g) * of(9, nowhere) + g * of(9, present)),
    }
    made = {name: make() for name, make in targets.TARGETS.items()} | {"model_guidance": targets.model_guidance(2.5)}
    assert set(made) == set(expected)
    for name, target in made.items():
        got = target.residual(network(5), network(9), seen, jnp.asarray(u), jnp.asarray(gamma))
        np.testing.assert_allclose(got, expected[name], rtol=1e-5, atol=1e-5, err_msg=name)


def test_ranges_of_gamma_by_default_are_those_of_the_papers():
    """GFT draws β from 0.2 to 1; Meng et al. distil w from 0 to 4, which is γ from 1 to 5; MG uses w = 1/2."""
    assert targets.guidance_free().gammas == (1.0, 5.0)
    assert targets.distilled().gammas == (1.0, 5.0)
    np.testing.assert_allclose(targets.guidance_free(0.25).quantile(jnp.array([0.0, 0.5, 1.0])), [1.0, 1.6, 4.0])
    np.testing.assert_allclose(targets.distilled((2.0, 6.0)).quantile(jnp.array([0.0, 0.25, 1.0])), [2.0, 3.0, 6.0])


@pytest.mark.parametrize(
    ("target", "law"),
    [
        (targets.guidance_free(0.25), lambda g: (1 - 1 / g) / 0.75),
        (targets.distilled((1.5, 4.0)), lambda g: (g - 1.5) / 2.5),
    ],
)
def test_gamma_is_drawn_as_said(target, law):
    """1/γ = β is uniform, or γ is; every example gets its γ, which does not depend on the batch."""
    seen = []
    loss(lambda t, x, c: seen.append(c) or EXACT(t, x, given({"label": c.value["label"]})), target, EXACT)
    c = seen[-1]
    gamma = c.value[GAMMA]
    assert gamma.shape == (N, 1)
    assert c.present[GAMMA].all()
    assert not c.present["label"].all()
    uniform = np.sort(law(np.asarray(gamma[:, 0])))
    assert np.abs(uniform - (np.arange(N) + 0.5) / N).max() < 1.95 / N**0.5  # Kolmogorov-Smirnov, p = 0.001
    low, high = target.gammas
    assert low <= gamma.min() < gamma.max() <= high
    assert abs(np.corrcoef(gamma[:, 0], c.present["label"])[0, 1]) < 4 / N**0.5


def test_a_network_is_told_gamma():
    network = as_network(lambda rngs: MLP((2,), {"label": Label(("a", "b")), GAMMA: Vector(1)}, width=8, rngs=rngs))
    params = jax.tree.map(lambda a: a + 0.1, network.init(jax.random.key(0)))
    c = given({"label": jnp.array([0, 1])})
    x = jnp.ones((2, 2))
    one, two, mixed = (
        network.velocity(params, jnp.full(2, 0.5), x, with_gamma(c, g)) for g in (1.0, 2.0, jnp.array([1.0, 2.0]))
    )
    assert (jnp.abs(one - two) > 1e-4).all()
    np.testing.assert_allclose(mixed, jnp.stack([one[0], two[1]]), rtol=1e-5)
    with pytest.raises(ValueError, match="only be added to named fields"):
        with_gamma(given(jnp.array([0, 1])), 2.0)


ALONE: Any = (3.0,)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: targets.contrastive(1.0), "0 <= weight < 1; got 1.0: use 0.05"),
        (lambda: targets.contrastive(-0.1), "0 <= weight < 1; got -0.1"),
        (lambda: targets.model_guidance(0.5), "finite gamma of 1 or more; got 0.5"),
        (lambda: targets.guidance_free(0.0), "got low=0.0"),
        (lambda: targets.guidance_free(1.0), "got low=1.0"),
        (lambda: targets.distilled((3.0, 1.0)), r"the lower first; got \(3.0, 1.0\)"),
        (lambda: targets.distilled(ALONE), "two finite numbers"),
    ],
)
def test_ranges_that_are_none_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_network_becomes_the_guided_field(name):
    """In one pass, although the plain conditional field is far from it; only distilled has an exact teacher."""
    target, exact, _, _ = CASES[name]
    fields = {"label": Label(("a", "b")), **({GAMMA: Vector(1)} if target.gammas else {})}
    network = as_network(lambda rngs: MLP((2,), fields, width=64, depth=2, rngs=rngs))
    recipe = losses.Recipe(P, times.uniform(), target=target)
    teacher = (lambda params, t, x, c: EXACT(t, x, c)) if name == "distilled" else None
    loss = make_loss(network, recipe, lambda keys, x, coins: x, jax.random.key(1), teacher=teacher)
    optimizer = optax.adam(optax.cosine_decay_schedule(5e-3, 800))
    step = make_step(loss, optimizer, ema.constant(0.99))(lambda tree: tree)

    def batch(key):
        which, noise = jax.random.split(key)
        label = jax.random.choice(which, 2, (512,), p=LAW.weights)
        return Batch(analytic.sample(noise, LAW, given(label)), {"label": label}, jnp.arange(512))

    @jax.jit
    def train(state):
        return jax.lax.scan(lambda s, key: step(s, batch(key)), state, jax.random.split(jax.random.key(2), 800))[0]

    params = train(init_state(network, optimizer, jax.random.key(0))).ema
    t = jax.random.uniform(jax.random.key(4), (N,))
    x = paths.interpolate(P, t, jax.random.normal(jax.random.key(5), X1.shape), X1)
    told = with_gamma(C, 2.5) if target.gammas else C

    def distance(u, v):
        return float(jnp.mean((u - v) ** 2) / jnp.mean(v**2))

    wanted = exact(t, x, told)
    assert distance(jax.jit(network.velocity)(params, t, x, told), wanted) < 0.02
    assert distance(EXACT(t, x, C), wanted) > 0.1
