"""The flags --config=NAME and --config.SETTING=VALUE, on top of ml_collections."""

from __future__ import annotations

import importlib.util
import math
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

import flowguide
from flowguide import storage
from flowguide.build import Splits, splits
from flowguide.cli.common import columns_in, define_column_flags, names_in
from flowguide.config import CHOICES, SETTINGS, Config, check_types, complete, default
from flowguide.errors import UserError, hint
from flowguide.workdir import config_to_use

CONFIG = "the experiment: a name such as avatars, or a Python file with a function get_config()"

# Where data are, which --data leaves to the config.
_PLACES_OF_DATA = ("data.data_dir", "data.split", "data.test_split")

# Settings that are tuples of texts.
_TEXTS = [
    name
    for name, setting in SETTINGS.items()
    if isinstance(setting.default, tuple) and all(isinstance(each, str) for each in setting.default)
]

# In a wheel the configs are inside the package, in a clone beside it.
_PLACES = (Path(flowguide.__file__).parent / "configs", Path(flowguide.__file__).parent.parent / "configs")


def config_and_rest(values: flags.FlagValues, arguments: Sequence[str]) -> tuple[list[str], Splits | None]:
    """Loads the config that the arguments name, and defines the flag ``config`` and those of the settings it changes.

    ``--config.CHOICE.name=NAME`` switches a named choice before its settings are parsed, so that
    ``--config.path.name=vp --config.path.beta_min=0.05`` works in any order.

    Returns:
      the arguments without ``--config=NAME``, and the data if they were opened to choose a config for them.

    Raises:
      UserError: if no config is named, it cannot be loaded, or it has no such setting.
    """
    name, rest = _split(arguments)
    config, data = _of_data(rest, None if name is None else _loaded(name))
    for _, task in _given(["task"], rest):  # a classifier's networks have other settings
        config.task = task
    for setting, option in _given([f"{choice}.name" for choice in CHOICES], rest):
        choice = setting.removesuffix(".name")
        if config[choice]["name"] != option:
            with config.unlocked():
                config[choice] = ConfigDict({"name": option})
    complete(config)
    try:
        config_flags.DEFINE_config_dict("config", config, CONFIG, flag_values=values, sys_argv=["flowguide", *rest])
    except (AttributeError, KeyError) as error:  # --config.NAME=... of a setting that there is not
        # The message is the repr of a repr: quotes within quotes, and an escaped line break before the hint.
        missing, *near = str(error.args[0]).replace("\\n", "\n").replace("\\'", "'").splitlines()
        quotes = "'\""
        known = near[0].strip("'") if near else "--help lists the settings"
        raise UserError(f"the config has no setting '{missing.strip(quotes)}': {known}") from error
    except (ValueError, flags.Error) as error:
        raise UserError(f"the flags cannot be read: {error}") from error
    return rest, data


def define_data_flags(values: flags.FlagValues) -> None:
    """Defines the flags that name data, which ``config_and_rest`` reads."""
    flags.DEFINE_string(
        "data",
        None,
        "a file or folder to train on: images in a folder for each class or with a metadata.csv, .npz, .npy, .csv, "
        ".parquet, or a Hugging Face data set on disk; or the name of a prepared set. Without --config, network and "
        "size are chosen for it",
        flag_values=values,
    )
    define_column_flags(values)


DATA_FLAGS = ("example", "fields", "image_size")


def _of_data(arguments: Sequence[str], config: Config | None) -> tuple[Config, Splits | None]:
    """Returns the config with what ``--data`` and its flags say.

    Without a config it makes one for the data, and returns the data too, which are not read again.

    Raises:
      UserError: if there is neither, the flags have no ``--data``, or the data cannot be used.
    """
    asked = dict(_flags(("data", *DATA_FLAGS, "minutes", "workdir"), arguments))
    if "data" not in asked:
        if alone := [name for name in DATA_FLAGS if name in asked]:
            raise UserError(f"--{alone[0]} is about --data=PATH; got none: give it, or --config.data.*")
        if config is None:
            raise UserError(
                "expected --config=NAME, an experiment such as avatars, or --data=PATH, a file or folder; --help lists "
                "all flags"
            )
        return config, None
    settings = _data_settings(asked)
    if double := _given([f"data.{name}" for name in settings], arguments):
        raise UserError(f"--data says which data; got --config.{double[0][0]} too: use --{', --'.join(DATA_FLAGS)}")
    if config is not None:
        config.data.update(settings)
        return config, None
    from flowguide.fitting import describe

    places = {name.removeprefix("data."): value for name, value in _given(_PLACES_OF_DATA, arguments)}
    probe = default()
    known = [value.lower() in ("true", "1") for _, value in _given(("data.known",), arguments)]
    probe.data.update({**settings, **places, "known": known[-1:] == [True]})
    data = splits(probe)
    workdir = storage.path(asked["workdir"]) if asked.get("workdir") else None
    chosen, reason = config_to_use(workdir, data.train, _minutes(asked.get("minutes")))
    print(*filter(None, (describe(data), reason)), sep="\n")
    chosen.data.update(settings)
    # Other settings of the data, such as data.known, are parsed later, or are those of a run: then it is opened again.
    more = chosen.data.known or any(argument.lstrip("-").startswith("config.data.") for argument in arguments)
    return chosen, None if more else data


