"""The flags of ``sample``, parsed once into one value."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from absl import flags

from flowguide import sampling, storage
from flowguide.cli.common import numbers
from flowguide.cli.sample_flags import FITTED
from flowguide.errors import UserError
from flowguide.networks.perturbation import Perturbation

_DEFAULT = sampling.SamplerConfig()
MEASURED = {"inpaint": sampling.Inpaint, "upsample": sampling.Upsample, "deblur": sampling.Deblur}


class SampleCommand(NamedTuple):
    """What the flags ask for. None where they say nothing, so that the library's defaults hold.

    Attributes:
      workdir: of the run.
      step: of its checkpoint.
      ema: relative width of another average.
      out: folder for the results.
      conds: prompts, one for each column of the figure.
      negatives: prompts to move away from.
      composed: further prompts with their weights, in units of γ.
      compose: the text of --compose.
      first_weight: weight of the first condition of --compose, which scales γ.
      gammas: guidance scales, one for each row.
      gamma_negative: weight of the negative conditions.
      weak: folder and step of the weaker model.
      measured: what the samples are to fit.
      measured_from: the text of its flag, which names a file or has the numbers.
      config: how to guide and integrate, checked; a grid that is to be fitted is uniform first.
      fit: whether to fit the grid.
      num: samples for each condition and γ.
      batch_size: samples at a time.
      seed: of the noise.
      save: "png", "npz", "csv" or "none".
      diagnose: whether to draw gap.png.
      export: file to export to.
      trust_code: whether a run may name code outside of flowguide.
      decode: whether a model of latents returns images.
      tile: side of the tiles in which it decodes them; 0 for whole images.
    """

    workdir: Path
    step: int | None
    ema: float | None
    out: Path
    conds: list[str]
    negatives: list[str]
    composed: list[tuple[str, float]]
    compose: str | None
    first_weight: float
    gammas: list[float] | None
    gamma_negative: float | None
    weak: tuple[Path, int | None] | None
    measured: sampling.Measured | None
    measured_from: str | None
    config: sampling.SamplerConfig
    fit: bool
    num: int
    batch_size: int
    seed: int
    save: str
    diagnose: bool
    export: Path | None
    trust_code: bool
    decode: bool = True
    tile: int = 0

    def negative(self) -> dict[str, Any]:
        """Returns the arguments of the library's functions that say what to move away from."""
        weight = {} if self.gamma_negative is None else {"gamma_negative": self.gamma_negative}
        return {"negative": self.negatives, **weight}


def parse(values: flags.FlagValues) -> SampleCommand:
    """Parses the flags.

    Raises:
      UserError: for values that cannot be, flags that do nothing, and flags that exclude each other.
    """
    if values.workdir is None:
        raise UserError("expected --workdir=DIR, a folder that train has written; --help lists all flags")
    workdir = storage.path(values.workdir)
    composed = _composition(values.compose)
    weak = None
    if values.weak is not None or values.weak_step is not None:
        weak = (storage.path(values.weak or values.workdir), values.weak_step)
    measured = _measured(values)
    command = SampleCommand(
        workdir=workdir,
        step=values.step,
        ema=values.ema,
        out=storage.path(values.out) if values.out else workdir / "samples",
        conds=[composed[0][0]] if composed else values.cond,
        negatives=values.negative,
        composed=composed[1:],
        compose=values.compose,
        first_weight=composed[0][1] if composed else 1.0,
        gammas=_gammas(values),
        gamma_negative=values.gamma_negative,
        weak=weak,
        measured=measured,
        measured_from=None if measured is None else measured.y,
        config=_config(values),
        fit=values.grid == FITTED,
        num=values.num,
        batch_size=values.batch_size,
        seed=values.seed,
        save=values.save,
        diagnose=values.diagnose,
        export=None if values.export is None else storage.path(values.export),
        trust_code=values.trust_code,
        decode=values.decode,
        tile=values.tile,
    )
    _check(command, values)
    return command


