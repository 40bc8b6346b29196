"""The networks of EDM (Karras et al. 2022, "Elucidating the Design Space of Diffusion Models").

Two U-Nets: SongUNet, which is DDPM++ or NCSN++ (Song et al. 2021) depending on its settings, and
DhariwalUNet, which is ADM (Dhariwal and Nichol 2021). `EDM` puts the preconditioning around
them. The parameters have the names of the published state dicts, and the configuration those of
the published settings, so that published weights load as they are
(`boss_core.checkpoints.edm`).

Dropout and augmentation labels are left out: both are for training from data, and the published
networks sample with neither. Only EDM's own preconditioning is here, not that of VP, VE or iDDPM.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from boss_core.errors import InputError
from boss_core.networks.sizes import (
    LARGEST,
    LARGEST_FILTER,
    Blocks,
    Levels,
    Multiplier,
    Side,
    Width,
)
from boss_core.ode.denoiser import velocity_from_denoiser


class EDMConfig(BaseModel):
    """The shape of an `EDM` network, in the names of the published settings.

    embedding_type, channel_mult_noise, encoder_type, decoder_type and resample_filter are
    SongUNet's: as they are, DDPM++; NCSN++ has fourier, 2, residual, standard and (1, 3, 3, 1).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model_type: Literal["SongUNet", "DhariwalUNet"]
    img_resolution: Side = Field(description="height and width in pixels")
    img_channels: Width = Field(description="image channels")
    label_dim: int = Field(0, ge=0, le=LARGEST, description="classes; 0: unconditional")
    model_channels: Width = Field(multiple_of=4, description="width to be multiplied")
    channel_mult: Levels = Field(description="width of each level")
    channel_mult_emb: Multiplier = Field(4, description="width of the embedding")
    num_blocks: Blocks = Field(description="residual blocks a level")
    attn_resolutions: tuple[int, ...] = Field(description="image sizes with self-attention")
    embedding_type: Literal["positional", "fourier"] = "positional"
    channel_mult_noise: Multiplier = Field(1, description="width of the noise embedding")
    encoder_type: Literal["standard", "skip", "residual"] = "standard"
    decoder_type: Literal["standard", "skip"] = "standard"
    resample_filter: tuple[int, ...] = Field(
        (1, 1), min_length=2, max_length=LARGEST_FILTER, description="FIR taps"
    )
    sigma_data: float = Field(0.5, gt=0, description="standard deviation of the data")
    sigma_min: float = Field(0.002, gt=0, description="lowest noise level to evaluate")
    sigma_max: float = Field(80.0, gt=0, description="highest noise level to evaluate")

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        return self.img_channels, self.img_resolution, self.img_resolution

    @property
    def classes(self) -> int | None:
        """The number of classes, None for an unconditional network."""
        return self.label_dim or None


