"""The model that teaches another, for targets that have a teacher."""

from __future__ import annotations

from flowguide import build, sampling, storage
from flowguide.config import Config, read_config
from flowguide.errors import UserError
from flowguide.model import GammaConditioned, Model, NoNull
from flowguide.schema import DataInfo


def load_teacher(config: Config, info: DataInfo) -> Model | None:
    """Loads the teacher of a config's target; None for targets that have none.

    Raises:
      UserError: if it cannot be loaded, or does not fit the run: it must be a velocity that knows ∅ and takes no γ, for
        the same data and path.
    """
    target = build.target(config)
    if target.teacher is None:
        return None
    workdir = storage.path(target.teacher)
    theirs = read_config(workdir)
    if theirs.task != "flow" or build.target(theirs).gammas is not None:
        raise UserError(f"the teacher in {workdir} must be a velocity that takes no γ: name a run of target plain")
    teacher = sampling.load(workdir)
    if isinstance(teacher.guidance, NoNull | GammaConditioned):
        raise UserError(f"the teacher in {workdir} knows no ∅ (drop_rate = 0): name a run with drop_rate > 0")
    for name, got, expected in (
        ("shape", teacher.info.model_shape, info.model_shape),
        ("fields", teacher.info.fields, info.fields),
        ("path", theirs.path.to_dict(), config.path.to_dict()),
    ):
        if got != expected:
            raise UserError(f"the teacher in {workdir} has {name} {got}; expected that of this run, {expected}")
    return teacher
