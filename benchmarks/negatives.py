"""When do negative conditions fail? Every form of them, over its strength, judged on faces.

python benchmarks/negatives.py --workdir=runs/avatars [--out=docs/negatives.png]

Asks for a red hat and against dark glasses. For each form and strength: the share of dark glasses that is left, the
share of red hats that is kept, and the Fréchet distance (on 24 principal components of the pixels) to real faces with
a red hat and no dark glasses. The judge is trained on real images. Ten minutes on 2 CPU cores.
"""

import judged
import numpy as np
from absl import flags
from matplotlib.figure import Figure

from flowguide import sampling
from flowguide.cli.command import run_script
from flowguide.condition import Condition
from flowguide.errors import UserError
from flowguide.metrics import frechet_distance, moments, predict, share, train_judge
from flowguide.schema import Label

WORKDIR = flags.DEFINE_string("workdir", None, "folder that train.py has written, of avatars")
NUM = flags.DEFINE_integer("num", 256, "samples for each line of the table")
GAMMA = flags.DEFINE_float("gamma", 2.0, "guidance scale of the condition")
STEPS = flags.DEFINE_integer("steps", 20, "steps of AB3")
OUT = flags.DEFINE_string("out", None, "where to draw the figure, e.g. docs/negatives.png")

STRENGTHS = (0.5, 1.0, 2.0, 4.0)
FORMS = {
    "replaces ∅, γ = 1 + γ_n": {"replace_null": True},
    "own weight γ_n": {},
    "own weight, 0.2 ≤ t ≤ 0.8": {"interval": (0.2, 0.8)},
    "own weight, rescaled": {"rescale": 0.7},
    "Perp-Neg": {"guidance": "perp_neg"},
    "contrastive, τ = 0.02": {"guidance": "contrastive", "settings": (("tau", 0.02),)},
    "DNG, λ = γ_n": {"guidance": "dng", "settings": (("prior", 0.3), ("tau", 0.05))},
}


def main() -> None:
    model, *real = judged.load(WORKDIR.value)
    if model.info.name != "avatars":
        raise UserError(f"expected a run of avatars, whose hats and glasses are judged; got {model.info.name}")
    judge = train_judge(real[0].x, real[0].value, levels=2, noise=30)
    hat, glasses = model.info.fields["hat"], model.info.fields["glasses"]
    assert isinstance(hat, Label)
    assert isinstance(glasses, Label)
    red, dark = hat.values.index("red"), glasses.values.index("dark")

    # What a perfect answer looks like, and the directions in which it is told from others.
    x = np.concatenate([r.x for r in real]).reshape(-1, np.prod(model.info.shape)).astype(float) / 255
    hat, glasses = (np.concatenate([r.value[n] for r in real]) for n in ("hat", "glasses"))
    wanted = x[(hat == red) & (glasses != dark)]
    centre, (_, _, axes) = x.mean(0), np.linalg.svd(x - x.mean(0), full_matrices=False)
    components = axes[:24].T
    target = moments([(wanted - centre) @ components])

    num, fields = NUM.value, model.info.fields

    def say(**chosen: int) -> Condition:
        value = {n: np.full(num, chosen.get(n, 0), np.int32) for n in fields}
        return Condition(value, {n: np.full(num, n in chosen) for n in fields})

    def measure(gamma: float, away: bool, weight: float, **options) -> tuple[float, float, float]:
        config = sampling.SamplerConfig("ab3", STEPS.value, **options)
        negative = [say(glasses=dark)] if away else []
        s = sampling.sample(model, say(hat=red), gamma=gamma, negative=negative, gamma_negative=weight, config=config)
        predicted = predict(judge, s.x)
        features = (s.x.reshape(num, -1).astype(float) / 255 - centre) @ components
        return (
            share(predicted["glasses"], [dark]),
            share(predicted["hat"], [red]),
            frechet_distance(moments([features]), target),
        )

    print(f"{'':28}{'γ_n':>6}{'dark glasses':>14}{'red hat':>10}{'Fréchet':>10}")
    print(f"{'real faces, red hat':28}{'':6}{np.mean(glasses[hat == red] == dark):14.3f}{1.0:10.3f}")
    base = measure(GAMMA.value, False, 1.0)
    print(f"{'no negative condition':28}{'':6}{base[0]:14.3f}{base[1]:10.3f}{base[2]:10.3f}", flush=True)
    curves = {}
    for form, options in FORMS.items():
        curves[form] = []
        for weight in STRENGTHS:
            gamma = 1 + weight if "replace_null" in options else GAMMA.value
            found = measure(gamma, True, weight, **options)
            curves[form].append(found)
            print(f"{form:28}{weight:6g}{found[0]:14.3f}{found[1]:10.3f}{found[2]:10.3f}", flush=True)
    if OUT.value:
        _plot(curves, base).savefig(OUT.value, dpi=110)
        print(f"figure: {OUT.value}")


def _plot(curves: dict[str, list[tuple[float, ...]]], base: tuple[float, float, float]) -> Figure:
    figure = Figure(figsize=(12, 4), layout="constrained")
    titles = "share of dark glasses left", "share of red hats kept", "Fréchet distance to real red hats without"
    for i, (ax, title) in enumerate(zip(figure.subplots(1, 3), titles, strict=True)):
        ax.axhline(base[i], color="0.6", ls=":", label="no negative condition")
        for k, (form, found) in enumerate(curves.items()):
            ax.plot(STRENGTHS, [f[i] for f in found], "os^vDPX"[k] + "-", ms=4, lw=1.2, label=form)
        ax.set_xscale("log", base=2)
        ax.set_xticks(STRENGTHS, [f"{s:g}" for s in STRENGTHS])
        ax.set_xlabel("strength γ_n")
        ax.set_title(title, fontsize=10)
    figure.axes[2].set_yscale("log")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=9)
    return figure


if __name__ == "__main__":
    run_script(main)
