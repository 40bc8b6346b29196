"""The loss of a student that is straightened. A mean over samples and elements.

A conditional network comes bound to the labels of its batch (`boss_core.ode.velocity.with_labels`).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from boss_core.ode.velocity import VelocityField


def straightening_loss(
    velocity: VelocityField, states: Tensor, times: Tensor, weights: Tensor
) -> Tensor:
    """Squared distance of the velocity at the start of a segment to its target: the chord of the
    teacher's trajectory over the segment for Euler (paper, eq. 9), a weighted mean of this chord
    and those before it for other solvers (`boss_core.straightening.segments.chord_weights`).

    states: (B, L + 1, ...), of one trajectory a row: the end of the segment, its start, and the
        knots before that, each at its time in ``times``, (B, L + 1). Where a trajectory has
        fewer, its first knot repeats.
    weights: (B, L), of the chords from the segment's own back.
    """
    lengths = times[:, :-1] - times[:, 1:]
    # A knot that repeats makes a chord of 0 / 0, whose weight is 0.
    lengths = torch.where(lengths > 0, lengths, 1.0)
    of_elements = (*weights.shape, *[1] * (states.ndim - 2))
    chords = (states[:, :-1] - states[:, 1:]) / lengths.view(of_elements)
    target = (weights.view(of_elements) * chords).sum(dim=1)
    # Copies also where they are contiguous already: a velocity may work in place.
    starts = states[:, 1].clone(memory_format=torch.contiguous_format)
    at = times[:, 1].clone(memory_format=torch.contiguous_format)
    return F.mse_loss(velocity(starts, at), target)
