"""What the script of the page reads: the choices, the sheets of samples, and which sheet shows which choice."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from flowguide.evaluation.run import Evaluation
from flowguide.evaluation.table import COLUMNS
from flowguide.page import encode
from flowguide.page.choices import Plan, own_grid
from flowguide.page.drawing import Pictures
from flowguide.sampling import default_gamma


def data(found: Evaluation, plan: Plan, pictures: Pictures) -> dict[str, Any]:
    """Returns what the script reads: the choices, the sheets, and which sheet shows which choice."""
    choices = {name: texts for name, _, texts in controls(plan)}
    start = {
        "gamma": int(np.argmin([abs(gamma - default_gamma(plan.model)) for gamma in plan.gammas])),
        "steps": plan.steps.index(plan.rules[0].config.steps) if plan.rules[0].config.steps in plan.steps else -1,
        **dict.fromkeys(("condition", "negative", "rule"), 0),
    }
    start["steps"] %= len(plan.steps)
    content = {
        "kind": plan.kind,
        "num": plan.num,
        "choices": choices,
        "start": start,
        "takesNegative": [rule.negatives for rule in plan.rules],
        "explorer": pictures.explorer,
        "trajectory": pictures.trajectory,
        "t": pictures.t,
        "measured": _measured(found, plan),
    }
    if plan.kind == "images":
        height, width, _ = plan.model.info.shape
        shape = {
            "height": height,
            "width": width,
            "columns": math.ceil(math.sqrt(plan.num)),
            "gap": max(1, width // 12),
        }
        return {**content, **shape, "sheets": [encode.images(sheet) for sheet in pictures.sheets]}
    low, high = encode.limits(pictures.sheets)
    sheets = [encode.points(sheet, low, high) for sheet in pictures.sheets]
    return {**content, "low": low, "high": high, "sheets": sheets}


def controls(plan: Plan) -> list[tuple[str, str, list[str]]]:
    """Returns each control: what is chosen, how it is called, and its values as texts."""
    return [
        ("gamma", "guidance scale γ", [f"{gamma:g}" for gamma in plan.gammas]),
        ("steps", "steps", [str(steps) for steps in plan.steps]),
        ("condition", "condition", [choice.text for choice in plan.conditions]),
        ("negative", "negative condition", [choice.text for choice in plan.negatives]),
        ("rule", "guidance rule", [rule.text for rule in plan.rules]),
    ]


def _measured(found: Evaluation, plan: Plan) -> dict[str, list[list[str]]]:
    """Returns the main metrics of those settings that were measured, by the numbers of rule, steps and γ."""
    shown = ("frechet_distance", "joint_adherence", "precision", "recall")
    by_config = {}
    for r, rule in enumerate(plan.rules):
        for s, steps in enumerate(plan.steps):
            config = rule.config if own_grid(rule.config) else rule.config._replace(steps=steps)
            for g, gamma in enumerate(plan.gammas):
                by_config[f"{r}/{s}/{g}"] = (gamma, plan.weights, {**config._asdict(), "perturbation": None})
    rows = [
        ((row["gamma"], row["weights"], {name: row[name] for name in plan.rules[0].config._fields}), row)
        for row in found.rows
        if not row["negatives"]  # the explorer's samples have none, or their own
    ]
    texts = {}
    for key, wanted in by_config.items():
        for (gamma, weights, config), row in rows:
            if (gamma, weights, {**config, "perturbation": None}) == wanted:
                metrics = [name for name in shown if name in row["metrics"]]
                texts[key] = [[COLUMNS[n][0], COLUMNS[n][1].format(row["metrics"][n])] for n in metrics]
    return texts
