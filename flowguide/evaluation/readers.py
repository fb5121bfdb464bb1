"""What is read from real examples and samples: features for distances, class probabilities, predictions."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np

from flowguide import storage
from flowguide.errors import UserError, hint
from flowguide.evaluation.judging import flat, judgement
from flowguide.metrics.judge import Judge
from flowguide.schema import Examples, Images

# images uint8 (n, H, W, C), or other examples -> features (n, F), or a pair of these and class probabilities (n, K)
Features: TypeAlias = Callable[[np.ndarray], Any]


class FeatureNetwork(NamedTuple):
    """A feature network.

    Attributes:
      name: what tables and files call it.
      read: the network.
      origin: what tells it from others of that name; JSON-serializable. Results are kept under it.
    """

    name: str
    read: Features
    origin: Any = None


class Seen(NamedTuple):
    """What was read from n examples.

    Attributes:
      features: float32 ``(n, F)``.
      probabilities: float32 ``(n, K)`` by name: of the feature network, or of the judge's fields.
      predictions: the judge's, int32 ``(n,)`` by field.
      labels: what the judge should find, int32 ``(n,)`` by field.
    """

    features: np.ndarray
    probabilities: dict[str, np.ndarray]
    predictions: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]


GROUPS = Seen._fields[1:]


class Reader(NamedTuple):
    """Reads examples.

    Attributes:
      name: of the feature network.
      origin: of both networks, as in ``FeatureNetwork``.
      read: examples as ``sample`` returns them ``(n, *shape)``, and their conditions by field -> what is seen in them.
    """

    name: str
    origin: Any
    read: Callable[[np.ndarray, Mapping[str, np.ndarray]], Seen]


def inception(file: str | os.PathLike[str], resize: str = "adm") -> FeatureNetwork:
    """Returns Inception v3, whose Fréchet distances are published as FIDs; see ``metrics.inception``.

    Args:
      file: its weights.
      resize: the package whose resizing to follow.

    Raises:
      UserError: if the file is not this network, or the convention is unknown.
    """
    from flowguide.metrics.inception import activations, load_inception
    from flowguide.metrics.resizing import CONVENTIONS

    if resize not in CONVENTIONS:
        raise UserError(f"unknown resizing {resize!r}{hint(resize, CONVENTIONS)}: there are {', '.join(CONVENTIONS)}")
    network, content = load_inception(file), storage.path(file).read_bytes()

    def read(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = activations(network, x, resize=resize)
        return found.pool, found.probabilities

    about = {"network": "inception", "resize": resize, "weights": hashlib.sha256(content).hexdigest()[:16]}
    return FeatureNetwork(f"inception-{resize}", read, about)


def named(features: Features | FeatureNetwork | None) -> FeatureNetwork | None:
    """Returns a feature network; a function is called by its own name."""
    if features is None or isinstance(features, FeatureNetwork):
        return features
    name = getattr(features, "__qualname__", type(features).__name__)
    return FeatureNetwork(name.replace("<locals>.", ""), features, getattr(features, "__module__", None))


def reader(examples: Examples, judge: Judge | None, judge_origin: Any, network: FeatureNetwork | None) -> Reader:
    """Returns what reads examples of a kind.

    Without a feature network the features are those of the judge or, of vectors, the standardised vectors themselves.

    Args:
      examples: their kind.
      judge: of the run; None if its data have no class labels.
      judge_origin: what it was computed from.
      network: the feature network, or None.
    """
    name = network.name if network else "judge" if isinstance(examples, Images) else "vectors"

    def read(x: np.ndarray, value: Mapping[str, np.ndarray]) -> Seen:
        hidden, probabilities = (None, {}) if judge is None else judgement(judge, examples, x)
        predictions = {field: p.argmax(1).astype(np.int32) for field, p in probabilities.items()}
        if network is not None:
            found = network.read(x)
            features, own = found if isinstance(found, tuple) else (found, None)
            probabilities = probabilities if own is None else {network.name: np.asarray(own, np.float32)}
        else:
            features = hidden if isinstance(examples, Images) else flat(examples, x)
        labels = {field: np.asarray(value[field], np.int32) for field in predictions}
        return Seen(_checked(features, len(x), name), probabilities, predictions, labels)

    about = {"features": [name, network.origin] if network else name, "judge": judge_origin if judge else None}
    return Reader(name, about, read)


def to_arrays(seen: Seen) -> dict[str, np.ndarray]:
    """Returns what was seen as arrays by name, for a file."""
    by_name = {f"{group}/{name}": a for group in GROUPS for name, a in getattr(seen, group).items()}
    return {"features": seen.features, **by_name}


def from_arrays(arrays: Mapping[str, np.ndarray], count: int | None = None) -> Seen:
    """Returns what ``to_arrays`` took, of the first ``count`` examples; ignores other arrays."""
    groups: dict[str, dict[str, np.ndarray]] = {group: {} for group in GROUPS}
    for key, a in arrays.items():
        group, _, name = key.partition("/")
        if group in groups:
            groups[group][name] = a[:count]
    return Seen(arrays["features"][:count], **groups)


def joined(parts: Sequence[Seen]) -> Seen:
    """Returns what was seen in all parts, one after the other."""
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


def _checked(features: Any, count: int, name: str) -> np.ndarray:
    found = np.asarray(features, np.float32)
    if found.ndim != 2 or len(found) != count:
        raise UserError(f"{name} gives features ({count}, F) of {count} examples; got {found.shape}")
    if not np.isfinite(found).all():
        raise UserError(f"{name} gives finite features; got nan or infinity")
    return found
