"""The cost of every possible step of Heun's method, as eq. 5 is for Euler's.

From x_i a step to j goes by the mean of two velocities, the second of them off the trajectory:

    e_ij = H / 2 (v_i + v(x_i + H v_i, t_j)) - (x_j - x_i),   H = t_j - t_i.

So it does not follow from the trajectory's velocities: the second has to be evaluated for every
pair of grid points.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from boss_core.costs.matrix import GROUPS, group_sizes
from boss_core.errors import InputError
from boss_core.ode.batches import batches, check_batches
from boss_core.ode.solvers import euler
from boss_core.ode.timesteps import Times, validate_timesteps
from boss_core.ode.velocity import Velocity, VelocityField, evaluate


@dataclass(frozen=True)
class HeunCosts:
    """The cost of a Heun step between any two points of a grid; groups are `CostMatrix`'s.

    group_cost: (G, n+1, n+1) float64; entry (i, j), i < j, is the squared L2 error (summed over
        the elements of a sample, mean over a group) of one step from t_i to t_j; 0 elsewhere.
    group_norm: (G, n+1, n+1) float64, the mean norm of the same errors.
    samples: the number of trajectories.
    """

    group_cost: NDArray[np.float64]
    group_norm: NDArray[np.float64]
    samples: int

    @property
    def group_sizes(self) -> NDArray[np.int64]:
        """(G,): the number of trajectories in each group."""
        return group_sizes(self.samples)

    @cached_property
    def cost(self) -> NDArray[np.float64]:
        """(n+1, n+1): the mean over all trajectories."""
        return np.tensordot(self.group_sizes, self.group_cost, axes=1) / self.samples

    @cached_property
    def norm(self) -> NDArray[np.float64]:
        """(n+1, n+1): the mean norm over all trajectories."""
        return np.tensordot(self.group_sizes, self.group_norm, axes=1) / self.samples


@torch.no_grad()
def estimate_heun_costs(
    velocity: Velocity,
    noise: Tensor,
    timesteps: ArrayLike,
    *,
    batch_size: int,
    labels: Tensor | None = None,
    on_step: Callable[[int], None] | None = None,
) -> HeunCosts:
    """Roll out Euler trajectories and return the cost of every Heun step of their grid.

    This takes n (n + 1) / 2 + 1 evaluations a sample, 5051 for 100 steps, where Euler's costs
    take n. The reference is Euler's fine path, whose own error Heun does not share: the cost of a
    step of one or two grid steps is mostly the reference's error.

    Arguments and errors are those of `boss_core.costs.matrix.estimate_cost_matrix`; ``on_step``
    is called after each evaluation.
    """
    times = validate_timesteps(timesteps)
    check_batches(noise, labels, batch_size)
    shape = (min(len(noise), GROUPS), len(times), len(times))
    squares = torch.zeros(shape, dtype=torch.float64, device=noise.device)
    norms = torch.zeros_like(squares)
    for rows, x, of_batch in batches(velocity, noise, labels, batch_size):
        cost = _batch_costs(of_batch, x, times, on_step)
        if not cost.isfinite().all():
            raise InputError(
                "velocity: not finite on the trajectories, or a Heun step off them; a network"
                " with finite outputs needed"
            )
        group = torch.arange(rows.start, rows.stop, device=noise.device) % GROUPS
        squares.index_add_(0, group, cost)
        norms.index_add_(0, group, cost.sqrt_())
    sizes = group_sizes(len(noise))[:, None, None]
    return HeunCosts(squares.cpu().numpy() / sizes, norms.cpu().numpy() / sizes, len(noise))


def _batch_costs(
    velocity: VelocityField, x: Tensor, times: Times, on_step: Callable[[int], None] | None
) -> Tensor:
    """The squared errors of the steps of one batch, (B, n+1, n+1) float64."""

    def counted(state: Tensor, t: Tensor, /) -> Tensor:
        v = evaluate(velocity, state, t)
        if on_step is not None:
            on_step(len(x))
        return v

    n, held = len(times) - 1, []

    def keep(k: int, state: Tensor, v: Tensor | None) -> None:
        if v is not None:
            held.append(v.clone())  # a network may return the same buffer each time

    euler(counted, x, times, observer=keep)
    cost = torch.zeros(len(x), n + 1, n + 1, dtype=torch.float64, device=x.device)
    for i in range(n):
        v = held[i]
        # x_j - x_i as a sum of steps: a difference of states would lose the digits they share.
        moved = torch.zeros(v.shape, dtype=torch.float64, device=x.device)
        for j in range(i + 1, n + 1):
            moved += float(times[j] - times[j - 1]) * held[j - 1].double()
            step = float(times[j] - times[i])
            if j == i + 1 < n:  # Euler's own next state
                ahead = held[j]
            else:
                at = torch.full((len(x),), float(times[j]), dtype=x.dtype, device=x.device)
                ahead = counted(x + step * v, at)
            error = 0.5 * step * (v.double() + ahead.double()) - moved
            cost[:, i, j] = error.flatten(1).square().sum(dim=1)
        x = x + float(times[i + 1] - times[i]) * v
    return cost
