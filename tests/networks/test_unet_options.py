"""The U-Net and its options against NumPy in float64, where a convolution is a sum over shifted images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowguide.condition import Condition
from flowguide.networks import Perturbation
from tests.support.dit_by_hand import dense, embedded, normal, silu, softmax_attention
from tests.support.tiny_networks import BATCH, FIELDS, build, draw, full_condition, noisy

SHAPE = (4, 12, 2)  # levels of 4x12 and 2x6
LABELS = {name: FIELDS[name] for name in ("kind", "place")}
SIZE = {"width": 8, "multipliers": (1, 2), "blocks": 1, "attention": (2,), "heads": 2}
CASES = {
    "today": (FIELDS, {}),
    "adm": (LABELS, {"resampling": "residual", "head_channels": 4, "attention": (4, 2), "blocks": 2}),
    "cross": (FIELDS, {"resampling": "residual", "context": "cross", "head_channels": 8}),
}


def by_hand(params, t, x, c, *, blocks=1, attention=(2,), heads=2, head_channels=0, resampling="mean", **_):
    """Two levels, as in Dhariwal & Nichol 2021, §3."""
    params = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    every = []
    for b in range(len(x)):
        value, present = ({k: np.asarray(v[b]) for k, v in tree.items()} for tree in c)
        vector, words = embedded(params["condition"]["fields"], value, present)
        frequency = [10_000 ** (-k / 64) for k in range(64)]
        angle = 1000 * float(t[b]) * np.array(frequency)
        time = dense(params["time"]["hidden"], np.concatenate([np.cos(angle), np.sin(angle)]))
        time = dense(params["time"]["out"], silu(time))
        signal, image = silu(time + vector), np.asarray(x[b], np.float64)

        def stage(p, h, signal=signal, words=words, resize=lambda a: a):
            z = convolved(p["hidden"], resize(silu(groups(h))))
            scale, shift = np.split(dense(p["film"], signal), 2)
            z = convolved(p["out"], silu(groups(z) * (1 + scale) + shift))
            h = z + (dense(p["shortcut"], h) if "shortcut" in p else resize(h))
            if "attention" not in p:
                return h
            n = h.shape[-1] // head_channels if head_channels else heads
            z = groups(h).reshape(-1, h.shape[-1])
            q, k, v = (split(a, n) for a in np.split(dense(p["attention"]["qkv"], z), 3, axis=-1))
            shown = np.ones(len(z), bool)
            if "context_kv" in p["attention"]:
                more = np.split(dense(p["attention"]["context_kv"], normal(words[0])), 2, axis=-1)
                k, v = (np.concatenate([a, split(m, n)]) for a, m in zip((k, v), more, strict=True))
                shown = np.concatenate([shown, words[1]])
            mixed = softmax_attention(q, k, v, shown).reshape(z.shape)
            h = h + dense(p["attention"]["out"], mixed).reshape(h.shape)
            if "cross" in p:
                q = split(dense(p["cross"]["q"], groups(h).reshape(z.shape)), n)
                k, v = (split(a, n) for a in np.split(dense(p["cross"]["kv"], normal(words[0])), 2, axis=-1))
                mixed = softmax_attention(q, k, v, words[1]) if words[1].any() else np.zeros_like(q)
                h = h + dense(p["cross"]["out"], mixed.reshape(z.shape)).reshape(h.shape)
            return h

        h = convolved(params["inlet"], image)
        skips = [h]
        for i in range(blocks):
            skips.append(h := stage(params["down"]["0"][str(i)], h))
        h = stage(params["resize_down"]["0"], h, resize=halved) if resampling == "residual" else halved(h)
        skips.append(h)
        for i in range(blocks):
            skips.append(h := stage(params["down"]["1"][str(i)], h))
        for i in range(2):
            h = stage(params["middle"][str(i)], h)
        for i in range(blocks + 1):
            h = stage(params["up"]["0"][str(i)], np.concatenate([h, skips.pop()], axis=-1))
        p = params["resize_up"]["0"]
        h = stage(p, h, resize=doubled) if resampling == "residual" else convolved(p, doubled(h))
        for i in range(blocks + 1):
            h = stage(params["up"]["1"][str(i)], np.concatenate([h, skips.pop()], axis=-1))
        assert not skips
        every.append(dense(params["skip"], silu(time)) * image + convolved(params["outlet"], silu(groups(h))))
    return np.stack(every)


def split(a, heads):
    return a.reshape(len(a), heads, -1)


def convolved(p, x):
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    h, w, _ = x.shape
    return p["bias"] + sum(padded[i : i + h, j : j + w] @ p["kernel"][i, j] for i in range(3) for j in range(3))


def groups(x):
    """Normalised in groups of 4 channels or more, at most 32 groups."""
    number = min(32, x.shape[-1] // 4)
    z = x.reshape(*x.shape[:-1], number, -1)
    z = (z - z.mean((0, 1, 3), keepdims=True)) / np.sqrt(z.var((0, 1, 3), keepdims=True) + 1e-6)
    return z.reshape(x.shape)


def halved(x):
    return (x[::2, ::2] + x[1::2, ::2] + x[::2, 1::2] + x[1::2, 1::2]) / 4


def doubled(x):
    return x.repeat(2, axis=0).repeat(2, axis=1)


@pytest.fixture(scope="module")
def cases():
    """name -> (settings, network, noisy parameters, inputs, jitted velocity), computed once."""
    known = {}

    def case(name):
        if name not in known:
            fields, options = CASES[name]
            network = build("unet", fields, SHAPE, **{**SIZE, **options})
            params = noisy(network.init(jax.random.key(0)))
            full = full_condition()
            value = {field: full.value[field] for field in fields}
            if "text" in value:
                value["text"] = value["text"].at[1].set(0)
            present = {field: jnp.arange(BATCH) != 2 + (field == "text") for field in fields}
            inputs = jnp.linspace(0.1, 0.9, BATCH), draw(1, BATCH, *SHAPE), Condition(value, present)
            known[name] = {**SIZE, **options}, network, params, inputs, jax.jit(network.velocity)
        return known[name]

    return case


@pytest.mark.thorough
@pytest.mark.parametrize("name", CASES)
def test_the_velocity_is_that_of_the_definition(cases, name):
    settings, _, params, inputs, velocity = cases(name)
    u, want = velocity(params, *inputs), by_hand(params, *inputs, **settings)
    assert np.linalg.norm(u - want) / np.linalg.norm(want) < 1e-4


@pytest.mark.thorough
def test_every_parameter_has_a_gradient(cases):
    _, network, params, (t, x, c), _ = cases("cross")
    gradient = jax.jit(jax.grad(lambda p: jnp.sum(jnp.square(network.velocity(p, t, x, c) - x))))(params)
    for path, g in jax.tree_util.tree_flatten_with_path(gradient)[0]:
        assert np.isfinite(g).all(), path
        assert np.abs(g).max() > 0, path


@pytest.mark.parametrize("name", ["adm", "cross"])
def test_a_fresh_network_is_zero(cases, name):
    _, network, _, inputs, velocity = cases(name)
    np.testing.assert_array_equal(velocity(network.init(jax.random.key(1)), *inputs), 0.0)


def test_padded_words_have_no_influence(cases):
    _, _, params, inputs, velocity = cases("cross")
    moved = jax.tree.map(lambda a: a, params)
    table = moved["condition"]["fields"]["text"]["table"]
    moved["condition"]["fields"]["text"]["table"] = table.at[0].add(50.0)
    np.testing.assert_array_equal(velocity(params, *inputs), velocity(moved, *inputs))


def test_blocks_that_resample_are_no_blocks_to_perturb(cases):
    """The count is that of the U-Net without them: 2 and 2 down, 2 in the middle, 3 and 3 up."""
    _, network, _, _, _ = cases("adm")
    network.perturbed(Perturbation(skip=(11,)))
    with pytest.raises(ValueError, match=r"10, 11\]; got \(12,\)"):
        network.perturbed(Perturbation(skip=(12,)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head_channels": 3}, "head_channels must divide .* got 16 channels and head_channels=3: change width or"),
        ({"head_channels": -1}, "head_channels must be a whole number of at least 0; got -1"),
        ({"resampling": "strided"}, "resampling must be one of 'mean', 'residual'; got 'strided'"),
        ({"context": "joint"}, "context must be one of 'keys', 'cross'; got 'joint'"),
        ({"context": "cross", "fields": LABELS}, "context='cross' is how words .* neither: add such a field"),
    ],
    ids=str,
)
def test_settings_that_contradict_each_other_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build("unet", **{"fields": FIELDS, "shape": SHAPE, **SIZE, **options})
