"""Do samples have what was asked for? Judged by classifiers trained on the real images.

python benchmarks/adherence.py --workdir=runs/avatars [--num=256] [--gamma=1,2,4] [--solver=ab2]

Conditions are those of held-out real examples. "all" is the share of samples with everything that was asked for, and
"flat" that of pixels with a neighbour of about the same colour. On avatars it also guides away from glasses, with the
negative condition weighted by γ_n and in place of ∅, and prints how many samples still have glasses and how many have
the hat that was asked for.
"""

import time

import judged
import numpy as np
from absl import flags

from flowguide import sampling
from flowguide.cli.command import run_script
from flowguide.condition import Condition
from flowguide.metrics import adherence, joint_adherence, predict, share, train_judge

WORKDIR = flags.DEFINE_string("workdir", None, "folder that train.py has written")
NUM = flags.DEFINE_integer("num", 256, "samples for each line of the table")
GAMMA = flags.DEFINE_list("gamma", ["1", "2", "4"], "guidance scales")
SOLVER = flags.DEFINE_enum("solver", "ab2", list(sampling.SOLVER_NAMES), "ODE solver")
STEPS = flags.DEFINE_integer("steps", 25, "steps of the solver")


def main() -> None:
    model, real, held_out = judged.load(WORKDIR.value)

    started = time.perf_counter()
    # A coarse code and strong noise: guided colours are more saturated than any real one, and must still be read.
    judge = train_judge(real.x, real.value, levels=2, noise=30)
    print(f"judge trained on {len(real.x)} real images in {time.perf_counter() - started:.0f} s")
    names = list(model.info.fields)
    columns = (*names, "all", "flat")
    print(f"{'':34}" + "".join(f"{name:>12}" for name in columns))

    def line(label: str, x: np.ndarray, c: Condition) -> dict[str, np.ndarray]:
        predicted = predict(judge, x)
        scores = adherence(predicted, c) | {"all": joint_adherence(predicted, c), "flat": flat(x)}
        print(f"{label:34}" + "".join(f"{scores[n]:12.3f}" if n in scores else f"{'':12}" for n in columns), flush=True)
        return predicted

    def every(value: dict[str, np.ndarray], *present: str) -> Condition:
        return Condition(value, {n: np.full(len(value[n]), n in present) for n in names})

    line("held-out real images", held_out.x, every(held_out.value, *names))
    num = min(NUM.value, len(held_out.x))
    value = {n: v[:num] for n, v in held_out.value.items()}
    config = sampling.SamplerConfig(SOLVER.value, STEPS.value)
    draw = lambda c, **options: sampling.sample(model, c, **{"config": config, **options}).x  # noqa: E731
    for gamma in map(float, GAMMA.value):
        line(f"all fields asked, γ = {gamma:g}", draw(every(value, *names), gamma=gamma), every(value, *names))
    print("diversity, the root mean square distance of the samples of one condition from their mean (of 255):")
    alike = _groups(value, 12, 16)
    for gamma in map(float, GAMMA.value):
        x = draw(every(alike, *names), gamma=gamma).reshape(12, 16, -1).astype(float)
        print(f"{f'  γ = {gamma:g}':34}{np.sqrt(x.var(axis=1).mean()):12.1f}")
    if model.info.name == "avatars":
        asked = every(value, "hat", "glasses")
        line("hat and glasses asked, γ = 2", draw(asked, gamma=2.0), asked)
        _negative(model, line, draw, every, num)


def flat(images: np.ndarray, tolerance: int = 8) -> float:
    """Returns the share of pixels that differ from one of their four neighbours by at most ``tolerance`` of 255."""
    x = images.astype(int)
    down, right = (np.abs(np.diff(x, axis=axis)).max(axis=-1) <= tolerance for axis in (1, 2))
    alike = np.zeros(x.shape[:3], bool)
    alike[:, 1:] |= down
    alike[:, :-1] |= down
    alike[:, :, 1:] |= right
    alike[:, :, :-1] |= right
    return float(alike.mean())


def _groups(value: dict[str, np.ndarray], conditions: int, each: int) -> dict[str, np.ndarray]:
    """The first few conditions, each several times."""
    return {name: np.repeat(v[:conditions], each) for name, v in value.items()}


def _negative(model, line, draw, every, num: int) -> None:
    """Asks for a red hat, says nothing of glasses, and then pushes away from them."""
    fields = model.info.fields
    value = {n: np.zeros(num, np.int32) for n in fields}
    value["hat"] += fields["hat"].values.index("red")
    asked = every(value, "hat")
    kinds = fields["glasses"].values
    away = [every({**value, "glasses": np.full(num, kinds.index(k), np.int32)}, "glasses") for k in ("dark", "light")]

    def show(label: str, **options) -> None:
        predicted = line(label, draw(asked, gamma=2.0, **options), asked)
        print(
            f"{'':34}" + ", ".join(f"{k} glasses {share(predicted['glasses'], [i]):.3f}" for i, k in enumerate(kinds))
        )

    show("red hat, γ = 2")
    for weight in (0.5, 1.0, 1.5, 2.0):
        show(f"  away from glasses, γ_n = {weight:g}", negative=away, gamma_negative=weight)
    for kind, d in zip(("dark", "light"), away, strict=True):
        show(
            f"  {kind} glasses in the place of ∅",
            negative=[d],
            config=sampling.SamplerConfig(SOLVER.value, STEPS.value, replace_null=True),
        )


if __name__ == "__main__":
    run_script(main)
