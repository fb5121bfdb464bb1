"""Which guidance method on faces? All of them, each at its best scale.

flowguide train --config=avatars --workdir=runs/avatars --config.keep=3
python benchmarks/methods.py --workdir=runs/avatars

A pilot sweep over γ finds two scales for each method: the one nearest to the data (Fréchet distance), and the one with
the highest adherence to the condition. Both are then drawn again with other seeds; the table has means and standard
deviations over these. Autoguidance moves away from an earlier checkpoint, --weak_step. Perp-Neg, contrastive and
dynamic negative guidance move away from the condition of another example.

It resumes: what was drawn is kept in WORKDIR/methods. An hour on 2 CPU cores.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from flowguide import build, evaluation, sampling
from flowguide.cli.command import run_script
from flowguide.config import read_config
from flowguide.networks import Perturbation
from flowguide.sampling import SamplerConfig

WORKDIR = flags.DEFINE_string("workdir", None, "folder that train.py has written", required=True)
WEAK_STEP = flags.DEFINE_integer("weak_step", 400, "checkpoint for autoguidance")
NUM = flags.DEFINE_integer("num", 500, "samples for each seed")
SEEDS = flags.DEFINE_integer("seeds", 3, "seeds of the table; the pilot has another one")
STEPS = flags.DEFINE_integer("steps", 20, "steps of AB2")

GAMMAS = (1.5, 2.0, 3.0, 5.0)


class Method(NamedTuple):
    """A method, and the scales that the pilot tries."""

    config: SamplerConfig
    gammas: tuple[float, ...] = GAMMAS
    away: bool = False


def methods(steps: int) -> dict[str, Method]:
    """Returns all methods of the package that guide by γ, by their names in the table."""
    base = SamplerConfig(solver="ab2", steps=steps)
    middle = (0.2, 0.8)
    alone = {
        name: Method(base._replace(guidance=name))
        for name in ("cfg", "zero_star", "apg", "tcfg", "fdg", "mambo_g", "beta_cfg", "feedback")
    }
    return {
        "none": Method(base, (1.0,)),
        **alone,
        "fdg": Method(base._replace(guidance="fdg"), (1.25, 1.5, 2.0, 3.0)),
        "feedback": Method(base._replace(guidance="feedback"), (0.5, 1.0, 1.5, 2.0)),
        "cfg, 0.2 < t < 0.8": Method(base._replace(interval=middle)),
        "apg, 0.2 < t < 0.8": Method(base._replace(guidance="apg", interval=middle)),
        "cfg, rescaled 0.7": Method(base._replace(rescale=0.7)),
        "cfg_pp (ddim)": Method(base._replace(guidance="cfg_pp", solver="ddim"), (0.3, 0.5, 0.7, 1.0)),
        "perturbed, skip=1": Method(
            base._replace(guidance="perturbed", settings=(("strength", 0.5),), perturbation=Perturbation(skip=(1,)))
        ),
        "autoguidance": Method(base._replace(guidance="autoguidance")),
        "perp_neg": Method(base._replace(guidance="perp_neg"), away=True),
        "contrastive": Method(base._replace(guidance="contrastive", settings=(("tau", 0.02),)), away=True),
        "dng": Method(base._replace(guidance="dng", settings=(("prior", 0.3), ("tau", 0.05))), away=True),
    }


def main() -> None:
    workdir = Path(WORKDIR.value)
    model, data = sampling.load(workdir), build.splits(read_config(workdir))
    weak = sampling.load(workdir, WEAK_STEP.value)
    folder, chosen = workdir / "methods", methods(STEPS.value)

    def rows(scales: dict[str, list[float]], seeds: range) -> dict[str, list[dict[str, Any]]]:
        settings, names = [], []
        for name, gammas in scales.items():
            config, _, away = chosen[name]
            negatives = (evaluation.OTHER,) if away else ()
            settings += evaluation.settings(model, gammas, [config], weak, negatives, gamma_negative=0.5)
            names += [name] * len(gammas)
        found = evaluation.evaluate(settings, data, folder, num=NUM.value, seeds=seeds, progress=True)
        assert found is not None
        by_name = {name: [] for name in scales}
        for name, row in zip(names, found.rows, strict=True):
            by_name[name].append(row)
        return {**by_name, "": [found.held_out]}

    pilot = rows({name: list(method.gammas) for name, method in chosen.items()}, range(100, 101))
    best = {}
    for name in chosen:
        near = min(pilot[name], key=lambda row: row["metrics"]["frechet_distance"])
        adherent = max(pilot[name], key=lambda row: row["metrics"]["joint_adherence"])
        best[name] = list(dict.fromkeys([near["gamma"], adherent["gamma"]]))
    final = rows(best, range(SEEDS.value))

    print("| method | γ | Fréchet | precision | recall | adherence | NFE |\n|---|---|---|---|---|---|---|")
    held = final[""][0]["metrics"]
    print(f"| *real faces, held out* | | {_text(held, None)} | |")
    for name in chosen:
        for row in final[name]:
            print(f"| {name} | {row['gamma']:g} | {_text(row['metrics'], row['spread'])} | {row['evaluations']:.4g} |")


def _text(metrics: dict[str, Any], spread: dict[str, Any] | None) -> str:
    def cell(name: str, form: str) -> str:
        error = np.nan if spread is None else spread[name]
        return form.format(metrics[name]) + ("" if np.isnan(error) else f" ± {form.format(error)}")

    shares = (cell(name, "{:.3f}") for name in ("precision", "recall", "joint_adherence"))
    return " | ".join([cell("frechet_distance", "{:.1f}"), *shares])


if __name__ == "__main__":
    run_script(main)
