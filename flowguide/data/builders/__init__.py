"""Our own data sets as TFDS builders; importing this package registers them.

They are made from installed packages, so preparing them takes seconds and no download.
"""

from flowguide.data.builders.avatars import Avatars
from flowguide.data.builders.digits import Digits
from flowguide.data.builders.mixture2d import Mixture2d

OURS = tuple(builder.name for builder in (Avatars, Digits, Mixture2d))

__all__ = ["OURS", "Avatars", "Digits", "Mixture2d"]
