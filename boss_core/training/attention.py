"""Attention whose gradients are right: without cuDNN's kernels, or with them.

In half precision on Hopper cards PyTorch prefers cuDNN's kernels, and keeps the plan of a backward
pass by the shapes and layouts of queries, keys and values, but not by the layout of the gradient
(seen with PyTorch 2.11). A network whose blocks hand back gradients of two layouts for the same
shapes, as those of FLUX and of Stable Diffusion 3 do, runs the second with the plan of the first:
an illegal memory access, or a gradient read from the wrong places.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


@contextmanager
def without_cudnn_attention() -> Iterator[None]:
    """Leave cuDNN's attention out; PyTorch takes its own kernels then."""
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


@contextmanager
def whole_attention_gradients() -> Iterator[None]:
    """Inside, attention is handed its gradient in the layout of what it returned, so that cuDNN's
    kernels, which are faster, may be taken.

    Only for networks that call it as ``torch.nn.functional.scaled_dot_product_attention``, as all
    of diffusers do: who has imported the function itself has it without this.
    """
    global _attention
    if functional.scaled_dot_product_attention is _whole:  # a training within a training
        yield
        return
    _attention = functional.scaled_dot_product_attention
    functional.scaled_dot_product_attention = _whole
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = _attention


# Not within the function: a new one each time would have compiled blocks compiled again.
_attention: Callable[..., Tensor] = functional.scaled_dot_product_attention


def _whole(*args: Any, **kwargs: Any) -> Tensor:
    found = _attention(*args, **kwargs)
    return _AsReturned.apply(found) if found.requires_grad else found


class _AsReturned(torch.autograd.Function):
    """The same; its gradient is copied where it has another layout."""

    @staticmethod
    def forward(ctx: Any, found: Tensor) -> Tensor:
        ctx.layout = found.stride()
        return found.view_as(found)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        if gradient.stride() == ctx.layout:
            return gradient
        whole = torch.empty_strided(
            gradient.shape, ctx.layout, dtype=gradient.dtype, device=gradient.device
        )
        return whole.copy_(gradient)
