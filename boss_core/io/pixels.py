"""The one place where uint8 pixels become floats in [-1, 1], and back."""

import torch
from torch import Tensor


def to_uint8(x: Tensor) -> Tensor:
    """[-1, 1] floats to 0..255, clipped and rounded to the nearest (never truncated)."""
    return ((x.clamp(-1.0, 1.0) + 1.0) * 127.5).round().to(torch.uint8)


def from_uint8(x: Tensor) -> Tensor:
    """0..255 to float32 in [-1, 1]."""
    return x.float() / 127.5 - 1.0
