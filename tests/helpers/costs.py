"""Costs as eq. 5 is written, and a flow to measure them on."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from boss_core.costs.cost_file import read_costs
from boss_core.costs.matrix import CostMatrix
from boss_core.costs.two_step import two_step_costs
from boss_core.ode.solvers import euler


def pairwise(velocity, noise, timesteps) -> np.ndarray:
    """The cost of each sample and pair, as eq. 5 is written: (N, n+1, n+1)."""
    velocities: list[torch.Tensor] = []

    def keep(k, x, v):
        if v is not None:
            velocities.append(v.double().flatten(1))

    euler(velocity, noise, timesteps, observer=keep)
    n = len(timesteps) - 1
    states = [torch.zeros_like(velocities[0])]
    for k in range(n):
        states.append(states[-1] + (timesteps[k + 1] - timesteps[k]) * velocities[k])
    cost = np.zeros((len(noise), n + 1, n + 1))
    for i in range(n):
        for j in range(i + 1, n + 1):
            step = (timesteps[j] - timesteps[i]) * velocities[i]
            cost[:, i, j] = ((states[j] - states[i] - step) ** 2).sum(dim=1).numpy()
    return cost


def smooth(x, t):
    t = t.view(-1, 1)
    return torch.sin(3 * x + 4 * t) + x * t**2


def cost_matrix(path: Path) -> CostMatrix:
    """The matrix of a file of costs."""
    return read_costs(path)[1].result()


def ab2_costs(gram: NDArray, timesteps: NDArray) -> NDArray:
    """The costs of all steps of two-step Adams-Bashforth, (n+1, n+1, n+1): entry (i, j, k)."""
    blocks = two_step_costs(gram, timesteps)
    n = len(blocks)
    cost = np.zeros((n + 1, n + 1, n + 1))
    for j, block in enumerate(blocks):
        cost[:j, j, j + 1 :] = block
    return cost
