"""From a config to objects: the only reader of a ConfigDict."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import optax
from ml_collections import ConfigDict

from flowguide import couplings, kinds, losses, paths, targets, times
from flowguide.condition import Fields
from flowguide.data import DataInfo, Dataset, describe_dataset, open_dataset
from flowguide.errors import UserError
from flowguide.networks import CLASSIFIERS, NETWORKS, Network, as_network
from flowguide.training import ema
from flowguide.training.optimizer import adamw
from flowguide.training.parallel import LAYOUTS, Layout
from flowguide.typing import Array, Device

# A ConfigDict; a type checker cannot know its attributes.
Config: TypeAlias = Any


def _assigned(condition_weight: float = 0.0) -> couplings.Coupling:
    return couplings.minibatch(couplings.assigned(optax.assignment.hungarian_algorithm), condition_weight)


def _sinkhorn(epsilon: float = 0.05, condition_weight: float = 0.0) -> couplings.Coupling:
    try:
        from ott.geometry.geometry import Geometry
        from ott.solvers.linear import solve
    except ImportError as error:
        raise UserError(f'coupling "sinkhorn" needs OTT ({error}): pip install "flowguide[ot]"') from error

    def plan(cost: Array) -> Array:
        return solve(Geometry(cost_matrix=cost, epsilon=epsilon, relative_epsilon="mean")).matrix

    return couplings.minibatch(couplings.drawn(plan), condition_weight)


COUPLINGS: dict[str, Callable[..., couplings.Coupling]] = {
    "independent": couplings.independent,
    "assigned": _assigned,
    "sinkhorn": _sinkhorn,
}


def _distilled(workdir: str = "", gamma_range: tuple[float, float] = (1.0, 5.0)) -> targets.Target:
    if not workdir:
        raise ValueError("target 'distilled' has a teacher; got no workdir: name the folder of its run")
    return targets.distilled(gamma_range)


TARGETS: dict[str, Callable[..., targets.Target]] = {**targets.TARGETS, "distilled": _distilled}

# What may change when a run is resumed without making it another run.
FREE = ("steps", "nonfinite_limit", "log_every", "checkpoint_every", "keep", "eval_every", "preview", "data.data_dir")
FREE += ("layout",)

# What may change beside, if asked to: another run from there on, but one that fits the state and the data.
FORCEABLE = ("lr", "warmup", "decay", "b2", "weight_decay", "accumulate", "times", "stratified", "weight", "coupling")
FORCEABLE += ("drop_rate", "drop_field_rate", "flip", "ema")


# Settings that are the name of a choice with settings of its own.
CHOICES = ("coupling", "weight", "target", "times", "ema", "network", "layout")

# What the layout "fsdp" takes; data_parallel has none of it.
FSDP = {"shards": 0, "min_size": 2**14, "overrides": ()}


class Range(NamedTuple):
    """Which numbers a setting may be, in words and as a test of finite numbers; NaN and infinities are none of them."""

    text: str
    holds: Callable[[float], bool]


FINITE = Range("finite", lambda value: True)
POSITIVE = Range("finite and above 0", lambda value: value > 0)
NOT_NEGATIVE = Range("finite and at least 0", lambda value: value >= 0)
COUNT = Range("at least 1", lambda value: value >= 1)
COUNT_OR_NONE = Range("at least 0", lambda value: value >= 0)
SEED = Range("from 0 to 2^32 - 1", lambda value: 0 <= value < 2**32)
PROBABILITY = Range("a probability, 0 to 1", lambda value: 0 <= value <= 1)
BELOW_1 = Range("from 0 to less than 1", lambda value: 0 <= value < 1)
BENT = Range("from -1 to 2/(π - 2) = 1.7519", lambda value: -1 <= value <= 2 / (math.pi - 2))

# Of the numbers of a config; of each number, if there are several. A setting of a named choice comes with that name.
# Networks, targets, layouts and the "power" profile check their own.
RANGES = {
    "seed": SEED,
    "steps": COUNT,
    "batch_size": COUNT,
    "accumulate": COUNT,
    "lr": POSITIVE,
    "warmup": COUNT_OR_NONE,
    "b2": BELOW_1,
    "weight_decay": NOT_NEGATIVE,
    "clip": NOT_NEGATIVE,
    "nonfinite_limit": COUNT_OR_NONE,
    "coupling.assigned.condition_weight": NOT_NEGATIVE,
    "coupling.sinkhorn.condition_weight": NOT_NEGATIVE,
    "coupling.sinkhorn.epsilon": POSITIVE,
    "weight.min_snr.limit": POSITIVE,
    "drop_rate": PROBABILITY,
    "drop_field_rate": PROBABILITY,
    "times.logit_normal.mean": FINITE,
    "times.logit_normal.std": POSITIVE,
    "times.shift.s": POSITIVE,
    "times.sway.k": BENT,
    "times.mode.s": BENT,
    "times.karras.rho": POSITIVE,
    "times.karras.sigma_min": POSITIVE,
    "times.karras.sigma_max": POSITIVE,
    "ema.constant.decay": BELOW_1,
    "data.image_size": COUNT_OR_NONE,
    "layout.data_parallel.shards": COUNT_OR_NONE,
    "layout.data_parallel.min_size": COUNT_OR_NONE,
    "layout.fsdp.min_size": COUNT_OR_NONE,
    "log_every": COUNT,
    "checkpoint_every": COUNT,
    "keep": COUNT,
    "eval_every": COUNT,
    "eval_examples": COUNT,
    "preview.every": COUNT_OR_NONE,
    "preview.num": COUNT,
    "preview.gammas": FINITE,
    "preview.steps": COUNT,
}


def default() -> Config:
    """Every setting and its default. An experiment in ``configs/`` changes what is its own; a typo raises."""
    return ConfigDict(
        {
            "seed": 0,
            "task": "flow",  # flow: a velocity network; classifier: of noisy data, for classifier guidance
            "steps": 10_000,
            "batch_size": 128,  # over all devices
            "accumulate": 1,  # parts in which a device works through its share of the batch
            "lr": 1e-3,
            "warmup": 100,  # steps
            "decay": "cosine",  # cosine, linear, none
            "b2": 0.99,
            "weight_decay": 0.0,
            "clip": 1.0,  # largest gradient norm; 0: none
            "nonfinite_limit": 10,  # steps in a row, skipped because their loss is not finite, before the run stops
            "path": "linear",  # linear, trig, vp
            # independent; assigned (minibatch optimal transport) and sinkhorn, with a condition_weight
            "coupling": {"name": "independent"},
            "weight": {"name": "constant"},  # of the error at t: constant, x1_error, x0_error, min_snr
            # plain; or guided, so that sampling needs one evaluation a step: model_guidance (gamma), guidance_free
            # (low, the least β = 1/γ), distilled (workdir of its teacher's run, gamma_range)
            "target": {"name": "plain"},
            "drop_rate": 0.1,  # how often an example loses its whole condition in training
            "drop_field_rate": (0.1, 0.1),  # how often it loses one field of several: each draws its rate between these
            "stratified": False,  # spread t evenly over the batch
            "flip": False,  # mirror images at random
            "times": {"name": "logit_normal", "mean": 0.0, "std": 1.0},
            "ema": {"name": "constant", "decay": 0.999},
            "data": {
                "name": "avatars",
                "split": "train",
                "test_split": "test",
                "fields": (),  # fields of the condition; (): all that the data set offers
                "data_dir": "",  # of TFDS; "": its own default
                "image_size": 0,  # crop and resize to this; 0: as they are
            },
            "network": {"name": "unet"},
            # data_parallel: the state whole on every device; fsdp: split into shards (0: as many as there are devices)
            "layout": {"name": "data_parallel", **FSDP},
            "log_every": 50,  # steps
            "checkpoint_every": 1000,
            "keep": 2,  # checkpoints beside the best
            "eval_every": 1000,
            "eval_examples": 256,
            "preview": {"every": 1000, "num": 36, "gammas": (1.0, 3.0), "solver": "heun", "steps": 25},
        }
    )


def settings_help() -> str:
    """Every setting with its default, for ``--help``."""
    lines = [f"  --config.{name}={value!r}" for name, value in _flat(default().to_dict()).items()]
    return "\n\nsettings of a config and their defaults (an experiment has its own):\n" + "\n".join(lines)


def dataset(config: Config, split: str, fields: Fields | None = None) -> Dataset:
    """The data of a split, with the fields that the config names, or exactly ``fields``.

    Raises:
      DataError: before anything slow, if it is not there or has no such fields.
    """
    d = config.data
    return open_dataset(
        d.name, split, fields or tuple(d.fields) or None, d.data_dir or None, image_size=d.image_size or None
    )


def data_info(config: Config) -> DataInfo:
    """What the config's data are, whether or not they are there.

    Raises:
      DataError: if the set is not known, or has no such fields.
    """
    d = config.data
    return describe_dataset(d.name, tuple(d.fields) or None, d.data_dir or None, image_size=d.image_size or None)


def network(config: Config, info: DataInfo) -> Network:
    """The network for this data: of velocities or, if that is the task, of logits."""
    what, registry = ("classifier", CLASSIFIERS) if config.task == "classifier" else ("network", NETWORKS)
    (name, choice), fields = _named(what, config.network), network_fields(config, info)
    make = _known(registry, what, name)
    _check_settings(make.__init__, f"{what} {name!r}", choice, given=("self", "shape", "fields", "rngs"))
    try:
        return as_network(lambda rngs: make(info.shape, fields, **choice, rngs=rngs))
    except (ValueError, TypeError, ArithmeticError, AssertionError) as error:
        raise UserError(f"{what} {name!r} for {info.name} {info.shape}: {error}") from error


def network_fields(config: Config, info: DataInfo) -> Fields:
    """The fields of the condition that the network is given: those of the data and, if it takes γ, ``GAMMA``."""
    if config.target.name != "plain" and not info.fields:
        raise UserError(f"target {config.target.name!r} is guided towards conditions; {info.name} has none: set plain")
    if not takes_gamma(config):
        return info.fields
    if targets.GAMMA in info.fields:
        raise UserError(f"target {config.target.name!r} adds a field 'gamma'; {info.name} has one: leave it out")
    return {**info.fields, targets.GAMMA: targets.GAMMA_FIELD}


def takes_gamma(config: Config) -> bool:
    """Whether the network is told γ, as the field ``GAMMA``, and is then the guided velocity of that γ."""
    return target(config).gammas is not None


def target(config: Config) -> targets.Target:
    """What the velocity is trained to be."""
    name = config.target.name
    chosen = _choose(TARGETS, "target", config.target)
    if name != "plain" and config.task != "flow":
        raise UserError(f"target {name!r} is one of velocities; got task {config.task!r}: set target to plain")
    if name in ("model_guidance", "guidance_free") and not config.drop_rate > 0:
        raise UserError(f"target {name!r} learns u(t, x, ∅) on the way; got drop_rate {config.drop_rate}: 0.1, say")
    return chosen


def task(config: Config) -> Callable[..., Array]:
    """The loss of each example."""
    return _known(losses.TASKS, "task", config.task)


def path(config: Config) -> paths.Path:
    """The probability path."""
    return _known(paths.PATHS, "path", config.path)()


def recipe(config: Config) -> losses.Recipe:
    """What the loss draws."""
    field_rate = tuple(config.drop_field_rate)
    if len(field_rate) != 2 or not 0 <= field_rate[0] <= field_rate[1] <= 1:
        raise UserError(f"drop_field_rate is a range of probabilities, such as (0.0, 1.0); got {field_rate}")
    return losses.Recipe(
        path=path(config),
        warp=_choose(times.WARPS, "times", config.times),
        coupling=_choose(COUPLINGS, "coupling", config.coupling),
        weight=_choose(losses.WEIGHTS, "weight", config.weight),
        target=target(config),
        drop_rate=config.drop_rate,
        drop_field_rate=field_rate,
        stratified=config.batch_size if config.stratified else 0,
    )


def optimizer(config: Config) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The optimiser and its learning rate by step."""
    names = ("lr", "steps", "decay", "b2", "weight_decay", "clip")
    try:
        return adamw(**{name: config[name] for name in names}, warmup=warmup(config))
    except ValueError as error:
        raise UserError(str(error)) from error


