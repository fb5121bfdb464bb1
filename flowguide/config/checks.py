"""Checks of a config before anything is built from it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from numbers import Real
from typing import Any

from ml_collections import ConfigDict

from flowguide import kinds
from flowguide.config.choices import check_kind, named
from flowguide.config.defaults import CHOICE_RANGES, SETTINGS, Config, Range, is_choice
from flowguide.errors import UserError, hint, listed, shown


def check_types(config: Config) -> None:
    """Raises ``UserError`` if a setting is unknown, missing, or not of the type of its default.

    The settings of named choices are checked when they are built.
    """
    if not isinstance(config, ConfigDict):
        raise UserError(f"config takes what flowguide.config.default() returns, changed; got {shown(config)}")
    got = flat_settings(config.to_dict())
    for name in got:
        if name not in SETTINGS:
            raise UserError(f"the config has no setting {name!r:.100}{hint(name, SETTINGS)}: --help lists all settings")
    for name, setting in SETTINGS.items():
        if name not in got:
            raise UserError(f"the setting {name} is missing: its default is {setting.default!r}")
        if is_choice(name):
            named(name, got[name])
        else:
            check_kind(name, got[name], kinds.kind_of(setting.default), setting.default)
    if got["use"] not in ("newest", "best"):
        raise UserError(f"use takes newest or best; got {got['use']!r:.100}")


def check_numbers(config: Config, devices: int) -> None:
    """Raises ``UserError`` for a number out of its range, and for a batch that the devices cannot share."""
    check_types(config)
    for name, value, allowed in _ranges(config):
        for number in value if isinstance(value, list | tuple) else (value,):
            if isinstance(number, Real) and not _in(allowed, number):
                raise UserError(f"{name} must be {allowed.text}; got {value}")
    parts = devices * config.accumulate
    if config.batch_size % parts:
        raise UserError(
            f"batch_size {config.batch_size} cannot be shared by {devices} devices in {config.accumulate} parts each: "
            f"make it a multiple of {parts}"
        )


def flat_settings(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Flattens groups such as ``data`` to names with dots; named choices stay dicts."""
    groups = {name.partition(".")[0] for name in SETTINGS if "." in name}
    found: dict[str, Any] = {}
    for name, value in tree.items():
        if name not in groups:
            found[name] = value
        elif isinstance(value, Mapping):
            found |= {f"{name}.{inner}": v for inner, v in value.items()}
        else:
            inside = [s.partition(".")[2] for s in SETTINGS if s.startswith(f"{name}.")]
            raise UserError(f"{name} has the settings {listed(inside)}; got {value!r:.100}")
    return found


def _ranges(config: Config) -> Iterator[tuple[str, Any, Range]]:
    """The settings that have a range: name, value, range."""
    for name, value in flat_settings(config.to_dict()).items():
        if is_choice(name):
            option, settings = named(name, value)
            for setting, number in settings.items():
                if (allowed := CHOICE_RANGES.get(f"{name}.{option}.{setting}")) is not None:
                    yield f"{name}.{setting}", number, allowed
        elif (allowed := SETTINGS[name].allowed) is not None:
            yield name, value, allowed


def _in(allowed: Range, number: Real) -> bool:
    return kinds.fits(number, float) and math.isfinite(number) and allowed.holds(float(number))
