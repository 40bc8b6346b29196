"""DDPM++ and NCSN++ (Song et al. 2021, appendix H), the networks of Rectified Flow (Liu et al.
2023).

Modules lie in one list, ``all_modules``, in the order in which they run, and their parameters
have the names of the published checkpoints, so that those load key by key. What is fixed
in all published Rectified Flow networks is fixed here: BigGAN's residual blocks, SiLU, "sum"
where the image joins the features.

Left out, because a velocity does not read them: the noise levels of score-based training
(``sigmas`` in a checkpoint) and dropout (straightening is a regression on the teacher's own
states, of which there can be as many as one likes).
"""

import math
from collections.abc import Iterator, Sequence
from typing import Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from boss_core.networks.normalization import Summands, add_and_norm, group_norm
from boss_core.networks.sizes import Blocks, Levels, Side, Width

# Rectified Flow trained on t in [EPS, 1] and gave the network 999 t (Liu et al. 2023, the label
# range of the DDPM++ that it started from).
_EPS, _LABELS = 1e-3, 999


class NCSNppConfig(BaseModel):
    """The shape of an `NCSNpp`, in the names of the published configurations."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image_size: Side = Field(description="height and width in pixels")
    num_channels: int = Field(ge=1, le=4, description="image channels")
    centered: bool = Field(description="images in [-1, 1]; else [0, 1], shifted by the network")
    nf: Width = Field(multiple_of=4, description="width, first level")
    ch_mult: Levels = Field(description="width of each level")
    num_res_blocks: Blocks = Field(description="residual blocks a level")
    attn_resolutions: tuple[int, ...] = Field(description="image sizes with self-attention")
    fir: bool = Field(description="resample with a filter; else nearest neighbour and mean")
    fir_kernel: tuple[float, float, float, float] = Field(description="taps of that filter")
    skip_rescale: bool = Field(description="divide the sum at the end of a block by sqrt(2)")
    progressive: Literal["none", "output_skip"] = Field(description="output: last level or sum")
    progressive_input: Literal["none", "input_skip"] = Field(description="image at every level")
    embedding_type: Literal["positional", "fourier"] = Field(description="of the time")
    scale_by_sigma: bool = Field(description="divide the output by the time label")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        levels = len(self.ch_mult)
        if self.image_size % 2 ** (levels - 1):
            raise ValueError(
                f"image_size: {self.image_size} cannot be halved {levels - 1} times, as {levels}"
                " levels in ch_mult ask"
            )
        if self.scale_by_sigma and self.embedding_type == "positional":
            raise ValueError(
                "scale_by_sigma: true with embedding_type positional; false, or fourier, needed"
            )
        if sum(self.fir_kernel) == 0:
            raise ValueError(f"fir_kernel: {self.fir_kernel} sums to 0; a positive sum needed")
        return self

    @property
    def classes(self) -> None:
        """None: the published networks are not conditional."""
        return None

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        return self.num_channels, self.image_size, self.image_size


class NCSNpp(nn.Module):
    """The velocity ``v(x, t)``: x (B, C, H, W), t (B,) in [0, 1]."""

    def __init__(self, config: NCSNppConfig) -> None:
        super().__init__()
        self.config = config
        nf, channels = config.nf, config.num_channels
        levels = len(config.ch_mult)
        fourier = config.embedding_type == "fourier"
        self.up, self.down = Upsample(config), Downsample(config)

        def block(cin: int, cout: int, resample: nn.Module | None = None) -> "ResidualBlock":
            return ResidualBlock(cin, cout, 4 * nf, config.skip_rescale, resample)

        def attention(width: int) -> "Attention":
            return Attention(width, config.skip_rescale)

        modules: list[nn.Module] = [FourierEmbedding(nf)] if fourier else []
        modules += [nn.Linear((1 + fourier) * nf, 4 * nf), nn.Linear(4 * nf, 4 * nf)]
        modules.append(nn.Conv2d(channels, nf, 3, padding=1))
        skips, width, size = [nf], nf, config.image_size
        for level, multiplier in enumerate(config.ch_mult):
            for _ in range(config.num_res_blocks):
                modules.append(block(width, nf * multiplier))
                width = nf * multiplier
                if size in config.attn_resolutions:
                    modules.append(attention(width))
                skips.append(width)
            if level < levels - 1:
                modules.append(block(width, width, self.down))
                if config.progressive_input == "input_skip":
                    modules.append(Combine(channels, width))
                skips.append(width)
                size //= 2
        modules += [block(width, width), attention(width), block(width, width)]
        for level, multiplier in reversed(list(enumerate(config.ch_mult))):
            for _ in range(config.num_res_blocks + 1):
                modules.append(block(width + skips.pop(), nf * multiplier))
                width = nf * multiplier
            if size in config.attn_resolutions:
                modules.append(attention(width))
            if config.progressive == "output_skip" or level == 0:
                modules += [_group_norm(width), nn.Conv2d(width, channels, 3, padding=1)]
            if level > 0:
                modules.append(block(width, width, self.up))
                size *= 2
        self.all_modules = nn.ModuleList(modules)
        # As in `boss_core.networks.unet`: convolutions follow the layout of their weights.
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        config, modules = self.config, iter(self.all_modules)
        levels = len(config.ch_mult)
        label = (t.float() * (1.0 - _EPS) + _EPS) * _LABELS
        if config.embedding_type == "fourier":
            embedding = next(modules)(label.log())
        else:
            embedding = positional_embedding(label, config.nf)
        embedding = next(modules)(embedding.to(x.dtype))
        # Every block starts by activating the embedding: once is enough.
        embedding = F.silu(next(modules)(F.silu(embedding)))
        blocks = [module for module in self.all_modules if isinstance(module, ResidualBlock)]
        shifts = iter(_shifts(blocks, embedding))

        if not config.centered:
            x = 2.0 * x - 1.0
        # Blocks return what they have not added up yet: the next normalisation adds on its way.
        # All that the way up takes as a skip is what a block on the way down reads.
        image, h, size = x, next(modules)(x), config.image_size
        skips: list[Tensor] = []
        for level in range(levels):
            for _ in range(config.num_res_blocks):
                features, h = next(modules)(h, next(shifts))
                skips.append(features)
                if size in config.attn_resolutions:
                    h = next(modules)(h)
            if level < levels - 1:
                features, h = next(modules)(h, next(shifts))
                skips.append(features)
                if config.progressive_input == "input_skip":
                    image = self.down(image)
                    h = next(modules)(image, h)
                size //= 2
        features, h = next(modules)(h, next(shifts))
        skips.append(features)
        h = next(modules)(h)
        _, h = next(modules)(h, next(shifts))

        output: Tensor | None = None
        for level in reversed(range(levels)):
            for _ in range(config.num_res_blocks + 1):
                _, h = next(modules)(h, next(shifts), skips.pop())
            if size in config.attn_resolutions:
                h = next(modules)(h)
            if config.progressive == "output_skip" or level == 0:
                output = _to_image(modules, h, None if output is None else self.up(output))
            if level > 0:
                _, h = next(modules)(h, next(shifts))
                size *= 2
        assert output is not None  # the first level, the last to run, always gives one
        if config.scale_by_sigma:
            output = (output / label.view(-1, 1, 1, 1)).to(x.dtype)
        return output


class ResidualBlock(nn.Module):
    """BigGAN's residual block (Brock et al. 2019), resampling or not; what `_shifts` makes of the
    time embedding is added between its convolutions."""

    def __init__(
        self, cin: int, cout: int, embedding: int, rescale: bool, resample: nn.Module | None
    ) -> None:
        super().__init__()
        self.GroupNorm_0 = _group_norm(cin)
        self.nearest = isinstance(resample, Upsample) and not resample.fir
        convolution = UpsamplingConv2d if self.nearest else UnbiasedConv2d
        self.Conv_0 = convolution(cin, cout, 3, padding=1)
        self.Dense_0 = StackedLinear(embedding, cout)
        self.GroupNorm_1 = _group_norm(cout)
        self.Conv_1 = UnbiasedConv2d(cout, cout, 3, padding=1)
        self.resample = resample if resample is not None else nn.Identity()
        # Blocks that resample have this convolution in the published layout, whatever their widths.
        same = cin == cout and resample is None
        self.Conv_2 = nn.Identity() if same else UnbiasedConv2d(cin, cout, 1)
        self.scale = math.sqrt(0.5) if rescale else 1.0

    def forward(
        self, h: Tensor | Summands, shift: Tensor, skip: Tensor | None = None
    ) -> tuple[Tensor, Summands]:
        """What it reads, the features with the skip behind them, and what it gives."""
        if isinstance(h, Summands):
            features, branch = add_and_norm(h, self.GroupNorm_0, skip=skip)
        else:
            assert skip is None  # only features that a block gave have one
            features, branch = h, group_norm(h, self.GroupNorm_0)
        if self.nearest:
            branch = self.Conv_0(branch)
            # One of single pixels may come before nearest neighbours: on a quarter of them.
            x = self.resample(self.Conv_2(features))
        else:
            branch = self.Conv_0(self.resample(branch))
            x = self.Conv_2(self.resample(features))
        branch = self.Conv_1(group_norm(branch, self.GroupNorm_1, shift=shift))
        bias: Tensor = self.Conv_1.bias
        if not isinstance(self.Conv_2, nn.Identity):
            bias = bias + self.Conv_2.bias
        return features, Summands(x, branch, bias, self.scale)


def _shifts(blocks: Sequence[ResidualBlock], embedding: Tensor) -> tuple[Tensor, ...]:
    """What each block adds to each channel between its convolutions, (B, cout): its layer of the
    activated time embedding (B, embedding), and the bias of its first convolution.

    As one product: one for each block is many times as much work to launch as to do.
    """
    weights, biases = zip(*(block.Dense_0() for block in blocks), strict=True)
    bias = torch.cat(biases) + torch.cat([block.Conv_0.bias for block in blocks])
    together = F.linear(embedding, torch.cat(weights)) + bias
    return together.split([len(weight) for weight in weights], dim=1)


class StackedLinear(nn.Linear):
    """A linear layer, one of several that have the same input: it gives its weight and bias, for
    one product of all."""

    def forward(self) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return self.weight, self.bias


class UnbiasedConv2d(nn.Conv2d):
    """A convolution that leaves its bias to what comes after it."""

    bias: nn.Parameter

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight, None)


class UpsamplingConv2d(UnbiasedConv2d):
    """A 3 x 3 convolution of the nearest neighbours at twice the size: (B, in, H, W) -> (B, out,
    2 H, 2 W).

    As one transposed convolution: where several of its taps meet the same pixel, their weights are
    added up before, which leaves four products a pixel and channel instead of nine.
    """

    def forward(self, x: Tensor) -> Tensor:
        weight = F.pad(self.weight, (1, 1, 1, 1))
        weight = weight[:, :, 1:] + weight[:, :, :-1]
        weight = weight[..., 1:] + weight[..., :-1]
        weight = weight.flip(-1, -2).transpose(0, 1).contiguous(memory_format=torch.channels_last)
        return F.conv_transpose2d(x, weight, stride=2, padding=1)


class Attention(nn.Module):
    """Single-head self-attention over the pixels."""

    def __init__(self, channels: int, rescale: bool) -> None:
        super().__init__()
        self.GroupNorm_0 = _group_norm(channels)
        self.NIN_0, self.NIN_1, self.NIN_2, self.NIN_3 = (NIN(channels) for _ in range(4))
        self.scale = math.sqrt(0.5) if rescale else 1.0

    def forward(self, h: Summands) -> Summands:
        features, normal = add_and_norm(h, self.GroupNorm_0, activate=False)
        # A view where h is channels_last: (B, 1, pixels, channels).
        pixels = normal.flatten(2).transpose(1, 2)[:, None]
        # The three layers as one read their input once.
        layers = self.NIN_0, self.NIN_1, self.NIN_2
        weight, bias = (torch.cat([getattr(n, k) for n in layers], dim=-1) for k in "Wb")
        query, key, value = F.linear(pixels, weight.T, bias).chunk(3, dim=-1)
        branch = F.linear(F.scaled_dot_product_attention(query, key, value), self.NIN_3.W.T)
        branch = branch[:, 0].transpose(1, 2).reshape(features.shape)
        return Summands(features, branch, self.NIN_3.b, self.scale)


class NIN(nn.Module):
    """The parameters of a linear layer whose weight is (in, out), as the published checkpoints have
    it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.W = nn.Parameter(nn.init.xavier_uniform_(torch.empty(channels, channels)))
        self.b = nn.Parameter(torch.zeros(channels))


