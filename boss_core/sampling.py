"""Images from a velocity and a schedule."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from boss_core.pixels import to_uint8
from boss_core.solvers import euler
from boss_core.velocity import VelocityField, sample_noise


def sample_images(
    velocity: VelocityField,
    timesteps: ArrayLike,
    *,
    samples: int,
    shape: tuple[int, ...],
    seed: int,
    batch_size: int,
    device: torch.device,
    on_step: Callable[[int], None] | None = None,
) -> NDArray[np.uint8]:
    """Exactly ``samples`` images by Euler, (samples, *shape) uint8. Image ``i`` starts from
    noise ``i`` of ``seed``, so variants of a schedule or a network are compared on the same
    noise. ``on_step`` is called with the size of each batch when it is done."""
    images = np.empty((samples, *shape), dtype=np.uint8)
    for start in range(0, samples, batch_size):
        rows = range(start, min(start + batch_size, samples))
        x = euler(velocity, sample_noise(rows, shape, seed).to(device), timesteps)
        images[rows.start : rows.stop] = to_uint8(x).cpu().numpy()
        if on_step is not None:
            on_step(len(rows))
    return images
