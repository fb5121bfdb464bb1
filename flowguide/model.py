"""A model: a velocity network, its parameters, and what guidance it knows.

Training, planning, previews, sampling and export all start from ``from_config``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from flowguide import build, paths
from flowguide.autoencoder import Decoder
from flowguide.condition import Condition
from flowguide.config import Config, resolve
from flowguide.errors import UserError
from flowguide.foreign import is_foreign
from flowguide.kinds import parameters
from flowguide.networks import Network, Output, as_network, as_velocity, check_network
from flowguide.schema import DataInfo, Fields, Images, output
from flowguide.typing import PyTree

if TYPE_CHECKING:
    from flowguide.schema.conditions import Cond


class Plain(NamedTuple):
    """The network holds u(t, x, c) and u(t, x, ∅); references guide it."""


class NoNull(NamedTuple):
    """Conditions were never dropped in training: ∅ means nothing."""


class GammaConditioned(NamedTuple):
    """The network takes γ, for which it was trained in [low, high], and is the guided velocity of that γ."""

    low: float
    high: float


class Guided(NamedTuple):
    """The network is the guided velocity of one γ."""

    gamma: float


Guidance: TypeAlias = Plain | NoNull | GammaConditioned | Guided


class Model(NamedTuple):
    """A trained velocity, or one to be trained.

    Attributes:
      info: what the network was trained on.
      network: its pure functions; a velocity, whatever it predicts (``networks.outputs``).
      params: averaged parameters; None before training.
      path: the probability path it was trained on.
      guidance: what guidance it knows.
      step: of training, at which the parameters were saved.
      decoder: makes images of latents, if the network draws those.
      ema: relative width of the average, if it is one made of snapshots; None for that of the checkpoint.
    """

    info: DataInfo
    network: Network
    params: PyTree
    path: paths.Path
    guidance: Guidance = Plain()
    step: int = 0
    decoder: Decoder | None = None
    ema: float | None = None

    def output(self, x: np.ndarray, c: Condition) -> np.ndarray:
        """Converts what the network drew to what a user gets, see ``schema.output``; latents are decoded to images.

        Args:
          x: ``(B, *D)``, or ``(B, K, *D)`` with K draws for each condition.
          c: the condition, batch ``B``.
        """
        x = output(self.info, x, c)
        return x if self.decoder is None else self.decoder(x)

    def sample(self, cond: Cond = "", **options: Any) -> np.ndarray:
        """Returns samples, uint8 images or float32 arrays in the units of the data, ``(num, *D)``.

        Rows of a table with classes are a structured array ``(num,)``, of which ``x["city"]`` is a column.

        ``model.sample("cat", num=16, gamma=2.0, negative=["dark"])``; ``sampling.sample`` documents all arguments, and
        also returns what each sample cost.
        """
        from flowguide import sampling  # which imports this module

        return self.info.examples.named(sampling.sample(self, cond, **options).x)

    def log_prob(self, x: Any, cond: Cond = "", **options: Any) -> np.ndarray:
        """Returns log p(x | cond) of float arrays, in nats and in the units of the data; see ``sampling.log_prob``."""
        from flowguide import sampling

        return sampling.log_prob(self, x, cond, **options)

    def show(self, cond: Cond = "", **options: Any) -> Any:
        """Returns a picture of samples, which a notebook shows: a Pillow image; arguments as for ``sample``."""
        from flowguide import pictures, sampling

        return pictures.figure(sampling.sample(self, cond, **{"num": 16, **options}).x)

    def given(self, /, **values: Any) -> Given:
        """Returns the model under a condition: ``model.given(x=observed)`` is a distribution to sample and evaluate.

        Each value is that of a field, for all samples; text is read as in a prompt.
        """
        from flowguide.schema.conditions import conditions

        conditions(values, self.info.fields, 1)  # refused here rather than when it is used
        return Given(self, values)

    def given_all(self, /, **values: Any) -> GivenAll:
        """Returns the model under several independent conditions: ``model.given_all(x=[first, second])``.

        As a posterior it is p(θ|x_1, …, x_n), for observations that are independent given θ. Values have one row for
        each of them, ``(n, ...)``; a value without rows holds for all.
        """
        from flowguide.schema.conditions import rows

        return GivenAll(self, rows(values, self.info.fields))

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}: {field.kind}" for name, field in self.info.fields.items()) or "no condition"
        kind = f"{self.info.examples.kind} {'x'.join(map(str, self.info.shape))}"
        return f"<flowguide model of {self.info.name}, {kind}, given {fields}; {self.step:,} steps of training>"

    def _repr_html_(self) -> str:
        """What a notebook shows: what the model is, and a strip of samples."""
        import base64
        import html
        import io

        if self.params is None:
            return html.escape(repr(self))
        content = io.BytesIO()
        self.show(num=8).save(content, "PNG")
        strip = base64.b64encode(content.getvalue()).decode()
        return f'{html.escape(repr(self))}<br><img src="data:image/png;base64,{strip}">'


class Given(NamedTuple):
    """A model under one condition, as an inference with simulators wants it: a posterior.

    Attributes:
      model: of p(x | c).
      condition: values by field.
    """

    model: Model
    condition: dict[str, Any]

    def sample(self, num: int = 1000, **options: Any) -> np.ndarray:
        """Returns ``num`` samples; other arguments as for ``sampling.sample``. γ is 1 unless given: the law itself.

        The solver is RK4, with short steps near t = 1, because posteriors may be narrow.
        """
        from flowguide import sampling

        config = sampling.SamplerConfig(solver="rk4", grid="cosine", steps=16)
        options = {"gamma": 1.0, "batch_size": num, "config": config, **options}
        return self.model.sample(self.condition, num=num, **options)

    def log_prob(self, x: Any, **options: Any) -> np.ndarray:
        """Returns the log-density of each row of x; see ``sampling.log_prob``."""
        return self.model.log_prob(x, self.condition, **options)


class GivenAll(NamedTuple):
    """A model under n independent conditions at once: p(x)^(1−n)·Π p(x|c_i), normalised.

    Attributes:
      model: of p(x | c), and of p(x): its conditions were dropped at times in training.
      conditions: values by field, of each.
    """

    model: Model
    conditions: tuple[dict[str, Any], ...]

    def sample(self, num: int = 1000, **options: Any) -> np.ndarray:
        """Returns ``num`` samples, by weighted particles; see ``sampling.sample_product``."""
        from flowguide import sampling

        x = sampling.sample_product(self.model, self.conditions, num, **options)
        return self.model.info.examples.named(x)

    def log_prob(self, x: Any, **options: Any) -> np.ndarray:
        """Returns (1 − n)·log p(x) + Σ log p(x|c_i) ``(N,)``: the log-density plus a constant; see ``log_prob``."""
        each = sum(self.model.log_prob(x, c, **options) for c in self.conditions)
        return each + (1 - len(self.conditions)) * self.model.log_prob(x, **options)


def from_config(config: Config, info: DataInfo, network: Network | None = None) -> Model:
    """Returns the model that a config describes, without parameters.

    For the task "classifier" the network gives logits, for "autoencoder" reconstructions.

    Args:
      config: complete (``config.complete``).
      info: of the data.
      network: the network, if it is not the one that the config names. It predicts what the config's ``output`` says.

    Raises:
      UserError: for settings that cannot be, or a network that does not take such data.
    """
    if config.task == "autoencoder" and not isinstance(info.examples, Images):
        raise UserError(
            f"got {info.name}, which has {info.examples.kind} of shape {info.shape}, expected images: the task "
            "autoencoder takes no other examples"
        )
    target = build.target(config)
    if target.gammas is not None:
        guidance = GammaConditioned(*target.gammas)
    elif target.guided is not None:
        guidance = Guided(target.guided)
    else:
        guidance = Plain() if config.drop_rate > 0 else NoNull()
    fields, output, path = build.network_fields(config, info), build.output(config), build.path(config)
    foreign = network is not None or is_foreign(config.network.name)
    network = _network(config, info, fields, output) if network is None else network
    if foreign and config.task == "flow":
        check_network(network, info.model_shape, fields, variance=output.variance)
    if config.task == "flow":
        network = as_velocity(network, output, path)
    return Model(info, network, None, path, guidance)


def _network(config: Config, info: DataInfo, fields: Fields, output: Output) -> Network:
    chosen = resolve("network", config)
    settings = chosen.settings
    if output.variance:
        if "variance" not in parameters(chosen.make):
            raise UserError(
                f"{chosen.title} predicts no variances (it has no keyword variance): set output.learned_variance to "
                "False, or take the network 'dit'"
            )
        settings = {**settings, "variance": True}
    try:
        return as_network(lambda rngs: chosen.make(info.model_shape, fields, **settings, rngs=rngs))
    except (ValueError, TypeError, ArithmeticError, AssertionError) as error:
        raise UserError(f"{chosen.title} for {info.name} {info.model_shape}: {error}") from error
