"""The one exception that the scripts show as a single line instead of a traceback."""


class UserError(ValueError):
    """Something the user gave cannot be used. Says what was got, what was expected, and how to mend it."""
