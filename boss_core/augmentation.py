"""Images changed in ways that leave their class as it is, for the training of a classifier."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

SHIFT = 4  # pixels


def augmented(images: Tensor, generator: np.random.Generator) -> Tensor:
    """Each image shifted by up to `SHIFT` pixels both ways, zeros coming in, and mirrored left to
    right or not, independently and with equal chances.

    images: (B, C, H, W), of any dtype, on any device; the generator's numbers alone cross over.
    """
    samples, _, height, width = images.shape
    shifts = generator.integers(2 * SHIFT + 1, size=(2, samples))
    mirror = generator.integers(2, size=samples)
    rows = shifts[0, :, None] + np.arange(height)
    columns = np.where(mirror[:, None], np.arange(width)[::-1], np.arange(width))
    columns = shifts[1, :, None] + columns
    padded = F.pad(images, (SHIFT, SHIFT, SHIFT, SHIFT)).permute(0, 2, 3, 1)
    # One indexing for the batch: (B, H, W) places, of all channels each.
    places = [torch.from_numpy(index).to(images.device) for index in (rows, columns)]
    sample = torch.arange(samples, device=images.device)[:, None, None]
    return padded[sample, places[0][:, :, None], places[1][:, None, :]].permute(0, 3, 1, 2)
