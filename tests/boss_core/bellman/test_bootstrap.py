"""The bootstrap on trajectories whose costs are known in closed form."""

import itertools

import numpy as np
import pytest
import torch

from boss_core.bellman.bootstrap import bootstrap, settled
from boss_core.bellman.names import OBJECTIVES
from boss_core.bellman.objectives import optimal_steps
from boss_core.costs.heun import estimate_heun_costs
from boss_core.costs.matrix import CostMatrix, CostSum, estimate_cost_matrix
from boss_core.ode.noise import sample_noise
from boss_core.ode.timesteps import uniform

GRID = uniform(6)
SPREAD = np.array([0.0, 1.0, 0.4, 0.7, 1.2, 0.5])  # of the increments d_l


def random_walks(samples: int, random: np.random.Generator) -> CostMatrix:
    """Velocities whose increments are independent, normal and of known spread."""
    increments = random.normal(size=(6, samples, 2)) * SPREAD[:, None, None]
    total = CostSum(GRID)
    total.add(torch.from_numpy(increments.cumsum(axis=0)))
    return total.result()


def true_cost(indices: tuple[int, ...]) -> float:
    """E||e_ij||^2 = sum over i < l < j of (t_j - t_l)^2 E||d_l||^2, of two elements."""
    return sum(
        2 * (GRID[j] - GRID[l]) ** 2 * SPREAD[l] ** 2
        for i, j in itertools.pairwise(indices)
        for l in range(i + 1, j)  # noqa: E741
    )


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    random, repeats = np.random.default_rng(0), 400
    covered = 0
    for seed in range(repeats):
        found = bootstrap(random_walks(400, random), [3], seed=seed)[3]
        assert found.interval is not None
        covered += found.interval[0] <= true_cost(found.indices) <= found.interval[1]
    # Two standard errors of 400 draws at 95 % are 2.2 %.
    assert covered / repeats == pytest.approx(0.95, abs=0.022)


def velocity(x, t):
    t = t.view(-1, 1)
    return torch.sin(3 * x + 4 * t) + x * t**2


def matrix(samples: int = 60, grid: int = 20) -> CostMatrix:
    noise = sample_noise(range(samples), (5,), seed=0)
    return estimate_cost_matrix(velocity, noise, uniform(grid), batch_size=samples)


@pytest.mark.parametrize("solver", ["euler", "ab2"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_equal_groups_leave_nothing_uncertain(solver: str, objective: str) -> None:
    noise = sample_noise(range(1), (5,), seed=0).repeat(40, 1)
    same = estimate_cost_matrix(velocity, noise, uniform(20), batch_size=40)
    given = {"solver": solver, "objective": objective}
    paths = optimal_steps(same, [2, 5], **given)
    for budget, found in bootstrap(same, [2, 5], **given, resamples=20).items():
        assert found.indices == paths[budget].indices
        assert found.interval == pytest.approx((paths[budget].cost,) * 2, rel=1e-6)
        assert found.knots == (1.0,) * (budget + 1)
    assert settled(same, [2, 5], **given, resamples=20)


@pytest.mark.parametrize("solver", ["euler", "ab2", "heun"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_resample_is_a_search_of_its_own(solver: str, objective: str) -> None:
    """Against trajectories drawn anew, group by group: one trajectory each."""
    samples, budget, resamples = 12, 4, 30
    noise = sample_noise(range(samples), (5,), seed=0)
    drawn = np.random.default_rng(3).multinomial(samples, [1 / samples] * samples, size=resamples)
    paths = []
    for counts in drawn:
        again = noise.repeat_interleave(torch.from_numpy(counts), dim=0)
        given = {"solver": solver, "objective": objective}
        if solver == "heun":
            given["heun_costs"] = estimate_heun_costs(velocity, again, uniform(10), batch_size=12)
        found = estimate_cost_matrix(velocity, again, uniform(10), batch_size=12)
        paths.append(optimal_steps(found, [budget], **given)[budget].indices)
    given = {"solver": solver, "objective": objective}
    if solver == "heun":
        given["heun_costs"] = estimate_heun_costs(velocity, noise, uniform(10), batch_size=12)
    whole = estimate_cost_matrix(velocity, noise, uniform(10), batch_size=12)
    found = bootstrap(whole, [budget], **given, resamples=resamples, seed=3)[budget]
    near = np.abs(np.array(paths) - np.array(found.indices)) <= 1
    assert found.knots == pytest.approx(near.mean(axis=0))
    still = near.all(axis=1).mean()
    for share, expected in ((still - 0.01, True), (still + 0.01, False)):
        asked = {"share": share, "resamples": resamples, "seed": 3}
        assert settled(whole, [budget], **given, **asked) is expected


def test_more_trajectories_settle_the_knots() -> None:
    def found(samples: int) -> bool:
        return settled(random_walks(samples, np.random.default_rng(0)), [2])

    # On six steps a knot rarely moves by two: 2 for 3 or 3 for 4 is one.
    assert found(20_000)
    noise = sample_noise(range(2), (5,), seed=1)
    few = estimate_cost_matrix(velocity, noise, uniform(60), batch_size=2)
    assert not settled(few, [6])


def test_the_draws_are_those_of_the_seed() -> None:
    assert bootstrap(matrix(), [4], seed=1) == bootstrap(matrix(), [4], seed=1)
    assert bootstrap(matrix(), [4], seed=1) != bootstrap(matrix(), [4], seed=2)


def test_one_group_says_nothing() -> None:
    found = bootstrap(matrix(samples=1), [3])[3]
    assert found.indices == optimal_steps(matrix(samples=1), [3])[3].indices
    assert found.interval is None
    assert found.knots is None
    assert not settled(matrix(samples=1), [3])
    with pytest.raises(ValueError, match="resamples: 0; at least 1"):
        bootstrap(matrix(), [3], resamples=0)
