"""Oracles: parameters that silence a block, attention written out by hand, blurs summed over pairs of tokens."""

import copy
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flowguide.networks import Network, Perturbation, as_network, attention
from flowguide.networks.attention import Attention
from flowguide.networks.perturbation import PLAIN, Treatment, blurred, treatments
from tests.support.tiny_networks import FIELDS, build, draw, full_condition, inputs, noisy

BLOCKS = {"mlp": 2, "unet": 8, "dit": 2}
NONE: Any = "none"  # is no kind of attention
WITH_ATTENTION = {"unet": (0, 6, 7), "dit": (0, 1)}
plain_attend = attention.attend


def weights_of_blur(grid: tuple[int, ...], sigma: float) -> np.ndarray:
    """Of each token (row) over each token (column), one pair after the other."""
    places = list(np.ndindex(grid))
    w = [[math.exp(-(math.dist(here, there) ** 2) / (2 * sigma**2)) for there in places] for here in places]
    return np.array(w) / np.sum(w, axis=1, keepdims=True)


def of_itself(q, k, v, mask=None):
    """Attention with the identity matrix (T, S) in place of the softmax; the conditioning sequence is not read."""
    return jnp.einsum("ts,bshd->bthd", jnp.eye(q.shape[1], k.shape[1]), v)


def with_blurred_queries(q, k, v, mask=None):
    side = math.isqrt(q.shape[1])
    return plain_attend(jnp.einsum("ts,bshd->bthd", weights_of_blur((side, side), 0.8), q), k, v, mask)


def with_mean_query(q, k, v, mask=None):
    return plain_attend(jnp.broadcast_to(jnp.mean(q, axis=1, keepdims=True), q.shape), k, v, mask)


def silenced(name: str, params, *blocks: int):
    """Parameters under which these blocks hand on their input (unet: their shortcut)."""
    params = copy.deepcopy(params)

    def silence(layer):
        layer.update(jax.tree.map(jnp.zeros_like, layer))

    for block in blocks:
        match name:
            case "mlp":
                silence(params["blocks"][str(block)]["out"])
            case "dit":  # zero gates
                film = params["blocks"]["film"]
                film.update(jax.tree.map(lambda p, i=block: p.at[i].set(0.0), film))
            case "unet":
                down, middle = [params["down"][a]["0"] for a in "01"], [params["middle"][a] for a in "01"]
                stage = [*down, *middle, *(params["up"][a][b] for a in "01" for b in "01")][block]
                silence(stage["out"])
                if "attention" in stage:
                    silence(stage["attention"]["out"])
    return params


def largest(tree) -> float:
    return max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(tree))


@pytest.fixture(scope="module")
def evaluate(tiny):
    """(perturbation, params) -> velocity at the usual inputs, one program a perturbation."""
    _, network, *_ = tiny
    (t, x), c, known = inputs(), full_condition(), {}

    def velocity(perturbation, params):
        run = known.setdefault(perturbation, jax.jit(network.perturbed(perturbation)))
        return run(params, t, x, c)

    return velocity


@pytest.mark.thorough
@pytest.mark.parametrize("which", ["all", "first", "last"])
def test_skipped_blocks_are_blocks_that_add_nothing(tiny, evaluate, which):
    name, _, _, params, _ = tiny
    blocks = {"all": tuple(range(BLOCKS[name])), "first": (0,), "last": (BLOCKS[name] - 1,)}[which]
    got = evaluate(Perturbation(skip=blocks), params)
    np.testing.assert_allclose(got, evaluate(Perturbation(), silenced(name, params, *blocks)), atol=1e-5)
    assert largest(got - evaluate(Perturbation(), params)) > 1e-3


@pytest.mark.thorough
def test_every_block_of_the_unet_can_be_skipped_by_its_index(tiny, evaluate):
    name, _, _, params, _ = tiny
    if name != "unet":
        pytest.skip("its blocks are not one list")
    for block in range(BLOCKS[name]):
        want = evaluate(Perturbation(), silenced(name, params, block))
        np.testing.assert_allclose(evaluate(Perturbation(skip=(block,)), params), want, atol=1e-5)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("perturbation", "by_hand"),
    [
        (Perturbation(attention="identity"), of_itself),
        (Perturbation(attention="blurred", blur=0.8), with_blurred_queries),
        (Perturbation(attention="blurred", blur=1e6), with_mean_query),
        (Perturbation(attention="blurred", blur=math.inf), with_mean_query),
    ],
)
def test_perturbed_attention_agrees_with_attention_by_hand(tiny, evaluate, monkeypatch, perturbation, by_hand):
    name, network, _, params, _ = tiny
    if name == "mlp":
        pytest.skip("no attention")
    got = evaluate(perturbation, params)
    assert largest(got - evaluate(Perturbation(), params)) > 1e-3
    monkeypatch.setattr(attention, "attend", by_hand)
    # A function of its own: what jit has traced before, it would not trace again.
    want = jax.jit(lambda params: network.velocity(params, *inputs(), full_condition()))(params)
    np.testing.assert_allclose(got, want, atol=2e-5)