def warmup(config: Config) -> int:
    """The steps of the warm-up: those of the config or, where the run is not longer than that, a tenth of the run."""
    return config.warmup if config.warmup < config.steps else config.steps // 10


def profile(config: Config) -> ema.Profile:
    """The profile of the moving average."""
    return _choose(ema.PROFILES, "ema", config.ema)


def layout(config: Config, devices: Sequence[Device]) -> Layout:
    """How the run lies over ``devices``, those of all processes."""
    whole = config.layout.name == "data_parallel"
    settings = {name: value for name, value in config.layout.items() if not (whole and name in FSDP)}
    return _choose(LAYOUTS, "layout", settings, devices)


def check_types(config: Config) -> None:
    """Raises ``UserError`` where a setting is missing or of another type than its default; choices check their own."""
    _check_like(config.to_dict(), default().to_dict())


def check_numbers(config: Config, devices: int) -> None:
    """Raises ``UserError`` for a number that is not in its range, and for a batch that the devices cannot share."""
    check_types(config)
    for name, value in _flat(config.to_dict()).items():
        group, _, setting = name.rpartition(".")
        full = f"{group}.{config[group]['name']}.{setting}" if group in CHOICES else name
        for number in value if isinstance(value, list | tuple) else (value,):
            if full in RANGES and isinstance(number, Real) and not _in(RANGES[full], number):
                raise UserError(f"{name} must be {RANGES[full].text}; got {value}")
    parts = devices * config.accumulate
    if config.batch_size % parts:
        raise UserError(
            f"batch_size {config.batch_size} cannot be shared by {devices} devices in {config.accumulate} parts each: "
            f"make it a multiple of {parts}"
        )


