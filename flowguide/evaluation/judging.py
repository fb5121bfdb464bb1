"""A run's own judge: a small classifier of the class labels in its training data, kept beside the run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from flowguide.data import Dataset
from flowguide.evaluation import kept
from flowguide.hashes import json_hash
from flowguide.metrics.judge import Judge, Params, as_labels, linear, read, train_judge
from flowguide.schema import Examples, Images, info_to_json
from flowguide.schema.fields import Label
from flowguide.typing import Array

FILE = "judge.npz"
EXAMPLES, STEPS = 20_000, 1500  # a judge learns from at most so many examples, in so many steps
# A coarse code and strong noise: guided colours are more saturated than any real one, and must still be read.
OF_IMAGES = {"levels": 2, "noise": 30}
WIDTH, BATCH, RATE = 128, 64, 3e-3  # of the judge of vectors: hidden units, examples a step, peak learning rate


def classes_in(data: Dataset) -> dict[str, int]:
    """Returns the number of classes of each field that is a class label."""
    return {name: len(field.values) for name, field in data.info.fields.items() if isinstance(field, Label)}


def identity(data: Dataset) -> dict[str, Any]:
    """Returns what tells this data set from others; JSON-serializable."""
    info = json_hash(info_to_json(data.info))
    return {"name": data.info.name, "version": data.version, "split": data.split, "size": data.size, "info": info}


def origin(data: Dataset) -> dict[str, Any]:
    """Returns what the judge of these data is computed from; JSON-serializable."""
    return {"training data": identity(data), "examples": EXAMPLES, "steps": STEPS, **OF_IMAGES}


def train(data: Dataset) -> Judge:
    """Trains a judge on the class labels of images, or of vectors flattened and standardised; about ten seconds."""
    rows = np.sort(np.random.default_rng(0).permutation(data.size)[:EXAMPLES])
    batch, classes = data.read(rows), classes_in(data)
    labels = {name: np.asarray(batch.value[name]) for name in classes}
    if isinstance(data.info.examples, Images):
        return train_judge(batch.x, labels, classes, steps=STEPS, **OF_IMAGES)
    params = _train_perceptron(flat(data.info.examples, batch.x), *as_labels(labels, classes, len(rows)))
    return Judge(params, data.info.shape, classes)


def judgement(judge: Judge, examples: Examples, x: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Returns what a judge says about examples: its last hidden layer ``(N, 128)``, and probabilities by field.

    Args:
      judge: of ``train``.
      examples: their kind.
      x: as ``sample`` returns them, ``(N, *shape)``.
    """
    if isinstance(examples, Images):
        logits, hidden = read(judge, x)
    else:
        logits, hidden = jax.device_get(jax.jit(_perceptron)(judge.params, flat(examples, x)))
    parts = np.split(logits, np.cumsum(list(judge.classes.values()))[:-1], axis=1)
    return hidden, {name: np.asarray(jax.nn.softmax(p)) for name, p in zip(judge.classes, parts, strict=True)}


def flat(examples: Examples, x: Any) -> np.ndarray:
    """Returns examples as the network sees them, as vectors ``(N, d)``."""
    return np.asarray(examples.to_model(x)).reshape(len(x), -1)


def write(folder: Path, judge: Judge, made_from: Mapping[str, Any]) -> None:
    """Keeps a judge in a folder, with what it was made from."""
    arrays = {f"{layer}/{i}": np.asarray(a) for layer, pair in judge.params.items() for i, a in enumerate(pair)}
    kept.write(folder / FILE, made_from, arrays)


def find(folder: Path, data: Dataset) -> tuple[Judge | None, str]:
    """Returns the judge of these data that a folder keeps; or None and why, which is empty if it keeps none."""
    arrays, reason = kept.read(folder / FILE, origin(data))
    if arrays is None:
        return None, reason
    layers = dict.fromkeys(name.partition("/")[0] for name in arrays)
    params = {layer: (jnp.asarray(arrays[f"{layer}/0"]), jnp.asarray(arrays[f"{layer}/1"])) for layer in layers}
    return Judge(params, data.info.shape, classes_in(data)), ""


def _train_perceptron(x: np.ndarray, labels: Mapping[str, np.ndarray], classes: Mapping[str, int]) -> Params:
    """Trains two hidden layers with a head for each field; AdamW, one-cycle learning rate, as ``train_judge``."""
    rng = np.random.default_rng(0)
    sizes = {"first": (x.shape[1], WIDTH), "hidden": (WIDTH, WIDTH), "heads": (WIDTH, sum(classes.values()))}
    params = {
        layer: (jnp.asarray(rng.normal(size=size) * np.sqrt(2 / size[0]), jnp.float32), jnp.zeros(size[1]))
        for layer, size in sizes.items()
    }
    rows = jnp.asarray(rng.integers(0, len(x), (STEPS, BATCH)))
    optimizer = optax.adamw(optax.cosine_onecycle_schedule(STEPS, RATE), weight_decay=0.05)
    bounds, targets = np.cumsum(list(classes.values()))[:-1], [jnp.asarray(labels[name]) for name in classes]

    def loss(params: Params, x: Array, targets: list[Array]) -> Array:
        heads = jnp.split(_perceptron(params, x)[0], bounds, axis=1)
        cross_entropy = optax.softmax_cross_entropy_with_integer_labels
        return jnp.stack([cross_entropy(head, y).mean() for head, y in zip(heads, targets, strict=True)]).sum()

    @jax.jit
    def train(params: Params, x: Array, targets: list[Array], rows: Array) -> Params:
        def step(carry: tuple[Params, optax.OptState], rows: Array) -> tuple[Any, None]:
            params, state = carry
            gradient = jax.grad(loss)(params, x[rows], [y[rows] for y in targets])
            updates, state = optimizer.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, optimizer.init(params)), rows)[0][0]

    return train(params, jnp.asarray(x), targets, rows)


def _perceptron(params: Params, x: Array) -> tuple[Array, Array]:
    hidden = jax.nn.relu(linear(jax.nn.relu(linear(x, *params["first"])), *params["hidden"]))
    return linear(hidden, *params["heads"]), hidden
