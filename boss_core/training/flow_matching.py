"""Flow matching: its loss, a mean over samples and elements, and its batches from images.

A conditional network comes bound to the labels of its batch (`boss_core.ode.velocity.with_labels`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from boss_core.io.pixels import from_uint8
from boss_core.ode.noise import sample_noise
from boss_core.ode.velocity import Velocity, VelocityField, with_labels
from boss_core.training.device_rows import DeviceRows
from boss_core.training.randomness import BatchShare, Loss, device_generator, step_generator


def flow_matching_loss(velocity: VelocityField, data: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """The flow-matching loss on the linear path (Lipman et al. 2023; Liu et al. 2023):
    x_t = (1 - t) x_0 + t x_1, target x_1 - x_0. ``data``, ``noise``: (B, ...); ``t``: (B,)."""
    weight = t.view(-1, *[1] * (data.ndim - 1))
    # A copy of the caller's times: a velocity may work in place.
    return F.mse_loss(velocity(torch.lerp(noise, data, weight), t.clone()), data - noise)


@dataclass(frozen=True)
class LabelledImages:
    """Images to train a velocity on, and the classes that it learns of them.

    images: (N, C, H, W) uint8. labels: (N,) int64; None for an unconditional network.
    """

    images: DeviceRows
    labels: DeviceRows | None = None

    @classmethod
    def of(
        cls, images: NDArray[np.uint8], labels: NDArray[np.int64] | None, device: torch.device
    ) -> "LabelledImages":
        """On the device, as far as they fit there."""
        on_device = None if labels is None else DeviceRows.of(labels, device)
        return cls(DeviceRows.of(images, device), on_device)

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) of one image."""
        return tuple(self.images.array.shape[1:])

    def training_loss(self, *, seed: int, batch_size: int, flip: bool) -> Loss:
        """The loss of random images, noise and times, for `boss_core.training.loop.train`.
        flip: half of the images are mirrored left to right."""
        device = self.images.device

        def rows(step: int, share: BatchShare) -> tuple[NDArray]:
            draw = step_generator(seed, step)
            return (share.take(draw.integers(len(self.images.array), size=batch_size)),)

        batch = self.images.batches(rows)

        def loss(network: Velocity, step: int, share: BatchShare) -> Tensor:
            draw = device_generator(seed, step, device)
            noise = torch.randn((batch_size, *self.shape), generator=draw, device=device)
            t = torch.rand(batch_size, generator=draw, device=device)
            pixels = from_uint8(batch(step, share))
            if flip:
                mirrored = share.take(torch.rand(batch_size, generator=draw, device=device) < 0.5)
                pixels = torch.where(mirrored.view(-1, 1, 1, 1), pixels.flip(-1), pixels)
            labels = None if self.labels is None else self.labels.take(*rows(step, share))
            velocity = with_labels(network, labels)
            return flow_matching_loss(velocity, pixels, share.take(noise), share.take(t))

        return loss

    def validation_loss(self, *, seed: int, most: int = 512) -> Callable[[Any], float]:
        """The loss of a network on the first ``most`` images: the same noise and times at every
        look, so that a curve of it is smooth."""
        device = self.images.device
        rows = np.arange(min(len(self.images.array), most))
        pixels = from_uint8(self.images.take(rows))
        labels = None if self.labels is None else self.labels.take(rows)
        noise = sample_noise(range(len(rows)), self.shape, seed).to(device)
        t = (torch.arange(len(rows), device=device) + 0.5) / len(rows)
        return lambda network: float(
            flow_matching_loss(with_labels(network, labels), pixels, noise, t)
        )
