"""Named choices: ``{"name": ..., **settings}``, whose settings are the arguments of what the name stands for."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from flowguide import kinds, losses, paths, targets, times
from flowguide.config.defaults import CHOICES, Config
from flowguide.errors import UserError, hint
from flowguide.foreign import imported, is_foreign
from flowguide.networks import AUTOENCODERS, CLASSIFIERS, NETWORKS, OUTPUTS
from flowguide.schema import Fields
from flowguide.training import ema
from flowguide.training.optimizer import OPTIMIZERS
from flowguide.training.parallel import LAYOUTS
from flowguide.training.transport import COUPLINGS


class Options(NamedTuple):
    """What a choice is among.

    Attributes:
      by_name: name -> function or class; its keyword arguments are the settings.
      given: arguments that are no settings.
      foreign: whether "package.module:Class" names one of the user's own.
      hidden: as ``by_name``, for names that people do not choose.
    """

    by_name: Mapping[str, Callable[..., Any]]
    given: tuple[str, ...] = ()
    foreign: bool = False
    hidden: Mapping[str, Callable[..., Any]] = MappingProxyType({})


def given(shape: Sequence[int], fields: Fields, *, rngs: Any) -> Any:
    """Stands for a network that was passed to ``fit`` as an object.

    Raises:
      TypeError: always.
    """
    raise TypeError("it was passed as an object, which no file holds: pass it again, load(workdir, network=...)")


OPTIONS: dict[str, Options] = {
    "optimizer": Options(OPTIMIZERS, ("rate",)),
    "path": Options(paths.PATHS),
    "output": Options(OUTPUTS),
    "times": Options(times.WARPS),
    "coupling": Options(COUPLINGS),
    "weight": Options(losses.WEIGHTS),
    "target": Options(targets.TARGETS),
    "ema": Options(ema.PROFILES),
    "network": Options(
        NETWORKS, ("self", "shape", "fields", "rngs", "variance"), foreign=True, hidden={"given": given}
    ),
    "classifier": Options(CLASSIFIERS, ("self", "shape", "fields", "rngs"), foreign=True),
    "autoencoder": Options(AUTOENCODERS, ("self", "shape", "fields", "rngs"), foreign=True),
    "layout": Options(LAYOUTS, ("devices",)),
}


def complete(config: Config) -> Config:
    """Adds the default of every setting that its named choices leave out; changes ``config`` and returns it.

    Raises:
      UserError: for unknown names and settings, and settings of a wrong type.
    """
    for choice in CHOICES:
        chosen = resolve(choice, config)
        takes = settings_of(chosen.make, OPTIONS[options_key(choice, config)])
        defaults = {name: p.default for name, p in takes.items() if p.default is not inspect.Parameter.empty}
        with config.unlocked():
            config[choice] = ConfigDict({"name": config[choice]["name"], **defaults, **chosen.settings})
    return config


class Chosen(NamedTuple):
    """What a named choice of a config stands for.

    Attributes:
      title: how messages call it, "network 'mlp'".
      make: the function or class of this name.
      settings: its settings, checked.
    """

    title: str
    make: Callable[..., Any]
    settings: dict[str, Any]


def resolve(choice: str, config: Config) -> Chosen:
    """Returns what a named choice of a config stands for.

    Args:
      choice: one of ``CHOICES``.
      config: the whole config.

    Raises:
      UserError: for an unknown name or setting, or a setting of a wrong type.
    """
    name, settings = named(choice, config[choice])
    key = options_key(choice, config)
    make, title = option(key, OPTIONS[key], name), f"{key} {name!r}"
    check_settings(title, settings, settings_of(make, OPTIONS[key]))
    return Chosen(title, make, settings)


def choose(choice: str, config: Config, **given: Any) -> Any:
    """Builds what a named choice of a config stands for; ``given`` are the arguments that are no settings.

    Raises:
      UserError: as ``resolve``, and for settings that cannot be.
    """
    chosen = resolve(choice, config)
    try:
        return chosen.make(**given, **chosen.settings)
    except (ValueError, TypeError, ArithmeticError) as error:
        raise UserError(f"{chosen.title}: {error}") from error


def options_key(choice: str, config: Config) -> str:
    """Returns the key of a choice in ``OPTIONS``: classifiers and autoencoders have other networks."""
    return config.task if choice == "network" and config.task in ("classifier", "autoencoder") else choice


def option(choice: str, options: Options, name: str) -> Callable[..., Any]:
    """Returns the function or class of this name; imports a foreign one.

    Raises:
      UserError: if there is none.
    """
    if name in options.by_name:
        return options.by_name[name]
    if name in options.hidden:
        return options.hidden[name]
    if options.foreign and is_foreign(name):
        return imported(choice, name)
    own = ", or package.module:Class of your own" if options.foreign else ""
    raise UserError(
        f"unknown {choice} {name!r:.100}{hint(name, options.by_name)}: there are "
        f"{', '.join(sorted(options.by_name))}{own}"
    )


def settings_of(make: Callable[..., Any], options: Options) -> dict[str, inspect.Parameter]:
    """Returns the settings that an option takes, by name."""
    return {name: p for name, p in kinds.parameters(make).items() if name not in options.given}


def named(choice: str, settings: Any) -> tuple[str, dict[str, Any]]:
    """Splits ``{"name": ..., **settings}`` into the name and the settings.

    Raises:
      UserError: for anything else.
    """
    if not (isinstance(settings, dict | ConfigDict) and isinstance(settings.get("name"), str)):
        raise UserError(f'{choice} takes a name and its settings, {{"name": ...}}; got {settings!r:.100}')
    rest: dict[str, Any] = dict(settings)
    return rest.pop("name"), rest


def check_settings(what: str, settings: Mapping[str, Any], takes: Mapping[str, inspect.Parameter]) -> None:
    """Raises ``UserError`` for settings that an option does not take, or of a wrong type."""
    for name, value in settings.items():
        if name not in takes:
            raise UserError(f"{what} has no setting {name!r}{hint(name, takes)}: it takes {', '.join(takes) or 'none'}")
        check_kind(f"{what}: {name}", value, takes[name].annotation, takes[name].default)


def check_kind(place: str, value: Any, kind: Any, usual: Any) -> None:
    """Raises ``UserError`` if a value is not of this type."""
    if not kinds.fits(value, kind):
        raise UserError(f"{place} takes {kinds.words(kind)}, such as {usual!r}; got {value!r:.100}")
