"""Pictures: grids of samples, and figures with γ along the rows and conditions along the columns.

``save_figure`` draws examples of any shape: those that are neither images nor points as a slice or a histogram.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from flowguide import storage
from flowguide.guidance import Gap

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from flowguide.metrics.calibration import Coverage

INK, BLUE = "#222222", "#2a6fb0"
TILE = 64  # pixels to which small images are enlarged
PANEL = 320  # side of a scatter plot or histogram, in pixels
BINS = 40  # bins of a histogram
STRIP = 8  # float arrays with a larger aspect ratio are drawn as a histogram, not as an image


def image_grid(images: np.ndarray, columns: int | None = None) -> np.ndarray:
    """Returns a grid of images, uint8 ``(h, w, 3)``.

    Small images are enlarged to about 64 pixels, by an integer factor and without smoothing.

    Args:
      images: uint8 ``(N, H, W, C)`` with 1, 3 or 4 channels; RGBA is composited over white.
      columns: number of columns; by default about √N.
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
    """Writes a uint8 image ``(H, W)``, ``(H, W, 1)``, ``(H, W, 3)`` or ``(H, W, 4)``, which keeps its transparency."""
    content = io.BytesIO()
    Image.fromarray(image.squeeze(-1) if image.shape[2:] == (1,) else image).save(content, "PNG")
    storage.write_bytes(path, content.getvalue())


def save_figure(path: Path, cells: np.ndarray, rows: Sequence[str], columns: Sequence[str]) -> np.ndarray:
    """Writes a figure of samples by row and column, and returns its pixels, uint8 ``(h, w, 3)``.

    A single cell of images becomes a plain grid of all of them. In a larger figure each cell shows its first images, as
    many as make a readable block. The drawing depends on the shape D of an example:

    - uint8 images ``(H, W, 1 | 3 | 4)``: unchanged, RGBA over white.
    - float images ``(H, W)`` or ``(H, W, C)`` with C up to 4: grey, or the first three channels as colours; black to
      white spans the range of all samples.
    - volumes and other arrays of three axes or more: the middle slice along the leading axes, as a float image.
    - vectors ``(k,)`` with k > 1: a scatter plot of the first two coordinates.
    - scalars ``()`` and ``(1,)``, and float arrays too long and narrow to show: a histogram of all values.

    All panels share their axes. Non-finite values are left out.

    Args:
      path: PNG file.
      cells: samples ``(R, C, N, *D)``.
      rows: R labels.
      columns: C labels.
    """
    pixels = _drawn(cells, rows, columns)
    save_png(path, pixels)
    return pixels


def figure(x: np.ndarray) -> Image.Image:
    """Returns samples ``(N, *D)`` of one condition as a picture, drawn as ``save_figure`` does."""
    return Image.fromarray(_drawn(x[None, None], [""], [""]))


def save_gaps(path: Path, gaps: Mapping[str, Gap], title: str) -> None:
    """Plots results of ``guidance.gap`` over t: the median over samples and a band that holds 80 % of them.

    Args:
      path: PNG file.
      gaps: results by label.
      title: title of the figure.
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
    _save(path, figure)


def save_sizes(path: Path, sizes: Mapping[str, np.ndarray], t: np.ndarray, particles: int) -> None:
    """Plots effective sample sizes over t: a thin curve for each law, and a thick one for their median.

    Args:
      path: PNG file.
      sizes: ``(G, N)`` for G laws, by label.
      t: ``(N,)``.
      particles: number of particles of each law, the upper bound of the size.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    ax = figure.subplots()
    for i, (label, size) in enumerate(sizes.items()):
        ax.plot(t, size.T, color=f"C{i}", lw=0.5, alpha=0.4)
        ax.plot(t, np.median(size, axis=0), color=f"C{i}", lw=2, label=label)
    ax.set(xlabel="t, from noise to data", ylabel="effective sample size", ylim=(0, 1.02 * particles), xlim=(0, 1))
    ax.legend(fontsize=9)
    _save(path, figure)


