"""How many threads of a CPU a network is worth."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

# Parameters of a network times pixels of an image. U-Nets on two free cores, batches of 64 forward
# and backward, seconds with one thread by those with two: of 1.9e7 (the default's) 0.68, of 7.5e7
# 0.86, of 3.0e8 1.3, of 1.2e9 1.75.
SMALL = 1e8


def is_small(network: Any, shape: Sequence[int] | None = None) -> bool:
    """Whether a network computes no faster with two threads than with one. shape: (C, H, W) of its
    images, where it does not say that itself."""
    pixels = math.prod((shape or network.config.sample_shape)[1:])
    return sum(weight.numel() for weight in network.parameters()) * pixels <= SMALL


def limit_threads(network: Any, shape: Sequence[int], device: torch.device) -> None:
    """One thread from here on, where a network on a CPU is small: two that wait for each other at
    every operation take many times as long where other programs want the cores, too."""
    if device.type == "cpu" and isinstance(network, nn.Module) and is_small(network, shape):
        torch.set_num_threads(1)
