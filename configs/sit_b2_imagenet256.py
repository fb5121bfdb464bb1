"""SiT-B/2 on the latents of ImageNet, 256 x 256 (Ma et al. 2024, arXiv 2401.08740): a smaller network for comparisons.

Prepare the data as the docstring of configs/sit_xl2_imagenet256.py says.

python train.py --config=configs/sit_b2_imagenet256.py --workdir=runs/sit_b2_imagenet256
flowguide sample --workdir=runs/sit_b2_imagenet256 --recipe=sit-sde --cond=207

It trains for 400,000 steps, the length at which papers compare networks. Not run here. It is for several accelerators:
at 138 GFLOP an image, these steps take 1.2 hours on eight H100 at 40 % of their peak.
"""

from sit_xl2_imagenet256 import get_config as sit_xl2

from flowguide.networks import SIZES


def get_config():
    c = sit_xl2()
    c.network.update(SIZES["B"])
    c.network.remat = False
    c.steps = 400_000
    return c
