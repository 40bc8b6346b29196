"""The flow to a mixture of Gaussians, in closed form."""

import math

import torch
from torch import Tensor

# Three unequal, narrow modes of different widths: steps matter, and matter unevenly.
CENTRES = torch.tensor([[1.5, 0.0], [-1.0, 1.2], [-0.3, -1.4]])
WIDTHS = torch.tensor([0.1, 0.3, 0.05])


def mixture_velocity(x: Tensor, t: Tensor) -> Tensor:
    """E[x_1 - x_0 | x_t = x] for equally likely N(c_i, s_i^2 I): given the mode, x_t is normal
    with mean t c_i and variance q = t^2 s_i^2 + (1 - t)^2, and the velocity c_i plus
    (t s_i^2 - (1 - t)) / q times the deviation. x: (B, 2)."""
    t = t.view(-1, 1)
    square = WIDTHS.to(x) ** 2
    q = t**2 * square + (1 - t) ** 2  # (B, modes)
    deviation = x[:, None] - t[..., None] * CENTRES.to(x)  # (B, modes, 2)
    share = (-deviation.square().sum(-1) / (2 * q) - q.log()).softmax(-1)
    of_mode = CENTRES.to(x) + ((t * square - (1 - t)) / q)[..., None] * deviation
    return (share[..., None] * of_mode).sum(1)


def rotated_velocity(x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    """The same mixture turned by a right angle for each label: a conditional velocity."""
    angle = labels.to(x.dtype) * (math.pi / 2)
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], -1).view(-1, 2, 2)
    back = mixture_velocity((turn.mT @ x[..., None])[..., 0], t)
    return (turn @ back[..., None])[..., 0]
