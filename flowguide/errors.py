"""Errors that the user can mend, and the words their messages share. Commands show them as one line, no traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class UserError(ValueError):
    """The user gave something that cannot be used. Says what was got, what was expected, and how to mend it.

    The message is one line, also where it quotes input of several.
    """

    def __init__(self, message: str):
        super().__init__(message if message.splitlines() == [message] else " ".join(message.split()))


class DataError(UserError):
    """A data set is unknown, missing, damaged or unsuitable."""


def hint(word: str, known: Iterable[str]) -> str:
    """Returns ", did you mean 'hat'?" if a known word is close, otherwise an empty string."""
    near = difflib.get_close_matches(word, list(known), 1)
    return f", did you mean {near[0]!r}?" if near else ""


def listed(names: Iterable[str], most: int = 20) -> str:
    """Joins names with commas; shows only the first ``most``."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def shown(value: Any, most: int = 100) -> str:
    """Returns a value as messages quote it: an array by dtype and shape if it has two axes or more, shortened."""
    shape = getattr(value, "shape", ())
    text = f"{value.dtype} {tuple(shape)}" if hasattr(value, "dtype") and len(shape) > 1 else repr(value)
    return text if len(text) <= most else f"{text[:most]}…"


def one_line(error: BaseException | str, most: int = 300) -> str:
    """Returns a message, or that of an exception, as one line of at most ``most`` characters."""
    return " ".join(str(error).split())[:most]
