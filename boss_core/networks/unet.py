"""A small U-Net for images: the default velocity network.

The block is that of Dhariwal and Nichol (2021): group normalisation, SiLU, 3x3 convolution,
the time embedding as a scale and shift of the second normalisation, a residual connection. A
conditional network adds an embedding of the label to that of the time.
"""

import math
from typing import Any

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
)
from torch import Tensor, nn
from torch.nn import functional as F

from boss_core.errors import InputError
from boss_core.networks.sizes import LARGEST, Blocks, Levels, Side, Width

_GROUPS = 8


class UNetConfig(BaseModel):
    """The shape of a `UNet`; a checkpoint carries it in its card."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image_size: Side = Field(description="height in pixels, and width where that is not given")
    image_width: Side | None = Field(
        default=None, description="width in pixels; None for square images"
    )
    channels: int = Field(ge=1, le=4, description="image channels")
    base_channels: Width = Field(multiple_of=_GROUPS, description="width, first level")
    channel_multipliers: Levels = Field(description="width of each level")
    blocks: Blocks = Field(description="residual blocks a level")
    attention_sizes: tuple[int, ...] = Field(
        description="image sizes with self-attention, of the longer side"
    )
    classes: int | None = Field(
        default=None,
        ge=1,
        le=LARGEST,
        description="labels of a conditional network; None for one without",
    )

    @model_serializer(mode="wrap")
    def _serialize(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # A card without labels, or of square images, reads as cards did before there were others.
        later = "classes", "image_width"
        return {k: v for k, v in handler(self).items() if k not in later or v is not None}

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        return self.channels, self.image_size, self.image_width or self.image_size


class UNet(nn.Module):
    """The velocity ``v(x, t)``: x (B, C, H, W) in [-1, 1] at the data end, t (B,) in [0, 1].

    With ``config.classes`` it is ``v(x, t, labels)``, labels (B,) int64 in 0..classes-1.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        levels = len(config.channel_multipliers)
        for name, side in zip(("image_size", "image_width"), config.sample_shape[1:], strict=True):
            if side % 2 ** (levels - 1):
                raise InputError(
                    f"{name}: {side} cannot be halved {levels - 1} times, as {levels}"
                    " channel_multipliers ask"
                )
        base = config.base_channels
        widths = [base * m for m in config.channel_multipliers]
        pixels = config.image_size * config.sample_shape[2] // 4 ** (levels - 1)
        if pixels * min([base, *widths][-2:]) == _GROUPS:
            raise InputError(
                f"channel_multipliers: {levels} levels of an image of {config.sample_shape[2]}x"
                f"{config.image_size} end in one pixel of {_GROUPS} channels, each normalised to 0"
                " by itself; fewer levels or more channels needed"
            )
        embedding = 4 * base
        self.embed = nn.Sequential(
            nn.Linear(base, embedding), nn.SiLU(), nn.Linear(embedding, embedding), nn.SiLU()
        )
        self.first = nn.Conv2d(config.channels, base, 3, padding=1)

        def stage(cin: int, cout: int, size: int) -> "Stage":
            return Stage(cin, cout, embedding, attend=size in config.attention_sizes)

        self.down = nn.ModuleList()
        skips, width, size = [base], base, max(config.sample_shape[1:])
        for level, cout in enumerate(widths):
            for _ in range(config.blocks):
                self.down.append(stage(width, cout, size))
                width = cout
                skips.append(width)
            if level < levels - 1:
                self.down.append(nn.Conv2d(width, width, 3, stride=2, padding=1))
                skips.append(width)
                size //= 2
        self.middle = nn.ModuleList(
            [ResidualBlock(width, width, embedding), ResidualBlock(width, width, embedding)]
        )
        self.up = nn.ModuleList()
        for level, cout in reversed(list(enumerate(widths))):
            for _ in range(config.blocks + 1):
                self.up.append(stage(width + skips.pop(), cout, size))
                width = cout
            if level:
                self.up.append(nn.Conv2d(width, width, 3, padding=1))
                size *= 2
        self.last_norm = nn.GroupNorm(_GROUPS, width)
        self.last = nn.Conv2d(width, config.channels, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]
        self.label = None if config.classes is None else nn.Embedding(config.classes, base)
        # Convolutions follow the layout of their weights: on a CPU a training step of the default
        # network takes a fifth less time this way, and on a GPU its kernels want it.
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """InputError when there are labels and the network takes none, or the reverse."""
        condition = time_embedding(t, self.config.base_channels).to(x.dtype)
        if self.label is None and labels is not None:
            raise InputError("labels: given to a network that has no classes; none needed")
        if self.label is not None and (labels is None or labels.shape != t.shape):
            found = "none" if labels is None else f"shape {tuple(labels.shape)}"
            raise InputError(
                f"labels: {found} given to a network of {self.config.classes} classes; one for"
                f" each of {len(x)} states needed"
            )
        if self.label is not None:
            condition = condition + self.label(labels)
        embedding = self.embed(condition)
        h = self.first(x)
        skips = [h]
        for layer in self.down:
            h = layer(h, embedding) if isinstance(layer, Stage) else layer(h)
            skips.append(h)
        for block in self.middle:
            h = block(h, embedding)
        for layer in self.up:
            if isinstance(layer, Stage):
                h = layer(torch.cat([h, skips.pop()], dim=1), embedding)
            else:
                h = layer(F.interpolate(h, scale_factor=2.0, mode="nearest"))
        return self.last(F.silu(self.last_norm(h)))


class ResidualBlock(nn.Module):
    """Two convolutions, the second modulated by the time embedding (B, embedding)."""

    def __init__(self, cin: int, cout: int, embedding: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(_GROUPS, cin)
        self.conv1 = nn.Conv2d(cin, cout, 3, padding=1)
        self.modulate = nn.Linear(embedding, 2 * cout)
        self.norm2 = nn.GroupNorm(_GROUPS, cout)
        self.conv2 = nn.Conv2d(cout, cout, 3, padding=1)
        self.skip = nn.Conv2d(cin, cout, 1) if cin != cout else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.modulate(embedding)[:, :, None, None].chunk(2, dim=1)
        h = self.conv2(F.silu(self.norm2(h) * (1 + scale) + shift))
        return self.skip(x) + h


class Stage(nn.Module):
    """A residual block, and self-attention after it where the image is small enough."""

    def __init__(self, cin: int, cout: int, embedding: int, *, attend: bool) -> None:
        super().__init__()
        self.block = ResidualBlock(cin, cout, embedding)
        self.attention = Attention(cout) if attend else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return self.attention(self.block(x, embedding))


class Attention(nn.Module):
    """Single-head self-attention over the pixels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(_GROUPS, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2)[:, None].chunk(3, dim=-1)
        h = F.scaled_dot_product_attention(q, k, v)[:, 0]
        return x + self.out(h.transpose(1, 2).reshape(x.shape))


def time_embedding(t: Tensor, width: int) -> Tensor:
    """Sines and cosines of 1000 t (Vaswani et al. 2017): (B,) -> (B, width)."""
    frequencies = torch.exp(
        -math.log(10_000.0) * torch.arange(width // 2, device=t.device) / (width // 2)
    )
    angles = 1000.0 * t.float()[:, None] * frequencies[None, :]
    return torch.cat([angles.cos(), angles.sin()], dim=1)
