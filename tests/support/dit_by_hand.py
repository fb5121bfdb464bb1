"""The forward pass of the diffusion transformer in NumPy and float64, one example at a time.

It is written from the papers and from tables of the released networks' parameters, and shares no code with
``flowguide.networks``. Rotations are products of complex numbers; positions and patches are loops over places.
"""

import itertools
import math

import jax
import numpy as np


def forward(params, t, x, c, *, patch, heads, weaken=(None,), **settings):
    """Returns u(t, x, c), float64 of the shape of x.

    Args:
      params: parameters of the network.
      t: times (B,).
      x: examples (B, *sides, C).
      c: condition over the fields of ``tiny_networks.FIELDS``, or some of them.
      patch: side of a patch.
      heads: number of heads.
      weaken: ("identity",), ("blurred", sigma) or (None,).
      settings: other settings of the network that differ from their defaults.
    """
    params = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    t, x = np.asarray(t, np.float64), np.asarray(x, np.float64)
    every = []
    for b in range(len(x)):
        value, present = ({k: np.asarray(v[b]) for k, v in tree.items()} for tree in c)
        every.append(_example(params, t[b], x[b], value, present, patch, heads, weaken, settings))
    return np.stack(every)


def _example(params, t, x, value, present, patch, heads, weaken, settings):
    vector, words = embedded(params["condition"]["fields"], value, present, settings.get("field_tokens", False))
    features, scale = settings.get("time_features", 128), settings.get("time_scale", 1000.0)
    angles = [scale * t * math.exp(-math.log(1e4) * k / (features // 2)) for k in range(features // 2)]
    time = np.array([*map(math.cos, angles), *map(math.sin, angles)])
    signal = silu(dense(params["time"]["out"], silu(dense(params["time"]["hidden"], time))) + vector)

    places = list(np.ndindex(*(side // patch for side in x.shape[:-1])))
    tokens = []
    for place in places:
        corner = [range(patch * i, patch * i + patch) for i in place]
        token = np.concatenate([x[at] for at in itertools.product(*corner)])
        if settings.get("bottleneck"):
            token = dense(params["bottleneck"], token)
        token = dense(params["inlet"], token)
        tokens.append(token + position(settings.get("positions", "sincos"), place, len(token)))
    h = np.array(tokens)
    if settings.get("registers"):
        h = np.concatenate([params["registers"], h])
    shared = dense(params["shared_film"], signal) if settings.get("shared_film") else None
    text = words[0] if settings.get("context") == "joint" else None
    for i in range(len(jax.tree.leaves(params["blocks"])[0])):
        if settings.get("class_tokens") and i == settings.get("class_tokens_from", 0):
            h = np.concatenate([vector + params["class_tokens"], h])
        block = jax.tree.map(lambda a, i=i: a[i], params["blocks"])
        h, text = _block(block, h, text, signal, shared, words, places, heads, weaken, settings)
    h = h[-len(places) :]
    film = dense(params["film"], signal).reshape(2, -1)
    h = dense(params["outlet"], normal(h, params.get("norm")) * (1 + film[0]) + film[1])
    u = np.empty_like(x)
    for token, place in zip(h, places, strict=True):
        corner = [range(patch * i, patch * i + patch) for i in place]
        values = token.reshape(-1, x.shape[-1])
        for at, channels in zip(itertools.product(*corner), values, strict=True):
            u[at] = channels
    return u


def _block(block, h, text, signal, shared, words, places, heads, weaken, settings):
    image = block["image"] if text is not None else block
    streams = [(image, h)] if text is None else [(image, h), (block["text"], text)]
    films, projected = [], []
    for number, (p, tokens) in enumerate(streams):
        film = shared.reshape(6, -1) + p["film"] if shared is not None else dense(p["film"], signal).reshape(6, -1)
        z = normal(tokens, p.get("norm")) * (1 + film[0]) + film[1]
        q, k, v = (a.reshape(len(z), heads, -1) for a in np.split(dense(p["attention"]["qkv"], z), 3, axis=-1))
        if settings.get("qk_norm"):
            q, k = normal(q, p["attention"]["q_norm"]), normal(k, p["attention"]["k_norm"])
        others = len(tokens) - len(places)
        if number == 0 and weaken[0] == "blurred":
            weights = [[math.exp(-(math.dist(a, b) ** 2) / (2 * weaken[1] ** 2)) for b in places] for a in places]
            weights = np.array(weights) / np.sum(weights, axis=1, keepdims=True)
            q = np.concatenate([q[:others], np.einsum("ts,shd->thd", weights, q[others:])])
        if number == 0 and settings.get("rope"):
            q, k = (np.array([*a[:others], *map(turned, a[others:], places)]) for a in (q, k))
        films.append(film)
        projected.append((q, k, v))
    n = len(h)
    q, k, v = (np.concatenate(a) for a in zip(*projected, strict=True))
    shown = np.ones(n, bool)
    if text is not None:
        shown = np.concatenate([shown, words[1]])
    elif "context_kv" in image["attention"]:
        more, values = np.split(dense(image["attention"]["context_kv"], normal(words[0])), 2, axis=-1)
        more, values = more.reshape(-1, *k.shape[1:]), values.reshape(-1, *k.shape[1:])
        if settings.get("qk_norm"):
            more = normal(more, image["attention"]["k_norm"])
        k, v, shown = np.concatenate([k, more]), np.concatenate([v, values]), np.concatenate([shown, words[1]])
    mixed = softmax_attention(q, k, v, shown)
    if weaken[0] == "identity":
        mixed[n - len(places) : n] = v[n - len(places) : n]
    after = []
    for (p, tokens), film, rows in zip(streams, films, (slice(0, n), slice(n, None)), strict=False):
        tokens = tokens + film[2] * dense(p["attention"]["out"], mixed[rows].reshape(len(tokens), -1))
        if settings.get("context") == "cross":
            tokens = tokens + _cross(p["cross"], tokens, words, heads, settings)
        z = dense(p["hidden"], normal(tokens, p.get("norm_2")) * (1 + film[3]) + film[4])
        if settings.get("mlp") == "swiglu":
            half = z.shape[-1] // 2
            z = silu(z[:, :half]) * z[:, half:]
        else:
            z = 0.5 * z * (1 + np.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))
        after.append(tokens + film[5] * dense(p["out"], z))
    return after[0], after[1] if len(after) > 1 else None


def _cross(p, tokens, words, heads, settings):
    q = dense(p["q"], tokens).reshape(len(tokens), heads, -1)
    k, v = (a.reshape(len(a), heads, -1) for a in np.split(dense(p["kv"], normal(words[0])), 2, axis=-1))
    if settings.get("qk_norm"):
        q, k = normal(q, p["q_norm"]), normal(k, p["k_norm"])
    mixed = softmax_attention(q, k, v, words[1]) if words[1].any() else np.zeros_like(q)
    return dense(p["out"], mixed.reshape(len(tokens), -1))


def embedded(fields, value, present, tokens=False):
    """Returns the vector, and the words with their mask, of which there may be none; other fields may be words."""
    vector, words, shown = np.zeros_like(next(iter(fields.values()))["null"]), [], []
    for name, p in fields.items():
        if name == "text":
            ids = value[name]
            rows = p["table"][ids] + p["position"] if present[name] else np.tile(p["null"], (len(ids), 1))
            seen = ids != 0 if present[name] else np.arange(len(ids)) == 0
            vector = vector + dense(p["pool"], rows[seen].mean(0) if seen.any() else np.zeros_like(rows[0]))
            words, shown = [*words, *rows], [*shown, *seen]
            continue
        if not present[name]:
            one = p["null"]
        else:
            one = p["table"][value[name]] if name == "kind" else dense(p["out"], silu(dense(p["hidden"], value[name])))
        vector = vector + one
        if tokens:
            words, shown = [*words, one], [*shown, True]
    return vector, (np.reshape(words, (len(words), len(vector))), np.array(shown, bool))


def dense(p, x):
    return x @ p["kernel"] + p.get("bias", 0.0)


def silu(x):
    return x / (1 + np.exp(-x))


def normal(x, rms=None):
    """Layer normalisation without weights, or with them root-mean-square normalisation."""
    if rms is None:
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * rms["scale"]


def position(kind, place, size):
    """Sinusoids of the place: "sincos" by function, then axis; "dit" by axis, the last first, then function."""
    count = size // (2 * len(place))
    if kind == "none":
        return np.zeros(size)
    if kind == "sincos":
        order = [(f, i) for f in (math.sin, math.cos) for i in place]
    else:
        order = [(f, i) for i in reversed(place) for f in (math.sin, math.cos)]
    return np.array([f(i / 1e4 ** (k / count)) for f, i in order for k in range(count)])


def turned(head, place):
    """A token's heads (heads, H), each pair a complex number that turns by its place along the axis of its part."""
    pairs = head[:, ::2] + 1j * head[:, 1::2]
    count = pairs.shape[1] // len(place)
    angle = np.array([i * 1e4 ** (-2 * k / (2 * count)) for i in place for k in range(count)])
    pairs = pairs * np.exp(1j * angle)
    return np.stack([pairs.real, pairs.imag], axis=-1).reshape(head.shape)


def softmax_attention(q, k, v, shown):
    """(T, heads, H), (S, heads, H), (S, heads, H), bool (S,) -> (T, heads, H), over the keys that are shown."""
    mixed = np.empty_like(q)
    for head in range(q.shape[1]):
        logits = q[:, head] @ k[shown, head].T / math.sqrt(q.shape[-1])
        weights = np.exp(logits - logits.max(1, keepdims=True))
        mixed[:, head] = weights / weights.sum(1, keepdims=True) @ v[shown, head]
    return mixed
