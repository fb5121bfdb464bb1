"""The autoencoder of latent diffusion against NumPy, its file's keys against the rules of the layout, and its tiles."""

import itertools
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowguide import weights
from flowguide.autoencoder import (
    Sizes,
    blending,
    from_arrays,
    functions,
    load_vae,
    save_vae,
    shapes,
    tiled,
    to_arrays,
)
from flowguide.errors import UserError
from flowguide.networks import as_network
from flowguide.networks.autoencoder import AutoencoderKL, Posterior

SMALL = Sizes(channels=3, widths=(4, 8, 12), blocks=1, latent=3, groups=2)


# The keys and shapes of a file, by the rules of the layout.


def of_conv(name, c_in, c_out, size=3):
    return {f"{name}.weight": (c_out, c_in, size, size), f"{name}.bias": (c_out,)}


def of_norm(name, width):
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def of_resnet(name, c_in, c_out):
    found = of_norm(f"{name}.norm1", c_in) | of_conv(f"{name}.conv1", c_in, c_out)
    found |= of_norm(f"{name}.norm2", c_out) | of_conv(f"{name}.conv2", c_out, c_out)
    return found | (of_conv(f"{name}.conv_shortcut", c_in, c_out, 1) if c_in != c_out else {})


def of_middle(name, width):
    found = {}
    for i in (0, 1):
        found |= of_resnet(f"{name}.resnets.{i}", width, width)
    found |= of_norm(f"{name}.attentions.0.group_norm", width)
    for layer in ("to_q", "to_k", "to_v", "to_out.0"):
        key = f"{name}.attentions.0.{layer}"
        found |= {f"{key}.weight": (width, width), f"{key}.bias": (width,)}
    return found


def expected(sizes):
    channels, widths, blocks, latent, _ = sizes
    last = len(widths) - 1
    found = of_conv("encoder.conv_in", channels, widths[0])
    c = widths[0]
    for level, width in enumerate(widths):
        for i in range(blocks):
            found |= of_resnet(f"encoder.down_blocks.{level}.resnets.{i}", c, width)
            c = width
        if level < last:
            found |= of_conv(f"encoder.down_blocks.{level}.downsamplers.0.conv", c, c)
    found |= of_middle("encoder.mid_block", c) | of_norm("encoder.conv_norm_out", c)
    found |= of_conv("encoder.conv_out", c, 2 * latent) | of_conv("quant_conv", 2 * latent, 2 * latent, 1)
    found |= of_conv("post_quant_conv", latent, latent, 1) | of_conv("decoder.conv_in", latent, c)
    found |= of_middle("decoder.mid_block", c)
    for level, width in enumerate(reversed(widths)):
        for i in range(blocks + 1):
            found |= of_resnet(f"decoder.up_blocks.{level}.resnets.{i}", c, width)
            c = width
        if level < last:
            found |= of_conv(f"decoder.up_blocks.{level}.upsamplers.0.conv", c, c)
    return found | of_norm("decoder.conv_norm_out", c) | of_conv("decoder.conv_out", c, channels)


def test_keys_and_shapes_of_stable_diffusion():
    found = shapes(Sizes())
    assert found == expected(Sizes())
    assert len(found) == 248
    assert sum(int(np.prod(shape)) for shape in found.values()) == 83_653_863


@pytest.mark.thorough
def test_keys_and_shapes_of_small_ones():
    for sizes in (SMALL, Sizes(1, (6,), 2, 5, 3), Sizes(4, (8, 4), 3, 2, 4)):
        assert shapes(sizes) == expected(sizes)


# The network, written out in NumPy on the arrays of a file.


def silu(x):
    return x / (1 + np.exp(-x))


