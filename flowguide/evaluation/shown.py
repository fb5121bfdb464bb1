"""Data as a sampler shows them: of latents, the images that they decode to."""

from __future__ import annotations

import numpy as np

from flowguide.build import Splits
from flowguide.data import Dataset
from flowguide.model import Model
from flowguide.schema import Batch, Images, Latents


def shown(data: Splits, model: Model) -> Splits:
    """Returns data whose examples are what a model's samples are compared with.

    Latents become the images of their means, decoded as samples are. So what is measured is the flow: an autoencoder
    that blurs blurs both sides. Other data stay as they are.

    Args:
      data: what the model learned from.
      model: with the decoder, if the data are latents.
    """
    return Splits(*(_decoded(each, model) for each in data))


def _decoded(data: Dataset, model: Model) -> Dataset:
    examples, decoder = data.info.examples, model.decoder
    if not isinstance(examples, Latents) or decoder is None:
        return data

    def read(indices: np.ndarray) -> Batch:
        batch = data.read(indices)
        return batch._replace(x=decoder(np.asarray(examples.moments(batch.x)[0])))

    return data._replace(info=data.info._replace(examples=Images(examples.image)), read=read)
