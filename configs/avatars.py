"""Faces with eight attributes, 16x16: the embedded data set, and the demo.

python train.py --config=configs/avatars.py --workdir=runs/avatars
python sample.py --workdir=runs/avatars --cond="hat=red,glasses=none" --gamma=2

About 4 minutes on 2 CPU cores. benchmarks/adherence.py measures how many samples match their condition.
"""

from flowguide import config


def get_config():
    c = config.default()
    c.data.name = "avatars"
    # The faces are aligned, so an MLP over all pixels learns them in a third of the time of a U-Net or DiT.
    c.network = {"name": "mlp", "width": 1024, "depth": 3, "refine": 64, "dtype": "float32"}
    # Prompts name one to eight fields. With rates up to 1 there are too few examples that have all of them.
    c.drop_field_rate = (0.0, 0.5)
    c.steps = 1200
    c.batch_size = 128
    c.lr = 1e-3
    c.warmup = 30
    c.stratified = True
    c.times.update({"mean": 0.3, "std": 1.4})
    c.log_every = 20
    c.checkpoint_every = 400
    c.eval_every = 400
    c.preview.update({"every": 200, "num": 25, "gammas": (1.0, 2.0), "solver": "ab2"})
    return c