class Reference:
    """What the description says, in float64, channels first, from arrays in the layout of a file."""

    def __init__(self, arrays, groups):
        self.arrays = {key: a.astype(np.float64) for key, a in arrays.items()}
        self.groups = groups

    def conv(self, x, name, stride=1, pad=(1, 1)):
        w, b = self.arrays[f"{name}.weight"], self.arrays[f"{name}.bias"]
        size = w.shape[-1]
        x = np.pad(x, ((0, 0), (0, 0), pad, pad)) if size == 3 else x
        out = [(side - size) // stride + 1 for side in x.shape[2:]]
        y = np.zeros((len(x), len(w), *out))
        for i in range(size):
            for j in range(size):
                seen = x[:, :, i : i + stride * out[0] : stride, j : j + stride * out[1] : stride]
                y += np.einsum("bchw,oc->bohw", seen, w[:, :, i, j])
        return y + b[:, None, None]

    def norm(self, x, name):
        z = x.reshape(len(x), self.groups, -1)
        z = (z - z.mean(2, keepdims=True)) / np.sqrt(z.var(2, keepdims=True) + 1e-6)
        scale, shift = (self.arrays[f"{name}.{leaf}"][:, None, None] for leaf in ("weight", "bias"))
        return z.reshape(x.shape) * scale + shift

    def resnet(self, x, name):
        h = self.conv(silu(self.norm(x, f"{name}.norm1")), f"{name}.conv1")
        h = self.conv(silu(self.norm(h, f"{name}.norm2")), f"{name}.conv2")
        short = self.conv(x, f"{name}.conv_shortcut") if f"{name}.conv_shortcut.weight" in self.arrays else x
        return short + h

    def attention(self, x, name):
        b, c, h, w = x.shape
        tokens = self.norm(x, f"{name}.group_norm").reshape(b, c, h * w).swapaxes(1, 2)
        q, k, v = (
            tokens @ self.arrays[f"{name}.{layer}.weight"].T + self.arrays[f"{name}.{layer}.bias"]
            for layer in ("to_q", "to_k", "to_v")
        )
        scores = q @ k.swapaxes(1, 2) / np.sqrt(c)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = scores / scores.sum(-1, keepdims=True) @ v
        out = mixed @ self.arrays[f"{name}.to_out.0.weight"].T + self.arrays[f"{name}.to_out.0.bias"]
        return x + out.swapaxes(1, 2).reshape(x.shape)

    def middle(self, x, name):
        x = self.attention(self.resnet(x, f"{name}.resnets.0"), f"{name}.attentions.0")
        return self.resnet(x, f"{name}.resnets.1")

    def level(self, x, name):
        i = 0
        while f"{name}.resnets.{i}.conv1.weight" in self.arrays:
            x = self.resnet(x, f"{name}.resnets.{i}")
            i += 1
        if f"{name}.downsamplers.0.conv.weight" in self.arrays:
            x = self.conv(x, f"{name}.downsamplers.0.conv", stride=2, pad=(0, 1))
        if f"{name}.upsamplers.0.conv.weight" in self.arrays:
            x = self.conv(x.repeat(2, axis=2).repeat(2, axis=3), f"{name}.upsamplers.0.conv")
        return x

    def levels(self, name):
        i = 0
        while f"{name}.{i}.resnets.0.conv1.weight" in self.arrays:
            yield f"{name}.{i}"
            i += 1

    def encode(self, x):
        h = self.conv(x, "encoder.conv_in")
        for name in self.levels("encoder.down_blocks"):
            h = self.level(h, name)
        h = silu(self.norm(self.middle(h, "encoder.mid_block"), "encoder.conv_norm_out"))
        mean, log_variance = np.split(self.conv(self.conv(h, "encoder.conv_out"), "quant_conv"), 2, axis=1)
        return mean, np.clip(log_variance, -30, 20)

    def decode(self, z):
        h = self.middle(self.conv(self.conv(z, "post_quant_conv"), "decoder.conv_in"), "decoder.mid_block")
        for name in self.levels("decoder.up_blocks"):
            h = self.level(h, name)
        return self.conv(silu(self.norm(h, "decoder.conv_norm_out")), "decoder.conv_out")


def random_arrays(sizes, seed=0, scale=1.0):
    """Weights that are zero or neutral nowhere."""
    rng = np.random.default_rng(seed)
    found = {}
    for key, shape in expected(sizes).items():
        fan_in = int(np.prod(shape[1:])) or 1
        a = rng.normal(size=shape) * (scale / np.sqrt(fan_in) if len(shape) > 1 else 0.3)
        norm = len(shape) == 1 and key.endswith("weight")
        found[key] = (a + 1.0 * norm).astype(np.float32)
    return found


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("vae") / "vae.safetensors"
    weights.write(path, random_arrays(SMALL), {"groups": "2"})
    return path


@pytest.fixture(scope="module")
def vae(file):
    return load_vae(file)


def first(a):
    return a.transpose(0, 3, 1, 2)


def last(a):
    return a.transpose(0, 2, 3, 1)


def close(found, wanted, tolerance=1e-4):
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= tolerance * np.abs(wanted).max()


@pytest.mark.parametrize("sides", [(12, 20), (8, 4)])
def test_encoding_equals_numpy(vae, sides):
    x = np.random.default_rng(1).uniform(-1, 1, (2, *sides, 3)).astype(np.float32)
    mean, log_variance = Reference(random_arrays(SMALL), 2).encode(first(x))
    found = functions(vae.sizes).encode(vae.params, x)
    close(np.asarray(found.mean), last(mean))
    close(np.asarray(found.log_variance), last(log_variance))


@pytest.mark.parametrize("sides", [(3, 5), (1, 2)])
def test_decoding_equals_numpy(vae, sides):
    z = 2 * np.random.default_rng(2).normal(size=(2, *sides, 3)).astype(np.float32)
    close(
        np.asarray(functions(vae.sizes).decode(vae.params, z)),
        last(Reference(random_arrays(SMALL), 2).decode(first(z))),
    )


def test_log_variances_are_clipped():
    """At weights so large that both ends are reached."""
    sizes = Sizes(1, (4,), 1, 2, 2)
    arrays = random_arrays(sizes)
    arrays["quant_conv.weight"] = 100 * arrays["quant_conv.weight"]
    x = np.random.default_rng(1).uniform(-1, 1, (2, 3, 5, 1)).astype(np.float32)
    found = np.asarray(functions(sizes).encode(from_arrays(arrays), x).log_variance)
    assert found.min() == -30
    assert found.max() == 20
    close(found, last(Reference(arrays, 2).encode(first(x))[1]), 1e-3)


@pytest.mark.thorough
def test_pixels_in_and_out(vae):
    """Pixels are seen in [-1, 1], and rounded on the way out; batches and padding change nothing."""
    pixels = np.random.default_rng(3).integers(0, 256, (5, 4, 8, 3), dtype=np.uint8)
    found = vae.encode(pixels, batch=2)
    reference = Reference(random_arrays(SMALL), 2)
    mean, log_variance = reference.encode(first(pixels / 127.5 - 1))
    close(found.mean, last(mean))
    close(found.log_variance, last(log_variance))
    images = vae.decode(found.mean, batch=3)
    wanted = np.round((np.clip(last(reference.decode(mean)), -1, 1) + 1) * 127.5)
    assert images.dtype == np.uint8
    assert np.abs(images - wanted).max() <= 1
    assert np.mean(images == wanted) > 0.99


def test_a_draw_from_the_posterior():
    posterior = Posterior(jnp.array([1.0, -2.0]), jnp.log(jnp.array([4.0, 0.25])))
    np.testing.assert_allclose(posterior.draw(jnp.array([0.5, 2.0])), [2.0, -1.0], rtol=1e-6)


@pytest.mark.thorough
def test_what_is_drawn_in_training_depends_on_the_key_alone():
    sizes = Sizes(1, (4, 6), 1, 3, 2)
    settings = {name: value for name, value in sizes._asdict().items() if name != "channels"}
    network = as_network(lambda rngs: AutoencoderKL((4, 8, 1), {}, **settings, rngs=rngs))
    keys = jax.random.split(jax.random.key(0), 3)
    x = np.random.default_rng(1).uniform(-1, 1, (3, 4, 8, 1)).astype(np.float32)
    found = jax.jit(network.velocity)(from_arrays(random_arrays(sizes)), keys, x, None)
    noise = np.stack([jax.random.normal(key, (2, 4, 3)) for key in keys])
    z = np.asarray(found.posterior.mean) + np.exp(np.asarray(found.posterior.log_variance) / 2) * noise
    close(np.asarray(found.x), last(Reference(random_arrays(sizes), 2).decode(first(z))))


# The file.


def test_what_is_saved_is_loaded(vae, tmp_path):
    save_vae(vae, tmp_path / "again.safetensors")
    again = load_vae(tmp_path / "again.safetensors")
    assert again.sizes == vae.sizes == SMALL
    assert again.identity == vae.identity
    for key, a in random_arrays(SMALL).items():
        np.testing.assert_array_equal(to_arrays(again.params)[key], a)
    other = again._replace(params=jax.tree.map(lambda a: a + 1, again.params))
    assert other.identity != vae.identity


@pytest.mark.parametrize("as_convolutions", [False, True])
def test_old_names_of_the_attention(vae, tmp_path, as_convolutions):
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    arrays = random_arrays(SMALL)
    for key in list(arrays):
        for new, name in old.items():
            if f".{new}." in key:
                a = arrays.pop(key)
                a = a[..., None, None] if as_convolutions and a.ndim == 2 else a
                arrays[key.replace(f".{new}.", f".{name}.")] = a
    assert sum("proj_attn" in key for key in arrays) == 4
    weights.write(tmp_path / "old", arrays, {"groups": "2"})
    assert load_vae(tmp_path / "old").identity == vae.identity


def test_half_precision_is_widened(tmp_path):
    weights.write(tmp_path / "half", {k: a.astype(np.float16) for k, a in random_arrays(SMALL).items()})
    found = load_vae(tmp_path / "half", groups=2)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(found.params))


