"""Images changed in ways that leave their class as it is, for the training of a classifier."""

import torch
from torch import Tensor
from torch.nn import functional as F

from boss_core.training.randomness import BatchShare

SHIFT = 4  # pixels


def augmented(
    images: Tensor,
    generator: torch.Generator,
    share: BatchShare | None = None,
    *,
    shift: int = SHIFT,
    mirror: bool = True,
) -> Tensor:
    """Each image shifted by up to ``shift`` pixels both ways, zeros coming in, and mirrored left to
    right or not, independently and with equal chances.

    images: (B, C, H, W), of any dtype, on the generator's device.
    share: that of the images in the batch, for which the numbers are drawn; None for all.
    mirror: False leaves left and right as they are.
    """
    share = share or BatchShare()
    samples, _, height, width = images.shape
    device = images.device

    def draw(below: int) -> Tensor:
        drawn = torch.randint(below, (samples * share.of, 1), generator=generator, device=device)
        return share.take(drawn)

    rows = draw(2 * shift + 1) + torch.arange(height, device=device)
    columns = torch.arange(width, device=device)
    start = draw(2 * shift + 1)
    if mirror:
        columns = torch.where(draw(2) > 0, columns.flip(0), columns)
    columns = start + columns
    padded = F.pad(images, (shift, shift, shift, shift)).permute(0, 2, 3, 1)
    # One indexing for the batch: (B, H, W) places, of all channels each.
    sample = torch.arange(samples, device=device)[:, None, None]
    return padded[sample, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