def _measured(values: flags.FlagValues) -> sampling.Measured | None:
    given = [name for name in MEASURED if values[name].value is not None]
    if len(given) > 1:
        raise UserError(f"--{given[0]} and --{given[1]} exclude each other: leave one out")
    if not given:
        return None
    said: dict[str, Any] = {}
    if values.measurement_noise is not None:
        noise = numbers("measurement_noise", values.measurement_noise)
        said["noise"] = noise[0] if len(noise) == 1 else noise
    if values.data_variance is not None:
        said["variance"] = values.data_variance
    if given == ["deblur"]:
        if values.blur_sigma is None:
            raise UserError("--deblur needs to know the blur: give --blur_sigma=1.5, in pixels")
        said["sigma"] = values.blur_sigma
    return MEASURED[given[0]](values[given[0]].value, **said)


def _gammas(values: flags.FlagValues) -> list[float] | None:
    if values.gamma is not None:
        return numbers("gamma", values.gamma)
    return None if values.recipe is None else [sampling.recipe(values.recipe).gamma]


def _config(values: flags.FlagValues) -> sampling.SamplerConfig:
    recipe = None if values.recipe is None else sampling.recipe(values.recipe).config
    said: dict[str, Any] = {}
    if values.interval is not None:
        said["interval"] = tuple(numbers("interval", values.interval, 2))
    if values["guidance"].present:
        said["guidance"], said["settings"] = _settings(values.guidance)
    if values["perturb"].present:
        said["perturbation"] = _perturbation(values.perturb)
    if values["grid"].present:
        grid = str(_DEFAULT.grid if values.grid == FITTED else values.grid)
        said["grid"] = tuple(numbers("grid", grid.split(","))) if "," in grid else grid
    same = ("sampler", "particles", "corrections", "proposal", "clip", "until", "schedule", "reuse", "solver", "steps")
    same += ("replace_null", "rescale", "tolerance", "eta", "passes", "jacobian_from", "channels")
    same += ("absolute_tolerance", "diffusion", "last_step", "last_kind")
    said |= {flag: values[flag].value for flag in same if values[flag].present}
    base = recipe or _DEFAULT
    if said.get("solver", base.solver) != base.solver:  # what is of the recipe's solver goes with it
        base = base._replace(eta=None, diffusion=None, last_kind=_DEFAULT.last_kind)
    config = base._replace(**said)
    return sampling.resolve_defaults(config, measured=any(values[name].value is not None for name in MEASURED))


def _check(command: SampleCommand, values: flags.FlagValues) -> None:
    """Raises ``UserError`` for flags that do nothing, or exclude each other, whatever the run."""
    config, away = command.config, bool(command.negatives)
    adaptive, noisy = config.solver in sampling.ADAPTIVE, config.solver in sampling.STOCHASTIC
    fkc = ("--sampler=fkc", config.sampler == "fkc")
    autoguidance = ("--guidance=autoguidance", config.guidance == "autoguidance")
    measured = (f"one of {', '.join(f'--{name}' for name in MEASURED)}", command.measured is not None)
    acts_with = {
        "perturb": ("--guidance=perturbed", config.guidance == "perturbed"),
        "weak": autoguidance,
        "weak_step": autoguidance,
        "particles": fkc,
        "proposal": fkc,
        "clip": fkc,
        "until": fkc,
        "corrections": ("--sampler=pc", config.sampler == "pc"),
        "eta": (f"a --solver that adds noise ({', '.join(sampling.STOCHASTIC)})", noisy),
        "absolute_tolerance": (f"a --solver that chooses its steps ({', '.join(sampling.ADAPTIVE)})", adaptive),
        "last_step": ("a --solver of fixed steps, on a --grid by name", not adaptive and isinstance(config.grid, str)),
        "tolerance": (f"a --solver that chooses its steps ({', '.join(sampling.ADAPTIVE)})", adaptive),
        "grid": ("a --solver of fixed steps", not adaptive),
        "steps": ("a --solver of fixed steps, on a --grid by name", not adaptive and isinstance(config.grid, str)),
        "replace_null": ("--negative", away),
        "tile": ("--decode", command.decode),
        "blur_sigma": ("--deblur", isinstance(command.measured, sampling.Deblur)),
        "measurement_noise": measured,
        "data_variance": measured,
        "jacobian_from": measured,
        "gamma_negative": ("a --negative that does not replace ∅", away and not config.replace_null),
    }
    given = [name for name in values if values[name].present and values[name].value is not False]
    for name in given:
        need, acts = acts_with.get(name, ("", True))
        if not acts:
            raise UserError(f"--{name} does nothing without {need}: add that, or leave --{name} out")
    if command.compose and "cond" in given:
        raise UserError("--compose says all conditions itself: leave out --cond, or --compose")
    counts = len(command.negatives), len(command.composed)
    sampling.check_together(config, *counts, command.weak is not None, command.measured is not None)
    exporting = command.export is not None
    one_network = {"grid=fitted": command.fit, "diagnose": command.diagnose, "export": exporting}
    for name in (name for name, on in one_network.items() if on and (command.compose or command.weak)):
        raise UserError(f"--{name} serves one network and plain conditions: leave out --compose and --weak")
    for name in (name for name, on in one_network.items() if on and command.measured is not None):
        raise UserError(f"--{name} knows no measurement: leave it out, or {measured[0]}")
    if command.fit:
        if config.last_step is not None:
            raise UserError("--last_step is that of a grid by name, and --grid=fitted places all steps: leave one out")
        sampling.check_fit(config)
    if command.diagnose:
        sampling.check_gap(config)
    if exporting:
        _check_export(command, given)


