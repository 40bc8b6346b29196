"""The predicted error of given steps."""

import itertools

import numpy as np
import pytest
import torch

from boss_core.bellman import path_cost, path_standard_error
from boss_core.cost import CostMatrix, estimate_cost_matrix
from boss_core.errors import InputError
from boss_core.prediction import predict
from boss_core.solvers import euler
from boss_core.timesteps import quadratic
from boss_core.two_step import ab2_costs
from boss_core.velocity import sample_noise

N, SAMPLES = 9, 27


def velocity(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return torch.sin(3 * x) * t[:, None] - x


@pytest.fixture(scope="module")
def matrix() -> CostMatrix:
    noise = sample_noise(range(SAMPLES), (5,), seed=0).double()
    return estimate_cost_matrix(velocity, noise, quadratic(N), batch_size=SAMPLES)


@pytest.mark.parametrize("indices", [(0, N), (0, 1, N), (0, 3, 4, 8, N), tuple(range(N + 1))])
def test_eulers_is_the_cost_of_the_path(matrix: CostMatrix, indices: tuple[int, ...]) -> None:
    found = predict(matrix, indices)
    assert found.error == pytest.approx(path_cost(matrix.cost, indices), rel=1e-10, abs=1e-15)
    expected = path_standard_error(matrix.group_cost, indices)
    assert found.standard_error == pytest.approx(expected, rel=1e-10, abs=1e-15)


@pytest.mark.parametrize("indices", [(0, N), (0, 1, N), (0, 3, 4, 8, N)])
def test_two_steps_are_those_of_all_costs_and_of_the_steps_taken(
    matrix: CostMatrix, indices: tuple[int, ...]
) -> None:
    found = predict(matrix, indices, "ab2").error
    cost = ab2_costs(matrix.gram, matrix.timesteps)
    triples = zip(indices, indices[1:], indices[2:], strict=False)
    expected = matrix.cost[0, indices[1]] + sum(cost[i, j, k] for i, j, k in triples)
    assert found == pytest.approx(expected, rel=1e-10)

    # One step of the solver from the fine trajectory's own states and velocities.
    states, velocities = [], []
    noise = sample_noise(range(SAMPLES), (5,), seed=0).double()
    euler(velocity, noise, matrix.timesteps, observer=lambda k, x, v: (
        states.append(x), velocities.append(v)))  # fmt: skip
    t, total = matrix.timesteps, 0.0
    for step, (j, k) in enumerate(itertools.pairwise(indices)):
        slope = velocities[j]
        if step:
            i = indices[step - 1]
            w = (t[k] - t[j]) / (2 * (t[j] - t[i]))
            slope = (1 + w) * velocities[j] - w * velocities[i]
        error = states[k] - states[j] - (t[k] - t[j]) * slope
        total += float(error.square().sum(dim=1).mean())
    assert found == pytest.approx(total, rel=1e-9)


def test_the_standard_error_comes_from_the_spread_between_groups(matrix: CostMatrix) -> None:
    grams = matrix.group_gram
    full = np.triu(grams) + np.triu(grams, 1).swapaxes(1, 2)
    of_group = []
    for gram in full:
        cost = ab2_costs(gram, matrix.timesteps)
        # The first step is Euler's: its cost from the same Gram matrix, as `CostMatrix` has it.
        of_group.append(cost[0, 4, N])
    of_group = np.array(of_group) + matrix.group_cost[:, 0, 4]
    expected = of_group.std(ddof=1) / np.sqrt(len(grams))
    assert predict(matrix, (0, 4, N), "ab2").standard_error == pytest.approx(expected, rel=1e-9)
    one = estimate_cost_matrix(
        velocity, sample_noise(range(1), (5,), seed=0), quadratic(N), batch_size=1
    )
    assert predict(one, (0, 4, N), "ab2").standard_error is None


def test_what_cannot_be_predicted(matrix: CostMatrix) -> None:
    with pytest.raises(InputError, match=r"indices: \[0, 4\]; increasing grid indices from 0 to 9"):
        predict(matrix, (0, 4))
    with pytest.raises(InputError, match="solver: 'heun'; euler or ab2 needed"):
        predict(matrix, (0, N), "heun")
