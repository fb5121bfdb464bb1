"""Encodes sheets of samples as texts that a page holds."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, features

WEBP_SIDE = 16_383  # pixels, the most that the format has


def images(sheet: np.ndarray) -> str:
    """Returns images ``(R, N, H, W, 1 | 3 | 4)``, uint8, as one picture without loss: a data URI."""
    rows, columns, height, width, channels = sheet.shape
    pixels = sheet.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, channels)
    picture = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    found = {"png": _saved(picture, format="PNG", optimize=True)}
    if features.check("webp") and max(picture.size) <= WEBP_SIDE:
        found["webp"] = _saved(picture, format="WEBP", lossless=True, exact=True)
    kind = min(found, key=lambda name: len(found[name]))
    return f"data:image/{kind};base64,{base64.b64encode(found[kind]).decode()}"


def points(sheet: np.ndarray, low: Sequence[float], high: Sequence[float]) -> str:
    """Returns points ``(R, N, 2)`` in base64: whole numbers from 0 at ``low`` to 65535 at ``high``, little endian."""
    start, end = np.asarray(low), np.asarray(high)
    parts = np.nan_to_num((sheet - start) / (end - start)).clip(0, 1)
    return base64.b64encode((parts * 65535).round().astype("<u2").tobytes()).decode()


def limits(sheets: Sequence[np.ndarray]) -> tuple[list[float], list[float]]:
    """Returns the corners of a square that holds all points but the outermost 0.1 %, with a margin."""
    flat = np.concatenate([sheet.reshape(-1, 2) for sheet in sheets]).astype(np.float64)
    low, high = np.quantile(flat, (0.001, 0.999), axis=0)
    middle, half = (low + high) / 2, 0.53 * max(float((high - low).max()), 1e-6)
    return (middle - half).tolist(), (middle + half).tolist()


def _saved(picture: Image.Image, **options: Any) -> bytes:
    content = io.BytesIO()
    picture.save(content, **options)
    return content.getvalue()
