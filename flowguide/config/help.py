"""Every setting of a config as text, for ``--help``."""

from __future__ import annotations

import inspect

from flowguide.config.choices import OPTIONS, Options, settings_of
from flowguide.config.defaults import SETTINGS, is_choice


def settings_help() -> str:
    """Lists every setting with its default and meaning, then each named choice with its options and their settings."""
    lines = ["settings of a config and their defaults (an experiment has its own):"]
    for name, setting in SETTINGS.items():
        value = setting.default["name"] if is_choice(name) else repr(setting.default)
        lines.append(f"  --config.{name}{'.name' * is_choice(name)}={value}\n      {setting.meaning}")
    lines.append("\nnamed choices: --config.CHOICE.name=NAME, and --config.CHOICE.SETTING=VALUE:")
    for choice, options in OPTIONS.items():
        title = "network, for task=classifier" if choice == "classifier" else choice
        lines.append(f"  {title}")
        lines += [f"    {line}" for line in _options_help(options)]
    return "\n".join(lines)


def _options_help(options: Options) -> list[str]:
    lines = []
    for name, make in options.by_name.items():
        settings = "".join(
            f" {key}={p.default!r}" if p.default is not inspect.Parameter.empty else f" {key}"
            for key, p in settings_of(make, options).items()
        )
        meaning = (inspect.getdoc(make) or "").split("\n\n")[0].replace("\n", " ")
        lines += [f"{name}{settings}", f"    {meaning}"]
    return lines
