"""What the page shows: which settings, under which conditions, how many samples, and about how large that is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from flowguide.build import Splits
from flowguide.condition import Condition
from flowguide.data import Dataset
from flowguide.errors import UserError, one_line
from flowguide.evaluation.figure import label, varying
from flowguide.evaluation.sweep import Setting, conditions, describe
from flowguide.model import Model, Plain
from flowguide.sampling import ADAPTIVE, SamplerConfig, nodes, request
from flowguide.sampling.checks import check
from flowguide.schema import DataInfo, Label, Vectors, condition, stored
from flowguide.schema import describe as prompt_of

LIMIT = 20_000_000  # bytes of a page
IMAGES, POINTS = 16, 256  # most samples of a setting, unless said
CONDITIONS = 4
STEPS = (2, 4, 8, 16)
STATES = 13  # of a trajectory
BASE64 = 4 / 3
COMPRESSED = 0.8  # of the bytes of images, without loss; noise compresses little
NO_NEGATIVE = "none"


class Wanted(NamedTuple):
    """What a user asked of the page; empty for the defaults.

    Attributes:
      num: samples of each setting; by default as many as fit, at most ``IMAGES`` or ``POINTS``.
      conds: prompts; by default those of the first held-out examples that differ.
      negatives: prompts to move away from, beside none; an empty one stands for none.
      steps: numbers of steps; by default those of the evaluation, and ``STEPS``.
    """

    num: int | None = None
    conds: Sequence[str] = ()
    negatives: Sequence[str] = ()
    steps: Sequence[int] = ()


class Choice(NamedTuple):
    """A condition to choose: its text, and the condition of one sample; None for no negative condition."""

    text: str
    condition: Condition | None


class Rule(NamedTuple):
    """A way to guide and integrate, whatever γ and the number of steps; ``negatives`` says whether it takes them."""

    text: str
    config: SamplerConfig
    weak: Model | None
    negatives: bool


class Plan(NamedTuple):
    """What is drawn for the page.

    Attributes:
      model: to draw from.
      weights: what its weights are called.
      kind: "images", "points", or "none": curves and tables alone.
      num: samples of each setting, all of the same noise.
      rules: at least one, unless ``kind`` is "none".
      gammas: increasing.
      steps: increasing.
      conditions: at least one.
      negatives: the first is none.
      states: which nodes of the first rule's grid the trajectories show; empty for none.
      notes: what is left out, and why.
    """

    model: Model
    weights: str
    kind: str
    num: int = 0
    rules: tuple[Rule, ...] = ()
    gammas: tuple[float, ...] = ()
    steps: tuple[int, ...] = ()
    conditions: tuple[Choice, ...] = ()
    negatives: tuple[Choice, ...] = ()
    states: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def pictures(self) -> int:
        """Number of pictures, of ``num`` samples each."""
        return len(self.gammas) * len(self.conditions) * (self.sheets + len(self.states))

    @property
    def sheets(self) -> int:
        """Number of pictures of one γ and condition, without those of trajectories."""
        return sum(len(self.steps_of(rule)) * len(self.negatives_of(rule)) for rule in self.rules)

    @property
    def size(self) -> float:
        """About how many bytes the pictures take in the page."""
        each = math.prod(self.model.info.shape) * COMPRESSED if self.kind == "images" else 2 * len(("x", "y"))
        return self.pictures * self.num * each * BASE64

    def steps_of(self, rule: Rule) -> tuple[int, ...]:
        """Returns the numbers of steps at which a rule has pictures of its own."""
        return self.steps[:1] if own_grid(rule.config) else self.steps

    def negatives_of(self, rule: Rule) -> tuple[Choice, ...]:
        """Returns the negative conditions of a rule."""
        return self.negatives if rule.negatives else self.negatives[:1]

    def __str__(self) -> str:
        if self.kind == "none":
            return "curves and tables, without samples"
        return f"{self.pictures:,} pictures of {self.num} samples, about {max(self.size / 1e6, 0.1):.1f} MB"


def plan(settings: Sequence[Setting], data: Splits, wanted: Wanted = Wanted()) -> Plan:  # noqa: B008
    """Returns what the page of an evaluation shows; draws nothing.

    Samples come from the first model of the settings.

    Args:
      settings: of the evaluation.
      data: whose held-out examples give the conditions.
      wanted: by the user.

    Raises:
      UserError: for prompts that cannot be, counts below 1, and a page above ``LIMIT``.
    """
    model, info = settings[0].model, data.train.info
    own = [s for s in settings if s.model is model]
    notes = [] if len(own) == len(settings) else [f"The samples are those of the weights “{own[0].weights}”."]
    kind = _kind(info)
    if kind == "none":
        notes.append(f"The page has no samples to explore: it shows images and points of 2 numbers, not {_what(info)}.")
        return Plan(model, own[0].weights, kind, notes=tuple(notes))
    conds = _conditions(wanted.conds, data.test)
    own, needing = _without_negatives(own, conds[0])
    if needing:
        notes.append(f"{', '.join(needing)} cannot be drawn without a negative condition, and is left out.")
    if not own:
        return Plan(model, settings[0].weights, "none", notes=tuple(notes))
    for cond in conds:
        for s in own:
            check(model, request(model, cond.condition or "", 1, s.gamma), s.config, s.weak)
    negatives = _negatives(wanted.negatives, conds, model)
    rules, refusals = _rules(own, conds[0], negatives)
    if wanted.negatives and len(refusals) == len(rules):
        raise UserError(f"--html_negative: {refusals[0]}; leave --html_negative out")
    negatives = (Choice(NO_NEGATIVE, None), *(negatives if len(refusals) < len(rules) else ()))
    steps = _steps(wanted.steps, rules)
    for rule in rules:
        if own_grid(rule.config) and len(steps) > 1:
            notes.append(f"{rule.text} has a grid of its own: it is the same for all numbers of steps.")
        if len(negatives) > 1 and not rule.negatives:
            notes.append(f"{rule.text} takes no negative condition.")
    gammas = tuple(sorted({s.gamma for s in own}))
    states = _states(rules[0].config)
    if not states:
        notes.append(f"There is no slider over t: {rules[0].config.solver} chooses its steps.")
    found = Plan(model, own[0].weights, kind, 1, rules, gammas, steps, conds, negatives, states, tuple(notes))
    return _with_num(found, wanted.num)


def _without_negatives(own: Sequence[Setting], cond: Choice) -> tuple[list[Setting], list[str]]:
    """Returns the settings without their negative conditions, and the methods that need one."""
    found, needing = [], []
    for setting in own:
        plain = setting._replace(negatives=())
        refusal = setting.negatives and _refusal(plain, cond, [Choice(NO_NEGATIVE, None)])
        if refusal:
            needing.append(setting.config.guidance)
        else:
            found.append(plain)
    return found, list(dict.fromkeys(needing))


def own_grid(config: SamplerConfig) -> bool:
    """Whether a config does not read ``steps``."""
    return config.solver in ADAPTIVE or not isinstance(config.grid, str)


def _kind(info: DataInfo) -> str:
    if info.examples.as_pictures:
        return "images"
    return "points" if isinstance(info.examples, Vectors) and info.shape == (2,) else "none"


def _what(info: DataInfo) -> str:
    return f"{info.examples.kind} of shape {'x'.join(map(str, info.shape)) or '1'}"


def _conditions(prompts: Sequence[str], held_out: Dataset) -> tuple[Choice, ...]:
    """Returns the conditions of prompts or, without any, of the first held-out examples that differ."""
    fields = held_out.info.fields
    if prompts:
        return tuple(Choice(text or "∅", condition([text], fields)) for text in dict.fromkeys(prompts))
    if not fields:
        return (Choice("none", condition([""], fields)),)
    num = min(held_out.size, 16 * CONDITIONS)
    c, found = conditions(held_out, 0, 0, num), {}
    for i in range(num):
        one = Condition(*({name: np.asarray(a)[i : i + 1] for name, a in part.items()} for part in c))
        text = prompt_of(c.value, c.present, fields, i)
        if text.count("=") < len(stored(fields)):  # a vector or a picture has no text
            text = f"{text}{' ' * bool(text)}(held-out example {i + 1})"
        found.setdefault(text, Choice(text, one))
        if len(found) == CONDITIONS:
            break
    return tuple(sorted(found.values(), key=lambda choice: choice.text))


def _negatives(prompts: Sequence[str], conds: Sequence[Choice], model: Model) -> tuple[Choice, ...]:
    """Returns the negative conditions after none: of prompts or, for one field of classes, the last condition."""
    fields = model.info.fields
    if prompts:
        return tuple(Choice(text, condition([text], fields)) for text in dict.fromkeys(prompts) if text)
    one_class = len(fields) == 1 and all(isinstance(field, Label) for field in fields.values())
    return (conds[-1],) if one_class and len(conds) > 1 and isinstance(model.guidance, Plain) else ()


def _rules(own: Sequence[Setting], cond: Choice, negatives: Sequence[Choice]) -> tuple[tuple[Rule, ...], list[str]]:
    """Returns the rules, and why some of them take no negative condition."""
    by_config = {s.config._replace(steps=1): s for s in reversed(own)}
    each = list(reversed(by_config.values()))
    rows = [{**describe(s), "steps": None, "weak_step": None, "parameters": None} for s in each]
    names, rules, refusals = varying(rows), [], []
    for row, setting in zip(rows, each, strict=True):
        refusal = _refusal(setting, cond, negatives)
        rules.append(Rule(label(row, names) or row["guidance"], setting.config, setting.weak, not refusal))
        refusals += [refusal] if refusal else []
    return tuple(rules), refusals


def _refusal(setting: Setting, cond: Choice, negatives: Sequence[Choice]) -> str:
    """Returns why a setting does not go with negative conditions; empty if it does."""
    for negative in negatives:
        asked = request(setting.model, cond.condition or "", 1, setting.gamma, negative.condition or ())
        try:
            check(setting.model, asked, setting.config, setting.weak)
        except UserError as error:
            return one_line(error)
    return ""


def _steps(asked: Sequence[int], rules: Sequence[Rule]) -> tuple[int, ...]:
    if bad := [n for n in asked if n < 1]:
        raise UserError(f"--html_steps takes numbers of steps from 1; got {bad[0]}")
    on_grids = {rule.config.steps for rule in rules if not own_grid(rule.config)}
    if not on_grids:
        return (1,)
    return tuple(sorted(set(asked) or on_grids | {n for n in STEPS if n < max(on_grids)}))


def _states(config: SamplerConfig) -> tuple[int, ...]:
    if config.solver in ADAPTIVE:
        return ()
    last = len(np.asarray(nodes(config))) - 1
    return tuple(sorted({int(i) for i in np.linspace(0, last, STATES).round()}))


def _with_num(found: Plan, num: int | None) -> Plan:
    """Returns the plan with the number of samples, as many as fit unless it is given."""
    fits = math.floor(LIMIT / found.size)
    if num is None and fits:
        return found._replace(num=min(fits, IMAGES if found.kind == "images" else POINTS))
    asked = 1 if num is None else num
    if asked < 1:
        raise UserError(f"--html_samples must be at least 1; got {asked}")
    if asked <= fits:
        return found._replace(num=asked)
    lists = {
        "--gamma": len(found.gammas),
        "--html_steps": len(found.steps),
        "--html_cond": len(found.conditions),
        "--html_negative": len(found.negatives),
        "--guidance": len(found.rules),
    }
    longest = max(lists, key=lambda name: lists[name])
    lower = f"lower --html_samples to {fits}, or " if fits else ""
    size, most = found._replace(num=asked).size / 1e6, LIMIT / 1e6
    raise UserError(
        f"evaluation.html would have about {size:.3g} MB, {found.pictures:,} pictures of --html_samples={asked}, and "
        f"{most:.3g} MB is the most: {lower}shorten {longest}, which has {lists[longest]} values"
    )
