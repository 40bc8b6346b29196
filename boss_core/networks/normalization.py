"""Group normalisation (Wu and He 2018) of images that are stored channels last.

torch normalises such images on a GPU by way of a copy in the other layout, forth and back, and
reads them twice more than it must. Where Triton is at hand, one program of the kernels here takes
some groups of one image, reads them once and writes them once, in whatever layout the convolutions
around it use; all else goes through torch's own functions.
"""

from importlib.util import find_spec

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# The kernels hold all pixels of a channel at once; for larger images torch's own do.
_MOST_PIXELS = 1024


def group_norm(
    x: Tensor, norm: nn.GroupNorm, *, shift: Tensor | None = None, activate: bool = True
) -> Tensor:
    """The normalisation of x + shift, then SiLU when ``activate``; dtype and layout of x.

    x: (B, C, H, W). shift: (B, C), added to every pixel; a time embedding, say, with the bias of
    the convolution before, which then needs no pass of its own.
    """
    fits = x.shape[2] * x.shape[3] <= _MOST_PIXELS and x.dtype.itemsize <= 4
    if fits and x.is_cuda and find_spec("triton") is not None:
        from boss_core.networks.normalization_triton import normalize

        x = x.contiguous(memory_format=torch.channels_last)
        return normalize(x, shift, norm.weight, norm.bias, norm.num_groups, norm.eps, activate)[0]
    if shift is not None:
        x = x + shift[:, :, None, None].to(x.dtype)
    x = norm(x)
    return F.silu(x) if activate else x
