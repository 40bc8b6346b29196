"""Small networks in the layouts of EDM."""

import torch

from boss_core.networks.edm import EDM, EDMConfig

SONG = {
    "model_type": "SongUNet",
    "img_resolution": 8,
    "img_channels": 3,
    "model_channels": 16,
    "channel_mult": (1, 2),
    "num_blocks": 1,
    "attn_resolutions": (4,),
}


NCSNPP = {
    **SONG,
    "embedding_type": "fourier",
    "channel_mult_noise": 2,
    "encoder_type": "residual",
    "resample_filter": (1, 3, 3, 1),
}


def build(**settings) -> EDM:
    torch.manual_seed(0)
    return EDM(EDMConfig.model_validate(settings)).eval().requires_grad_(False)