def _minutes(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return math.inf  # which is refused when the flags are parsed


def _data_settings(asked: Mapping[str, str]) -> dict[str, Any]:
    """Returns the settings of a config's ``data`` that ``--data`` and its flags give."""
    from flowguide.data import OURS, is_path

    name, size = asked["data"], asked.get("image_size", "0")
    example, fields = (columns_in(flag, asked.get(flag)) for flag in ("example", "fields"))
    if not name.strip():
        raise UserError(f"--data takes a file, a folder or the name of a prepared set; got {name!r}: give one")
    if not size.isdecimal():
        raise UserError(f"--image_size takes a side in pixels; got {size!r:.100}")
    settings = {"example": example, "fields": fields, "image_size": int(size)}
    if name not in OURS and is_path(name):
        return {"path": name, **settings}
    if example:
        raise UserError(f"--example is about files and folders; got --data={name}, a prepared set: leave it out")
    return {"path": "", "name": name, **settings}


def load_config(name: str) -> Config:
    """Loads a config by its name, or from a file, and completes it.

    Raises:
      UserError: if there is none, it fails, or it has settings that there are not.
    """
    return complete(_loaded(name))


def _loaded(name: str) -> Config:
    file = _find(name)
    spec = importlib.util.spec_from_file_location(f"flowguide_config_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # A config may import another one: configs/captions.py changes that of configs/avatars.py.
    sys.path.insert(0, str(file.parent))
    try:
        spec.loader.exec_module(module)
        config = module.get_config()
    except Exception as error:  # whatever the file does
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"the config file cannot be loaded: {file}: {reason}") from error
    finally:
        sys.path.remove(str(file.parent))
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"get_config() of {file} returns a {type(config).__name__}, expected the ConfigDict of "
            "flowguide.config.default(), changed"
        )
    check_types(config)
    return config


def _find(name: str) -> Path:
    for place in _PLACES:  # first, so that a folder called avatars does not hide the config
        if (file := place / f"{name}.py").is_file():
            return file
    file = Path(name)
    if file.suffix != ".py" and not file.exists():
        known = sorted({found.stem for place in _PLACES for found in place.glob("*.py") if found.stem != "__init__"})
        raise UserError(
            f"unknown config {name!r:.100}{hint(name, known)}: there are {', '.join(known)}, or give a file"
        )
    if not file.is_file():
        raise UserError(f"the config file cannot be loaded: there is no file {name}")
    if file.suffix != ".py":
        raise UserError(f"the config file cannot be loaded: {name} is not a Python file, NAME.py")
    return file


def _split(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """Takes ``--config=NAME`` out of the arguments, and writes the others as ml_collections reads them.

    It completes ``--config.CHOICE=NAME`` with ``.name``, and makes tuples of texts, as in ``--config.data.fields=a,b``.
    """
    name, rest, waiting = None, [], False
    choices, texts = "|".join(CHOICES), "|".join(map(re.escape, _TEXTS))
    for argument in arguments:
        if waiting:
            name, waiting = argument, False
        elif re.fullmatch("--?config", argument):
            waiting = True
        elif match := re.match("--?config=(.*)", argument, re.DOTALL):
            name = match[1]
        elif match := re.match(f"(--?config\\.(?:{texts})=)(.*)", argument, re.DOTALL):
            rest.append(match[1] + _literal(match[2]))
        elif rest and re.fullmatch(f"--?config\\.(?:{texts})", rest[-1]):
            rest.append(_literal(argument))
        else:
            rest.append(re.sub(f"^(--?config\\.(?:{choices}))(=|$)", r"\1.name\2", argument))
    return name, rest


def _literal(texts: str) -> str:
    return texts if texts.startswith(("(", "[")) else repr(names_in(texts))


def _given(settings: Sequence[str], arguments: Sequence[str]) -> list[tuple[str, str]]:
    """Returns which of some settings the arguments change, and to what."""
    found = _flags([f"config.{setting}" for setting in settings], arguments)
    return [(name.removeprefix("config."), value) for name, value in found]


def _flags(names: Sequence[str], arguments: Sequence[str]) -> list[tuple[str, str]]:
    """Returns the flags of these names among the arguments, with their values."""
    any_of, found = "|".join(map(re.escape, names)), []
    for i, argument in enumerate(arguments):
        if match := re.fullmatch(f"--?({any_of})(?:=(.*))?", argument, re.DOTALL):
            following = arguments[i + 1] if i + 1 < len(arguments) else ""
            found.append((match[1], match[2] if match[2] is not None else following))
    return found
