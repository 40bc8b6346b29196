"""Attention whose gradients are right: without cuDNN's kernels."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def without_cudnn_attention() -> Iterator[None]:
    """Leave cuDNN's attention out while a network trains; PyTorch takes its own kernels then.

    In half precision on Hopper cards PyTorch prefers cuDNN's kernels, and keeps the plan of a
    backward pass by the shapes and layouts of queries, keys and values, but not by the layout of
    the gradient (seen with PyTorch 2.11). A network whose blocks hand back gradients of two layouts
    for the same shapes, as FLUX's single and double blocks do, runs the second with the plan of the
    first: an illegal memory access, or a gradient read from the wrong places.
    """
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