@pytest.mark.parametrize("index", [0, -1])
def test_layers_name_the_blocks_whose_attention_is_perturbed(tiny, evaluate, index):
    name, _, _, params, _ = tiny
    if name == "mlp":
        pytest.skip("no attention")
    chosen = WITH_ATTENTION[name][index]
    others = [block for block in WITH_ATTENTION[name] if block != chosen]
    everywhere = Perturbation(attention="identity")
    here = everywhere._replace(layers=(chosen,))
    # Where the other blocks are silent, it does not matter what their attention does; nor here, where this one is.
    quiet, mute = silenced(name, params, *others), silenced(name, params, chosen)
    np.testing.assert_allclose(evaluate(here, quiet), evaluate(everywhere, quiet), atol=1e-5)
    np.testing.assert_allclose(evaluate(here, mute), evaluate(Perturbation(), mute), atol=1e-5)
    assert largest(evaluate(here, params) - evaluate(everywhere, params)) > 1e-3
    assert largest(evaluate(here, quiet) - evaluate(Perturbation(), quiet)) > 1e-4


def test_skipped_and_perturbed_blocks_may_be_mixed(tiny, evaluate):
    name, _, _, params, _ = tiny
    if name == "mlp":
        pytest.skip("no attention")
    both = Perturbation(skip=(0,), attention="identity")
    want = evaluate(Perturbation(attention="identity"), silenced(name, params, 0))
    np.testing.assert_allclose(evaluate(both, params), want, atol=1e-5)


def test_identity_attention_is_the_value_projection():
    layer = Attention(8, 2, 8, dtype=jnp.dtype("float32"), rngs=nnx.Rngs(0))
    x, sequence, mask = draw(0, 3, 6, 8), draw(1, 3, 4, 8), jnp.ones((3, 4), bool)
    assert layer.qkv.bias is not None
    assert layer.out.bias is not None
    value = x @ layer.qkv.kernel[...][:, 16:] + layer.qkv.bias[...][16:]
    want = value @ layer.out.kernel[...] + layer.out.bias[...]
    got = layer(x, sequence, mask, (2, 3), Treatment(attention="identity"))
    np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("sigma", [0.01, 0.3, 1.0, 7.0, math.inf])
@pytest.mark.parametrize("grid", [(3, 5), (1, 4), (4, 1), (5,), (2, 3, 4)])
def test_blur_is_a_gaussian_over_the_grid(grid: tuple[int, ...], sigma):
    q = draw(0, 2, math.prod(grid), 3, 4)
    got = blurred(q, grid, sigma)
    if sigma == 0.01:
        want = q
    elif sigma == math.inf:
        want = jnp.broadcast_to(q.mean(axis=1, keepdims=True), q.shape)
    else:
        want = jnp.einsum("ts,bshd->bthd", weights_of_blur(grid, sigma), q)
    np.testing.assert_allclose(got, want, atol=1e-6)
    assert blurred(q.astype(jnp.bfloat16), grid, sigma).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    "perturbation",
    [Perturbation(), Perturbation(blur=3.0), Perturbation(attention="blurred", blur=0.0)],
)
def test_what_takes_nothing_is_the_plain_velocity_itself(perturbation):
    network = build("dit")
    assert network.perturbed(perturbation) is network.velocity


