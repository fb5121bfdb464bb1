"""The faces of configs/avatars.py by a small transformer: what `make demo` trains.

python train.py --config=configs/avatars_demo.py --workdir=runs/avatars_demo
python sample.py --workdir=runs/avatars_demo --cond="hat=red,glasses=none" --gamma=2 --solver=renoise_2m --steps=50

About 5 minutes on 2 CPU cores.
"""

from avatars_best import get_config as best


def get_config():
    c = best()
    c.network.update({"width": 64, "depth": 3})
    c.steps = 2000
    c.log_every = 20
    c.checkpoint_every = 400
    c.eval_every = 400
    c.preview.every = 200
    return c