def _check_export(command: SampleCommand, given: list[str]) -> None:
    check_is_no_folder(storage.path(str(command.export)), storage.path(f"{command.export}.json"))
    if command.fit:
        raise UserError("--export takes a grid by name or by its nodes: samples.json has those of a fitted one")
    if command.config.sampler == "fkc":
        raise UserError("--export writes a sampler of single samples: leave out --sampler=fkc")
    if command.tile:
        raise UserError("--tile does nothing with --export: the file returns latents")
    drawing = ("cond", "gamma", "num", "batch_size", "seed", "out", "save", "diagnose")
    for name in (name for name in given if name in drawing):
        raise UserError(f"--{name} does nothing with --export: the file takes conditions, γ and seeds when it is run")


def check_is_no_folder(*files: Path) -> None:
    """Raises ``UserError`` if a file to be written is a folder, before anything is computed."""
    for file in files:
        if not storage.is_remote(file) and file.is_dir():  # in a bucket the two do not exclude each other
            raise UserError(f"expected a file to write, and {file} is a folder: give another name, or move it away")


def _settings(text: str) -> tuple[str, tuple[tuple[str, float], ...]]:
    """Parses name:setting=number:setting=number."""
    name, *pairs = text.split(":")
    settings = []
    for pair in pairs:
        setting, _, value = pair.partition("=")
        settings.append((setting, numbers(f"guidance={name}:{setting}", [value], 1, infinite=True)[0]))
    return name, tuple(settings)


def _composition(text: str | None) -> list[tuple[str, float]]:
    """Parses prompt:weight,prompt:weight. The first weight scales γ itself; the others are in units of it."""
    parts = []
    for part in text.split(",") if text else []:
        prompt, colon, weight = part.rpartition(":")
        if not colon:
            raise UserError(f'--compose takes condition:weight, separated by commas; got {part!r} in "{text}"')
        parts.append((prompt, numbers("compose", [weight], 1)[0]))
    if parts and parts[0][1] == 0:
        raise UserError("the first condition of --compose needs a weight other than 0: put another one first")
    return [parts[0], *((prompt, weight / parts[0][1]) for prompt, weight in parts[1:])] if parts else []


def _perturbation(text: str | None) -> Perturbation:
    settings: dict[str, str] = {}
    for part in text.split(",") if text else []:
        name, _, value = part.partition("=")
        settings[name] = value
    for name in settings:
        if name not in Perturbation._fields:
            raise UserError(f"--perturb takes {', '.join(Perturbation._fields)}; got {name!r}")

    def blocks(name: str) -> tuple[int, ...]:
        texts = settings[name].split("+")
        if not all(text.isdecimal() and len(text) < 10 for text in texts):
            raise UserError(f"--perturb={name} takes numbers of blocks, 1+2; got {settings[name]!r:.100}")
        return tuple(int(text) for text in texts)

    p = Perturbation()
    return Perturbation(
        blocks("skip") if "skip" in settings else p.skip,
        settings.get("attention", p.attention),  # pyright: ignore[reportArgumentType]
        numbers("perturb=blur", [settings["blur"]], 1)[0] if "blur" in settings else p.blur,
        blocks("layers") if "layers" in settings else p.layers,
    )