def save_ranks(
    path: Path, ranks: np.ndarray, draws: int, names: Sequence[str] = (), *, bins: int = 20, level: float = 0.99
) -> None:
    """Draws a histogram of ``metrics.sbc_ranks`` for each parameter, with the band of each bar for uniform ranks.

    Args:
      path: PNG file.
      ranks: int ``(N, d)`` in 0..L.
      draws: L, the posterior samples of each trial.
      names: of the parameters.
      bins: of a histogram, at most L + 1.
      level: probability of the band, which holds for each bar by itself.
    """
    from matplotlib.figure import Figure

    from flowguide.metrics.calibration import binomial_band  # metrics import Flax, which pictures do not need

    count, columns = ranks.shape[1], min(5, ranks.shape[1])
    rows = -(-count // columns)
    figure = Figure(figsize=(2.6 * columns, 2.2 * rows), layout="constrained")
    # Whole ranks in each bin, as equally as can be; a bar's band is that of the share of ranks in it.
    edges = np.unique(np.round(np.linspace(0, draws + 1, min(bins, draws + 1) + 1)).astype(int))
    widths = np.diff(edges)
    bands = np.array([binomial_band(len(ranks), float(w) / (draws + 1), level) for w in widths])
    low, middle, high = bands[:, 0] / widths, len(ranks) / (draws + 1), bands[:, 1] / widths
    for i, ax in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        if i >= count:
            ax.set_axis_off()
            continue
        ax.stairs(high, edges, baseline=low, fill=True, color="#dddddd")
        ax.axhline(middle, color=INK, lw=0.8)
        ax.stairs(np.histogram(ranks[:, i], edges)[0] / widths, edges, color=BLUE, lw=1.5)
        ax.set(title=names[i] if names else f"parameter {i + 1}", xlabel="rank", yticks=[], ylim=(0, None))
    _save(path, figure)


def save_coverage(path: Path, curves: Mapping[str, Coverage]) -> None:
    """Plots results of ``metrics.coverage`` by label, with the band of the first.

    Args:
      path: PNG file.
      curves: results by label.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4, 4), layout="constrained")
    ax = figure.subplots()
    for i, (label, curve) in enumerate(curves.items()):
        if i == 0:
            ax.fill_between(curve.credibility, curve.low, curve.high, color="#dddddd", lw=0)
            ax.plot((0, 1), (0, 1), color=INK, lw=0.8)
        ax.plot(curve.credibility, curve.expected, color=f"C{i}", lw=1.5, label=label)
    ax.set(xlabel="credibility", ylabel="expected coverage", xlim=(0, 1), ylim=(0, 1), aspect="equal")
    ax.legend(fontsize=9)
    _save(path, figure)


def _save(path: Path, figure: Figure) -> None:
    content = io.BytesIO()
    figure.savefig(content, dpi=100, format="png")
    storage.write_bytes(path, content.getvalue())


def _drawn(cells: np.ndarray, rows: Sequence[str], columns: Sequence[str]) -> np.ndarray:
    """Returns the pixels of ``save_figure``."""
    images = _as_images(cells)
    if images is not None and cells.shape[:2] == (1, 1):
        return image_grid(images[0, 0])
    return _labelled(cells if images is None else images, rows, columns, images is not None)


def _over_white(images: np.ndarray) -> np.ndarray:
    """Composites uint8 RGBA ``(..., 4)`` over white; returns uint8 RGB."""
    opacity = images[..., 3:].astype(np.float32) / 255
    return (255 - opacity * (255 - images[..., :3].astype(np.float32))).round().astype(np.uint8)


def _as_images(cells: np.ndarray) -> np.ndarray | None:
    """Converts samples ``(R, C, N, *D)`` to uint8 ``(R, C, N, H, W, 1 | 3 | 4)``; None if they are to be plotted."""
    if cells.ndim < 5 or cells.size == 0:
        return None
    if cells.ndim == 5 or cells.shape[-1] > 4:
        cells = cells[..., None]
    while cells.ndim > 6:  # the middle slice of a volume
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
    """Returns float64 with NaN for values that no axis can show (NaN, ±∞, beyond 1e100), and the others' low < high."""
    a = a.astype(np.float64)
    a = np.where(np.abs(a) < 1e100, a, np.nan)
    shown = a[~np.isnan(a)]
    low, high = (float(shown.min()), float(shown.max())) if shown.size else (0.0, 0.0)
    if high - low > 1e-9 * max(-low, high):
        return a, low, high
    margin = 0.5 * abs(low) or 0.5  # all values are equal
    return a, low - margin, high + margin


def _scatter(cells: np.ndarray) -> Callable[[Axes, int, int], None]:
    """Returns a function that scatters the first two coordinates of a cell's vectors; all cells share their axes."""
    points, low, high = _drawable(cells[..., :2])
    limit = 1.05 * max(-low, high)

    def draw(axes: Axes, row: int, column: int) -> None:
        axes.scatter(*points[row, column].T, s=3, color=BLUE, alpha=0.5, linewidths=0)
        axes.set(xlim=(-limit, limit), ylim=(-limit, limit))

    return draw


def _histogram(cells: np.ndarray) -> Callable[[Axes, int, int], None]:
    """Returns a function that draws a histogram of a cell's values and their range; all cells share their bins."""
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
    """Returns a labelled figure, uint8 ``(h, w, 3)``, with a block of images or a plot in each cell."""
    # Without pyplot: no global state, no display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if images:
        side = math.isqrt(min(cells.shape[2], 16 if len(columns) > 1 else 36))
        blocks = [[image_grid(cell[: side * side], side) for cell in row] for row in cells]
        dpi, (height, width) = 100, blocks[0][0].shape[:2]
    else:
        draw = _scatter(cells) if cells.ndim == 4 and cells.shape[-1] > 1 else _histogram(cells)
        dpi, height, width = 100, PANEL, PANEL

    # The layout is in pixels, so that no image is resampled.
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
