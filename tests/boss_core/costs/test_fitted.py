"""Steps with the best weights that they could have, against least squares on the trajectories."""

import itertools

import numpy as np
import pytest
import torch

from boss_core.costs.fine_states import roll_out_states
from boss_core.costs.fitted import fitted_costs, path_costs, path_weights
from boss_core.costs.matrix import CostMatrix, estimate_cost_matrix
from boss_core.errors import InputError
from boss_core.ode.noise import sample_noise
from boss_core.ode.solver_table import weights_of_steps
from boss_core.ode.timesteps import quadratic, uniform
from tests.helpers.costs import smooth

NOISE = sample_noise(range(40), (5,), seed=3).double()


def by_hand(times, reference, path, order):
    """The costs of a path's steps and their weights: numpy's least squares on the states."""
    states = roll_out_states(smooth, NOISE, times, reference=reference, batch_size=64).numpy()
    costs, weights = [], []
    for k, (j, end) in enumerate(itertools.pairwise(path)):
        back = [path[k - b] for b in range(1, min(k, order - 1) + 1)]
        v, *before = (
            smooth(torch.from_numpy(states[i]), torch.tensor(times[i]).repeat(len(NOISE))).numpy()
            for i in (j, *back)
        )
        length = times[end] - times[j]
        left = (states[end] - states[j] - length * v).ravel()
        free = np.zeros(0)
        if before:
            slopes = np.stack([length * (u - v).ravel() for u in before], axis=1)
            free = np.linalg.lstsq(slopes, left, rcond=None)[0]
            left = left - slopes @ free
        costs.append((left**2).sum() / len(NOISE))
        weights.append((1 - free.sum(), *free))
    return np.array(costs), weights


def measured(times, reference="euler") -> CostMatrix:
    return estimate_cost_matrix(smooth, NOISE, times, batch_size=16, reference=reference)


@pytest.mark.parametrize("reference", ["euler", "heun"])
@pytest.mark.parametrize("order", [2, 3])
def test_costs_and_weights_are_those_of_least_squares(order: int, reference: str) -> None:
    times = quadratic(9)
    matrix = measured(times, reference)
    costs = fitted_costs(matrix.gram, times, order)
    for path in ((0, 3, 4, 6, 9), (0, 1, 2, 9), (0, 5, 9), (0, 9)):
        expected, weights = by_hand(times, reference, path, order)
        found = path_weights(matrix.gram, times, path, order)
        # By the ridge of a millionth.
        for of_step, wanted in zip(found, weights, strict=True):
            np.testing.assert_allclose(of_step, wanted, rtol=0, atol=2e-2 if order == 3 else 1e-3)
        each = path_costs(matrix.gram, times, path, weights)
        np.testing.assert_allclose(each, expected, rtol=1e-5, atol=1e-12)
        steps = [costs.first[path[1]]]
        if len(path) > 2:
            steps.append(costs.two[path[1]][0, path[2] - path[1] - 1])
        for h, i, j, k in zip(path, path[1:], path[2:], path[3:], strict=False):
            if order == 2:
                steps.append(costs.two[j][i, k - j - 1])
            else:
                steps.append(costs.three[j][k - j - 1, i * (i - 1) // 2 + h])
        np.testing.assert_allclose(steps, expected, rtol=2e-3, atol=1e-9)


def test_no_step_costs_more_than_one_with_fewer_velocities_or_with_ab2s_weights() -> None:
    times = uniform(12)
    matrix = measured(times)
    costs = fitted_costs(matrix.gram, times)
    path = (0, 2, 5, 9, 12)
    fitted = path_costs(matrix.gram, times, path, path_weights(matrix.gram, times, path))
    ab2 = path_costs(matrix.gram, times, path, weights_of_steps("ab2", np.diff(times[[*path]])))
    assert (fitted <= ab2 * (1 + 1e-5)).all()
    for j in range(2, 12):
        i, _ = np.tril_indices(j, -1)
        assert (costs.three[j] <= costs.two[j][i].T * (1 + 1e-5) + 1e-12).all()


def test_on_a_parabola_the_weights_are_those_of_adams_bashforth() -> None:
    # v = a + b t, with a and b of each sample, which a state far from the others carries along.
    slope = torch.arange(1.0, 41.0).double().view(-1, 1)

    def velocity(x, t):
        return (slope[: len(x)] * (1 + 2 * t.view(-1, 1))).expand_as(x)

    times = np.array([0.0, 0.15, 0.4, 0.5, 0.9, 1.0])
    matrix = estimate_cost_matrix(velocity, NOISE, times, batch_size=64, reference="heun")
    path = tuple(range(6))
    found = path_weights(matrix.gram, times, path, order=2)
    for of_step, wanted in zip(found, weights_of_steps("ab2", np.diff(times)), strict=True):
        np.testing.assert_allclose(of_step, wanted, atol=1e-5)


def test_costs_of_groups_have_the_mean_of_all() -> None:
    times, path = uniform(8), (0, 2, 3, 6, 8)
    matrix = measured(times)
    weights = path_weights(matrix.gram, times, path)
    each = path_costs(matrix.group_grams, times, path, weights)
    assert each.shape == (20, 4)
    mean = np.average(each, axis=0, weights=matrix.group_sizes)
    np.testing.assert_allclose(mean, path_costs(matrix.gram, times, path, weights), rtol=1e-9)


def test_what_cannot_be_is_refused() -> None:
    gram = measured(uniform(4)).gram
    with pytest.raises(InputError, match="order: 4; 2 to 3 velocities"):
        fitted_costs(gram, uniform(4), 4)
    with pytest.raises(InputError, match="timesteps: 101 steps; at most 100 needed"):
        fitted_costs(np.zeros((102, 102)), uniform(101))
    with pytest.raises(InputError, match=r"gram: shape \(5, 5\) for 4 timesteps"):
        fitted_costs(gram, uniform(3))
