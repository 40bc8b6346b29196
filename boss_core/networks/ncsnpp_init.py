"""The weights that a DDPM++ or NCSN++ starts training with (Song et al. 2021, appendix H)."""

import torch
from torch import nn

from boss_core.networks.ncsnpp import NIN, Attention, NCSNpp, ResidualBlock


@torch.no_grad()
def initialise(network: NCSNpp) -> None:
    """Uniform weights whose variance is 2 / (fan in + fan out), biases of 0; what ends a residual
    branch, and the layer that gives the velocity, is 0: each block starts as the identity."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, NIN):
            nn.init.xavier_uniform_(module.W)
            nn.init.zeros_(module.b)
    for module in network.modules():
        if isinstance(module, ResidualBlock):
            nn.init.zeros_(module.Conv_1.weight)
        elif isinstance(module, Attention):
            nn.init.zeros_(module.NIN_3.W)
    config = network.config
    for module in network.all_modules:
        # To the image: one layer, or one a level whose outputs are added up.
        if isinstance(module, nn.Conv2d) and module.out_channels == config.num_channels:
            nn.init.zeros_(module.weight)
