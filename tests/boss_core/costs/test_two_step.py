"""Costs of two-step Adams-Bashforth against its definition, step by step in float64."""

import itertools

import numpy as np
import pytest
import torch

from boss_core.bellman.recursion import optimal_two_step_paths
from boss_core.costs.matrix import estimate_cost_matrix
from boss_core.costs.two_step import two_step_costs
from boss_core.ode.noise import sample_noise
from boss_core.ode.solver_table import SOLVERS
from boss_core.ode.solvers import euler
from boss_core.ode.timesteps import karras, quadratic, uniform
from tests.helpers.costs import ab2_costs


def velocity(x, t):
    t = t.view(-1, 1)
    return torch.sin(3 * x + 4 * t) + x * t**2


def trajectories(grid, samples: int = 7):
    noise = sample_noise(range(samples), (5,), seed=0).double()
    states, velocities = [], []

    def keep(k, x, v):
        states.append(x.clone())
        if v is not None:
            velocities.append(v.clone())

    euler(velocity, noise, grid, observer=keep)
    return noise, states, velocities


@pytest.mark.parametrize("grid", [uniform(14), quadratic(12), karras(10)], ids=str)
def test_every_step_costs_what_its_definition_says(grid) -> None:
    noise, states, velocities = trajectories(grid)
    matrix = estimate_cost_matrix(velocity, noise, grid, batch_size=3)
    found = ab2_costs(matrix.gram, grid)
    expected = np.zeros_like(found)
    for i, j, k in itertools.combinations(range(len(grid)), 3):
        big, small = grid[k] - grid[j], grid[j] - grid[i]
        r = big / small
        step = states[j] + big * ((1 + r / 2) * velocities[j] - r / 2 * velocities[i])
        expected[i, j, k] = float((step - states[k]).square().sum(dim=1).mean())
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-14)


def test_the_best_path_is_the_best_of_all_by_its_definition() -> None:
    grid = uniform(9)
    noise, states, velocities = trajectories(grid)
    matrix = estimate_cost_matrix(velocity, noise, grid, batch_size=7)
    paths = optimal_two_step_paths(matrix.cost[0], ab2_costs(matrix.gram, grid), range(1, 9))

    def error(path: tuple[int, ...]) -> float:
        total = 0.0
        for k, (j, end) in enumerate(itertools.pairwise(path)):
            big = grid[end] - grid[j]
            r = 0.0 if k == 0 else big / (grid[j] - grid[path[k - 1]])
            before = velocities[path[k - 1]] if k else velocities[0]
            step = states[j] + big * ((1 + r / 2) * velocities[j] - r / 2 * before)
            total += float((step - states[end]).square().sum(dim=1).mean())
        return total

    for budget, path in paths.items():
        inner = itertools.combinations(range(1, 9), budget - 1)
        best = min(((0, *middle, 9) for middle in inner), key=error)
        assert path.indices == best
        assert path.cost == pytest.approx(error(best))


def test_many_gram_matrices_at_once_are_each_by_itself() -> None:
    grid = quadratic(9)
    noise, *_ = trajectories(grid)
    matrix = estimate_cost_matrix(velocity, noise, grid, batch_size=7)
    groups = np.triu(matrix.group_gram)
    groups = groups + np.triu(groups, k=1).swapaxes(1, 2)
    blocks = two_step_costs(groups, grid)
    for group, gram in enumerate(groups):
        cost = ab2_costs(gram, grid)
        for j, block in enumerate(blocks):
            np.testing.assert_array_equal(block[group], cost[:j, j, j + 1 :])


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match=r"gram: shape \(4, 4\) for 6 timesteps"):
        two_step_costs(np.zeros((4, 4)), uniform(5))
    most = SOLVERS["ab2"].largest_grid
    n = most + 1
    with pytest.raises(ValueError, match=f"{n} steps; at most {SOLVERS['ab2'].largest_grid}"):
        two_step_costs(np.zeros((n + 1, n + 1)), uniform(n))
