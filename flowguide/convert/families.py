"""All families, by the name that ``flowguide convert --as`` takes."""

from flowguide.convert.family import Family
from flowguide.convert.jit import JIT
from flowguide.convert.lightningdit import LIGHTNINGDIT
from flowguide.convert.sit import DIT, REPA, SIT

FAMILIES: dict[str, Family] = {"sit": SIT, "dit": DIT, "repa": REPA, "lightningdit": LIGHTNINGDIT, "jit": JIT}
