"""The curves of an evaluation as SVG, which takes its colours from the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple

from flowguide.evaluation.figure import NAMES, curves, error
from flowguide.evaluation.run import Evaluation

WIDTH, HEIGHT = 300, 230
LEFT, RIGHT, TOP, BOTTOM = 38, 10, 10, 38  # margins, for ticks and names of axes
COLOURS = 6  # of lines, which page.css defines


class Point(NamedTuple):
    """A measurement: its place, half its error bars, and its γ."""

    x: float
    y: float
    x_error: float
    y_error: float
    gamma: float


class Panel(NamedTuple):
    """One diagram: lines by name, and the place of held-out real examples, whose x may be None for all x."""

    title: str
    x_name: str
    y_name: str
    lines: dict[str, list[Point]]
    held_out: tuple[float | None, float] | None


def panels(found: Evaluation) -> list[Panel]:
    """Returns the diagrams: metrics over γ, and precision against recall."""
    lines, held = curves(found.rows), found.held_out["metrics"]
    made = []
    for metric in ("frechet_distance", "inception_score", "joint_adherence"):
        if all(metric in row["metrics"] for row in found.rows):
            points = {
                name: [
                    Point(row["gamma"], row["metrics"][metric], 0, error(row, metric) or 0.0, row["gamma"])
                    for row in rows
                ]
                for name, rows in lines.items()
            }
            place = (None, held[metric]) if metric in held else None
            made.append(Panel(NAMES[metric], "γ", NAMES[metric], points, place))
    points = {name: [_precision_recall(row) for row in rows] for name, rows in lines.items()}
    made.insert(
        2, Panel("precision against recall, by γ", "recall", "precision", points, (held["recall"], held["precision"]))
    )
    return made


def svg(panel: Panel) -> str:
    """Returns a diagram as an SVG element with a text that says what it shows."""
    every = [point for points in panel.lines.values() for point in points]
    xs = [v for p in every for v in (p.x - p.x_error, p.x + p.x_error)]
    ys = [v for p in every for v in (p.y - p.y_error, p.y + p.y_error)]
    if panel.held_out is not None:
        ys.append(panel.held_out[1])
        xs += [panel.held_out[0]] if panel.held_out[0] is not None else []
    x_ticks, y_ticks = ticks(min(xs), max(xs)), ticks(min(ys), max(ys))
    x_low, x_high, y_low, y_high = *_spanned(xs, x_ticks), *_spanned(ys, y_ticks)

    def x_at(x: float) -> float:
        return round(LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT), 1)

    def y_at(y: float) -> float:
        return round(HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM), 1)

    bottom = HEIGHT - BOTTOM
    parts = []
    for tick in x_ticks:
        parts.append(f'<line class="grid" x1="{x_at(tick)}" x2="{x_at(tick)}" y1="{TOP}" y2="{bottom}"/>')
        parts.append(f'<text x="{x_at(tick)}" y="{bottom + 16}" text-anchor="middle">{tick:g}</text>')
    for tick in y_ticks:
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y_at(tick)}" y2="{y_at(tick)}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y_at(tick) + 4}" text-anchor="end">{tick:g}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 4}" text-anchor="middle">{escape(panel.x_name)}</text>')
    if panel.held_out is not None:
        x, y = panel.held_out
        if x is None:
            parts.append(f'<line class="real" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y_at(y)}" y2="{y_at(y)}"/>')
        else:
            a, b = x_at(x), y_at(y)
            parts.append(f'<path class="real cross" d="M{a - 5} {b - 5}l10 10m0 -10l-10 10"/>')
    labels = []
    for i, (name, points) in enumerate(panel.lines.items()):
        parts.append(f'<g class="line c{i % COLOURS}">')
        parts.append(f'<polyline points="{" ".join(f"{x_at(p.x)},{y_at(p.y)}" for p in points)}"/>')
        for p in points:
            if p.y_error:
                parts.append(f'<path d="M{x_at(p.x)} {y_at(p.y - p.y_error)}V{y_at(p.y + p.y_error)}"/>')
            if p.x_error:
                parts.append(f'<path d="M{x_at(p.x - p.x_error)} {y_at(p.y)}H{x_at(p.x + p.x_error)}"/>')
            said = f"{name}: " * bool(name) + f"γ = {p.gamma:g}, {panel.y_name} {p.y:.4g}"
            said += f", {panel.x_name} {p.x:.4g}" * (panel.x_name != "γ")
            parts.append(f'<circle cx="{x_at(p.x)}" cy="{y_at(p.y)}" r="3.5"><title>{escape(said)}</title></circle>')
            if panel.x_name != "γ" and i == 0:  # those of other lines would lie on these
                labels.append(f'<text x="{x_at(p.x) + 6}" y="{y_at(p.y) - 6}">{p.gamma:g}</text>')
        parts.append("</g>")
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(described(panel), quote=True)}">'
        f"{''.join(parts + labels)}</svg>"
    )


def described(panel: Panel) -> str:
    """Returns what a diagram shows as a sentence."""
    lines = []
    for name, points in panel.lines.items():
        said = " to ".join(f"{p.y:.3g} at γ = {p.gamma:g}" for p in dict.fromkeys((points[0], points[-1])))
        lines.append(f"{name}: " * bool(name) + f"{panel.y_name} {said}")
    held = "" if panel.held_out is None else f" Held-out real examples: {panel.y_name} {panel.held_out[1]:.3g}."
    return f"{panel.title}. {'; '.join(lines)}.{held}"


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Returns round numbers in [low, high], or around one number: multiples of 1, 2 or 5 times a power of ten."""
    if high - low < 1e-9 * max(abs(low), abs(high), 1e-300):
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough)
    return [round(i * step, 12) for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _precision_recall(row: dict[str, Any]) -> Point:
    m = row["metrics"]
    return Point(m["recall"], m["precision"], error(row, "recall") or 0.0, error(row, "precision") or 0.0, row["gamma"])


def _spanned(values: Sequence[float], ticks: Sequence[float]) -> tuple[float, float]:
    """Returns the ends of an axis, with a margin on either side."""
    low, high = min(*values, ticks[0]), max(*values, ticks[-1])
    margin = 0.05 * (high - low)
    return low - margin, high + margin
