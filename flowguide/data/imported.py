"""What an imported set says of itself: its description, and the version of the file or folder that it was made from.

TFDS keeps it in ``metadata.json`` beside the records. A record holds the values of its fields as a ``Batch`` has them,
so that any field type can be kept, and reading needs no table.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from flowguide.data.preparing import reading
from flowguide.errors import DataError
from flowguide.schema import DataInfo, Images, info_from_json, info_to_json

_KEY = "flowguide"


class Imported(NamedTuple):
    """The description of an imported set.

    Attributes:
      info: what the data are, under the name of the set.
      example: the feature that holds the examples; the others are the fields of ``info``.
      version: of the file or folder, as ``Table.version``; also that of the ``Dataset``.
    """

    info: DataInfo
    example: str
    version: str


def to_metadata(about: Imported) -> dict[str, Any]:
    """Returns what TFDS keeps; ``imported`` reads it."""
    return {_KEY: {"info": info_to_json(about.info), "example": about.example, "version": about.version}}


def imported(builder: Any) -> Imported | None:
    """Returns the description of an imported set; None for any other.

    Raises:
      DataError: if it is damaged.
    """
    with reading(builder):
        stated = (builder.info.metadata or {}).get(_KEY)
        if stated is None:
            return None
        about = Imported(info_from_json(stated["info"]), stated["example"], stated["version"])
        if set(builder.info.features) != {about.example, *about.info.fields} or not isinstance(about.version, str):
            raise ValueError("metadata.json describes other features")
        return about


def resized(about: Imported, image_size: int | None) -> Imported:
    """Returns the description with images of another side; None leaves it as it is.

    Raises:
      DataError: if the examples are no images, or for a side below 1.
    """
    if image_size is None:
        return about
    info = about.info
    if image_size < 1:
        raise DataError(f"got image_size={image_size}, expected a side in pixels, 1 or more")
    if not isinstance(info.examples, Images):
        raise DataError(f"got image_size={image_size} for {info.name}, which has no images: leave it out")
    sides = (image_size, image_size, info.shape[-1])
    return about._replace(info=info._replace(examples=Images(sides)))