def _in(expected: Range, number: Real) -> bool:
    return kinds.fits(number, float) and math.isfinite(number) and expected.holds(float(number))


def config_text(config: Config) -> str:
    """What ``read_config`` reads from ``config.json``, which is kept beside the run."""
    return json.dumps(json.loads(config.to_json()), indent=2) + "\n"


def replace_text(file: Path, text: str) -> None:
    """Writes a file such that, whatever happens, it has either the old text or the new."""
    beside = file.with_name(f".{file.name}.new")
    beside.write_text(text)
    beside.replace(file)


def read_config(workdir: Path) -> Config:
    """The config of a run, completed with the defaults of settings that it is older than.

    Raises:
      UserError: if there is none, or it is not one that ``config_text`` gives.
    """
    file = workdir / "config.json"
    try:
        stored = json.loads(file.read_text())
        config = default().to_dict()
        for name, value in stored.items():
            # A named choice has settings of its own; other groups keep the defaults of what was not there yet.
            if isinstance(value, dict) and isinstance(config.get(name), dict) and name not in CHOICES:
                value = {**config[name], **value}
            config[name] = _tuples(value)
        config = ConfigDict(config)
        check_types(config)
    except FileNotFoundError:
        raise UserError(f"no run in {workdir}: expected a --workdir that train.py has written to") from None
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise UserError(f"{file} cannot be read ({error}): restore it from the run's command") from error
    return config


