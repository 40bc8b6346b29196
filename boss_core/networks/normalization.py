"""Group normalisation (Wu and He 2018) of images that are stored channels last, with the sum before
it and the activation after it.

On a GPU torch copies such images to the other layout and back, and reads them more often than it
must. Where Triton is at hand, a program of `boss_core.networks.normalization_triton` takes some
groups of one image, reads what is added up once, in the layout that the convolutions around it use,
and writes the sum and its activated normalisation once; all else goes through torch's own
functions.
"""

from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Looked up once, as torch's compiler cannot look into it; without a GPU the import would cost only.
_TRITON = torch.cuda.is_available() and find_spec("triton") is not None
if _TRITON:
    from boss_core.networks.normalization_triton import normalize
# A program holds all pixels of its channels at once.
_MOST_PIXELS = 1024


class Summands(NamedTuple):
    """Features (B, C, H, W) that the next to read them adds up: (x + branch + bias) scale, with a
    bias (C,) of the layers that made x and branch."""

    x: Tensor
    branch: Tensor
    bias: Tensor
    scale: float

    def total(self) -> Tensor:
        """The features."""
        bias = self.bias.to(self.x.dtype)[:, None, None]
        return (self.x + self.branch + bias) * self.scale


def group_norm(
    x: Tensor, norm: nn.GroupNorm, *, shift: Tensor | None = None, activate: bool = True
) -> Tensor:
    """The normalisation of x + shift, then SiLU when ``activate``; dtype and layout of x.

    x: (B, C, H, W). shift: (B, C), added to every pixel; a time embedding, say, with the bias of
    the convolution before, which then needs no pass of its own.
    """
    if _fits(x):
        x = x.contiguous(memory_format=torch.channels_last)
        of_norm = norm.weight, norm.bias, norm.num_groups, norm.eps, activate
        return normalize(x, None, None, shift, 1.0, *of_norm)[1]
    if shift is not None:
        x = x + shift[:, :, None, None].to(x.dtype)
    x = norm(x)
    return F.silu(x) if activate else x


def add_and_norm(
    h: Summands, norm: nn.GroupNorm, *, skip: Tensor | None = None, activate: bool = True
) -> tuple[Tensor, Tensor]:
    """The features, with the channels of the skip (B, C', H, W) behind them, and their
    normalisation, as `group_norm` has it."""
    # A kernel's program reads x or the skip, so no group may have channels of both.
    channels_of_group = norm.num_channels // norm.num_groups
    if _fits(h.x) and h.x.shape[1] % channels_of_group == 0:
        x, branch = (t.contiguous(memory_format=torch.channels_last) for t in (h.x, h.branch))
        if skip is not None:
            skip = skip.contiguous(memory_format=torch.channels_last)
        of_norm = norm.weight, norm.bias, norm.num_groups, norm.eps, activate
        return normalize(x, branch, skip, h.bias, h.scale, *of_norm)[:2]
    x = h.total()
    if skip is not None:
        x = torch.cat([x, skip], dim=1)
    return x, group_norm(x, norm, activate=activate)


def _fits(x: Tensor) -> bool:
    pixels = x.shape[2] * x.shape[3]
    return _TRITON and x.is_cuda and pixels <= _MOST_PIXELS and x.dtype.itemsize <= 4