def without(key):
    return lambda arrays: arrays.pop(key)


def with_nan(arrays):
    arrays["quant_conv.bias"][1] = np.nan


@pytest.mark.parametrize(
    ("change", "groups", "words"),
    [
        (without("decoder.up_blocks.1.resnets.1.conv2.bias"), 2, r"1 missing: decoder\.up_blocks\.1\.resnets\.1"),
        (without("encoder.down_blocks.0.resnets.0.conv1.weight"), 2, "no autoencoder with diffusers' keys"),
        (lambda arrays: arrays.clear() or arrays.update(x=np.zeros(3)), 2, "no autoencoder with diffusers' keys"),
        (lambda arrays: arrays.update(more=np.zeros(3)), 2, "1 surplus: more"),
        (with_nan, 2, "quant_conv.bias is not finite"),
        (lambda arrays: None, 3, "groups must divide the widths .* got groups=3"),
        (lambda arrays: None, None, "groups must divide the widths .* got groups=32"),
    ],
)
def test_another_file_is_refused(tmp_path, change, groups, words):
    arrays = random_arrays(SMALL)
    change(arrays)
    weights.write(tmp_path / "file", arrays)
    with pytest.raises(UserError, match=words):
        load_vae(tmp_path / "file", groups)


@pytest.mark.parametrize("stated", ["9" * 5000, "two", "-2", ""])
def test_a_number_of_groups_that_is_none_is_refused(tmp_path, stated):
    weights.write(tmp_path / "file", random_arrays(SMALL), {"groups": stated})
    with pytest.raises(UserError, match=r"states groups='.*, expected a number: load_vae\(path, groups"):
        load_vae(tmp_path / "file")
    assert load_vae(tmp_path / "file", groups=2).sizes == SMALL


