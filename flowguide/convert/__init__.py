"""Released weights: SiT, DiT, REPA, LightningDiT and JiT as runs of this package, and runs as such weights."""

from flowguide.convert.back import Written, layout_of, to_file
from flowguide.convert.classes import class_names
from flowguide.convert.families import FAMILIES
from flowguide.convert.family import Family, Sizes, Unstated
from flowguide.convert.files import read_weights
from flowguide.convert.runs import check_free, model_of, write_run

__all__ = [
    "FAMILIES",
    "Family",
    "Sizes",
    "Unstated",
    "Written",
    "check_free",
    "class_names",
    "layout_of",
    "model_of",
    "read_weights",
    "to_file",
    "write_run",
]
