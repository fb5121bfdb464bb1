"""The words at the head of the page: what was measured, and how."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np

from flowguide.evaluation.run import Evaluation
from flowguide.evaluation.table import COLUMNS
from flowguide.page.choices import Plan

# What a reader should know of each number, in the words of docs/metrics.md.
MEANINGS = {
    "frechet_distance": "Fréchet distance between samples and training examples in feature space; lower is better.",
    "kid": "kernel distance, unbiased at few samples; lower is better.",
    "sliced_wasserstein": "distance of vectors in their own units; lower is better.",
    "inception_score": "samples have clear and varied classes; higher is better.",
    "precision": "share of samples that look like real examples.",
    "recall": "share of real examples that the samples cover.",
    "density": "as precision, and less sensitive to outliers.",
    "coverage": "as recall, and less sensitive to outliers.",
    "joint_adherence": "share of samples that show all that their condition asks for, as the judge sees it.",
    "authenticity": "share of samples that are not copies of training examples.",
}


def lead(found: Evaluation) -> str:
    """Returns what the page is about, in one sentence."""
    gammas = sorted({row["gamma"] for row in found.rows})
    span = f"from γ = {gammas[0]:g} to {gammas[-1]:g}" if len(gammas) > 1 else f"at γ = {gammas[0]:g}"
    return f"How much adherence and quality guidance buys, and for how much variety: samples and measurements {span}."


def facts(found: Evaluation, plan: Plan) -> list[tuple[str, str]]:
    """Returns what model, data and features, as pairs of name and text."""
    about, info, seeds = found.about, plan.model.info, len(found.about["seeds"])
    count = sum(int(np.size(leaf)) for leaf in jax.tree.leaves(plan.model.params))
    given = ", ".join(info.fields) or "nothing"
    size = "×".join(map(str, info.shape))
    checkpoints = {f"training step {row['train_step']:,} ({row['weights']})" for row in found.rows}
    run = f" of {Path(about['workdir']).name}" if "workdir" in about else ""  # a page is shown to others
    return [
        ("model", f"{count:,} parameters; {info.examples.kind} {size}, given {given}"),
        ("checkpoint", f"{', '.join(sorted(checkpoints))}{run}"),
        ("data", f"{about['data']['name']}, {about['data']['size']:,} training examples"),
        ("samples", f"{about['num_samples']:,} for each row" + f", {seeds} seeds" * (seeds > 1)),
        ("feature network", str(about["features"])),
    ]


def about(found: Evaluation) -> list[tuple[str, str]]:
    """Returns how the numbers came about, and what each metric means, as pairs of name and text."""
    known = found.about
    versions = ", ".join(f"{name} {version}" for name, version in known["versions"].items())
    glossary = [(COLUMNS[name][0], text) for name, text in MEANINGS.items() if name in found.held_out["metrics"]]
    held = f"{found.held_out['num_samples']:,}"
    return [
        ("conditions and noise", "sample i has the condition of a held-out example, and the same noise in every row."),
        ("reference", f"{known['num_real']:,} training examples, {known['num_real_neighbours']:,} for neighbours."),
        ("held-out real examples", f"{held} of them are measured like samples: the first row, dashed lines, ×."),
        ("computed by", f"{versions}, on {known['devices']}."),
        *glossary,
    ]
