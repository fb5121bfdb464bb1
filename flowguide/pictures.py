"""Pictures: grids of samples, and figures with γ down the rows and conditions across."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from flowguide.guidance import Gap

INK = "#222222"
TILE = 64  # pixels that a small image is enlarged to


def image_grid(images: np.ndarray, columns: int | None = None) -> np.ndarray:
    """Images side by side, uint8 ``(h, w, 3)``.

    Small images are enlarged by a whole factor, without smoothing, to about 64 pixels.

    Args:
      images: uint8 ``(N, H, W, C)`` with 1 or 3 channels.
      columns: by default about the square root of N.
    """
    count, height, width, channels = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = -(-count // columns)
    scale = max(1, round(TILE / max(height, width)))
    tiles = np.broadcast_to(images, (count, height, width, 3)) if channels == 1 else images
    tiles = tiles.repeat(scale, 1).repeat(scale, 2)
    gap = max(2, TILE // 16)
    h, w = tiles.shape[1] + gap, tiles.shape[2] + gap
    grid = np.full((rows * h + gap, columns * w + gap, 3), 255, np.uint8)
    for i, tile in enumerate(tiles):
        top, left = gap + i // columns * h, gap + i % columns * w
        grid[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    return grid


def save_png(path: Path, image: np.ndarray) -> None:
    """Writes uint8 ``(H, W)``, ``(H, W, 1)`` or ``(H, W, 3)``."""
    Image.fromarray(image.squeeze(-1) if image.shape[2:] == (1,) else image).save(path)


def save_figure(path: Path, cells: np.ndarray, rows: Sequence[str], columns: Sequence[str]) -> np.ndarray:
    """Writes a figure of samples by row and column, and returns its pixels, uint8 ``(h, w, 3)``.

    A single cell of images is written as a plain grid of all of them. In a larger figure each cell shows as many as
    make a readable block, from the first on; so do cells of points, as scatter plots on common axes.

    Args:
      path: PNG file.
      cells: samples ``(R, C, N, *D)``: uint8 images, or points with two or more coordinates of which two are drawn.
      rows: R labels.
      columns: C labels.
    """
    images = cells.dtype == np.uint8
    if images and cells.shape[:2] == (1, 1):
        pixels = image_grid(cells[0, 0])
    else:
        pixels = _labelled(cells, rows, columns, images)
    save_png(path, pixels)
    return pixels


def save_gaps(path: Path, gaps: Mapping[str, Gap], title: str) -> None:
    """Writes curves over t of what ``guidance.gap`` measured: the median of the samples, and a band of 80 % of them.

    Args:
      path: PNG file.
      gaps: by label.
      title: of the figure.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.6), layout="constrained")
    axes = figure.subplots(1, 3)
    for i, (label, gap) in enumerate(gaps.items()):
        values = gap.difference / gap.conditional, gap.conditional, gap.cosine
        for ax, value in zip(axes, values, strict=True):
            low, middle, high = np.percentile(np.asarray(value), (10, 50, 90), axis=1)
            ax.fill_between(gap.t, low, high, color=f"C{i}", alpha=0.15, lw=0)
            ax.plot(gap.t, middle, color=f"C{i}", marker=".", ms=4, label=label)
    names = "‖u(x, c) − u(x, ∅)‖ / ‖u(x, c)‖", "‖u(x, c)‖", "cosine of u(x, c) and u(x, ∅)"
    for ax, name in zip(axes, names, strict=True):
        ax.set_title(name, fontsize=10)
        ax.set_xlabel("t, from noise to data")
    axes[0].legend(fontsize=9)
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=100)


def save_sizes(path: Path, sizes: Mapping[str, np.ndarray], t: np.ndarray, particles: int) -> None:
    """Writes curves over t of effective sample sizes, that of each law thin and their median thick.

    Args:
      path: PNG file.
      sizes: by label, ``(G, N)`` each.
      t: ``(N,)``.
      particles: of each law, the largest size there can be.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    ax = figure.subplots()
    for i, (label, size) in enumerate(sizes.items()):
        ax.plot(t, size.T, color=f"C{i}", lw=0.5, alpha=0.4)
        ax.plot(t, np.median(size, axis=0), color=f"C{i}", lw=2, label=label)
    ax.set(xlabel="t, from noise to data", ylabel="effective sample size", ylim=(0, 1.02 * particles), xlim=(0, 1))
    ax.legend(fontsize=9)
    figure.savefig(path, dpi=100)


def _labelled(cells: np.ndarray, rows: Sequence[str], columns: Sequence[str], images: bool) -> np.ndarray:
    # Matplotlib without pyplot: no global state, no display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if images:
        side = math.isqrt(min(cells.shape[2], 16 if len(columns) > 1 else 36))
        blocks = [[image_grid(cell[: side * side], side) for cell in row] for row in cells]
        dpi, (height, width) = 100, blocks[0][0].shape[:2]
    else:
        dpi, height, width = 100, 320, 320

    # Everything is laid out in pixels, so that no image is resampled.
    left, gap, letters = 70, 14, max(10, width // 8)
    titles = ["\n".join(textwrap.wrap(text.replace(",", ", "), letters)) for text in columns]
    top = 14 + 18 * max((1 + title.count("\n") for title in titles if title), default=0)
    total = (left + len(columns) * (width + gap), top + len(rows) * (height + gap))
    figure = Figure(figsize=(total[0] / dpi, total[1] / dpi), dpi=dpi, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    for r, label in enumerate(rows):
        y = total[1] - top - (r + 1) * height - r * gap
        figure.text((left - 10) / total[0], (y + height / 2) / total[1], label, ha="right", va="center", color=INK)
        for c, title in enumerate(titles):
            x = left + c * (width + gap)
            if r == 0:
                middle = (x + width / 2) / total[0]
                figure.text(middle, 1 - top / total[1] + 6 / total[1], title, ha="center", va="bottom", color=INK)
            if images:
                figure.figimage(blocks[r][c], x, y, origin="upper")
            else:
                box = (x / total[0], y / total[1], width / total[0], height / total[1])
                limit = 1.05 * np.abs(cells[..., :2]).max()
                axes = figure.add_axes(box, xlim=(-limit, limit), ylim=(-limit, limit), xticks=[], yticks=[])
                axes.scatter(*cells[r, c, :, :2].T, s=3, color="#2a6fb0", alpha=0.5, linewidths=0)
                axes.spines[:].set_color("#bbbbbb")
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
