"""Objectives by their definitions: errors of single steps, formed one by one in float64."""

import itertools

import numpy as np
import pytest
import torch

from boss_core.bellman.names import OBJECTIVES
from boss_core.bellman.objectives import (
    group_step_costs,
    optimal_steps,
    path_values,
    step_costs,
)
from boss_core.bellman.recursion import optimal_paths
from boss_core.costs.heun import estimate_heun_costs
from boss_core.costs.matrix import CostMatrix, estimate_cost_matrix
from boss_core.ode.noise import sample_labels, sample_noise
from boss_core.ode.solver_table import steps_of
from boss_core.ode.solvers import euler, heun
from boss_core.ode.timesteps import quadratic, uniform
from boss_core.ode.velocity import CountedVelocity

GRID = quadratic(8)
N = len(GRID) - 1
SAMPLES = 50  # more than groups


def velocity(x, t):
    t = t.view(-1, 1)
    return torch.sin(3 * x + 4 * t) + x * t**2


def noise(samples: int = SAMPLES) -> torch.Tensor:
    return sample_noise(range(samples), (5,), seed=0).double()


def trajectories(samples: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    states, velocities = [], []

    def keep(k, x, v):
        states.append(x.clone())
        if v is not None:
            velocities.append(v.clone())

    euler(velocity, noise(samples), GRID, observer=keep)
    return states, velocities


def matrix(samples: int = SAMPLES) -> CostMatrix:
    return estimate_cost_matrix(velocity, noise(samples), GRID, batch_size=17)


def step_errors(solver: str, path: tuple[int, ...], samples: int) -> np.ndarray:
    """The norm of the error of each step of a path and sample, each from the teacher's state:
    (K, N)."""
    states, velocities = trajectories(samples)
    errors = []
    for place, (i, j) in enumerate(itertools.pairwise(path)):
        x, v, h = states[i], velocities[i], GRID[j] - GRID[i]
        if solver == "heun":
            ahead = velocity(x + h * v, torch.full((samples,), GRID[j], dtype=x.dtype))
            v = (v + ahead) / 2
        elif solver == "ab2" and place > 0:
            before = path[place - 1]
            slope = (v - velocities[before]) / (GRID[i] - GRID[before])
            v = v + h / 2 * slope
        errors.append((states[j] - x - h * v).norm(dim=1).numpy())
    return np.array(errors)


def value(objective: str, errors: np.ndarray) -> float:
    if objective == "l2_squared":
        return (errors**2).mean(axis=1).sum()
    if objective == "minimax":
        return (errors**2).mean(axis=1).max()
    norms = errors.mean(axis=1)
    return norms.sum() if objective == "l2" else (norms * 1.15 ** np.arange(len(norms))).sum()


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize(
    ("solver", "samples"), [("euler", SAMPLES), ("ab2", 15), ("heun", SAMPLES)]
)
def test_the_best_path_is_the_best_of_all_by_its_definition(objective, solver, samples) -> None:
    """For ab2 one trajectory a group, with which its norms are exact."""
    given = {"objective": objective, "solver": solver}
    if solver == "heun":
        given["heun_costs"] = estimate_heun_costs(velocity, noise(samples), GRID, batch_size=17)
    budgets = [2, 4, 6] if solver == "heun" else [1, 2, 3, 5, N]
    for budget, path in optimal_steps(matrix(samples), budgets, **given).items():
        inner = itertools.combinations(range(1, N), steps_of(budget, solver) - 1)
        paths = [(0, *middle, N) for middle in inner]
        values = {p: value(objective, step_errors(solver, p, samples)) for p in paths}
        assert path.cost == pytest.approx(min(values.values()), rel=1e-6)
        assert values[path.indices] == pytest.approx(path.cost, rel=1e-6)
        costs = step_costs(matrix(samples), **given)
        for p in paths[::3]:
            found = path_values(costs, p, objective=objective)
            assert found == pytest.approx([values[p]], rel=1e-6, abs=1e-12)


def test_the_default_is_the_papers() -> None:
    found = matrix()
    assert optimal_steps(found, range(1, N + 1)) == optimal_paths(found.cost, range(1, N + 1))


@pytest.mark.parametrize("solver", ["euler", "ab2"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_groups_average_to_the_whole(solver: str, objective: str) -> None:
    found = matrix()
    whole = step_costs(found, objective=objective, solver=solver)
    groups = group_step_costs(found, objective=objective, solver=solver)
    sizes = np.array([3] * 10 + [2] * 10)
    np.testing.assert_allclose(
        np.average(groups.cost[:, 0], axis=0, weights=sizes), whole.cost[0, 0], rtol=1e-9
    )
    for of_groups, block in zip(groups.after or [], whole.after or [], strict=True):
        mean = np.average(of_groups, axis=0, weights=sizes)
        np.testing.assert_allclose(mean, block[0], rtol=1e-6, atol=1e-12)


def test_norms_of_ab2_are_bounded_from_above_and_close() -> None:
    path = (0, 3, 5, 8)
    found = path_values(step_costs(matrix(), objective="l2", solver="ab2"), path, objective="l2")
    exact = value("l2", step_errors("ab2", path, SAMPLES))
    assert exact < found[0] < 1.1 * exact


def test_a_larger_gamma_takes_smaller_last_steps() -> None:
    last = [
        optimal_steps(matrix(), [3], objective="gits", gamma=gamma)[3].indices[-2]
        for gamma in (0.3, 1.0, 4.0)
    ]
    assert last[0] < last[1] < last[2]
    found = optimal_steps(matrix(), [3], objective="gits", gamma=1.0)
    assert found == optimal_steps(matrix(), [3], objective="l2")


def test_heun_costs_are_those_of_the_solver_step_by_step() -> None:
    """Heun from the teacher's state at i to t_j, run by the solver on the interval as [0, 1]."""
    states, _ = trajectories(SAMPLES)
    found = estimate_heun_costs(velocity, noise(), GRID, batch_size=17)
    assert found.samples == SAMPLES
    for i, j in itertools.combinations(range(N + 1), 2):
        start, h = GRID[i], GRID[j] - GRID[i]
        end = heun(lambda x, t, a=start, h=h: h * velocity(x, a + h * t), states[i], [0, 1])
        square = (end - states[j]).square().sum(dim=1).numpy()
        assert found.cost[i, j] == pytest.approx(square.mean(), rel=1e-9)
        assert found.norm[i, j] == pytest.approx(np.sqrt(square).mean(), rel=1e-9)
        assert found.group_cost[3, i, j] == pytest.approx(square[3::20].mean(), rel=1e-9)
    assert (np.tril(found.cost) == 0).all()


def test_heun_costs_take_what_they_say_and_keep_labels() -> None:
    counted, seen = CountedVelocity(velocity), []
    estimate_heun_costs(counted, noise(5), GRID, batch_size=5, on_step=seen.append)
    assert counted.nfe == N * (N + 1) // 2 + 1 == len(seen)
    labels = sample_labels(range(10), 3, seed=0)

    def conditional(x, t, labels):
        return velocity(x, t) * (1 + labels.view(-1, 1))

    whole = estimate_heun_costs(conditional, noise(10), GRID, batch_size=4, labels=labels)
    for group in range(10):
        part = slice(group, group + 1)
        alone = estimate_heun_costs(
            conditional, noise(10)[part], GRID, batch_size=1, labels=labels[part]
        )
        np.testing.assert_allclose(whole.group_cost[group], alone.cost, rtol=1e-9)
    with pytest.raises(ValueError, match="not finite"):
        estimate_heun_costs(lambda x, t: x * np.inf, noise(3), GRID, batch_size=3)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"objective": "lpips"}, "objective: 'lpips'; l2_squared, l2, minimax, gits known"),
        ({"solver": "rk45"}, "solver: 'rk45'; euler, ab2, multistep, heun known"),
        ({"solver": "heun"}, "heun_costs: missing"),
        ({"solver": "heun", "budgets": [3]}, "budget: 3 evaluations; a positive multiple of 2"),
        ({"budgets": [N + 1]}, f"budget: {N + 1}; 1..{N} needed"),
        ({"objective": "gits", "gamma": -1.0}, "gamma: -1.0; a positive number"),
    ],
)
def test_what_cannot_be_is_refused(given, says: str) -> None:
    budgets = given.pop("budgets", [2])
    with pytest.raises(ValueError, match=says):
        optimal_steps(matrix(), budgets, **given)


def test_paths_and_heun_costs_of_another_grid_are_refused() -> None:
    with pytest.raises(ValueError, match=r"indices: \(0, 5, 3, 8\); increasing"):
        path_values(step_costs(matrix()), [0, 5, 3, 8])
    other = estimate_heun_costs(velocity, noise(2), uniform(3), batch_size=2)
    with pytest.raises(ValueError, match="heun_costs: of 4 timesteps; 9"):
        optimal_steps(matrix(), [2], solver="heun", heun_costs=other)
