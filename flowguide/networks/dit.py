"""The diffusion transformer with adaLN-Zero (DiT, Peebles & Xie 2023)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from flowguide.condition import Condition
from flowguide.networks.attention import KERNELS
from flowguide.networks.blocks import CONTEXTS, MLPS, NORMS, BlockInputs, BlockSettings, DiTBlock, JointBlock
from flowguide.networks.embed import ConditionEmbedding, TimeEmbedding, channels_beside, concatenated, has_sequence
from flowguide.networks.layers import (
    Dense,
    RMSNorm,
    check_among,
    check_divisible,
    check_sizes,
    computing_dtype,
    gathered,
    in_blocks,
    modulate,
    normal,
    normalised,
    sides_and_channels,
    zeros,
)
from flowguide.networks.perturbation import UNPERTURBED, Perturbation, Treatment, treatments
from flowguide.networks.positions import TABLES
from flowguide.schema import Fields
from flowguide.typing import Array, PyTree

# Peebles & Xie 2023, Table 1; H is that of JiT (Li & He 2025).
SIZES: dict[str, dict[str, int]] = {
    "S": {"width": 384, "depth": 12, "heads": 6},
    "B": {"width": 768, "depth": 12, "heads": 12},
    "L": {"width": 1024, "depth": 24, "heads": 16},
    "XL": {"width": 1152, "depth": 28, "heads": 16},
    "H": {"width": 1280, "depth": 32, "heads": 16},
}

# Blocks that are compiled one by one on a CPU. There a scan costs a fifth of a training step.
UNROLLED = 8

# Tokens of the image, and of the text if the blocks carry it.
Streams = tuple[Array, Array | None]


class DiT(nnx.Module):
    """u(t, x, c) for signals x (B, T, C), images (B, H, W, C) and volumes (B, D, H, W, C), cut into patches.

    ``lax.scan`` applies one block with stacked parameters, so compile time does not grow with depth.
    """

    def __init__(
        self,
        shape: Sequence[int],
        fields: Fields,
        *,
        patch: int = 2,
        width: int = 192,
        depth: int = 6,
        heads: int = 6,
        ratio: int = 4,
        time_scale: float = 1000.0,
        time_features: int = 128,
        positions: str = "sincos",
        rope: bool = False,
        norm: str = "layer",
        qk_norm: bool = False,
        mlp: str = "gelu",
        bottleneck: int = 0,
        class_tokens: int = 0,
        class_tokens_from: int = 0,
        registers: int = 0,
        shared_film: bool = False,
        context: str = "keys",
        field_tokens: bool = False,
        attention: str = "xla",
        remat: bool = False,
        unroll: int = 0,
        dtype: str = "float32",
        variance: bool = False,
        rngs: nnx.Rngs,
    ):
        """Builds the network; at initialisation the velocity is 0 and the blocks are identities.

        Args:
          shape: (T, C), (H, W, C) or (D, H, W, C) of one example.
          fields: fields of the condition; may be empty.
          patch: side of a patch, the same along every axis: an interval, a square or a cube.
          width: size of a token and of the embeddings; a multiple of ``heads`` and of twice the number of axes.
            ``**SIZES["B"]`` sets width, depth and heads.
          depth: number of blocks.
          heads: number of attention heads.
          ratio: hidden size of the MLPs over ``width``; "swiglu" takes two thirds of it.
          time_scale: factor of t before its sinusoids; SiT (Ma et al. 2024) has 1.
          time_features: number of sinusoids of t, even; DiT and SiT have 256.
          positions: table added to the tokens: "sincos"; "dit", the same numbers in the order of released DiT, SiT and
            JiT; or "none".
          rope: whether to rotate queries and keys by their places in the grid (Su et al. 2021), each axis in its part
            of a head, as LightningDiT (Yao et al. 2025) and JiT (Li & He 2025) do.
          norm: "layer" without weights, or "rms" (Zhang & Sennrich 2019) with weights.
          qk_norm: whether to normalise queries and keys by an RMSNorm with weights (Esser et al. 2024, §5.3.2).
          mlp: "gelu", or "swiglu" (Shazeer 2020).
          bottleneck: size of a linear layer without bias that reads the patches first (JiT); 0 for none.
          class_tokens: number of tokens that hold the condition's vector, without time, plus a learned position (JiT).
          class_tokens_from: block from which on they are there.
          registers: number of learned tokens that all blocks see and the output drops (Darcet et al. 2023).
          shared_film: whether blocks share one projection of the modulation and add a learned table each (adaLN-single,
            Chen et al. 2023, §2.3).
          context: how words and series enter: "keys" adds keys and values to self-attention; "cross" attends to them
            after it (Chen et al. 2023); "joint" carries them through the blocks with weights of their own (MMDiT,
            Esser et al. 2024).
          field_tokens: whether classes and vectors are a token each, too, and enter like words. Without
            it the blocks see only the sum of their embeddings, and follow many fields at once less well.
          attention: "xla", or "cudnn" for cuDNN's flash attention where it runs: bfloat16 on NVIDIA GPUs. That has no
            forward-mode derivative, so log-densities and MeanFlow need "xla".
          remat: whether to recompute each block in the backward pass instead of storing its activations.
          unroll: number of blocks in the scan's body; ``depth`` is fastest to run and slowest to compile. 0 stands for
            ``depth`` on CPUs, where it takes a sixth off a training step, if there are at most ``UNROLLED`` blocks and
            no ``remat``; otherwise for 1.
          dtype: dtype of the computation, "float32" or "bfloat16"; parameters and output are float32.
          variance: whether the output has as many further channels, for the variance (``networks.outputs.epsilon``).
          rngs: random numbers for the initialisation.

        Raises:
          ValueError: if the examples have no spatial axis or more than 3, a size is not positive, the patches do not
            tile an example, the width cannot be split into heads or positions, or settings contradict each other.
        """
        sides, channels = sides_and_channels(shape, "dit")
        check_sizes(patch=patch, width=width, depth=depth, heads=heads, ratio=ratio)
        check_sizes(0, unroll=unroll, class_tokens=class_tokens, class_tokens_from=class_tokens_from)
        check_sizes(0, bottleneck=bottleneck, registers=registers)
        check_among((*TABLES, "none"), positions=positions)
        check_among(NORMS, norm=norm)
        check_among(MLPS, mlp=mlp)
        check_among(CONTEXTS, context=context)
        check_among(KERNELS, attention=attention)
        axes = len(sides)
        check_divisible(sides, patch, f"dit with patch={patch}", "give a patch that divides every side")
        _check_width(width, heads, axes, table=positions != "none", rope=rope)
        _check_time(time_scale, time_features)
        if class_tokens_from and not class_tokens_from < depth * bool(class_tokens):
            raise ValueError(
                f"class_tokens_from is a block, below depth, from which on there are class tokens; got "
                f"class_tokens_from={class_tokens_from}, depth={depth}, class_tokens={class_tokens}: set class_tokens, "
                "or lower class_tokens_from"
            )
        words = has_sequence(fields, tokens=field_tokens)
        if context != "keys" and not words:
            raise ValueError(
                f"context={context!r} is how words or a series enter, and the condition has neither: add such a field, "
                "set field_tokens=True for a token from each class and vector, or leave context at 'keys'"
            )
        if field_tokens and not words:
            raise ValueError("field_tokens needs a condition with a class, a vector or words; got none: leave it False")
        self.dtype = computing_dtype(dtype)
        self.patch, self.depth, self.remat, self.unroll = patch, depth, remat, unroll
        self.positions, self.joint = positions, context == "joint"
        self.class_tokens_from = class_tokens_from
        self.time = TimeEmbedding(width, size=time_features, scale=time_scale, rngs=rngs)
        self.condition = ConditionEmbedding(fields, width, tokens=field_tokens, rngs=rngs)
        seen = patch**axes * (channels + channels_beside(fields, axes))
        self.bottleneck = Dense(seen, bottleneck, use_bias=False, dtype=self.dtype, rngs=rngs) if bottleneck else None
        self.inlet = Dense(bottleneck or seen, width, dtype=self.dtype, rngs=rngs)
        settings = BlockSettings(
            width=width,
            heads=heads,
            ratio=ratio,
            norm=norm,
            qk_norm=qk_norm,
            rope=rope,
            mlp=mlp,
            context=context if words else None,
            shared_film=shared_film,
            kernel=attention,
            dtype=self.dtype,
        )

        @nnx.split_rngs(splits=depth)
        @nnx.vmap(in_axes=(0,), out_axes=0)
        def stack(rngs: nnx.Rngs) -> DiTBlock | JointBlock:
            return (JointBlock if self.joint else DiTBlock)(settings, rngs=rngs)

        self.blocks = stack(rngs)
        self.film = Dense(width, 2 * width, kernel_init=zeros, rngs=rngs)
        self.channels = 2 * channels if variance else channels
        self.outlet = Dense(width, patch**axes * self.channels, kernel_init=zeros, rngs=rngs)
        self.norm = RMSNorm(width) if norm == "rms" else None
        self.shared_film = Dense(width, 6 * width, kernel_init=zeros, rngs=rngs) if shared_film else None
        self.registers = nnx.Param(normal(rngs.params(), (registers, width), std=0.02)) if registers else None
        self.class_tokens = nnx.Param(normal(rngs.params(), (class_tokens, width), std=0.02)) if class_tokens else None

    @property
    def stacked(self) -> tuple[str, ...]:
        """Names of the submodules whose parameters are stacked; the scan gathers them layer by layer."""
        return ("blocks",)

    @property
    def _unrolled(self) -> bool:
        """Whether the scan is unrolled where ``unroll`` leaves it open."""
        return jax.default_backend() == "cpu" and self.depth <= UNROLLED and not self.remat

    @property
    def attends(self) -> tuple[bool, ...]:
        """For each block, whether it has attention."""
        return (True,) * self.depth

    def __call__(self, t: Array, x: Array, c: Condition, perturbation: Perturbation = UNPERTURBED) -> Array:
        """t (B,), x (B, *sides, C), c of batch B -> float32 (B, *sides, C), or 2C channels with ``variance``."""
        embedded = self.condition(c, x.shape[0])
        signal = nnx.silu(self.time(t) + embedded.vector)
        grid = tuple(side // self.patch for side in x.shape[1:-1])
        tokens = self._tokens(concatenated(x, embedded), grid)
        if self.registers is not None:
            tokens = _before(self.registers[...], tokens)
        shared = signal if self.shared_film is None else self.shared_film(signal)
        inputs = BlockInputs(shared, embedded.sequence, embedded.mask, grid)
        run = self._blocks(inputs, perturbation)

        words = embedded.sequence.astype(self.dtype) if self.joint and embedded.sequence is not None else None
        tokens, words = run((tokens, words), slice(0, self.class_tokens_from))
        if self.class_tokens is not None:
            tokens = _before(embedded.vector[:, None] + self.class_tokens[...], tokens)
        tokens, _ = run((tokens, words), slice(self.class_tokens_from, self.depth))

        tokens = tokens[:, tokens.shape[1] - math.prod(grid) :].astype(jnp.float32)
        scale, shift = jnp.split(self.film(signal), 2, axis=-1)
        tokens = modulate(normalised(tokens, self.norm), scale, shift)
        return _from_patches(self.outlet(tokens), self.patch, (*x.shape[:-1], self.channels))

    def _tokens(self, x: Array, grid: tuple[int, ...]) -> Array:
        """Returns a token for each patch, with its position: (B, T, width)."""
        tokens = _to_patches(x, self.patch).astype(self.dtype)
        tokens = self.inlet(tokens if self.bottleneck is None else self.bottleneck(tokens))
        if self.positions == "none":
            return tokens
        return tokens + TABLES[self.positions](grid, tokens.shape[-1]).astype(self.dtype)

    def _blocks(self, inputs: BlockInputs, perturbation: Perturbation) -> Callable[[Streams, slice], Streams]:
        """Returns a function that applies some of the blocks to the tokens of the image and of the text."""
        structure, layers = nnx.split(self.blocks)
        # The scan's body holds each distinct treatment once and looks up the one of a layer. If all layers have the
        # same, as in the plain network, ``switch`` is optimised away.
        plan = treatments(perturbation, self.attends)
        different = sorted(set(plan))
        which = jnp.array([different.index(treatment) for treatment in plan], jnp.int32)

        def under(treatment: Treatment) -> Callable[[PyTree, nnx.State[Any, Any]], PyTree]:
            def apply(h: PyTree, layer: nnx.State[Any, Any]) -> PyTree:
                # Cast for each layer, so that its gradient sums up in float32.
                cast = inputs._replace(signal=inputs.signal.astype(self.dtype))
                return nnx.merge(structure, layer)(h, cast, treatment)

            return apply

        branches = [under(treatment) for treatment in different]

        def apply(h: PyTree, layer: tuple[Array, nnx.State[Any, Any]]) -> tuple[PyTree, None]:
            return jax.lax.switch(layer[0], branches, h, gathered(layer[1])), None

        body = jax.checkpoint(apply, prevent_cse=False) if self.remat else apply

        def run(streams: Streams, some: slice) -> Streams:
            if some.start == some.stop:
                return streams
            tokens, words = streams
            chosen = (which, layers)
            if some != slice(0, self.depth):
                chosen = jax.tree.map(lambda a: a[some], chosen)
            # Only joint attention changes the words; elsewhere they are no carry, which a backward pass would store.
            h = tokens if words is None else streams
            h, _ = jax.lax.scan(body, h, chosen, unroll=self.unroll or self._unrolled)
            return (h, None) if words is None else h

        return run


def _before(more: Array, tokens: Array) -> Array:
    """Puts ``more`` tokens (n, width) or (B, n, width) before the others."""
    more = jnp.broadcast_to(more.astype(tokens.dtype), (tokens.shape[0], *more.shape[-2:]))
    return jnp.concatenate([more, tokens], axis=1)


def _check_width(width: int, heads: int, axes: int, *, table: bool, rope: bool) -> None:
    """Raises ``ValueError`` unless the width can be split into heads, and positions into axes."""
    halves = 2 * axes
    if width % heads or (table and width % halves):
        wider = width + -width % math.lcm(heads, halves)
        raise ValueError(
            f"dit over {axes} axes needs a width divisible by heads and by {halves}; got width={width}, "
            f"heads={heads}: try width={wider}"
        )
    if rope and (width // heads) % halves:
        raise ValueError(
            f"rope over {axes} axes needs heads of a size divisible by {halves}; got width={width}, heads={heads}, "
            f"which gives {width // heads}: try width={width + -width % (heads * halves)}"
        )


def _check_time(scale: float, features: int) -> None:
    """Raises ``ValueError`` unless there are sines and cosines of t."""
    check_sizes(2, time_features=features)
    if features % 2 or not 0 < scale < math.inf:
        raise ValueError(
            f"time_features must be even and time_scale positive; got time_features={features}, time_scale={scale}"
        )


def _to_patches(x: Array, p: int) -> Array:
    """(B, H, W, C) -> (B, H/p · W/p, p·p·C), and likewise for other ranks; tokens and patches are row-major."""
    b, *sides, c = x.shape
    n = len(sides)
    blocks = in_blocks(x, p).transpose(0, *range(1, 2 * n, 2), *range(2, 2 * n + 1, 2), 2 * n + 1)
    return blocks.reshape(b, math.prod(side // p for side in sides), p**n * c)


def _from_patches(tokens: Array, p: int, shape: tuple[int, ...]) -> Array:
    """The inverse of ``_to_patches``: tokens -> an array of ``shape``."""
    b, *sides, c = shape
    n = len(sides)
    blocks = tokens.reshape(b, *(side // p for side in sides), *(p,) * n, c)
    pairs = (axis for i in range(1, n + 1) for axis in (i, n + i))
    return blocks.transpose(0, *pairs, 2 * n + 1).reshape(shape)
