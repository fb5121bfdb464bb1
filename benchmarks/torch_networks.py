"""The DiT and the U-Net of flowguide with their default settings, in PyTorch; needs the extra peers.

Submodules have the names of ours, so ``load`` copies our parameters, and a benchmark can check that both compute the
same function before it times them. Attention is PyTorch's ``scaled_dot_product_attention``.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from torch import Tensor, nn  # pyright: ignore[reportMissingImports]
from torch.nn import functional as F  # pyright: ignore[reportMissingImports]

from flowguide.networks.positions import sincos_positions


class TimeEmbedding(nn.Module):
    """t (B,) in [0, 1] -> (B, width)."""

    def __init__(self, width: int, size: int = 128):
        super().__init__()
        self.hidden, self.out = nn.Linear(size, width), nn.Linear(width, width)
        frequency = torch.exp(-math.log(10_000.0) * torch.arange(size // 2) / (size // 2))
        self.register_buffer("frequency", 1000 * frequency, persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        angle = t[:, None] * self.frequency
        return self.out(F.silu(self.hidden(torch.cat([angle.cos(), angle.sin()], dim=-1))))


class LabelEmbedding(nn.Module):
    """Classes (B,) -> (B, width); a negative class is ∅."""

    def __init__(self, classes: int, width: int):
        super().__init__()
        self.table, self.null = nn.Parameter(torch.zeros(classes, width)), nn.Parameter(torch.zeros(width))

    def forward(self, label: Tensor) -> Tensor:
        return torch.where(label[:, None] < 0, self.null, F.embedding(label.clamp(min=0), self.table))


class Condition(nn.Module):
    """The embedding of the one field "label"."""

    def __init__(self, classes: int, width: int):
        super().__init__()
        self.fields = nn.ModuleDict({"label": LabelEmbedding(classes, width)})

    def forward(self, label: Tensor) -> Tensor:
        return self.fields["label"](label)


class Attention(nn.Module):
    """Self-attention (B, N, width) -> (B, N, width)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, width = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, width))


