"""The config of a run: settings and defaults, named choices, checks, and its file. ``build.py`` makes objects of it."""

from flowguide.config.auto import config_for, is_table, why
from flowguide.config.checks import check_numbers, check_types
from flowguide.config.choices import OPTIONS, Options, choose, complete, option, resolve
from flowguide.config.defaults import CHOICES, SETTINGS, Config, default
from flowguide.config.files import FORCEABLE, check_same_run, config_text, read_config
from flowguide.config.help import settings_help

__all__ = [
    "CHOICES",
    "FORCEABLE",
    "OPTIONS",
    "SETTINGS",
    "Config",
    "Options",
    "check_numbers",
    "check_same_run",
    "check_types",
    "choose",
    "complete",
    "config_for",
    "config_text",
    "default",
    "is_table",
    "option",
    "read_config",
    "resolve",
    "settings_help",
    "why",
]
