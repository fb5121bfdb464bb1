"""Adaptive steps against an independent NumPy solver with SciPy's tableaux: every step, on states of size 100."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import RK23, RK45

from flowguide import solvers

SAMPLES, SIZE = 3, 200
RNG = np.random.default_rng(0)
START = 100 * RNG.normal(size=(SAMPLES, SIZE)) * np.array([[1.0], [0.2], [3.0]])
RATE = RNG.uniform(0.5, 2.0, size=(SAMPLES, SIZE))
METHODS = {"dopri5": (RK45, 5), "bosh3": (RK23, 3)}


def slope(xp, t, x, rate):
    """Rotation and decay, and a sudden push at t = 0.55 that costs rejections."""
    return -rate * x + 60 * xp.cos(9 * t + rate) + 4e4 * xp.exp(-(((t - 0.55) / 0.02) ** 2)) * xp.sin(rate)


def integrate(f, x, ts, method, order, rtol, atol):
    """Takes the steps of ``solve_adaptive`` for one state of any shape, with one error and one step size for all of it.

    Hairer, Nørsett & Wanner 1993, §II.4, with Gustafsson's PI controller, exponents 0.7/k and 0.4/k.
    """

    def size(error, a, b):
        return np.sqrt(np.mean((error / (atol + rtol * np.maximum(abs(a), abs(b)))) ** 2))

    accepted, rejected, evaluations, h = 0, 0, [], None
    for start, end in pairwise(ts):
        way, t, before, calls = np.sign(end - start), start, 1.0, 1
        k = f(t, x)
        if h is None:
            h = min(0.01 * size(x, x, x) / size(k, x, x), abs(end - start))
        h = min(max(h, 1e-6 * abs(end - start)), abs(end - start))
        while t != end:
            left = abs(end - t)
            last = h >= left * 0.999
            step = way * (left if last else h)
            stages = [k]
            for c, row in zip(method.C[1:], method.A[1:], strict=True):
                increment = sum(w * s for w, s in zip(row, stages, strict=False))
                stages.append(f(t + c * step, x + step * increment))
            new = x + step * sum(w * s for w, s in zip(method.B, stages, strict=True))
            stages.append(f(t + step, new))
            calls += len(stages) - 1
            error = size(step * sum(w * s for w, s in zip(method.E, stages, strict=True)), x, new)
            if error <= 1:
                factor = 0.9 * max(error, 1e-10) ** (-0.7 / order) * before ** (0.4 / order)
                proposed = abs(step) * min(max(factor, 0.2), 10.0)
                h = max(h, proposed) if last else proposed
                x, k, t, before = new, stages[-1], end if last else t + step, max(error, 1e-4)
                accepted += 1
            else:
                h = abs(step) * max(0.9 * error ** (-1 / order), 0.2)
                rejected += 1
        evaluations.append(calls)
    return x, accepted, rejected, evaluations


@pytest.mark.thorough
@pytest.mark.parametrize(("rtol", "atol"), [(1e-5, 1e-4), (1e-9, 3e-2)], ids=["relative", "absolute"])
@pytest.mark.parametrize("ts", [(0.0, 0.3, 1.0), (1.0, 0.0)], ids=["forwards", "backwards"])
@pytest.mark.parametrize("name", METHODS)
def test_every_step_is_that_of_the_reference(name, ts, rtol, atol):
    """With one step size for the batch the norm is over the whole state; with ``per_sample``, over each sample."""
    method, order = METHODS[name]
    options = {"rtol": rtol, "atol": atol, "tableau": solvers.EMBEDDED_TABLEAUX[name]}
    with jax.enable_x64(True):
        x, rate = jnp.asarray(START), jnp.asarray(RATE)
        together = solvers.solve_adaptive(lambda t, x: slope(jnp, t, x, rate), x, jnp.array(ts), **options)
        own = solvers.solve_adaptive(
            lambda t, x: slope(jnp, t[:, None], x, rate), x, jnp.array(ts), per_sample=True, **options
        )
    expected = integrate(lambda t, x: slope(np, t, x, RATE), START, ts, method, order, rtol, atol)
    assert expected[2] > 0  # some steps were rejected
    np.testing.assert_allclose(together.x, expected[0], rtol=1e-10, atol=1e-9)
    assert (int(together.accepted), int(together.rejected)) == expected[1:3]
    assert together.evaluations.tolist() == expected[3]
    for i in range(SAMPLES):
        f = lambda t, x, i=i: slope(np, t, x, RATE[i])  # noqa: E731
        one = integrate(f, START[i], ts, method, order, rtol, atol)
        np.testing.assert_allclose(own.x[i], one[0], rtol=1e-10, atol=1e-9)
        assert (int(own.accepted[i]), int(own.rejected[i])) == one[1:3]


def test_a_tree_has_one_norm():
    """Leaves of any shape contribute by their number of elements, as if they were one array."""
    with jax.enable_x64(True):
        x, rate, ts = jnp.asarray(START), jnp.asarray(RATE), jnp.array([0.0, 1.0])
        whole = solvers.solve_adaptive(lambda t, x: slope(jnp, t, x, rate), x, ts, atol=1e-3)
        cut = lambda a: {"a": a[:, :7], "b": a[:, 7:].reshape(SAMPLES, 1, -1)}  # noqa: E731
        rates = cut(rate)

        def velocity(t, x):
            return {key: slope(jnp, t, x[key], rates[key]) for key in x}

        parts = solvers.solve_adaptive(velocity, cut(x), ts, atol=1e-3)
        np.testing.assert_allclose(parts.x["b"].reshape(SAMPLES, -1), whole.x[:, 7:], rtol=1e-10, atol=1e-9)
        assert (int(parts.accepted), int(parts.rejected)) == (int(whole.accepted), int(whole.rejected))


def test_max_steps_counts_accepted_and_rejected_tries():
    rate = jnp.asarray(RATE, jnp.float32)
    run = lambda most: solvers.solve_adaptive(  # noqa: E731
        lambda t, x: slope(jnp, t, x, rate), jnp.asarray(START, jnp.float32), jnp.array([0.0, 1.0]), max_steps=most
    )
    tries = int(run(1000).accepted + run(1000).rejected)
    assert int(run(tries).status) == solvers.Status.DONE
    assert int(run(tries - 1).status) == solvers.Status.MAX_STEPS


@pytest.mark.parametrize(("first", "steps"), [(0.9995, 1), (0.9985, 2)])
def test_no_sliver_is_left_for_one_more_step(first, steps):
    """The first guess is x/100 here, with slope 1; the last step may be longer by a thousandth."""
    found = solvers.solve_adaptive(lambda t, x: jnp.ones_like(x), jnp.full(3, 100 * first), jnp.array([0.0, 1.0]))
    assert int(found.accepted) == steps
    np.testing.assert_allclose(found.x, 100 * first + 1, rtol=1e-6)
