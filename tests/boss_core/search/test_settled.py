"""When a search has seen enough, on trajectories whose costs are known in closed form."""

import itertools

import numpy as np
import pytest
import torch

from boss_core.bellman.objectives import optimal_steps, path_values, step_costs
from boss_core.costs.matrix import CostSum
from boss_core.interop.diffusers_pipelines import sample_generators
from boss_core.interop.pipeline_checks import run_walk
from boss_core.interop.pipeline_networks import pipeline_networks
from boss_core.interop.recording import Walk
from boss_core.ode.timesteps import uniform
from boss_core.search.settings import SearchSettings
from boss_core.search.settled import FEWEST, LOSS, MOST, SHARE, agreement, look
from tests.helpers import tiny_pipelines as tiny

GRID = uniform(12)
# The increments d_l of velocities: hardest at the ends.
SPREAD = np.array([0.0, 2.0, 1.6, 0.9, 0.4, 0.3, 0.2, 0.3, 0.5, 0.8, 1.2, 1.5])
BUDGETS = [2, 4]


def random_walks(samples: int, random: np.random.Generator, heavy: float = 0.0) -> torch.Tensor:
    """Velocities whose increments are independent, normal and of known spread, (12, N, 4). heavy:
    of the logarithm of the size of a sample, whose mean square is 1."""
    increments = random.normal(size=(12, samples, 4)) * SPREAD[:, None, None]
    sizes = np.exp(heavy * random.normal(size=samples) - heavy**2)
    return torch.from_numpy(increments.cumsum(axis=0) * sizes[:, None])


def true_cost(indices: tuple[int, ...]) -> float:
    """E||e_ij||^2 = sum over i < l < j of (t_j - t_l)^2 E||d_l||^2, of four elements."""
    return sum(
        4 * (GRID[j] - GRID[l]) ** 2 * SPREAD[l] ** 2
        for i, j in itertools.pairwise(indices)
        for l in range(i + 1, j)  # noqa: E741
    )


def true_best(budget: int) -> float:
    inner = itertools.combinations(range(1, 12), budget - 1)
    return min(true_cost((0, *knots, 12)) for knots in inner)


def search(velocities: torch.Tensor, batch_size: int, budgets: list[int], grid=GRID) -> CostSum:
    """The sum of a search that ends by itself."""
    total = CostSum(grid)
    while (seen := look(total, budgets, SearchSettings(), batch_size=batch_size)).reason == "":
        assert seen.samples > total.samples
        total.add(velocities[:, total.samples : seen.samples])
    assert seen.samples == total.samples
    return total


@pytest.mark.parametrize("heavy", [0.0, 0.8])
def test_steps_of_a_search_that_ends_are_near_the_best_by_the_truth(heavy: float) -> None:
    random = np.random.default_rng(0)
    counts, losses, losses_of_most = [], [], []
    for _ in range(30):
        velocities = random_walks(MOST, random, heavy)
        total = search(velocities, 10, BUDGETS)
        counts.append(total.samples)
        most = CostSum(GRID)
        most.add(velocities)
        for of, found in ((total, losses), (most, losses_of_most)):
            paths = optimal_steps(of.result(), BUDGETS)
            found.append(max(true_cost(paths[k].indices) / true_best(k) - 1 for k in BUDGETS))
    assert min(counts) >= FEWEST
    assert np.mean(losses) <= np.mean(losses_of_most) + LOSS
    if heavy:  # what no 100 can tell, it does not stop at
        assert np.mean(counts) > 85
    else:
        assert np.mean(counts) < 75
        assert max(losses) < 2 * LOSS


@pytest.mark.parametrize(
    ("make", "prompts"),
    [(tiny.sd3, lambda s: tiny.sd3_prompts(s, 4.0)), (tiny.wan, tiny.wan_prompts)],
)
def test_steps_of_pipelines_are_within_two_hundredths_of_those_of_more(make, prompts) -> None:
    grid, pipeline = uniform(16), make()
    walk, parts = Walk(grid, pipeline_networks(pipeline)), []
    for start in range(0, 160, 40):
        rows = range(start, start + 40)
        call = prompts(rows) | {"generator": sample_generators(rows, 0)}
        parts.append(run_walk(pipeline, walk, call)[0].clone())
    velocities = torch.cat(parts, dim=1)
    total, whole = search(velocities, 10, BUDGETS, grid), CostSum(grid)
    whole.add(velocities)
    costs, best = step_costs(whole.result()), optimal_steps(whole.result(), BUDGETS)
    for budget, path in optimal_steps(total.result(), BUDGETS).items():
        assert path_values(costs, path.indices)[0] <= (1 + 2 * LOSS) * best[budget].cost


def test_agreement_is_the_share_of_resamples_by_enumeration() -> None:
    total = CostSum(GRID)
    total.add(random_walks(9, np.random.default_rng(2)))
    matrix, drawn = total.result(), np.random.default_rng(5).multinomial(9, [1 / 9] * 9, size=40)
    paths = [(0, *knots, 12) for knots in itertools.combinations(range(1, 12), 2)]

    def cost(of: np.ndarray, path: tuple[int, ...]) -> float:
        return sum(of[i, j] for i, j in itertools.pairwise(path))

    chosen = min(paths, key=lambda path: cost(matrix.cost, path))
    for loss in (0.0, 0.01, 0.2):
        agree = 0
        for counts in drawn:
            of = np.tensordot(counts / 9, matrix.group_cost, axes=1)
            own = min(paths, key=lambda path: cost(of, path))
            agree += cost(of, chosen) <= (1 + loss) * cost(of, own)
        assert agreement(matrix, [3], loss=loss, resamples=40, seed=5) == agree / 40
    assert 0 < agreement(matrix, [3], loss=0.0, resamples=40, seed=5) < 1


def test_equal_trajectories_agree_and_one_says_nothing() -> None:
    one = random_walks(1, np.random.default_rng(0))
    single, same = CostSum(GRID), CostSum(GRID)
    single.add(one)
    same.add(one.repeat(1, 20, 1))
    assert agreement(single.result(), BUDGETS) == 0.0
    for objective, solver in (("l2_squared", "euler"), ("minimax", "euler"), ("gits", "ab2")):
        found = agreement(same.result(), BUDGETS, objective=objective, solver=solver, resamples=20)
        assert found == 1.0
    assert look(same, BUDGETS, SearchSettings(objective="auto"), batch_size=7).samples == 20


@pytest.mark.parametrize(
    ("there", "batch_size", "expected"),
    [(0, 20, 20), (0, 8, 24), (5, 8, 21), (0, 64, 64), (30, 8, 46), (90, 8, 106)],
)
def test_rounds_are_whole_batches(there: int, batch_size: int, expected: int) -> None:
    total = CostSum(GRID)
    if there:
        total.add(random_walks(there, np.random.default_rng(0), heavy=3.0))
    found = look(total, BUDGETS, SearchSettings(), batch_size=batch_size)
    assert (found.samples, found.reason) == (expected, "")


def test_the_limit_is_said() -> None:
    total = CostSum(GRID)
    total.add(random_walks(MOST, np.random.default_rng(0), heavy=3.0))
    found = look(total, BUDGETS, SearchSettings(), batch_size=8)
    assert found.samples == MOST
    assert found.reason.endswith(f"{SHARE:.0%} needed; {MOST} are the limit")
