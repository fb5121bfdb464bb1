"""Forward passes of released networks in NumPy, from state dicts in PyTorch's layout: the reference of ``convert``.

They are written block by block, in float64, on images (B, H, W, C). A layer ``name`` has ``name.weight``, (out, in),
and ``name.bias``. Labels are rows of the table; the last row is ∅.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from flowguide.convert import FAMILIES, Sizes, Unstated
from flowguide.convert.parts import shapes


def sit(w, t, x, y, heads):
    """DiT, SiT and REPA (Peebles & Xie 2023, Ma et al. 2024, Yu et al. 2024): all output channels, (B, H, W, C')."""
    patch = w["x_embedder.proj.weight"].shape[-1]
    c = time_embedding(w, t) + w["y_embedder.embedding_table.weight"][y]
    h = patches(x, w["x_embedder.proj.weight"]) + w["x_embedder.proj.bias"] + w["pos_embed"]
    for i in range(depth(w)):
        b = f"blocks.{i}"
        shift, scale, gate, shift_2, scale_2, gate_2 = modulation(w, f"{b}.adaLN_modulation.1", c, 6)
        h = h + gate * attention(w, f"{b}.attn", layer_norm(h) * (1 + scale) + shift, heads)
        z = layer_norm(h) * (1 + scale_2) + shift_2
        h = h + gate_2 * dense(w, f"{b}.mlp.fc2", gelu(dense(w, f"{b}.mlp.fc1", z)))
    shift, scale = modulation(w, "final_layer.adaLN_modulation.1", c, 2)
    return images(dense(w, "final_layer.linear", layer_norm(h) * (1 + scale) + shift), patch, x.shape)


def lightningdit(w, t, x, y, heads):
    """LightningDiT (Yao et al. 2025): RMSNorm with weights, SwiGLU, rotary positions from the buffers."""
    patch = w["x_embedder.proj.weight"].shape[-1]
    c = time_embedding(w, t) + w["y_embedder.embedding_table.weight"][y]
    h = patches(x, w["x_embedder.proj.weight"]) + w["x_embedder.proj.bias"] + w["pos_embed"]
    rope = w["feat_rope.freqs_cos"], w["feat_rope.freqs_sin"]
    for i in range(depth(w)):
        h = modern_block(w, f"blocks.{i}", h, c, heads, rope)
    return modern_end(w, h, c, patch, x.shape)


def jit(w, t, x, y, heads, start):
    """JiT (Li & He 2025): the prediction of the image. Tokens of the class are in front from block ``start`` on."""
    patch = w["x_embedder.proj1.weight"].shape[-1]
    label = w["y_embedder.embedding_table.weight"][y]
    c = time_embedding(w, t) + label
    h = patches(x, w["x_embedder.proj1.weight"])
    h = h @ w["x_embedder.proj2.weight"][:, :, 0, 0].T + w["x_embedder.proj2.bias"] + w["pos_embed"]
    rope = rotations(x.shape[1] // patch, x.shape[2] // patch, w["pos_embed"].shape[-1] // heads)
    tokens = w["in_context_posemb"].shape[1]
    for i in range(depth(w)):
        if i == start:
            h = np.concatenate([label[:, None] + w["in_context_posemb"], h], axis=1)
            cos, sin = rope
            still = np.ones((tokens, cos.shape[1]))  # they do not turn
            rope = np.concatenate([still, cos]), np.concatenate([0 * still, sin])
        h = modern_block(w, f"blocks.{i}", h, c, heads, rope)
    return modern_end(w, h[:, tokens:], c, patch, x.shape)


def modern_block(w, b, h, c, heads, rope):
    shift, scale, gate, shift_2, scale_2, gate_2 = modulation(w, f"{b}.adaLN_modulation.1", c, 6)
    z = rms_norm(h, w[f"{b}.norm1.weight"]) * (1 + scale) + shift
    h = h + gate * attention(w, f"{b}.attn", z, heads, rope)
    z = rms_norm(h, w[f"{b}.norm2.weight"]) * (1 + scale_2) + shift_2
    first, second = np.split(dense(w, f"{b}.mlp.w12", z), 2, axis=-1)
    return h + gate_2 * dense(w, f"{b}.mlp.w3", silu(first) * second)


def modern_end(w, h, c, patch, shape):
    shift, scale = modulation(w, "final_layer.adaLN_modulation.1", c, 2)
    z = rms_norm(h, w["final_layer.norm_final.weight"]) * (1 + scale) + shift
    return images(dense(w, "final_layer.linear", z), patch, shape)


def attention(w, name, z, heads, rope=None):
    """Softmax attention; q and k are normalised if there are weights for it, then rotated."""
    n, length, width = z.shape
    qkv = dense(w, f"{name}.qkv", z).reshape(n, length, 3, heads, width // heads)
    q, k, v = (np.moveaxis(qkv[:, :, i], 2, 1) for i in range(3))
    if f"{name}.q_norm.weight" in w:
        q, k = rms_norm(q, w[f"{name}.q_norm.weight"]), rms_norm(k, w[f"{name}.k_norm.weight"])
    if rope is not None:
        q, k = rotated(q, *rope), rotated(k, *rope)
    logits = q @ np.swapaxes(k, -1, -2) / np.sqrt(width // heads)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    mixed = (weights / weights.sum(-1, keepdims=True)) @ v
    return dense(w, f"{name}.proj", np.moveaxis(mixed, 1, 2).reshape(n, length, width))


def rotations(rows, columns, size):
    """cos and sin (T, size): the first half of the dims turns with the row, the second with the column, in pairs."""
    frequency = 10_000.0 ** (-np.arange(0, size // 2, 2) / (size // 2))
    angles = [
        np.repeat(np.concatenate([row * frequency, column * frequency]), 2)
        for row in range(rows)
        for column in range(columns)
    ]
    return np.cos(angles), np.sin(angles)


def rotated(a, cos, sin):
    turned = np.empty_like(a)
    turned[..., 0::2], turned[..., 1::2] = -a[..., 1::2], a[..., 0::2]
    return a * cos + turned * sin


def positions(rows, columns, width):
    """The fixed table (1, T, width) of DiT: [sin column, cos column, sin row, cos row]."""
    frequency = 10_000.0 ** (-np.arange(width // 4) / (width // 4))
    table = [
        np.concatenate([np.sin(j * frequency), np.cos(j * frequency), np.sin(i * frequency), np.cos(i * frequency)])
        for i in range(rows)
        for j in range(columns)
    ]
    return np.stack(table)[None]


def time_embedding(w, t):
    angle = np.reshape(t, (-1, 1)) * np.exp(-np.log(1e4) * np.arange(128) / 128)
    features = np.concatenate([np.cos(angle), np.sin(angle)], axis=1)
    return dense(w, "t_embedder.mlp.2", silu(dense(w, "t_embedder.mlp.0", features)))


def modulation(w, name, c, parts):
    return [part[:, None] for part in np.split(dense(w, name, silu(c)), parts, axis=-1)]


def patches(x, kernel):
    """A convolution (D, C, p, p) with stride p and without padding: (B, T, D), tokens row by row."""
    p = kernel.shape[-1]
    cut = [
        np.einsum("bijc,dcij->bd", x[:, i : i + p, j : j + p], kernel)
        for i in range(0, x.shape[1], p)
        for j in range(0, x.shape[2], p)
    ]
    return np.stack(cut, axis=1)


def images(tokens, p, shape):
    """Puts tokens (B, T, p·p·C') back: (B, H, W, C'); a token is (row, column, channel)."""
    n, rows, columns = shape[:3]
    out = np.empty((n, rows, columns, tokens.shape[-1] // p**2))
    for k in range(tokens.shape[1]):
        i, j = divmod(k, columns // p)
        out[:, i * p : (i + 1) * p, j * p : (j + 1) * p] = tokens[:, k].reshape(n, p, p, -1)
    return out


def dense(w, name, x):
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def silu(x):
    return x / (1 + np.exp(-x))


def gelu(x):
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def layer_norm(x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)


def rms_norm(x, weight):
    return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + 1e-6) * weight


def depth(w):
    return 1 + max(int(name.split(".")[1]) for name in w if name.startswith("blocks."))


class Case(NamedTuple):
    """A small network of a family.

    Attributes:
      sizes: of the network; ``Unstated`` are those that its shapes do not tell.
      unstated: these.
      velocity: (state, t (B,), x, y) -> the velocity from noise to data, t from noise to data: the reference.
    """

    sizes: Sizes
    unstated: Unstated
    velocity: Callable[..., np.ndarray]


def _sit(w, t, x, y):
    return sit(w, t, x, y, 4)[..., : x.shape[-1]]


def _repa(w, t, x, y):
    return -sit(w, 1 - t, x, y, 4)


def _dit(w, t, x, y):
    """u = (x_t − ε)/t with the noise of the chain's step at t, and x_t times α + σ there."""
    level = np.arctanh(np.clip(2 * t - 1, -1, 1)) * 4  # log(α²/σ²) on the linear path
    signal = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    k = np.interp(-np.log1p(np.exp(-level)), np.log(signal[::-1]), np.arange(999, -1, -1.0))
    alpha, sigma = np.sqrt(1 / (1 + np.exp(-level))), np.sqrt(1 / (1 + np.exp(level)))
    noise = sit(w, k, x * (alpha + sigma).reshape(-1, 1, 1, 1), y, 4)[..., : x.shape[-1]]
    return (x - noise) / t.reshape(-1, 1, 1, 1)


def _lightningdit(w, t, x, y):
    return lightningdit(w, t, x, y, 4)


def _jit(w, t, x, y):
    return (jit(w, t, x, y, 2, 1) - x) / np.maximum(1 - t, 0.05).reshape(-1, 1, 1, 1)


# Odd grids, heads and channels; patches of several sizes.
CASES = {
    "sit": Case(Sizes(48, 3, 4, 2, 3, 4, 8, 10), Unstated(heads=4), _sit),
    "dit": Case(Sizes(48, 3, 4, 2, 3, 4, 8, 10), Unstated(heads=4), _dit),
    "repa": Case(Sizes(48, 3, 4, 2, 3, 4, 4, 10), Unstated(heads=4), _repa),
    "lightningdit": Case(Sizes(48, 3, 4, 1, 5, 6, 6, 10), Unstated(), _lightningdit),
    "jit": Case(Sizes(48, 3, 2, 3, 3, 3, 3, 10, 20, 5, 1), Unstated(start=1), _jit),
}


def random_state(name: str, sizes: Sizes | None = None, seed: int = 0) -> dict[str, np.ndarray]:
    """A state dict of a family, float32: random numbers in every tensor that is not fixed, of a size that x keeps."""
    family, sizes = FAMILIES[name], sizes or CASES[name].sizes
    rng, state = np.random.default_rng(seed), {}
    for key, shape in shapes(family.parts(sizes), sizes.depth).items():
        spread = 0.5 if len(shape) < 2 else np.prod(shape[1:]) ** -0.5
        state[key] = rng.normal(size=shape) * spread + ("norm" in key)
    state["pos_embed"] = positions(sizes.side, sizes.side, sizes.width)
    if name == "lightningdit":
        turns = rotations(sizes.side, sizes.side, sizes.width // sizes.heads)
        state |= dict(zip(("feat_rope.freqs_cos", "feat_rope.freqs_sin"), turns, strict=True))
    return {key: a.astype(np.float32) for key, a in state.items()}


def doubled(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same in float64, for the reference."""
    return {key: a.astype(np.float64) for key, a in state.items()}