def test_other_shapes_are_refused(vae):
    with pytest.raises(UserError, match=r"sides divisible by 4; got \(6, 8, 3\)"):
        vae.encode(np.zeros((1, 6, 8, 3), np.uint8))
    with pytest.raises(UserError, match=r"images \(H, W, 3\)"):
        vae.encode(np.zeros((1, 4, 8, 1), np.uint8))
    with pytest.raises(UserError, match=r"latents \(N, h, w, 3\); got \(1, 2, 2, 4\)"):
        vae.decode(np.zeros((1, 2, 2, 4), np.float32))
    for tile in (-4, 1, 3):
        with pytest.raises(UserError, match="4 latents or more"):
            vae.decode(np.zeros((1, 8, 8, 3), np.float32), tile=tile)


# Tiles.

SHAPES = [(9, 4, 1, 1), (9, 4, 3, 2), (16, 8, 4, 3), (5, 5, 2, 2), (3, 3, 1, 4), (31, 8, 2, 8)]


@pytest.mark.parametrize(("size", "tile", "overlap", "factor"), SHAPES)
def test_the_weights_of_tiles_add_up_to_1(size, tile, overlap, factor):
    starts, weights = blending(size, tile, overlap, factor)
    total, reached = np.zeros(size * factor), np.zeros(size * factor, int)
    for start, own in zip(starts * factor, weights, strict=True):
        total[start : start + tile * factor] += own
        reached[start : start + tile * factor] += 1
    np.testing.assert_allclose(total, 1, rtol=1e-6)
    assert weights.min() >= 0
    assert all(b - a <= tile - overlap for a, b in itertools.pairwise(starts))
    for start, own in zip(starts, weights, strict=True):  # nothing is believed next to a cut
        quarter = overlap * factor // 4
        assert start == 0 or not own[:quarter].any()
        assert start == size - tile or not own[len(own) - quarter :].any()
        assert own[len(own) // 2] > 0


def local(z, factor=2):
    """A decoder that looks one latent far, and no further: sees zeros beyond its borders."""
    around = np.pad(z, ((0, 0), (1, 1), (1, 1), (0, 0)))
    h, w = z.shape[1:3]
    weights = np.random.default_rng(0).normal(size=(3, 3))
    mixed = np.zeros(z.shape)
    for i in range(3):
        for j in range(3):
            mixed += weights[i, j] * around[:, i : i + h, j : j + w]
    return (mixed**2).repeat(factor, axis=1).repeat(factor, axis=2)


@pytest.mark.parametrize(("sides", "tile", "overlap"), [((13, 7), 6, 4), ((6, 21), 8, 4), ((20, 20), 12, 8)])
def test_a_local_decoder_in_tiles_is_exact(sides, tile, overlap):
    z = np.random.default_rng(1).normal(size=(2, *sides, 3)).astype(np.float32)
    np.testing.assert_allclose(tiled(local, z, 2, tile, overlap), local(z), rtol=1e-4, atol=1e-4)


def test_tiles_of_the_network(vae):
    """Attention and normalisation see the tile, so images differ a little; a single tile is the whole."""
    z = np.random.default_rng(1).normal(size=(1, 5, 9, 3)).astype(np.float32)
    whole = vae.decode(z)
    np.testing.assert_array_equal(vae.decode(z, tile=9), whole)
    found = vae.decode(z, tile=4)
    assert found.shape == whole.shape
    assert not np.array_equal(found, whole)


@pytest.mark.slow
@pytest.mark.parametrize("tile", [0, 4])
def test_images_of_many_latents_take_little_more_room_than_their_pixels(vae, tile):
    """As floats alone they would take four times that. The last batch, which is not full, has the same images."""
    z = np.random.default_rng(1).normal(size=(601, 6, 5, 3)).astype(np.float32)
    few = vae.decode(z[576:], tile=tile, batch=16)  # compiles
    tracemalloc.start()
    try:
        images = vae.decode(z, tile=tile, batch=16)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert images.shape == (601, 24, 20, 3)
    assert peak < 3 * images.nbytes
    np.testing.assert_array_equal(images[576:], few)
    assert vae.decode(z[:0], tile=tile).shape == (0, 24, 20, 3)
