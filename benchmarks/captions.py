"""Do faces show what their caption says? Judged by classifiers trained on the real images.

python benchmarks/captions.py --workdir=runs/captions_mmdit [--num=256] [--gamma=1,2,3]

Captions of held-out faces are prompts. Then a short prompt asks for a red hat and says nothing else, and a negative
prompt moves away from what else is drawn then.
"""

import judged
import numpy as np
from absl import flags

from flowguide import build, sampling
from flowguide.cli.command import run_script
from flowguide.config import read_config
from flowguide.data.builders.avatars import caption
from flowguide.errors import UserError
from flowguide.metrics import predict, train_judge
from flowguide.schema import Label
from flowguide.storage import path

WORKDIR = flags.DEFINE_string("workdir", None, "folder of a run on captions")
NUM = flags.DEFINE_integer("num", 256, "samples for each line of the table")
GAMMA = flags.DEFINE_list("gamma", ["1", "2", "3"], "guidance scales")
SOLVER = flags.DEFINE_enum("solver", "ab2", list(sampling.SOLVER_NAMES), "ODE solver")
STEPS = flags.DEFINE_integer("steps", 25, "steps of the solver")
SHOWN = ("hat", "glasses", "beard", "hair", "hair_color", "mouth", "clothing", "skin")


def main() -> None:
    model = judged.load(WORKDIR.value)[0]
    if list(model.info.fields) != ["caption"]:
        raise UserError(f"expected a run on captions; got the fields {list(model.info.fields)}")
    c = read_config(path(WORKDIR.value or ""))
    c.data.fields = ()  # all labels, for the judge
    data = build.splits(c)
    names = {name: field.values for name, field in data.train.info.fields.items() if isinstance(field, Label)}
    real, held_out = (part.read(np.arange(part.size)) for part in data)
    judge = train_judge(real.x, real.value, levels=2, noise=30)

    num = min(NUM.value, len(held_out.x))
    labels = {name: held_out.value[name][:num] for name in names}
    faces = [{name: values[labels[name][i]] for name, values in names.items()} for i in range(num)]
    config = sampling.SamplerConfig(SOLVER.value, STEPS.value)

    def line(title: str, x: np.ndarray) -> None:
        predicted = predict(judge, x)
        # A caption does not say what is not worn, and leaves it open.
        open_to = {n: np.isin(np.array(v)[labels[n][: len(x)]], ("none", "no")) for n, v in names.items()}
        hits = {name: (predicted[name] == labels[name][: len(x)]) | open_to[name] for name in names}
        both = np.mean(hits["hat"] & hits["glasses"])
        every = np.mean(np.all(list(hits.values()), axis=0))
        each = "".join(f"{hits[name].mean():11.3f}" for name in SHOWN)
        print(f"{title:22}{each}{both:13.3f}{every:8.3f}", flush=True)

    print(f"{'as the caption says':22}" + "".join(f"{n:>11}" for n in (*SHOWN, "hat+glasses", "all")))
    line("held-out real faces", held_out.x[:num])
    for gamma in map(float, GAMMA.value):
        x = sampling.sample(model, [caption(face) for face in faces], gamma=gamma, config=config).x
        line(f"γ = {gamma:g}", x)

    print("\na prompt that says little: shares of what is drawn")
    red, dark = names["hat"].index("red"), names["glasses"].index("none")
    for negative, weight in ((), 1.0), (["dark glasses", "light glasses"], 1.0), (["beard"], 1.0), (["beard"], 2.0):
        x = sampling.sample(
            model, "red hat", num=num, gamma=2.0, negative=negative, gamma_negative=weight, config=config
        ).x
        p = predict(judge, x)
        bearded = np.mean(p["beard"] == names["beard"].index("yes"))
        away = f"away from {' and '.join(negative)}, γ_n = {weight:g}" if negative else "no negative prompt"
        print(
            f"  red hat, {away:55} red hat {np.mean(p['hat'] == red):.3f}  glasses {np.mean(p['glasses'] != dark):.3f}"
            f"  beard {bearded:.3f}",
            flush=True,
        )


if __name__ == "__main__":
    run_script(main)
