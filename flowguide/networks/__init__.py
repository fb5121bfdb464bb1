"""Velocity networks u(t, x, c) in Flax NNX, and ``as_network``, which turns one into pure functions."""

from collections.abc import Callable

from flax import nnx

from flowguide.networks.check import check_network
from flowguide.networks.classifier import Classifier, log_probability
from flowguide.networks.dit import SIZES, DiT
from flowguide.networks.embed import ConditionEmbedding, TimeEmbedding
from flowguide.networks.mlp import MLP
from flowguide.networks.module import Network, Params, as_network, count_parameters
from flowguide.networks.perturbation import Perturbation
from flowguide.networks.unet import UNet

NETWORKS: dict[str, Callable[..., nnx.Module]] = {"mlp": MLP, "unet": UNet, "dit": DiT}
CLASSIFIERS: dict[str, Callable[..., nnx.Module]] = {"mlp": Classifier}

__all__ = [
    "CLASSIFIERS",
    "MLP",
    "NETWORKS",
    "SIZES",
    "Classifier",
    "ConditionEmbedding",
    "DiT",
    "Network",
    "Params",
    "Perturbation",
    "TimeEmbedding",
    "UNet",
    "as_network",
    "check_network",
    "count_parameters",
    "log_probability",
]
