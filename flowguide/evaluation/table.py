"""The tables of an evaluation as texts, for the terminal and for the page."""

from __future__ import annotations

from typing import Any, NamedTuple

from flowguide.evaluation.figure import error, label, varying
from flowguide.evaluation.run import Evaluation

# metric -> heading and format
COLUMNS = {
    "frechet_distance": ("Fréchet", "{:.2f}"),
    "kid": ("KID", "{:.3f}"),
    "sliced_wasserstein": ("sliced W", "{:.3f}"),
    "inception_score": ("IS", "{:.2f}"),
    "precision": ("precision", "{:.3f}"),
    "recall": ("recall", "{:.3f}"),
    "density": ("density", "{:.3f}"),
    "coverage": ("coverage", "{:.3f}"),
    "joint_adherence": ("adherence", "{:.3f}"),
    "negative_share": ("negative", "{:.3f}"),
    "authenticity": ("authentic", "{:.3f}"),
}


class Table(NamedTuple):
    """Texts: a heading for each column, and rows. The first column says which setting a row is of."""

    headings: list[str]
    rows: list[list[str]]


def tables(found: Evaluation) -> list[Table]:
    """Returns the table of all metrics, and that of adherence by field if there are several."""
    several = len(found.held_out["metrics"].get("adherence", {})) > 1
    return [_metrics(found), _adherence(found)] if several else [_metrics(found)]


def caption(found: Evaluation) -> str:
    """Returns what holds for all rows."""
    about, row, names = found.about, found.rows[0], varying(found.rows)
    resize = f", resized as {about['resize']}" if about["resize"] else ""
    few = about["num_real_neighbours"]
    common = [
        f"{about['num_samples']:,} samples a row" + f", {len(about['seeds'])} seeds" * (len(about["seeds"]) > 1),
        f"{about['num_real']:,} real examples" + f" ({few:,} for all but Fréchet)" * (few < about["num_real"]),
        f"features: {about['features']}{resize}",
    ]
    solver = f"solver: {row['solver']}"
    if row["last_step_size"] is not None:
        grid = row["grid"] if isinstance(row["grid"], str) else "own"
        solver += f", {row['steps']} steps, grid {grid}, last step {row['last_step_size']:g}"
    if not {"solver", "steps", "grid"} & set(names):
        common.append(solver)
    if "weights" not in names:
        common.append(f"weights: {row['weights']}, of training step {row['train_step']:,}")
    plus_minus = ""
    if row["spread"] or "joint_adherence" in row["metrics"]:
        plus_minus = f" ± is the standard {'deviation over seeds' if row['spread'] else 'error of a share'}."
    return f"NFE: network evaluations a sample. {'; '.join(common)}.{plus_minus}"


def _metrics(found: Evaluation) -> Table:
    held, names = found.held_out["metrics"], varying(found.rows)
    there = {name for row in found.rows for name in row["metrics"]}
    shown = {name: column for name, column in COLUMNS.items() if name in there}
    real = [form.format(held[name]) if name in held else "" for name, (_, form) in shown.items()]
    rows = [[_held_out(found), "", *real, "", ""]]
    for row in found.rows:
        cells = [_with_error(row, name, form) for name, (_, form) in shown.items()]
        cost = f"{row['evaluations']:.4g}", f"{row['seconds']:.1f}"
        rows.append([label(row, names) or row["guidance"], f"{row['gamma']:g}", *cells, *cost])
    return Table(["setting", "γ", *(heading for heading, _ in shown.values()), "NFE", "seconds"], rows)


def _adherence(found: Evaluation) -> Table:
    held, names = found.held_out["metrics"]["adherence"], varying(found.rows)
    rows = [[_held_out(found), "", *(f"{share:.3f}" for share in held.values())]]
    for row in found.rows:
        shares, errors = row["metrics"]["adherence"], row["metrics"]["adherence_error"]
        cells = [f"{share:.3f}±{errors[name]:.3f}" for name, share in shares.items()]
        rows.append([label(row, names) or row["guidance"], f"{row['gamma']:g}", *cells])
    return Table(["adherence", "γ", *held], rows)


def _held_out(found: Evaluation) -> str:
    return f"{found.held_out['num_samples']:,} held-out real"


def _with_error(row: dict[str, Any], name: str, form: str) -> str:
    if name not in row["metrics"]:
        return ""
    found = error(row, name)
    return form.format(row["metrics"][name]) + ("" if found is None else f"±{form.format(found)}")
