"""Pictures: grids of samples, and figures with γ down the rows and conditions across.

``save_figure`` draws examples of any shape: what is no image and no point becomes a slice or a histogram.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from flowguide.guidance import Gap

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, BLUE = "#222222", "#2a6fb0"
TILE = 64  # pixels that a small image is enlarged to
PANEL = 320  # side in pixels of a scatter plot or a histogram
BINS = 40  # of a histogram
STRIP = 8  # float arrays longer than this many times their width are drawn as a histogram, not as an image


def image_grid(images: np.ndarray, columns: int | None = None) -> np.ndarray:
    """Images side by side, uint8 ``(h, w, 3)``.

    Small images are enlarged by a whole factor, without smoothing, to about 64 pixels.

    Args:
      images: uint8 ``(N, H, W, C)`` with 1, 3 or 4 channels; 4 are RGBA and are laid over white.
      columns: by default about the square root of N.
    """
    count, height, width, channels = images.shape
    columns = columns or max(1, math.ceil(math.sqrt(count)))
    rows = -(-count // columns)
    scale = max(1, round(TILE / max(height, width, 1)))
    images = _over_white(images) if channels == 4 else images
    tiles = np.broadcast_to(images, (count, height, width, 3))
    tiles = tiles.repeat(scale, 1).repeat(scale, 2)
    gap = max(2, TILE // 16)
    h, w = tiles.shape[1] + gap, tiles.shape[2] + gap
    grid = np.full((rows * h + gap, columns * w + gap, 3), 255, np.uint8)
    for i, tile in enumerate(tiles):
        top, left = gap + i // columns * h, gap + i % columns * w
        grid[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    return grid


def save_png(path: Path, image: np.ndarray) -> None:
    """Writes uint8 ``(H, W)``, ``(H, W, 1)``, ``(H, W, 3)`` or, with its transparency, ``(H, W, 4)``."""
    Image.fromarray(image.squeeze(-1) if image.shape[2:] == (1,) else image).save(path)


def save_figure(path: Path, cells: np.ndarray, rows: Sequence[str], columns: Sequence[str]) -> np.ndarray:
    """Writes a figure of samples by row and column, and returns its pixels, uint8 ``(h, w, 3)``.

    A single cell of images is written as a plain grid of all of them. In a larger figure each cell shows as many as
    make a readable block, from the first on. How examples are drawn depends on their shape D:

    - uint8 images ``(H, W, 1 | 3 | 4)``: as they are, RGBA over white.
    - float images ``(H, W)`` or ``(H, W, C)`` with C up to 4: grey, or the first three channels as colours; the range
      of all samples becomes black to white.
    - volumes and other arrays of three axes or more: the slice in the middle of the leading axes, as such an image.
    - vectors ``(k,)`` with k > 1: a scatter plot of the first two coordinates.
    - scalars ``()`` and ``(1,)``, and float arrays too long and narrow to be seen: a histogram of all values.

    The panels of a figure have common axes. Values that are not finite are left out.

    Args:
      path: PNG file.
      cells: samples ``(R, C, N, *D)``.
      rows: R labels.
      columns: C labels.
    """
    images = _as_images(cells)
    if images is not None and cells.shape[:2] == (1, 1):
        pixels = image_grid(images[0, 0])
    else:
        pixels = _labelled(cells if images is None else images, rows, columns, images is not None)
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


def _over_white(images: np.ndarray) -> np.ndarray:
    """uint8 RGBA ``(..., 4)`` as RGB over a white ground."""
    opacity = images[..., 3:].astype(np.float32) / 255
    return (255 - opacity * (255 - images[..., :3].astype(np.float32))).round().astype(np.uint8)


def _as_images(cells: np.ndarray) -> np.ndarray | None:
    """Samples ``(R, C, N, *D)`` as uint8 images ``(R, C, N, H, W, 1 | 3 | 4)``; None where they are plotted instead."""
    if cells.ndim < 5 or cells.size == 0:
        return None
    if cells.ndim == 5 or cells.shape[-1] > 4:
        cells = cells[..., None]
    while cells.ndim > 6:  # the middle of a volume
        cells = cells[:, :, :, cells.shape[3] // 2]
    height, width, channels = cells.shape[3:]
    if channels == 2:
        cells = cells[..., :1]
    if cells.dtype == np.uint8:
        return cells
    if height * width == 1 or max(height, width) > STRIP * min(height, width):
        return None
    values, low, high = _drawable(cells[..., :3])
    return (np.nan_to_num(values - low) / (high - low) * 255).round().astype(np.uint8)


def _drawable(a: np.ndarray) -> tuple[np.ndarray, float, float]:
    """float64 with NaN for what no axis can show (NaN, ±∞, beyond 1e100), and the range low < high of the rest."""
    a = a.astype(np.float64)
    a = np.where(np.abs(a) < 1e100, a, np.nan)
    shown = a[~np.isnan(a)]
    low, high = (float(shown.min()), float(shown.max())) if shown.size else (0.0, 0.0)
    if high - low > 1e-9 * max(-low, high):
        return a, low, high
    margin = 0.5 * abs(low) or 0.5  # one value alone
    return a, low - margin, high + margin


def _scatter(cells: np.ndarray) -> Callable[[Axes, int, int], None]:
    """Draws the first two coordinates of the vectors of a cell, on axes that are the same for all cells."""
    points, low, high = _drawable(cells[..., :2])
    limit = 1.05 * max(-low, high)

    def draw(axes: Axes, row: int, column: int) -> None:
        axes.scatter(*points[row, column].T, s=3, color=BLUE, alpha=0.5, linewidths=0)
        axes.set(xlim=(-limit, limit), ylim=(-limit, limit))

    return draw


def _histogram(cells: np.ndarray) -> Callable[[Axes, int, int], None]:
    """Draws how often the values of a cell fall into bins that are the same for all cells, and says their range."""
    values, low, high = _drawable(cells.reshape(*cells.shape[:2], -1))
    edges = np.linspace(low, high, BINS + 1)
    counts = [[np.histogram(cell[~np.isnan(cell)], edges)[0] for cell in row] for row in values]
    most = 1.15 * max(1, np.max(counts))

    def draw(axes: Axes, row: int, column: int) -> None:
        axes.stairs(counts[row][column], edges, fill=True, color=BLUE)
        axes.set(xlim=(low, high), ylim=(0, most))
        axes.text(0.98, 0.97, f"{low:.3g} to {high:.3g}", ha="right", va="top", transform=axes.transAxes, color=INK)

    return draw


def _labelled(cells: np.ndarray, rows: Sequence[str], columns: Sequence[str], images: bool) -> np.ndarray:
    """A figure with labels, uint8 ``(h, w, 3)``: cells of images as blocks of them, others as plots."""
    # Matplotlib without pyplot: no global state, no display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if images:
        side = math.isqrt(min(cells.shape[2], 16 if len(columns) > 1 else 36))
        blocks = [[image_grid(cell[: side * side], side) for cell in row] for row in cells]
        dpi, (height, width) = 100, blocks[0][0].shape[:2]
    else:
        draw = _scatter(cells) if cells.ndim == 4 and cells.shape[-1] > 1 else _histogram(cells)
        dpi, height, width = 100, PANEL, PANEL

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
                axes = figure.add_axes(box, xticks=[], yticks=[])
                draw(axes, r, c)
                axes.spines[:].set_color("#bbbbbb")
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
