"""Preparing TFDS's own sets from small stand-ins."""

import io
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image


@pytest.fixture
def prepare_stock():
    """Prepares a stock TFDS set in ``data_dir`` from examples of the test's own, through the real writer."""

    def prepare(name, data_dir, examples):
        builder: Any = tfds.builder(name, data_dir=data_dir)
        builder._split_generators = lambda dl_manager: {"train": iter(enumerate(examples))}
        config = tfds.download.DownloadConfig(try_download_gcs=False)
        builder.download_and_prepare(file_format="array_record", download_config=config)
        return builder

    return prepare


@pytest.fixture
def image_file():
    """Random pixels ``(H, W)`` or ``(H, W, C)`` as a file of the given format and mode."""

    def make(shape, seed=0, form="PNG", mode=None):
        pixels = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
        file = io.BytesIO()
        image = Image.fromarray(pixels)
        (image.convert(mode) if mode else image).save(file, form)
        file.seek(0)
        return file, pixels

    return make
