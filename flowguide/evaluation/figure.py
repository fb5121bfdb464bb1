"""The picture of a sweep: distance, scores and adherence against γ, and precision against recall."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from flowguide import storage
from flowguide.evaluation.run import Evaluation

NAMES = {
    "frechet_distance": "Fréchet distance",
    "inception_score": "Inception score",
    "joint_adherence": "adherence",
    "precision": "precision",
    "recall": "recall",
}


def varying(rows: list[dict[str, Any]]) -> list[str]:
    """Returns which settings, besides γ, differ between rows."""
    of_setting = list(rows[0])[: list(rows[0]).index("parameters")]
    texts = {name: {str(row[name]) for row in rows} for name in of_setting if name not in ("gamma", "last_step_size")}
    found = [name for name, values in texts.items() if len(values) > 1]
    return [name for name in found if name != "train_step" or "weights" not in found]


def label(row: dict[str, Any], names: list[str]) -> str:
    """Returns what tells a row from others, besides γ."""

    def text(name: str) -> str:
        value = row[name]
        if name in ("guidance", "solver"):
            return str(value)
        if name == "settings":
            return ":".join(f"{setting}={number:g}" for setting, number in value)
        if name == "negatives":
            return f"away from {' and '.join(value)}" if value else ""
        if name == "gamma_negative":
            return "" if value is None else f"γₙ = {value:g}"
        if name == "interval":
            return "everywhere" if value is None else "{:g} < t < {:g}".format(*value)
        return f"{name} {value}"

    return ", ".join(filter(None, map(text, names)))


def curves(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Returns the rows that differ in γ alone, in its order, by what tells them from others."""
    names, found = varying(rows), {}
    for row in sorted(rows, key=lambda row: row["gamma"]):
        found.setdefault(label(row, names), []).append(row)
    return found


def error(row: dict[str, Any], metric: str) -> float | None:
    """Returns the error of a metric: its deviation over seeds, or the standard error of adherence; None without."""
    if row["spread"] is not None:
        return row["spread"].get(metric)
    return row["metrics"]["joint_adherence_error"] if metric == "joint_adherence" else None


def save_figure(path: Path, found: Evaluation) -> None:
    """Draws an evaluation to a PNG file: one line for each combination of settings, over γ.

    Dashed lines are held-out real examples. Bars are standard deviations over seeds or, for adherence of one seed,
    standard errors.
    """
    figure = Figure(figsize=(15, 3.8), layout="constrained")
    axes = figure.subplots(1, 4)
    lines = curves(found.rows)
    panels = (("frechet_distance", axes[0]), ("inception_score", axes[1]), ("joint_adherence", axes[3]))
    for i, (title, rows) in enumerate(lines.items()):
        style = {"color": f"C{i}", "marker": ".", "capsize": 3, "label": title or None}
        gammas = [row["gamma"] for row in rows]
        for metric, ax in panels:
            if metric in rows[0]["metrics"]:
                values = [row["metrics"][metric] for row in rows]
                ax.errorbar(gammas, values, yerr=[error(row, metric) or 0.0 for row in rows], **style)
        recall, precision = ([row["metrics"][name] for row in rows] for name in ("recall", "precision"))
        errors = ([error(row, name) or 0.0 for row in rows] for name in ("recall", "precision"))
        axes[2].errorbar(recall, precision, *reversed(list(errors)), **style)
        for x, y, gamma in zip(recall, precision, gammas, strict=True):
            axes[2].annotate(f"{gamma:g}", (x, y), xytext=(4, 4), textcoords="offset points", fontsize=8)
    for metric, ax in panels:
        ax.set(xlabel="γ", title=NAMES[metric])
        if metric in found.held_out["metrics"]:
            ax.axhline(found.held_out["metrics"][metric], color="#222222", lw=0.8, ls="--")
    held = found.held_out["metrics"]
    axes[2].plot(held["recall"], held["precision"], "x", color="#222222")
    axes[2].set(xlabel="recall", ylabel="precision", title="precision and recall, by γ")
    if len(lines) > 1:
        axes[0].legend(fontsize=8)
    about = found.about
    figure.suptitle(
        f"{about['data']['name']}: {about['num_samples']:,} samples, {about['num_real']:,} real examples, features: "
        f"{about['features']}; dashed and ×: held-out real examples",
        fontsize=10,
    )
    content = io.BytesIO()
    figure.savefig(content, dpi=100, format="png")
    storage.write_bytes(path, content.getvalue())
