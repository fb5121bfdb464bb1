"""avatars: 10,000 pixel-art faces, 16 x 16, with eight independent attributes and a caption (CC0).

``files/PROVENANCE.md`` describes how they were drawn.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from importlib import resources
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from flowguide.data.pixels import encode_png
from flowguide.schema import vocabulary

TRAIN = 9_000  # the first examples; the rest is the test split


class Avatars(tfds.core.GeneratorBasedBuilder):
    """Faces with eight attributes and a caption."""

    VERSION = tfds.core.Version("1.1.0")
    RELEASE_NOTES = {"1.1.0": "Captions say a part, in any order.", "1.0.0": "Captions say everything, in one order."}  # noqa: RUF012

    def _info(self) -> tfds.core.DatasetInfo:
        _, attributes, names = load()
        features = {
            "image": tfds.features.Image(shape=(16, 16, 3), encoding_format="png"),
            "caption": tfds.features.Text(),
            **{name: tfds.features.ClassLabel(names=names[name]) for name in attributes},
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="Pixel-art faces with eight independent attributes, drawn in DiceBear's Pixel Art design.",
            homepage="https://www.dicebear.com/styles/pixel-art/",
            license="CC0 1.0",
            features=tfds.features.FeaturesDict(features),
            metadata=tfds.core.MetadataDict({"caption": vocabulary(_captions())._asdict()}),
            disable_shuffling=True,  # record i is example i of the source
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {"train": self._generate_examples(0, TRAIN), "test": self._generate_examples(TRAIN, None)}

    def _generate_examples(self, start: int, stop: int | None) -> Iterator[tuple[int, dict[str, Any]]]:
        images, attributes, _ = load()
        captions = _captions()
        for i in range(*slice(start, stop).indices(len(images))):
            labels = {name: int(column[i]) for name, column in attributes.items()}
            yield i, {"image": encode_png(images[i]), "caption": partial(captions[i], i), **labels}


@functools.cache
def load() -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, list[str]]]:
    """Loads the file that flowguide ships.

    Returns:
      images, uint8 ``(10000, 16, 16, 3)``; attributes, uint8 ``(10000,)`` each; the names of their values.
    """
    with (
        resources.as_file(resources.files("flowguide.data") / "files" / "avatars16.npz") as path,
        np.load(path) as file,
    ):
        names = json.loads(str(file["names"]))
        return file["image"], {name: file[name] for name in names}, names


def caption(face: Mapping[str, str]) -> str:
    """Describes the attributes of one face in words, without what it does not wear.

    For example "long red hair, blue hat, dark glasses, beard, happy, green clothing, skin 3".
    """
    parts = [
        f"{face['hair']} {face['hair_color']} hair",
        "" if face["hat"] == "none" else f"{face['hat']} hat",
        "" if face["glasses"] == "none" else f"{face['glasses']} glasses",
        "beard" if face["beard"] == "yes" else "",
        face["mouth"],
        f"{face['clothing']} clothing",
        f"skin {face['skin']}",
    ]
    return ", ".join(filter(None, parts))


def partial(whole: str, seed: int) -> str:
    """Returns a random part of a caption, in random order, for example "happy, blue hat".

    A network that only saw whole captions, in one order, would not know what to make of a short prompt.
    """
    rng, parts = np.random.default_rng(seed), whole.split(", ")
    kept = rng.permutation(len(parts))[: rng.integers(1, len(parts), endpoint=True)]
    return ", ".join(parts[i] for i in kept)


@functools.cache
def _captions() -> list[str]:
    """Returns the whole caption of every face."""
    images, attributes, names = load()
    columns = {name: [names[name][value] for value in column] for name, column in attributes.items()}
    return [caption({name: column[i] for name, column in columns.items()}) for i in range(len(images))]
