"""The one error of this room."""

from __future__ import annotations

from flowguide.errors import UserError


class DataError(UserError):
    """A data set that is unknown, not there, damaged or unsuitable; the message is one line and names the cure."""
