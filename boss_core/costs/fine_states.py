"""The states of fine trajectories at all points of their grid, which weights are fitted to."""

import math
from collections.abc import Callable, Sequence

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from boss_core.costs.fit import FEWEST_NOISES
from boss_core.costs.references import roll_out_path
from boss_core.ode.batches import batches
from boss_core.ode.solvers import euler
from boss_core.ode.velocity import Velocity

# Noises that weights are fitted to, two numbers a step from all elements of each: for K = 2 to 10 a
# seventh of the evaluations of 300 trajectories. Fewer where their states would take more.
NOISES = 96
LARGEST_BYTES = 1 << 30


def fitting_noises(shape: Sequence[int], steps: int, samples: int) -> int:
    """How many noises to fit weights to, for samples of a shape whose costs were measured on so
    many trajectories of so many steps."""
    each = 4 * math.prod(shape) * (steps + 1)
    return max(FEWEST_NOISES, min(NOISES, samples, LARGEST_BYTES // each))


def empty_states(noise: Tensor, samples: int, timesteps: ArrayLike) -> Tensor:
    """(n+1, samples, ...): room for the states of so many trajectories, of the kind of noise."""
    points = torch.as_tensor(timesteps).shape[0]
    return noise.new_empty(points, samples, *noise.shape[1:])


def roll_out_states(
    velocity: Velocity,
    noise: Tensor,
    timesteps: ArrayLike,
    *,
    reference: str = "euler",
    batch_size: int,
    labels: Tensor | None = None,
    on_step: Callable[[int], None] | None = None,
) -> Tensor:
    """(n+1, N, ...): the states of the trajectories from noise (N, ...) at the n + 1 timesteps.

    Arguments and errors are those of `boss_core.costs.matrix.estimate_cost_matrix`, whose
    trajectories these are.
    """
    states = empty_states(noise, len(noise), timesteps)
    for rows, x, of_batch in batches(velocity, noise, labels, batch_size):
        part = states[:, rows]
        if reference != "euler":
            roll_out_path(of_batch, x, timesteps, reference, states=part, on_step=on_step)
            continue

        def keep(k: int, state: Tensor, v: Tensor | None, part: Tensor = part) -> None:
            part[k] = state
            if v is not None and on_step is not None:
                on_step(len(state))

        euler(of_batch, x, timesteps, observer=keep)
    return states
