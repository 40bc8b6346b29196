"""Group normalisation (Wu and He 2018) of images that are stored channels last.

On a GPU torch copies such images to the other layout and back, and reads them more often than it
must. Where Triton is at hand, a program of `boss_core.networks.normalization_triton` takes some
groups of one image, reads them once, in the layout that the convolutions around it use, and writes
them once, activated; all else goes through torch's own functions.
"""

from importlib.util import find_spec

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Looked up once, as torch's compiler cannot look into it; without a GPU the import would cost only.
_TRITON = torch.cuda.is_available() and find_spec("triton") is not None
if _TRITON:
    from boss_core.networks.normalization_triton import normalize
# A program holds all pixels of its channels at once.
_MOST_PIXELS = 1024


def group_norm(
    x: Tensor, norm: nn.GroupNorm, *, shift: Tensor | None = None, activate: bool = True
) -> Tensor:
    """The normalisation of x + shift, then SiLU when ``activate``; dtype and layout of x.

    x: (B, C, H, W). shift: (B, C), added to every pixel; a time embedding, say, with the bias of
    the convolution before, which then needs no pass of its own.
    """
    fits = x.shape[2] * x.shape[3] <= _MOST_PIXELS and x.dtype.itemsize <= 4
    if _TRITON and fits and x.is_cuda:
        x = x.contiguous(memory_format=torch.channels_last)
        return normalize(x, shift, norm.weight, norm.bias, norm.num_groups, norm.eps, activate)[0]
    if shift is not None:
        x = x + shift[:, :, None, None].to(x.dtype)
    x = norm(x)
    return F.silu(x) if activate else x
