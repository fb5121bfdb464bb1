"""What is measured and drawn while a run trains. The config names evaluators: those of ``EVALUATORS``, and your own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from flowguide import checkpoint, evaluation, processes, sampling, storage
from flowguide.build import Splits
from flowguide.condition import Condition, given
from flowguide.config import Config, Options, option
from flowguide.errors import UserError
from flowguide.model import GammaConditioned, Model, Plain
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
      train: the training split.
      test: the test split.
      workdir: of the run.
      lesson: the teacher's parameters, laid out, or None.
    """

    config: Config
    assembly: Assembly
    train: Dataset
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
    if context.config.task == "autoencoder":
        return _reconstructions(context)
    config, model, p = context.config, context.assembly.model, context.config.preview
    every = p.every if config.task == "flow" else 0
    if not p.gammas:
        raise UserError("preview.gammas are the scales at which previews are drawn; got none: (1.0,), say")
    try:
        sampler = sampling.resolve_defaults(sampling.SamplerConfig(solver=p.solver, steps=p.steps), model)
    except UserError as error:
        raise UserError(f"preview: {error}") from error
    num = min(p.num, context.test.size)
    c, gammas = _conditions(context, num) if every else None, _possible(p.gammas, model)

    def evaluate(params: PyTree, number: int) -> Evaluation:
        trained = model._replace(params=params, step=number)
        drawn = [
            sampling.sample(trained, c or "", num=num, gamma=gamma, config=sampler, seed=config.seed, batch_size=num).x
            for gamma in gammas
        ]
        return _pictured(context.workdir, number, drawn, [f"γ = {gamma:g}" for gamma in gammas])

    return Evaluator("preview", every, evaluate, optional=True)


def _reconstructions(context: Context) -> Evaluator:
    """Shows held-out images and what the autoencoder makes of them, with a draw of their latents."""
    info, num = context.train.info, min(context.config.preview.num, context.test.size)
    every = context.config.preview.every
    reconstruct: Callable[..., Any] = context.assembly.model.network.velocity
    images = context.test.read(np.arange(num if every else 1)).x
    whole = jax.jit(lambda params, keys, x: info.examples.to_output(reconstruct(params, keys, x, given({})).x))

    def evaluate(params: PyTree, number: int) -> Evaluation:
        keys = jax.random.split(jax.random.key(context.config.seed), num)
        found = processes.gather(whole(params, keys, info.examples.to_model(images)))
        return _pictured(context.workdir, number, [images, found], ["held out", "reconstructed"])

    return Evaluator("preview", every, evaluate, optional=True)


def _pictured(workdir: Path, number: int, drawn: Sequence[np.ndarray], labels: list[str]) -> Evaluation:
    """Saves a picture with a column for each array of examples; only the main process does."""
    if not processes.is_main_process():
        return Evaluation()
    folder = workdir / "previews"
    try:
        storage.make_folder(folder)
        picture = save_figure(folder / f"{number:08d}.png", np.stack(drawn)[None], [""], labels)
    except Exception as error:  # of this process alone: the others have drawn as well
        raise UserError(f"{type(error).__name__}: {error}") from error
    return Evaluation(picture=picture)


def metrics(context: Context) -> Evaluator:
    """Measures samples at each scale of ``metrics.gammas``, as ``flowguide evaluate`` does.

    Scores are called ``frechet_distance/gamma_2`` and so on. The judge and what is seen in real examples are kept in
    ``evaluation/training`` in the folder of the run; samples are not.

    Raises:
      UserError: for settings with which nothing can be measured.
    """
    m, model = context.config.metrics, context.assembly.model
    every = m.every if context.config.task == "flow" else 0
    folder, data = context.workdir / "evaluation" / "training", Splits(context.train, context.test)

    def settings(params: PyTree, number: int) -> list[evaluation.Setting]:
        sampler = sampling.SamplerConfig(solver=m.solver, steps=m.steps)
        return evaluation.settings(model._replace(params=params, step=number), _possible(m.gammas, model), [sampler])

    def evaluate(params: PyTree, number: int) -> Evaluation:
        whole = jax.tree.map(processes.gather, params)
        found = evaluation.evaluate(settings(whole, number), data, folder, num=m.num)
        if found is None:  # the main process has it
            return Evaluation()
        storage.remove(folder / evaluation.CHUNKS)
        return Evaluation(
            {
                f"{name}/gamma_{row['gamma']:g}": value
                for row in found.rows
                for name, value in row["metrics"].items()
                if isinstance(value, float)
            }
        )

    if every:
        evaluation.check(settings((), 0), data, num=m.num)  # which looks at no parameters
    return Evaluator("metrics", every, evaluate, optional=True)


EVALUATORS: dict[str, Callable[[Context], Evaluator]] = {
    "validation": validation,
    "previews": previews,
    "metrics": metrics,
}


def made(context: Context) -> list[Evaluator]:
    """Returns the evaluators that the config names.

    Raises:
      UserError: for an unknown name, or settings that cannot be.
    """
    options = Options(EVALUATORS, foreign=True)
    return [option("evaluator", options, name)(context) for name in context.config.evaluators]


def _possible(gammas: Sequence[float], model: Model) -> tuple[float, ...]:
    """Returns the scales by which a model can be guided."""
    if isinstance(model.guidance, GammaConditioned):
        return tuple(np.unique(np.clip(gammas, *model.guidance)).tolist())
    return tuple(gammas) if isinstance(model.guidance, Plain) and model.info.fields else (1.0,)


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
