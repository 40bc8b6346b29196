"""The losses of teacher and student. Means over samples and elements.

A conditional network comes bound to the labels of its batch (`boss_core.velocity.with_labels`).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from boss_core.velocity import VelocityField


def flow_matching_loss(velocity: VelocityField, data: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """The flow-matching loss on the linear path (Lipman et al. 2023; Liu et al. 2023):
    x_t = (1 - t) x_0 + t x_1, target x_1 - x_0. ``data``, ``noise``: (B, ...); ``t``: (B,)."""
    weight = t.view(-1, *[1] * (data.ndim - 1))
    return F.mse_loss(velocity(torch.lerp(noise, data, weight), t), data - noise)


def straightening_loss(
    velocity: VelocityField, start: Tensor, end: Tensor, t_start: Tensor, t_end: Tensor
) -> Tensor:
    """Squared distance of the velocity at ``start`` to the chord of the teacher's trajectory
    over one segment (paper, eq. 9). ``start``, ``end``: (B, ...) states of one trajectory at
    the times ``t_start``, ``t_end``: (B,)."""
    length = (t_end - t_start).view(-1, *[1] * (start.ndim - 1))
    return F.mse_loss(velocity(start, t_start), (end - start) / length)