def check_same_run(stored: Config, config: Config, force: bool = False) -> None:
    """Raises ``UserError`` if ``config`` is not that of the run in the folder, naming what differs.

    ``force`` allows what changes neither the network nor the order of the data, so that what is stored still fits.
    """
    free = FREE + FORCEABLE if force else FREE
    then, now = _flat(_tuples(stored.to_dict())), _flat(_tuples(config.to_dict()))
    changed = [
        f"{name} was {then.get(name)!r}, is {now.get(name)!r}"
        for name in sorted({**then, **now})
        if then.get(name) != now.get(name) and not any(name == f or name.startswith(f + ".") for f in free)
    ]
    if changed:
        raise UserError(
            f"this folder holds a run of another config ({'; '.join(changed)}): use the same config to go on with it, "
            f"or another --workdir; --force allows to change {', '.join(FORCEABLE)}"
        )


def _known(registry: Mapping[str, Any], what: str, name: Any) -> Any:
    if not isinstance(name, str) or name not in registry:
        raise UserError(f"unknown {what} {name!r:.100}: there are {', '.join(sorted(registry))}")
    return registry[name]


def _choose(registry: Mapping[str, Callable[..., Any]], what: str, settings: Any, *first: Any) -> Any:
    """The object of a ``{"name": ..., **settings}`` dict; ``first`` are its arguments that are no settings."""
    name, choice = _named(what, settings)
    make = _known(registry, what, name)
    _check_settings(make, f"{what} {name!r}", choice, given=tuple(kinds.parameters(make))[: len(first)])
    try:
        return make(*first, **choice)
    except (ValueError, TypeError, ArithmeticError) as error:
        raise UserError(f"{what} {name!r}: {error}") from error


