"""An autoencoder that is small and random, and images for it."""

import jax
import numpy as np

from flowguide.autoencoder import Autoencoder, Sizes, functions

SIZES = Sizes(3, (4, 8), 1, 2, 2)


def tiny_vae(seed=0):
    """An autoencoder whose weights are zero nowhere."""
    params = functions(SIZES).init(jax.random.key(seed))
    rng = np.random.default_rng(seed)
    return Autoencoder(SIZES, jax.tree.map(lambda a: a + 0.2 * rng.normal(size=a.shape).astype(np.float32), params))


def images_file(folder, count=23, side=(4, 6), seed=0):
    """Images with a label, as an .npz; returns its path, the images and the labels."""
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 256, (count, *side, 3), dtype=np.uint8)
    hat = rng.integers(0, 3, count)
    np.savez(folder / "faces.npz", image=x, hat=hat)
    return folder / "faces.npz", x, hat
