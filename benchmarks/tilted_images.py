"""Guidance, Langevin corrections and weighted particles on images, at equal network evaluations a sample.

python benchmarks/tilted_images.py --workdir=runs/digits [--particles=64] [--gamma=2,4] [--evaluations=96]

Every line spends the same evaluations on a sample. For each: the share of samples that have all that was asked (by a
judge trained on real images), their diversity (root mean square distance of the samples of a condition from their mean,
of 255), and for particles how many of the first are left at the end and log Z. For the law p(x)^(1−γ)·p(x|c)^γ of exact
fields log Z is at most (γ − 1)·log 1/p(c): what is beyond are the network's errors. Some ten minutes on 2 CPU cores.
"""

import time

import judged
import numpy as np
from absl import flags

from flowguide import sampling
from flowguide.cli.command import run_script
from flowguide.condition import Condition
from flowguide.errors import UserError
from flowguide.metrics import joint_adherence, predict, train_judge

WORKDIR = flags.DEFINE_string("workdir", None, "folder that train.py has written, of images with labels")
CONDITIONS = flags.DEFINE_integer("conditions", 4, "different conditions, of held-out images")
PARTICLES = flags.DEFINE_integer("particles", 64, "samples, and particles, of each condition")
GAMMA = flags.DEFINE_list("gamma", ["2", "4"], "guidance scales")
EVALUATIONS = flags.DEFINE_integer("evaluations", 96, "network evaluations for each sample")

LINES = {
    "CFG, ODE (AB3)": {"solver": "ab3"},
    "CFG, SDE η = 1": {"solver": "renoise_2m"},
    "PC, M = 1": {"sampler": "pc", "corrections": 1},
    "PC, M = 3": {"sampler": "pc", "corrections": 3},
    "FKC": {"sampler": "fkc"},
    "FKC, η = 1": {"sampler": "fkc", "eta": 1.0},
    "FKC until t = 0.7": {"sampler": "fkc", "until": 0.7},
    "FKC until t = 0.5": {"sampler": "fkc", "until": 0.5},
    "FKC until t = 0.7, proposal 1.5": {"sampler": "fkc", "until": 0.7, "proposal": 1.5},
    "FKC, clip 0.1": {"sampler": "fkc", "clip": 0.1},
}


def main() -> None:
    model, real, held_out = judged.load(WORKDIR.value)
    if not model.info.examples.as_pictures:
        raise UserError(f"expected a run of images; got {model.info.name}")
    judge = train_judge(real.x, real.value, levels=2, noise=30) if model.info.shape[-1] > 1 else None
    judge = judge or train_judge(real.x, real.value)
    groups, each = CONDITIONS.value, PARTICLES.value

    # The first held-out examples that differ from each other.
    rows: list[int] = []
    for i in range(len(held_out.x)):
        if len(rows) < groups and all(any(v[i] != v[j] for v in held_out.value.values()) for j in rows):
            rows.append(i)
    asked = {name: v[rows] for name, v in held_out.value.items()}

    def condition(repeats: int) -> Condition:
        value = {name: np.repeat(v, repeats) for name, v in asked.items()}
        return Condition(value, {name: np.ones(len(v), bool) for name, v in value.items()})

    header = (
        f"{'':34}{'steps':>6}{'evaluations':>12}{'as asked':>9}{'diversity':>10}{'first left':>11}{'log Z':>16}{'s':>6}"
    )
    for gamma in map(float, GAMMA.value):
        print(f"\nγ = {gamma:g}, {groups} conditions, {each} samples each\n{header}")
        for label, options in LINES.items():
            stages = 1 + options.get("corrections", 0)
            # The first step of a predictor-corrector has nothing to correct.
            steps = (EVALUATIONS.value // 2 + options.get("corrections", 0)) // stages
            config = sampling.resolve_defaults(sampling.SamplerConfig(steps=steps, particles=each, **options), model)
            started, left, log_z = time.perf_counter(), "", ""
            if config.sampler == "fkc":
                laws = sampling.sample_particles(
                    model, condition(1), gamma=gamma, config=config, batch_size=groups * each
                )
                x, cost = sampling.resample_equal(laws), laws.evaluations
                left = f"{np.mean([len(np.unique(a)) for a in laws.ancestors]):.1f}"
                log_z = f"{laws.log_z.min():.1f} to {laws.log_z.max():.1f}"
            else:
                s = sampling.sample(model, condition(each), gamma=gamma, config=config, batch_size=groups * each)
                x, cost = s.x, int(s.evaluations.max())
            seconds = time.perf_counter() - started
            right = joint_adherence(predict(judge, x), condition(each))
            spread = np.sqrt(x.reshape(groups, each, -1).astype(float).var(axis=1).mean())
            numbers = f"{steps:6}{cost:12}{right:9.3f}{spread:10.1f}{left:>11}{log_z:>16}{seconds:6.0f}"
            print(f"{label:34}{numbers}", flush=True)


if __name__ == "__main__":
    run_script(main)
