"""Faces from captions: "short red hair, blue hat, dark glasses, happy, green clothing, skin 2".

python train.py --config=configs/captions.py --workdir=runs/captions
python sample.py --workdir=runs/captions --cond="red hat, dark glasses, happy" --gamma=2

The DiT attends to the words: they add keys and values to its self-attention.

For a CPU or any GPU; not timed here. A step takes three times the operations of one of avatars, and there are 2.5 times
as many: about half an hour on 2 CPU cores.
"""

from avatars import get_config as avatars


def get_config():
    c = avatars()
    c.data.fields = ("caption",)
    c.network = {"name": "dit", "patch": 2, "width": 128, "depth": 4, "heads": 4, "dtype": "float32"}
    c.steps = 3000
    c.lr = 1e-3
    return c