def _named(what: str, settings: Any) -> tuple[str, dict[str, Any]]:
    """The name of a choice and its settings."""
    if not (isinstance(settings, dict | ConfigDict) and isinstance(settings.get("name"), str)):
        raise UserError(f'{what} takes a name and its settings, {{"name": ...}}; got {settings!r:.100}')
    choice: dict[str, Any] = dict(settings)
    return choice.pop("name"), choice


def _check_settings(make: Callable, what: str, settings: Mapping[str, Any], given: tuple[str, ...] = ()) -> None:
    takes = {name: parameter for name, parameter in kinds.parameters(make).items() if name not in given}
    for name, value in settings.items():
        if name not in takes:
            raise UserError(f"{what} has no setting {name!r}: it takes {', '.join(takes) or 'none'}")
        _check_kind(f"{what}: {name}", value, takes[name].annotation, takes[name].default)


def _check_like(got: Mapping[str, Any], like: Mapping[str, Any], place: str = "") -> None:
    """Compares settings with their defaults, name by name."""
    for name, usual in like.items():
        if name not in got:
            raise UserError(f"the setting {place}{name} is missing: its default is {usual!r}")
        if name in CHOICES:
            _named(name, got[name])
        elif not isinstance(usual, dict):
            _check_kind(place + name, got[name], kinds.kind_of(usual), usual)
        elif isinstance(got[name], dict):
            _check_like(got[name], usual, f"{place}{name}.")
        else:
            raise UserError(f"{place}{name} has the settings {', '.join(usual)}; got {got[name]!r:.100}")


def _check_kind(place: str, value: Any, kind: Any, usual: Any) -> None:
    if not kinds.fits(value, kind):
        raise UserError(f"{place} takes {kinds.words(kind)}, such as {usual!r}; got {value!r:.100}")


def _tuples(value: Any) -> Any:
    """JSON has lists where a config has tuples."""
    if isinstance(value, dict):
        return {name: _tuples(v) for name, v in value.items()}
    return tuple(_tuples(v) for v in value) if isinstance(value, list | tuple) else value


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