class Combine(nn.Module):
    """Adds the image, in as many channels as the features have, to them."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.Conv_0 = nn.Conv2d(channels, width, 1)

    def forward(self, image: Tensor, h: Summands) -> Tensor:
        return self.Conv_0(image) + h.total()


class FourierEmbedding(nn.Module):
    """Random Fourier features of the log of the label (Tancik et al. 2020): (B,) -> (B, 2 nf).

    The frequencies are fixed, so they are a buffer: making a network trainable leaves them.
    """

    def __init__(self, nf: int, scale: float = 16.0) -> None:
        super().__init__()
        self.W: Tensor
        self.register_buffer("W", torch.randn(nf) * scale)

    def forward(self, label: Tensor) -> Tensor:
        angles = label[:, None] * self.W.float()[None, :] * 2.0 * math.pi
        return torch.cat([angles.sin(), angles.cos()], dim=1)


class Upsample(nn.Module):
    """(B, C, H, W) -> (B, C, 2 H, 2 W): filtered (Karras et al. 2020), or nearest neighbour."""

    def __init__(self, config: NCSNppConfig) -> None:
        super().__init__()
        self.fir = config.fir
        self.kernel: Tensor
        self.register_buffer("kernel", 4.0 * _fir_kernel(config.fir_kernel), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if not self.fir:
            # `F.interpolate`, but with a sum for its gradient; compiled, that scatters numbers.
            rows = x.permute(0, 2, 3, 1)[:, :, None, :, None, :].expand(-1, -1, 2, -1, 2, -1)
            return rows.flatten(1, 2).flatten(2, 3).permute(0, 3, 1, 2)
        channels = x.shape[1]
        kernel = self.kernel.to(x.dtype).expand(channels, 1, 4, 4)
        return F.conv_transpose2d(x, kernel, stride=2, padding=1, groups=channels)


class Downsample(nn.Module):
    """(B, C, H, W) -> (B, C, H / 2, W / 2): filtered (Karras et al. 2020), or the mean."""

    def __init__(self, config: NCSNppConfig) -> None:
        super().__init__()
        self.fir = config.fir
        self.kernel: Tensor
        # The filter is a convolution, torch's conv2d a correlation.
        kernel = _fir_kernel(config.fir_kernel).flip(-1, -2)
        self.register_buffer("kernel", kernel, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if not self.fir:
            return F.avg_pool2d(x, 2)
        channels = x.shape[1]
        kernel = self.kernel.to(x.dtype).expand(channels, 1, 4, 4)
        return F.conv2d(x, kernel, stride=2, padding=1, groups=channels)


def positional_embedding(label: Tensor, width: int) -> Tensor:
    """Sines and cosines (Vaswani et al. 2017): (B,) -> (B, width)."""
    half = width // 2
    steps = torch.arange(half, dtype=torch.float32, device=label.device)
    angles = label[:, None] * torch.exp(steps * -(math.log(10_000.0) / (half - 1)))[None, :]
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def _to_image(modules: Iterator[nn.Module], h: Summands, below: Tensor | None) -> Tensor:
    """The image that the features of one level give, on top of that of the levels below."""
    norm, conv = next(modules), next(modules)
    assert isinstance(norm, nn.GroupNorm)
    image: Tensor = conv(add_and_norm(h, norm)[1])
    return image if below is None else below + image


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(min(channels // 4, 32), channels, eps=1e-6)


def _fir_kernel(taps: tuple[float, ...]) -> Tensor:
    row = torch.tensor(taps)
    kernel = torch.outer(row, row)
    return (kernel / kernel.sum())[None, None]