@pytest.mark.thorough
def test_gradients_have_the_same_tree_and_leave_out_skipped_blocks(tiny):
    name, network, _, params, _ = tiny
    (t, x), c = inputs(), full_condition()
    rest = {} if name == "mlp" else {"attention": "blurred", "blur": 1.0}
    twin = network.perturbed(Perturbation(skip=(1,), **rest))
    gradient = jax.jit(jax.grad(lambda p: jnp.sum(jnp.square(twin(p, t, x, c) - x))))(params)
    assert jax.tree.map(jnp.shape, gradient) == jax.tree.map(jnp.shape, params)
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(gradient))
    if name == "unet":
        first, second = gradient["down"]["0"]["0"]["out"], gradient["down"]["1"]["0"]["out"]
    elif name == "dit":
        first, second = (jax.tree.map(lambda g, i=i: g[i], gradient["blocks"]) for i in (0, 1))
    else:
        first, second = gradient["blocks"]["0"], gradient["blocks"]["1"]
    assert largest(second) == 0.0
    assert largest(first) > 0.0


@pytest.mark.thorough
@pytest.mark.parametrize("options", [{"remat": True}, {"unroll": 2}, {"unroll": 0}, {"dtype": "bfloat16"}])
def test_how_blocks_are_applied_does_not_matter(options):
    network, other, (t, x), c = build("dit"), build("dit", **options), inputs(), full_condition()
    params = noisy(network.init(jax.random.key(0)))
    mixed = Perturbation(skip=(0,), attention="blurred", layers=(1,))

    def slope(network):
        return jax.jit(jax.grad(lambda x: jnp.sum(network.perturbed(mixed)(params, t, x, c) ** 2)))(x)

    want, got = slope(network), slope(other)
    assert float(jnp.linalg.norm(got - want) / jnp.linalg.norm(want)) < (0.05 if "dtype" in options else 1e-5)


def test_an_example_can_be_mapped_and_scanned():
    network, (t, x), c = build("dit"), inputs(), full_condition()
    params = noisy(network.init(jax.random.key(0)))
    twin = network.perturbed(Perturbation(skip=(0,), attention="identity"))

    def single(args):
        return twin(params, *jax.tree.map(lambda a: a[None], args))[0]

    want = jax.jit(twin)(params, t, x, c)
    for through in (jax.vmap(single), lambda args: jax.lax.map(single, args)):
        np.testing.assert_allclose(jax.jit(through)((t, x, c)), want, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "perturbation", "message"),
    [
        ("dit", Perturbation(skip=(2,)), r"skip must name blocks among \[0, 1\]; got \(2,\)"),
        ("unet", Perturbation(skip=(8,)), r"among \[0, 1, 2, 3, 4, 5, 6, 7\]; got \(8,\)"),
        ("mlp", Perturbation(skip=(0, -1)), r"among \[0, 1\]; got \(0, -1\)"),
        ("dit", Perturbation(attention="identity", layers=(5,)), r"with attention, among \[0, 1\]; got \(5,\)"),
        ("unet", Perturbation(attention="identity", layers=(1,)), r"with attention, among \[0, 6, 7\]; got \(1,\)"),
        ("dit", Perturbation(layers=(0,)), r'layers=\(0,\).*"full"'),
        ("mlp", Perturbation(attention="identity"), "attention='identity' needs.*has none: use skip"),
        ("dit", Perturbation(attention=NONE), r"\('full', 'identity', 'blurred'\); got 'none'"),
        ("dit", Perturbation(attention="blurred", blur=-1.0), "blur must be 0 or more tokens, or inf; got -1.0"),
        ("dit", Perturbation(attention="blurred", blur=math.nan), "got nan"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_computed(name, perturbation, message):
    with pytest.raises(ValueError, match=message):
        build(name).perturbed(perturbation)


def test_a_unet_without_attention_says_so():
    network = build("unet", fields={"kind": FIELDS["kind"]}, attention=())
    with pytest.raises(ValueError, match="needs a network with attention"):
        network.perturbed(Perturbation(attention="blurred"))


def test_networks_without_blocks_say_so():
    class Scale(nnx.Module):
        def __init__(self, rngs):
            self.scale = nnx.Param(jnp.ones(()))

        def __call__(self, t, x, c):
            return self.scale * x

    for network in (as_network(Scale), Network(lambda key: {}, lambda params, t, x, c: x)):
        with pytest.raises(TypeError, match=r"no blocks.*skip=\(0,\)"):
            network.perturbed(Perturbation(skip=(0,)))


def test_a_perturbation_tells_each_block_what_to_do():
    perturbation = Perturbation(skip=(1,), attention="identity", layers=(1, 2))
    plan = treatments(perturbation, (True,) * 4)
    assert plan == (PLAIN, Treatment(skipped=True), Treatment(False, "identity", math.inf), PLAIN)
    assert {perturbation: 1}[perturbation._replace()] == 1
