"""The config of a run on disk, and whether two configs are of the same run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from flowguide import kinds, storage
from flowguide.config.checks import check_types
from flowguide.config.choices import complete
from flowguide.config.defaults import CHOICES, Config, default
from flowguide.errors import UserError
from flowguide.foreign import is_foreign

# What may change when a run is resumed without making it another run.
FREE = (
    "init",
    "steps",
    "use",
    "nonfinite_limit",
    "log_every",
    "checkpoint_every",
    "keep",
    "posthoc.keep",
    "eval_every",
    "evaluators",
    "preview",
    "metrics",
    "data.data_dir",
    "data.path",
)
FREE += ("layout",)

# What --force lets change as well: another run from there on, but one that fits the state and the data.
FORCEABLE = ("lr", "warmup", "decay", "optimizer.b1", "optimizer.b2", "optimizer.weight_decay", "accumulate", "times")
FORCEABLE += ("stratified", "weight", "coupling", "drop_rate", "drop_field_rate", "flip", "jitter", "ema")


def config_text(config: Config) -> str:
    """Returns the text of ``config.json``, which is kept beside a run; ``read_config`` reads it."""
    return json.dumps(json.loads(config.to_json()), indent=2) + "\n"


def read_config(workdir: Path, trusted: str | None = "") -> Config:
    """Returns the config of a run, completed with the defaults of settings that it is older than.

    Args:
      workdir: of the run.
      trusted: the network outside of flowguide that may be imported, ``package.module:Class``; None for any.

    Raises:
      UserError: if there is no config, it is not one that ``config_text`` gives, or its network is foreign and not
        trusted: nothing is imported because a folder says so.
    """
    file = workdir / "config.json"
    try:
        stored = _migrated(json.loads(storage.read_text(file)))
        config = default().to_dict()
        for name, value in stored.items():
            # A named choice has its own settings; other groups keep the defaults of settings that were not there yet.
            if isinstance(value, dict) and isinstance(config.get(name), dict) and name not in CHOICES:
                value = {**config[name], **value}
            config[name] = kinds.tuples(value)
        found: Config = ConfigDict(config)
        check_types(found)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"no run in {workdir}: expected a --workdir that train.py has written to") from None
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise UserError(f"{file} cannot be read ({error}): restore it from the run's command") from error
    name = found.network.name
    if is_foreign(name) and trusted not in (None, name):
        raise UserError(
            f"the run in {workdir} uses the network {name!r:.100}, code outside of flowguide: look at that code, then "
            "allow its import with --trust_code, or load(..., trust_code=True)"
        )
    return complete(found)


def check_same_run(stored: Config, config: Config, force: bool = False) -> None:
    """Raises ``UserError`` if ``config`` is not that of the stored run, and names what differs.

    ``force`` allows what changes neither the network nor the order of the data, so that the stored state still fits.
    """
    free = FREE + FORCEABLE if force else FREE
    then, now = _flat(kinds.tuples(stored.to_dict())), _flat(kinds.tuples(config.to_dict()))
    changed = [
        f"{name} was {then.get(name)!r}, is {now.get(name)!r}"
        for name in sorted({**then, **now})
        if then.get(name) != now.get(name) and not any(name == f or name.startswith(f + ".") for f in free)
    ]
    if changed:
        raise UserError(
            f"this folder holds a run of another config ({'; '.join(changed)}): use the same config to resume it, "
            f"or another --workdir; --force allows to change {', '.join(FORCEABLE)}"
        )


def _migrated(stored: dict[str, Any]) -> dict[str, Any]:
    """Returns a stored config in today's form. Version 0.1 had the path as a name, and AdamW's settings at the top."""
    stored = {**stored}  # raises TypeError unless it is a dict
    moved = {name: stored.pop(name) for name in ("b2", "weight_decay") if name in stored}
    if moved:
        stored["optimizer"] = {"name": "adamw", **moved}
    layout = stored.get("layout")
    if isinstance(layout, dict) and layout.get("name") == "data_parallel":
        stored["layout"] = {"name": "data_parallel"}
    if isinstance(stored.get("path"), str):
        stored["path"] = {"name": stored["path"]}
    return stored


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