class DiTBlock(nn.Module):
    """An adaLN-Zero block."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.film = nn.Linear(width, 6 * width)
        self.attention = Attention(width, heads)
        self.hidden, self.out = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, signal: Tensor) -> Tensor:
        scale, shift, gate, scale_2, shift_2, gate_2 = self.film(signal)[:, None].chunk(6, dim=-1)
        x = x + gate * self.attention(_layer_norm(x) * (1 + scale) + shift)
        h = F.gelu(self.hidden(_layer_norm(x) * (1 + scale_2) + shift_2), approximate="tanh")
        return x + gate_2 * self.out(h)


class DiT(nn.Module):
    """u(t, x, label) for images (B, H, W, C)."""

    stacked = ("blocks",)

    def __init__(self, shape: Sequence[int], classes: int, *, patch: int, width: int, depth: int, heads: int):
        super().__init__()
        side, _, channels = shape
        self.patch, self.side = patch, side // patch
        self.time, self.condition = TimeEmbedding(width), Condition(classes, width)
        self.inlet = nn.Linear(patch * patch * channels, width)
        self.blocks = nn.ModuleList(DiTBlock(width, heads) for _ in range(depth))
        self.film, self.outlet = nn.Linear(width, 2 * width), nn.Linear(width, patch * patch * channels)
        table = np.array(sincos_positions((self.side, self.side), width))
        self.register_buffer("positions", torch.tensor(table), persistent=False)

    def forward(self, t: Tensor, x: Tensor, label: Tensor) -> Tensor:
        b, n, p = x.shape[0], self.side, self.patch
        signal = F.silu(self.time(t) + self.condition(label))
        h = x.reshape(b, n, p, n, p, -1).transpose(2, 3).reshape(b, n * n, -1)
        h = self.inlet(h) + self.positions
        for block in self.blocks:
            h = block(h, signal)
        scale, shift = self.film(signal)[:, None].chunk(2, dim=-1)
        h = self.outlet(_layer_norm(h) * (1 + scale) + shift)
        return h.view(b, n, n, p, p, -1).transpose(2, 3).reshape(x.shape)


class Stage(nn.Module):
    """A residual block of the U-Net with scale-shift conditioning, then attention if it has heads."""

    def __init__(self, c_in: int, c_out: int, embedding: int, heads: int):
        super().__init__()
        self.hidden, self.out = (nn.Conv2d(c, c_out, 3, padding=1) for c in (c_in, c_out))
        self.film = nn.Linear(embedding, 2 * c_out)
        self.shortcut = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()
        self.attention = Attention(c_out, heads) if heads else None

    def forward(self, x: Tensor, signal: Tensor) -> Tensor:
        h = self.hidden(F.silu(_group_norm(x)))
        scale, shift = self.film(signal)[..., None, None].chunk(2, dim=1)
        h = self.out(F.silu(_group_norm(h) * (1 + scale) + shift)) + self.shortcut(x)
        if self.attention is None:
            return h
        b, c, height, width = h.shape
        tokens = _group_norm(h).permute(0, 2, 3, 1).reshape(b, height * width, c)
        return h + self.attention(tokens).view(b, height, width, c).permute(0, 3, 1, 2)


class UNet(nn.Module):
    """u(t, x, label) for images (B, H, W, C); inside, they are NCHW in the memory format channels_last."""

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        *,
        width: int,
        multipliers: Sequence[int],
        blocks: int,
        attention: Sequence[int],
        heads: int = 4,
    ):
        super().__init__()
        side, _, channels = shape
        embedding = 4 * width
        self.time, self.condition = TimeEmbedding(embedding), Condition(classes, embedding)
        self.skip = nn.Linear(embedding, 1)
        self.inlet = nn.Conv2d(channels, width, 3, padding=1)
        levels = [(width * m, side >> level) for level, m in enumerate(multipliers)]
        skips, c, down, up = [width], width, [], []

        def stage(c_in: int, c_out: int, side: int) -> Stage:
            return Stage(c_in, c_out, embedding, heads if side in attention else 0)

        for level, (c_out, at) in enumerate(levels):
            stages = []
            for _ in range(blocks):
                stages.append(stage(c, c_out, at))
                skips.append(c := c_out)
            skips += [c] * (level < len(levels) - 1)
            down.append(nn.ModuleList(stages))
        self.down = nn.ModuleList(down)
        self.middle = nn.ModuleList(stage(c, c, levels[-1][1]) for _ in range(2))
        for c_out, at in reversed(levels):
            stages = []
            for _ in range(blocks + 1):
                stages.append(stage(c + skips.pop(), c_out, at))
                c = c_out
            up.append(nn.ModuleList(stages))
        self.up = nn.ModuleList(up)
        self.resize_up = nn.ModuleList(nn.Conv2d(c, c, 3, padding=1) for c, _ in reversed(levels[1:]))
        self.outlet = nn.Conv2d(width * multipliers[0], channels, 3, padding=1)

    def forward(self, t: Tensor, x: Tensor, label: Tensor) -> Tensor:
        image = x.permute(0, 3, 1, 2)
        time = self.time(t)
        signal = F.silu(time + self.condition(label))
        h = self.inlet(image)
        skips = [h]
        for level, stages in enumerate(self.down):
            if level:
                h = F.avg_pool2d(h, 2)
                skips.append(h)
            for stage in stages:
                h = stage(h, signal)
                skips.append(h)
        for stage in self.middle:
            h = stage(h, signal)
        for level, stages in enumerate(self.up):
            if level:
                h = self.resize_up[level - 1](F.interpolate(h, scale_factor=2.0, mode="nearest"))
            for stage in stages:
                h = stage(torch.cat([h, skips.pop()], dim=1), signal)
        h = self.outlet(F.silu(_group_norm(h)))
        return self.skip(F.silu(time))[..., None, None] * x + h.permute(0, 2, 3, 1)


NETWORKS = {"dit": DiT, "unet": UNet}


def load(module: nn.Module, leaves: Mapping[str, np.ndarray]) -> None:
    """Copies our parameters, by path such as "blocks/hidden/kernel", into a module of the same names.

    Raises:
      RuntimeError: unless the names and shapes are the same.
    """
    ours = {}
    for path, value in leaves.items():
        first, _, rest = path.partition("/")
        if first in getattr(module, "stacked", ()):
            ours |= {f"{first}/{i}/{rest}": layer for i, layer in enumerate(value)}
        else:
            ours[path] = value
    likes = module.state_dict()
    theirs = {}
    for path, value in ours.items():
        name = path.replace("/", ".")
        if name.endswith(".kernel"):  # (3, 3, in, out) -> (out, in, 3, 3)
            name = name.removesuffix("kernel") + "weight"
            value = np.moveaxis(value, (-1, -2), (0, 1))
            if likes[name].ndim > value.ndim:  # a dense layer on pixels is a 1×1 convolution in PyTorch
                value = value[..., None, None]
        theirs[name] = torch.tensor(np.ascontiguousarray(value))
    module.load_state_dict(theirs)


def _layer_norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def _group_norm(x: Tensor) -> Tensor:
    channels = x.shape[1]
    return F.group_norm(x, math.gcd(channels, min(32, max(channels // 4, 1))), eps=1e-6)