class EDM(nn.Module):
    """A preconditioned U-Net, as a denoiser and as a velocity."""

    def __init__(self, config: EDMConfig) -> None:
        super().__init__()
        self.config = config
        halvings = len(config.channel_mult) - 1
        if config.img_resolution % 2**halvings:
            raise InputError(
                f"img_resolution: {config.img_resolution} cannot be halved {halvings} times, as"
                f" {halvings + 1} entries of channel_mult ask"
            )
        song = config.model_type == "SongUNet"
        self.model: SongUNet | DhariwalUNet = SongUNet(config) if song else DhariwalUNet(config)
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """The velocity ``v(x, t)`` (see `boss_core.ode.denoiser`): x (B, C, H, W), t (B,) in
        [0, 1], labels (B,) int64 where the network is conditional."""
        velocity = velocity_from_denoiser(
            partial(self.denoise, labels=labels),
            sigma_min=self.config.sigma_min,
            sigma_max=self.config.sigma_max,
        )
        return velocity(x, t)

    def denoise(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """D(x; sigma) (eq. 7, coefficients of Table 1): x (B, C, H, W) is data plus noise of
        level sigma (B,); returns the expected data. The network computes in the dtype of its
        weights, everything around it in that of x."""
        data = self.config.sigma_data
        total = sigma**2 + data**2
        c_skip = data**2 / total
        c_out = sigma * data / total.sqrt()
        c_in = 1 / total.sqrt()
        c_noise = sigma.log() / 4
        dtype = self.model.map_layer0.weight.dtype
        scaled = (_per_sample(c_in) * x).to(dtype)
        output = self.model(scaled, c_noise, self._one_hot(labels, dtype))
        return _per_sample(c_skip) * x + _per_sample(c_out) * output.to(x.dtype)

    def _one_hot(self, labels: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        classes = self.config.label_dim
        if labels is None and classes:
            raise InputError(f"labels: none; this network needs one of {classes} for each sample")
        if labels is not None and not classes:
            raise InputError("labels: given, but this network is unconditional; None needed")
        return None if labels is None else F.one_hot(labels, classes).to(dtype)


@dataclass(frozen=True)
class _Style:
    """What tells the blocks of the two U-Nets apart.

    scale_shift: the embedding scales and shifts the second normalisation; else it is added.
    project: every resampled shortcut has a 1x1 convolution.
    """

    embedding: int
    taps: tuple[int, ...]
    eps: float
    scale: float
    scale_shift: bool
    project: bool
    channels_per_head: int | None


class SongUNet(nn.Module):
    """DDPM++ and NCSN++: x (B, C, H, W), c_noise (B,), one-hot labels -> (B, C, H, W)."""

    def __init__(self, config: EDMConfig) -> None:
        super().__init__()
        base, colours, taps = config.model_channels, config.img_channels, config.resample_filter
        width, embedding = base * config.channel_mult_noise, base * config.channel_mult_emb
        style = _Style(embedding, taps, 1e-6, math.sqrt(0.5), False, True, None)
        self.map_noise = (
            PositionalEmbedding(width, endpoint=True)
            if config.embedding_type == "positional"
            else FourierEmbedding(width)
        )
        self.map_label = nn.Linear(config.label_dim, width) if config.label_dim else None
        self.map_layer0 = nn.Linear(width, embedding)
        self.map_layer1 = nn.Linear(embedding, embedding)

        self.enc = nn.ModuleDict()
        skips, cout, side = [], base, colours
        for level, multiplier in enumerate(config.channel_mult):
            size = config.img_resolution >> level
            if level == 0:
                self.enc[f"{size}x{size}_conv"] = nn.Conv2d(colours, cout, 3, padding=1)
            else:
                self.enc[f"{size}x{size}_down"] = Block(cout, cout, style, resample="down")
                if config.encoder_type == "skip":
                    self.enc[f"{size}x{size}_aux_down"] = Resample("down", taps)
                    self.enc[f"{size}x{size}_aux_skip"] = nn.Conv2d(side, cout, 1)
                elif config.encoder_type == "residual":
                    self.enc[f"{size}x{size}_aux_residual"] = StridedConv2d(side, cout, taps)
                    side = cout
            skips.append(cout)
            for index in range(config.num_blocks):
                cin, cout = cout, base * multiplier
                attend = size in config.attn_resolutions
                self.enc[f"{size}x{size}_block{index}"] = Block(cin, cout, style, attend=attend)
                skips.append(cout)

        self.dec = nn.ModuleDict()
        last = len(config.channel_mult) - 1
        for level, multiplier in reversed(list(enumerate(config.channel_mult))):
            size = config.img_resolution >> level
            if level == last:
                self.dec[f"{size}x{size}_in0"] = Block(cout, cout, style, attend=True)
                self.dec[f"{size}x{size}_in1"] = Block(cout, cout, style)
            else:
                self.dec[f"{size}x{size}_up"] = Block(cout, cout, style, resample="up")
            for index in range(config.num_blocks + 1):
                cin, cout = cout + skips.pop(), base * multiplier
                attend = index == config.num_blocks and size in config.attn_resolutions
                self.dec[f"{size}x{size}_block{index}"] = Block(cin, cout, style, attend=attend)
            if config.decoder_type == "skip" and level < last:
                self.dec[f"{size}x{size}_aux_up"] = Resample("up", taps)
            if config.decoder_type == "skip" or level == 0:
                self.dec[f"{size}x{size}_aux_norm"] = _norm(cout, 1e-6)
                self.dec[f"{size}x{size}_aux_conv"] = nn.Conv2d(cout, colours, 3, padding=1)

    def forward(self, x: Tensor, c_noise: Tensor, one_hot: Tensor | None) -> Tensor:
        # Sines come before cosines here, and after them in the other network.
        cosines, sines = self.map_noise(c_noise).to(x.dtype).chunk(2, dim=1)
        embedding = torch.cat([sines, cosines], dim=1)
        if self.map_label is not None and one_hot is not None:
            embedding = embedding + self.map_label(one_hot * math.sqrt(one_hot.shape[1]))
        embedding = F.silu(self.map_layer1(F.silu(self.map_layer0(embedding))))

        side = x
        skips: list[Tensor] = []
        for name, layer in self.enc.items():
            if name.endswith("aux_down"):
                side = layer(side)
            elif name.endswith("aux_skip"):
                x = skips[-1] = x + layer(side)
            elif name.endswith("aux_residual"):
                x = skips[-1] = side = (x + layer(side)) * math.sqrt(0.5)
            else:
                x = layer(x, embedding) if isinstance(layer, Block) else layer(x)
                skips.append(x)

        image: Tensor | None = None
        for name, layer in self.dec.items():
            if name.endswith("aux_up"):
                image = layer(image)
            elif name.endswith("aux_norm"):
                normalised = layer(x)
            elif name.endswith("aux_conv"):
                part = layer(F.silu(normalised))
                image = part if image is None else image + part
            else:
                if "_block" in name:
                    x = torch.cat([x, skips.pop()], dim=1)
                x = layer(x, embedding)
        assert image is not None  # the level of full size always ends in an image
        return image


class DhariwalUNet(nn.Module):
    """ADM: x (B, C, H, W), c_noise (B,), one-hot labels -> (B, C, H, W)."""

    def __init__(self, config: EDMConfig) -> None:
        super().__init__()
        base, colours = config.model_channels, config.img_channels
        embedding = base * config.channel_mult_emb
        style = _Style(embedding, (1, 1), 1e-5, 1.0, True, False, 64)
        self.map_noise = PositionalEmbedding(base, endpoint=False)
        self.map_layer0 = nn.Linear(base, embedding)
        self.map_layer1 = nn.Linear(embedding, embedding)
        self.map_label = (
            nn.Linear(config.label_dim, embedding, bias=False) if config.label_dim else None
        )

        self.enc = nn.ModuleDict()
        skips, cout = [], base * config.channel_mult[0]
        for level, multiplier in enumerate(config.channel_mult):
            size = config.img_resolution >> level
            attend = size in config.attn_resolutions
            if level == 0:
                self.enc[f"{size}x{size}_conv"] = nn.Conv2d(colours, cout, 3, padding=1)
            else:
                self.enc[f"{size}x{size}_down"] = Block(cout, cout, style, resample="down")
            skips.append(cout)
            for index in range(config.num_blocks):
                cin, cout = cout, base * multiplier
                self.enc[f"{size}x{size}_block{index}"] = Block(cin, cout, style, attend=attend)
                skips.append(cout)

        self.dec = nn.ModuleDict()
        for level, multiplier in reversed(list(enumerate(config.channel_mult))):
            size = config.img_resolution >> level
            attend = size in config.attn_resolutions
            if level == len(config.channel_mult) - 1:
                self.dec[f"{size}x{size}_in0"] = Block(cout, cout, style, attend=True)
                self.dec[f"{size}x{size}_in1"] = Block(cout, cout, style)
            else:
                self.dec[f"{size}x{size}_up"] = Block(cout, cout, style, resample="up")
            for index in range(config.num_blocks + 1):
                cin, cout = cout + skips.pop(), base * multiplier
                self.dec[f"{size}x{size}_block{index}"] = Block(cin, cout, style, attend=attend)
        self.out_norm = _norm(cout, 1e-5)
        self.out_conv = nn.Conv2d(cout, colours, 3, padding=1)

    def forward(self, x: Tensor, c_noise: Tensor, one_hot: Tensor | None) -> Tensor:
        embedding = F.silu(self.map_layer0(self.map_noise(c_noise).to(x.dtype)))
        embedding = self.map_layer1(embedding)
        if self.map_label is not None and one_hot is not None:
            embedding = embedding + self.map_label(one_hot)
        embedding = F.silu(embedding)
        skips: list[Tensor] = []
        for layer in self.enc.values():
            x = layer(x, embedding) if isinstance(layer, Block) else layer(x)
            skips.append(x)
        for name, layer in self.dec.items():
            if "_block" in name:
                x = torch.cat([x, skips.pop()], dim=1)
            x = layer(x, embedding)
        return self.out_conv(F.silu(self.out_norm(x)))


class Block(nn.Module):
    """Two convolutions, the second modulated by the embedding (B, embedding), a shortcut, and
    self-attention after them; the image may be halved or doubled by the first."""

    def __init__(
        self,
        cin: int,
        cout: int,
        style: _Style,
        *,
        resample: Literal["up", "down"] | None = None,
        attend: bool = False,
    ) -> None:
        super().__init__()
        self.style = style
        self.norm0 = _norm(cin, style.eps)
        self.conv0 = _conv(cin, cout, 3, resample, style.taps)
        self.affine = nn.Linear(style.embedding, cout * (2 if style.scale_shift else 1))
        self.norm1 = _norm(cout, style.eps)
        self.conv1 = nn.Conv2d(cout, cout, 3, padding=1)
        self.skip: nn.Module | None = None
        if cin != cout or (resample and style.project):
            self.skip = _conv(cin, cout, 1, resample, style.taps)
        elif resample:
            self.skip = Resample(resample, style.taps)
        self.heads = 0
        if attend:
            self.heads = cout // style.channels_per_head if style.channels_per_head else 1
            self.norm2 = _norm(cout, style.eps)
            self.qkv = nn.Conv2d(cout, 3 * cout, 1)
            self.proj = nn.Conv2d(cout, cout, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv0(F.silu(self.norm0(x)))
        modulation = self.affine(embedding)[:, :, None, None]
        if self.style.scale_shift:
            scale, shift = modulation.chunk(2, dim=1)
            h = self.norm1(h) * (1 + scale) + shift
        else:
            h = self.norm1(h + modulation)
        h = self.conv1(F.silu(h))
        x = (h + (x if self.skip is None else self.skip(x))) * self.style.scale
        if not self.heads:
            return x
        # The channels of q, k and v alternate within a head.
        batch, channels = x.shape[:2]
        parts = self.qkv(self.norm2(x)).reshape(batch, self.heads, channels // self.heads, 3, -1)
        q, k, v = (part.transpose(2, 3) for part in parts.unbind(3))
        h = F.scaled_dot_product_attention(q, k, v)
        return (x + self.proj(h.transpose(2, 3).reshape(x.shape))) * self.style.scale


class Resample(nn.Module):
    """Halves or doubles an image with a separable FIR filter, given by its taps."""

    resample_filter: Tensor

    def __init__(self, direction: Literal["up", "down"], taps: tuple[int, ...]) -> None:
        super().__init__()
        self.direction = direction
        self.register_buffer("resample_filter", _filter(taps))

    def forward(self, x: Tensor) -> Tensor:
        return _resample(x, self.direction, self.resample_filter)


class ResampledConv2d(nn.Conv2d):
    """A convolution of the image that `Resample` gives."""

    resample_filter: Tensor

    def __init__(
        self,
        cin: int,
        cout: int,
        kernel: int,
        direction: Literal["up", "down"],
        taps: tuple[int, ...],
    ) -> None:
        super().__init__(cin, cout, kernel, padding=kernel // 2)
        self.direction = direction
        self.register_buffer("resample_filter", _filter(taps))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(_resample(x, self.direction, self.resample_filter))


class StridedConv2d(nn.Conv2d):
    """A 3x3 convolution whose result is filtered and halved. All padding comes first, so that
    the result is also that of filtering first and then convolving with stride 2."""

    resample_filter: Tensor

    def __init__(self, cin: int, cout: int, taps: tuple[int, ...]) -> None:
        super().__init__(cin, cout, 3, padding=1 + (len(taps) - 1) // 2)
        self.register_buffer("resample_filter", _filter(taps))

    def forward(self, x: Tensor) -> Tensor:
        return _resample(super().forward(x), "down", self.resample_filter, padding=0)


class PositionalEmbedding(nn.Module):
    """Cosines and sines (Vaswani et al. 2017): (B,) -> (B, width). With ``endpoint`` the lowest
    frequency is 1/10000, without it the geometric series stops one before."""

    def __init__(self, width: int, *, endpoint: bool) -> None:
        super().__init__()
        self.width, self.endpoint = width, endpoint

    def forward(self, c_noise: Tensor) -> Tensor:
        half = self.width // 2
        steps = torch.arange(half, dtype=torch.float32, device=c_noise.device)
        frequencies = 10_000.0 ** (-steps / (half - int(self.endpoint)))
        angles = c_noise.float()[:, None] * frequencies[None, :]
        return torch.cat([angles.cos(), angles.sin()], dim=1)


class FourierEmbedding(nn.Module):
    """Cosines and sines of random frequencies (Tancik et al. 2020), which never train:
    (B,) -> (B, width)."""

    freqs: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("freqs", 16 * torch.randn(width // 2))

    def forward(self, c_noise: Tensor) -> Tensor:
        angles = 2 * math.pi * c_noise.float()[:, None] * self.freqs.float()[None, :]
        return torch.cat([angles.cos(), angles.sin()], dim=1)


def _per_sample(coefficient: Tensor) -> Tensor:
    return coefficient.view(-1, 1, 1, 1)


def _norm(channels: int, eps: float) -> nn.GroupNorm:
    """32 groups, or fewer where they would have under four channels."""
    return nn.GroupNorm(min(32, channels // 4), channels, eps=eps)


def _conv(
    cin: int,
    cout: int,
    kernel: int,
    resample: Literal["up", "down"] | None,
    taps: tuple[int, ...],
) -> nn.Conv2d:
    if resample:
        return ResampledConv2d(cin, cout, kernel, resample, taps)
    return nn.Conv2d(cin, cout, kernel, padding=kernel // 2)


def _filter(taps: tuple[int, ...]) -> Tensor:
    """The two-dimensional filter (1, 1, n, n) of sum 1."""
    row = torch.tensor(taps, dtype=torch.float32)
    return (row.outer(row) / row.sum() ** 2)[None, None]


def _resample(x: Tensor, direction: str, kernel: Tensor, padding: int | None = None) -> Tensor:
    channels = x.shape[1]
    each = kernel.to(x.dtype).expand(channels, 1, -1, -1)
    pad = (kernel.shape[-1] - 1) // 2 if padding is None else padding
    if direction == "down":
        return F.conv2d(x, each, stride=2, padding=pad, groups=channels)
    # Three of four pixels of the spread image are zero: hence the four.
    return F.conv_transpose2d(x, 4 * each, stride=2, padding=pad, groups=channels)
