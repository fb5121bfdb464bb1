"""What is measured and drawn while a run trains. A new evaluator is a function here and a line in ``EVALUATORS``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np

from flowguide import checkpoint, processes, sampling, storage
from flowguide.condition import Condition, given
from flowguide.config import Config
from flowguide.errors import UserError
from flowguide.model import GammaConditioned, Plain
from flowguide.pictures import save_figure
from flowguide.schema import Batch
from flowguide.training.assembly import Assembly
from flowguide.training.parallel import parallelize
from flowguide.training.step import with_parts
from flowguide.typing import PyTree

if TYPE_CHECKING:
    from flowguide.data import Dataset


class Evaluation(NamedTuple):
    """What an evaluator found: scores by name, and a picture uint8 ``(h, w, 3)``, if it has one."""

    scores: Mapping[str, float] = MappingProxyType({})
    picture: np.ndarray | None = None


class Evaluator(NamedTuple):
    """Something that is evaluated every so many steps, and after the last.

    Attributes:
      name: of its pictures.
      every: steps; 0 for never.
      evaluate: (averaged parameters, step) -> what it found. All processes call it together.
      optional: whether it runs after the checkpoint is saved, and may fail without ending the run.
    """

    name: str
    every: int
    evaluate: Callable[[PyTree, int], Evaluation]
    optional: bool = False

    def due(self, number: int, last: bool) -> bool:
        """Returns whether it is to run after this step."""
        return bool(self.every) and (last or number % self.every == 0)


class Context(NamedTuple):
    """What evaluators are made from.

    Attributes:
      config: of the run.
      assembly: of the run.
      test: the test split.
      workdir: of the run.
      lesson: the teacher's parameters, laid out, or None.
    """

    config: Config
    assembly: Assembly
    test: Dataset
    workdir: Path
    lesson: PyTree


def validation(context: Context) -> Evaluator:
    """Measures the loss of the averaged parameters on held-out examples, always with the same draws."""
    config, layout = context.config, context.assembly.layout
    loss, batch = context.assembly.validation_loss, _held_out(context)
    mean_loss = parallelize(layout, lambda mean: lambda params, *rest: mean(loss(params, 0, *rest)), donate=False)

    def evaluate(params: PyTree, number: int) -> Evaluation:
        return Evaluation({checkpoint.BEST_BY: float(mean_loss(params, batch, context.lesson))})

    return Evaluator("validation", config.eval_every, evaluate)


def previews(context: Context) -> Evaluator:
    """Draws samples, with noise and conditions that stay the same over the run, at each scale of ``preview.gammas``.

    All processes draw; the main process has the picture.
    """
    config, model, p = context.config, context.assembly.model, context.config.preview
    every = p.every if config.task == "flow" else 0
    if not p.gammas:
        raise UserError("preview.gammas are the scales at which previews are drawn; got none: (1.0,), say")
    try:
        sampler = sampling.resolve_defaults(sampling.SamplerConfig(solver=p.solver, steps=p.steps), model)
    except UserError as error:
        raise UserError(f"preview: {error}") from error
    num = min(p.num, context.test.size)
    c = _conditions(context, num) if every else None
    gammas = (1.0,)
    if isinstance(model.guidance, GammaConditioned):
        gammas = tuple(np.unique(np.clip(p.gammas, *model.guidance)).tolist())
    elif isinstance(model.guidance, Plain) and model.info.fields:
        gammas = tuple(p.gammas)

    def evaluate(params: PyTree, number: int) -> Evaluation:
        trained = model._replace(params=params, step=number)
        drawn = [
            sampling.sample(trained, c or "", num=num, gamma=gamma, config=sampler, seed=config.seed, batch_size=num).x
            for gamma in gammas
        ]
        if not processes.is_main_process():
            return Evaluation()
        folder = context.workdir / "previews"
        try:
            storage.make_folder(folder)
            labels = [f"γ = {gamma:g}" for gamma in gammas]
            picture = save_figure(folder / f"{number:08d}.png", np.stack(drawn)[None], [""], labels)
        except Exception as error:  # of this process alone: the others have drawn as well
            raise UserError(f"{type(error).__name__}: {error}") from error
        return Evaluation(picture=picture)

    return Evaluator("preview", every, evaluate, optional=True)


EVALUATORS: tuple[Callable[[Context], Evaluator], ...] = (validation, previews)


def _conditions(context: Context, num: int) -> Condition:
    """Returns the conditions of the first held-out examples."""
    info, batch = context.test.info, context.test.read(np.arange(num))
    keys = jax.random.split(jax.random.key(context.config.seed), num)
    return given(with_parts(batch.value, info.fields, keys, info.examples.to_model(batch.x)))


def _held_out(context: Context) -> Batch:
    """This process's share of the first ``eval_examples`` of the test split, which is repeated if it has fewer.

    Raises:
      UserError: if there are fewer than devices.
    """
    test, devices = context.test, context.assembly.layout.mesh.size
    count = context.config.eval_examples
    share = count // devices * devices // jax.process_count()
    if not share:
        raise UserError(f"{count} examples to validate with are fewer than the devices, {devices}: take more")
    numbers = np.arange(share, dtype=np.int32) + share * jax.process_index()
    return test.read(numbers % test.size)._replace(index=numbers)  # a repeated example has another t and noise
