"""Velocity networks u(t, x, c) in Flax NNX, and ``as_network``, which turns one into plain functions."""

from flax import nnx

from flowguide.networks.dit import SIZES, DiT
from flowguide.networks.embed import ConditionEmbedding, TimeEmbedding
from flowguide.networks.mlp import MLP
from flowguide.networks.seam import Network, Params, as_network, count_parameters
from flowguide.networks.unet import UNet

NETWORKS: dict[str, type[nnx.Module]] = {"mlp": MLP, "unet": UNet, "dit": DiT}

__all__ = [
    "MLP",
    "NETWORKS",
    "SIZES",
    "ConditionEmbedding",
    "DiT",
    "Network",
    "Params",
    "TimeEmbedding",
    "UNet",
    "as_network",
    "count_parameters",
]
