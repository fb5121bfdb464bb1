"""Draws the samples of the page: every setting, under every condition, from the same noise."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any, NamedTuple

import jax
import numpy as np

from flowguide import sampling
from flowguide.page.choices import Choice, Plan, Rule, own_grid


class Pictures(NamedTuple):
    """What was drawn. A sheet is ``(R, num, *D)``, a picture of ``num`` samples in each row.

    Attributes:
      sheets: all of them.
      explorer: sheets of the rules, steps and negative conditions, in C order. Rows are γ and conditions in C order.
      trajectory: sheets of γ. Rows are conditions and times in C order.
      t: times of the trajectories.
    """

    sheets: list[np.ndarray]
    explorer: list[int]
    trajectory: list[int]
    t: list[float]


def draw(plan: Plan, seed: int = 0, update: Callable[[int], object] = lambda pictures: None) -> Pictures:
    """Draws what was planned, on the devices of this process.

    Args:
      plan: of ``plan``, with samples.
      seed: of the noise; sample i is that of ``sampling.sample``.
      update: called with the number of pictures that were drawn since the last call.

    Raises:
      UserError: as ``sampling.sample``.
    """
    sheets, explorer = [], []
    for rule in plan.rules:
        first = len(sheets)
        steps, negatives = plan.steps_of(rule), plan.negatives_of(rule)
        sheets += [_sheet(plan, rule, *setting, seed, update) for setting in product(steps, negatives)]
        # Where steps or negative conditions change nothing, all of their choices have the same sheet.
        numbers = np.arange(first, len(sheets)).reshape(len(steps), len(negatives))
        explorer += np.broadcast_to(numbers, (len(plan.steps), len(plan.negatives))).ravel().tolist()
    if not plan.states:
        return Pictures(sheets, explorer, [], [])
    trajectory = range(len(sheets), len(sheets) + len(plan.gammas))
    t, ways = _ways(plan, seed, update)
    return Pictures(sheets + ways, explorer, list(trajectory), [round(float(t[state]), 4) for state in plan.states])


def _sheet(
    plan: Plan, rule: Rule, steps: int, negative: Choice, seed: int, update: Callable[[int], object]
) -> np.ndarray:
    """Returns samples for all γ and conditions. One program draws them all, as γ and conditions are its arguments."""
    config = rule.config if own_grid(rule.config) else rule.config._replace(steps=steps)
    same = {"negative": _repeated(negative, plan.num), "weak": rule.weak, "config": config, **_common(plan, seed)}
    rows = []
    for gamma in plan.gammas:
        for choice in plan.conditions:
            rows.append(sampling.sample(plan.model, _repeated(choice, plan.num), gamma=gamma, **same).x)
            update(1)
    return np.stack(rows)


def _ways(plan: Plan, seed: int, update: Callable[[int], object]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Returns the nodes of the first rule's grid, and for each γ a sheet of what is on the way, for all conditions."""
    rule, sheets, t = plan.rules[0], [], np.zeros(1)
    for gamma in plan.gammas:
        rows = []
        for choice in plan.conditions:
            c, same = _repeated(choice, plan.num), {"weak": rule.weak, "config": rule.config, **_common(plan, seed)}
            t, x = sampling.trajectory(plan.model, c, gamma=gamma, **same)
            rows += [x[:, state] for state in plan.states]
            update(len(plan.states))
        sheets.append(np.stack(rows))
    return t, sheets


def _common(plan: Plan, seed: int) -> dict[str, Any]:
    return {"num": plan.num, "seed": seed, "batch_size": plan.num, "devices": jax.local_devices()}


def _repeated(choice: Choice, num: int) -> Any:
    """Returns the condition of ``num`` samples; none of them for no negative condition."""
    return () if choice.condition is None else jax.tree.map(lambda a: np.repeat(a, num, axis=0), choice.condition)
