"""A solver is one record: what is added to the table goes through all of the library."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from boss_core.bellman.objectives import optimal_steps
from boss_core.costs.matrix import estimate_cost_matrix
from boss_core.errors import InputError
from boss_core.ode import solver_table
from boss_core.ode.noise import sample_noise
from boss_core.ode.schedule import Schedule
from boss_core.ode.solver_table import (
    SOLVERS,
    Solver,
    multistep_weights,
    steps_of,
    weights_of_steps,
)
from boss_core.ode.solvers import ab2, multistep
from boss_core.ode.timesteps import uniform
from boss_core.search.distances import endpoint_error
from boss_core.search.forward import oss_paths
from boss_core.search.refine import refine
from boss_core.straightening.segments import chord_weights
from tests.helpers.costs import smooth

NOISE, GRID = sample_noise(range(9), (4,), seed=2), uniform(12)


def leapfrog(lengths: Sequence[Any]) -> tuple[Any, ...]:
    """Half of the extrapolation of Adams-Bashforth: a two-step method of order 1."""
    if len(lengths) < 2:
        return (1.0,)
    w = lengths[0] / (4.0 * lengths[1])
    return (1.0 + w, -w)


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> str:
    record = Solver(name="half", evaluations=1, looks_back=1, weights=leapfrog)
    monkeypatch.setitem(SOLVERS, "half", record)
    return "half"


def by_hand(times: np.ndarray, states: torch.Tensor) -> torch.Tensor:
    before = None
    for k, h in enumerate(np.diff(times)):
        v = smooth(states, torch.full((len(states),), times[k], dtype=torch.float32))
        w = 0.0 if before is None else h / (4 * (times[k] - times[k - 1]))
        states = states + h * ((1 + w) * v - (0 if before is None else w * before))
        before = v
    return states


def test_it_samples_as_written_by_hand(added: str) -> None:
    times = GRID[[0, 2, 5, 9, 12]]
    found = multistep(added, smooth, NOISE, times)
    torch.testing.assert_close(found, by_hand(times, NOISE).float(), rtol=1e-5, atol=1e-5)


def test_every_search_finds_steps_for_it(added: str) -> None:
    matrix = estimate_cost_matrix(smooth, NOISE, GRID, batch_size=9)
    for objective in ("l2_squared", "l2", "minimax", "gits"):
        path = optimal_steps(matrix, [4], solver=added, objective=objective)[4]
        assert len(path.indices) == 5
    given = {"solver": added, "batch_size": 9}
    assert len(oss_paths(smooth, NOISE, GRID, [4], **given)[4].indices) == 5
    ends = multistep("euler", smooth, NOISE, GRID)
    even = (0, 3, 6, 9, 12)
    found = refine(smooth, NOISE, GRID, [even], endpoint_error(ends), **given)
    error = endpoint_error(ends)(by_hand(GRID[list(found.indices)], NOISE).float()[None])
    assert found.distance == pytest.approx(float(error), rel=1e-4)


def test_the_cost_of_its_steps_is_that_of_the_definition(added: str) -> None:
    matrix = estimate_cost_matrix(smooth, NOISE, GRID, batch_size=9)
    found = optimal_steps(matrix, [2], solver=added)[2]
    states, velocities = [NOISE.double()], []
    for k in range(12):
        t = torch.full((9,), GRID[k], dtype=torch.float64)
        velocities.append(smooth(states[-1], t))
        states.append(states[-1] + (GRID[k + 1] - GRID[k]) * velocities[-1])

    def cost(j: int) -> float:
        first = states[0] + GRID[j] * velocities[0] - states[j]
        h, w = 1 - GRID[j], (1 - GRID[j]) / (4 * GRID[j])
        second = states[j] + h * ((1 + w) * velocities[j] - w * velocities[0]) - states[12]
        return float(sum(e.square().sum(dim=1).mean() for e in (first, second)))

    costs = {j: cost(j) for j in range(1, 12)}
    assert found.indices == (0, min(costs, key=costs.__getitem__), 12)
    assert found.cost == pytest.approx(min(costs.values()), rel=1e-4)


def test_a_network_is_straightened_for_it(added: str) -> None:
    """Velocities that are the weighted chords lead through all knots."""
    times, states = GRID[[0, 1, 4, 12]], np.random.default_rng(0).normal(size=(4, 5))
    chords = np.diff(states, axis=0) / np.diff(times)[:, None]
    weights = chord_weights(times, added)
    at = [sum(weights[k, back] * chords[k - back] for back in range(k + 1)) for k in range(3)]

    def velocity(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        knot = int(np.abs(times - float(t[0])).argmin())
        return torch.from_numpy(at[knot]).expand(len(x), -1).clone()

    end = multistep(added, velocity, torch.from_numpy(states[:1]), times)
    np.testing.assert_allclose(end[0], states[3], rtol=1e-9)


def test_schedules_carry_it(added: str) -> None:
    schedule = Schedule(timesteps=(0.0, 0.5, 1.0), solver=added)
    assert (schedule.nfe, steps_of(2, added)) == (2, 2)
    assert Schedule.from_json(schedule.to_json()) == schedule


def test_what_looks_back_further_is_refused_by_the_searches(monkeypatch) -> None:
    record = Solver(name="three", evaluations=1, looks_back=2, weights=lambda lengths: (1.0,))
    monkeypatch.setitem(SOLVERS, "three", record)
    matrix = estimate_cost_matrix(smooth, NOISE, GRID, batch_size=9)
    with pytest.raises(InputError, match="looks back 2 steps; at most 1"):
        optimal_steps(matrix, [4], solver="three")
    with pytest.raises(InputError, match="looks back 2 steps; at most 1"):
        oss_paths(smooth, NOISE, GRID, [4], solver="three", batch_size=9)


def test_names_that_are_not_known_are_refused() -> None:
    with pytest.raises(InputError, match="'rk4'; euler, ab2, multistep, heun known"):
        steps_of(4, "rk4")
    with pytest.raises(InputError, match="'heun'; euler or ab2 needed"):
        multistep_weights("heun")
    with pytest.raises(InputError, match="solver: 'heun'; euler or ab2 needed"):
        multistep("heun", smooth, NOISE, GRID)
    assert ab2(smooth, NOISE, GRID).shape == NOISE.shape
    assert set(solver_table.MULTISTEP) == {"euler", "ab2"}


LENGTHS = [0.1, 0.3, 0.05, 0.25, 0.2, 0.1]


@pytest.mark.parametrize(
    ("name", "degree"), [("euler", 0), ("ab2", 1)]
)  # of the velocities that a step of a full look back integrates without an error
def test_weights_integrate_polynomials_of_their_order(name: str, degree: int) -> None:
    times = [sum(LENGTHS[:k]) for k in range(len(LENGTHS) + 1)]
    for k, weights in enumerate(weights_of_steps(name, LENGTHS)):
        assert len(weights) == 1 + min(k, SOLVERS[name].looks_back)
        for power in range(min(degree, len(weights) - 1) + 1):
            exact = (times[k + 1] ** (power + 1) - times[k] ** (power + 1)) / (power + 1)
            taken = sum(w * times[k - i] ** power for i, w in enumerate(weights))
            assert LENGTHS[k] * taken == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize(
    ("budget", "solver", "steps"), [(6, "euler", 6), (6, "ab2", 6), (6, "heun", 3)]
)
def test_the_steps_that_evaluations_pay_for(budget: int, solver: str, steps: int) -> None:
    assert steps_of(budget, solver) == steps


@pytest.mark.parametrize(("budget", "solver"), [(0, "euler"), (5, "heun"), (4, "rk4")])
def test_evaluations_that_pay_for_no_steps(budget: int, solver: str) -> None:
    with pytest.raises(InputError):
        steps_of(budget, solver)
