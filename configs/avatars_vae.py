"""An autoencoder of the faces, 16x16x3 to 8x8x8. configs/avatars_latent.py trains a model on its latents.

python train.py --config=configs/avatars_vae.py --workdir=runs/avatars_vae
flowguide data encode avatars --vae=runs/avatars_vae --out=avatars_latents

Training takes 11 minutes on one CPU core of a shared machine; encoding takes another half minute.
"""

from flowguide import config


def get_config():
    c = config.default()
    c.task = "autoencoder"
    c.data.name = "avatars"
    c.network = {"name": "kl", "widths": (32, 48), "blocks": 1, "latent": 8, "groups": 8, "dtype": "float32"}
    c.autoencoder.kl = 3e-3
    c.autoencoder.l1 = 1.0
    c.steps = 3000
    c.batch_size = 32
    c.lr = 3e-3
    c.warmup = 50
    c.ema.decay = 0.995
    c.log_every = 50
    c.checkpoint_every = 1000
    c.eval_every = 1000
    c.preview.update({"every": 1000, "num": 25})
    return c
