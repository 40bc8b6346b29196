"""The dynamic programme against enumeration."""

import itertools
import json

import numpy as np
import pytest

from boss_core.bellman.recursion import (
    batched_paths,
    batched_two_step_paths,
    optimal_paths,
    optimal_two_step_paths,
    path_cost,
)
from boss_core.errors import InputError
from tests.helpers.checkout import SHARED, needs_shared


@needs_shared
def test_equals_brute_force_of_the_reference() -> None:
    folder = SHARED / "reference" / "bellman"
    matrices = np.load(folder / "brute_force.npz")
    expected = json.loads((folder / "brute_force.json").read_text())
    assert set(expected) == set(matrices.files)
    for name, by_budget in expected.items():
        found = optimal_paths(matrices[name], [int(k) for k in by_budget])
        for budget, answer in by_budget.items():
            path = found[int(budget)]
            assert list(path.indices) == answer["path"], (name, budget)
            assert path.cost == pytest.approx(answer["cost"], rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_equals_enumeration_of_all_paths(seed: int) -> None:
    n = 8
    cost = np.random.default_rng(seed).normal(size=(n + 1, n + 1))  # signed entries
    found = optimal_paths(cost, range(1, n + 1))
    for budget in range(1, n + 1):
        inner = itertools.combinations(range(1, n), budget - 1)
        best = min(((0, *middle, n) for middle in inner), key=lambda p: path_cost(cost, p))
        assert found[budget].indices == best
        assert found[budget].cost == pytest.approx(path_cost(cost, best))


@pytest.mark.parametrize("seed", range(5))
def test_two_step_paths_equal_enumeration(seed: int) -> None:
    n = 8
    random = np.random.default_rng(seed)
    first, cost = random.normal(size=n + 1), random.normal(size=(n + 1,) * 3)

    def total(path: tuple[int, ...]) -> float:
        steps = zip(path, path[1:], path[2:], strict=False)
        return first[path[1]] + sum(cost[step] for step in steps)

    found = optimal_two_step_paths(first, cost, range(1, n + 1))
    for budget in range(1, n + 1):
        inner = itertools.combinations(range(1, n), budget - 1)
        best = min(((0, *middle, n) for middle in inner), key=total)
        assert found[budget].indices == best
        assert found[budget].cost == pytest.approx(total(best))


def test_two_step_paths_are_the_ordinary_ones_where_the_step_before_does_not_matter() -> None:
    cost = np.random.default_rng(0).random((41, 41))
    tiled = np.broadcast_to(cost, (41, 41, 41))
    found = optimal_two_step_paths(cost[0], tiled, range(1, 12))
    for budget, path in optimal_paths(cost, range(1, 12)).items():
        assert found[budget].indices == path.indices
        assert found[budget].cost == pytest.approx(path.cost)


def test_ties_go_to_the_smallest_index() -> None:
    assert optimal_paths(np.zeros((6, 6)), [3])[3].indices == (0, 1, 2, 5)


def test_only_the_part_above_the_diagonal_is_read() -> None:
    cost = np.random.default_rng(0).random((7, 7))
    garbled = np.where(np.tri(7, dtype=bool), np.nan, cost)
    assert optimal_paths(garbled, [3]) == optimal_paths(cost, [3])


@pytest.mark.parametrize(
    ("cost", "budgets", "says"),
    [
        (np.full((4, 4), np.nan), [2], r"entry \(0, 1\) is nan"),
        (np.where(np.eye(4, k=2) > 0, np.inf, 1.0), [2], r"entry \(0, 2\) is inf"),
        (np.zeros((3, 4)), [2], r"shape \(3, 4\).*square"),
        (np.zeros((1, 1)), [1], "two rows or more"),
        (np.zeros(4), [1], "square"),
        (np.zeros((4, 4)), [0], r"budget: 0; 1\.\.3"),
        (np.zeros((4, 4)), [4], r"budget: 4; 1\.\.3"),
        (np.zeros((4, 4)), [-1], r"budget: -1; 1\.\.3"),
        (np.zeros((4, 4)), [2.0], r"budget: 2\.0; an integer"),
        (np.zeros((4, 4)), [True], "budget: True; an integer"),
    ],
)
def test_bad_input_is_an_error_that_says_which(cost, budgets, says) -> None:
    with pytest.raises(ValueError, match=says):
        optimal_paths(cost, budgets)


def test_a_hundred_budgets_on_a_grid_of_a_thousand() -> None:
    """Steps that cost their squared length are best as equal as whole numbers can be."""
    grid = np.arange(1001.0)
    found = optimal_paths((grid - grid[:, None]) ** 2, range(1, 101))
    for budget, path in found.items():
        length, longer = divmod(1000, budget)
        assert path.cost == longer * (length + 1) ** 2 + (budget - longer) * length**2


def discounted(combine: str, gamma: float):
    """The value of a path from the costs of its steps, from the last one to the first."""

    def value(steps: list[float]) -> float:
        total = steps[-1]
        for step in reversed(steps[:-1]):
            total = step + gamma * total if combine == "sum" else max(step, gamma * total)
        return total

    return value


@pytest.mark.parametrize(("combine", "gamma"), [("sum", 1.15), ("sum", 0.5), ("max", 1.0)])
@pytest.mark.parametrize("seed", range(3))
def test_other_rules_equal_enumeration(combine, gamma: float, seed: int) -> None:
    n, value = 8, discounted(combine, gamma)
    random = np.random.default_rng(seed)
    cost, after = random.random((n + 1, n + 1)), random.random((n + 1,) * 3)

    def one_step(path: tuple[int, ...]) -> float:
        return value([cost[step] for step in itertools.pairwise(path)])

    def two_step(path: tuple[int, ...]) -> float:
        steps = zip(path, path[1:], path[2:], strict=False)
        return value([cost[0, path[1]], *(after[step] for step in steps)])

    rule = {"gamma": gamma, "combine": combine}
    found = optimal_paths(cost, range(1, n + 1), **rule)
    pairs = optimal_two_step_paths(cost[0], after, range(1, n + 1), **rule)
    for budget in range(1, n + 1):
        inner = list(itertools.combinations(range(1, n), budget - 1))
        paths = [(0, *middle, n) for middle in inner]
        for answer, total in ((found[budget], one_step), (pairs[budget], two_step)):
            best = min(map(total, paths))
            assert answer.cost == pytest.approx(best)
            assert total(answer.indices) == pytest.approx(best)
            if combine == "sum":  # with max, others may share the worst step
                assert answer.indices == min(paths, key=total)


def test_the_rest_of_a_minimax_path_is_a_best_one_itself() -> None:
    cost = np.random.default_rng(1).random((13, 13))
    for budget in range(2, 12):
        path = optimal_paths(cost, [budget], combine="max")[budget]
        start = path.indices[1]
        rest = optimal_paths(cost[start:, start:], [budget - 1], combine="max")[budget - 1]
        assert path.indices[1:] == tuple(start + i for i in rest.indices)


def test_many_matrices_at_once_are_each_by_itself() -> None:
    random = np.random.default_rng(0)
    costs, cubes = random.random((4, 10, 10)), random.random((4, 10, 10, 10))
    found = batched_paths(costs, [1, 4, 9], gamma=1.15)
    blocks = [cubes[:, :j, j, j + 1 :] for j in range(9)]
    pairs = batched_two_step_paths(costs[:, 0], blocks, [1, 4, 9], gamma=1.15)
    for row in range(4):
        alone = optimal_paths(costs[row], [1, 4, 9], gamma=1.15)
        assert {k: paths.path(row) for k, paths in found.items()} == alone
        alone = optimal_two_step_paths(costs[row, 0], cubes[row], [1, 4, 9], gamma=1.15)
        assert {k: paths.path(row) for k, paths in pairs.items()} == alone


def test_a_rule_that_is_not_known_is_refused() -> None:
    with pytest.raises(ValueError, match="combine: 'mean'; sum, max known"):
        optimal_paths(np.zeros((3, 3)), [1], combine="mean")  # type: ignore[arg-type]
    for gamma in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match=r"gamma: .*positive"):
            optimal_paths(np.zeros((3, 3)), [1], gamma=gamma)


@pytest.mark.parametrize("large", [1.5e308, -1.5e308])
def test_costs_that_overflow_are_refused_and_no_path_is_made_up(large: float) -> None:
    cost = np.full((4, 4), large)
    assert optimal_paths(cost, [1])[1].indices == (0, 3)
    for budget in (2, 3):
        with pytest.raises(InputError, match="sum over the best steps is beyond float64"):
            optimal_paths(cost, [budget])
        with pytest.raises(InputError, match="sum over the best steps is beyond float64"):
            optimal_two_step_paths(cost[0], np.full((4, 4, 4), large), [budget])
    with pytest.raises(InputError, match="beyond float64"):
        path_cost(cost, (0, 1, 3))
    # Where one path does not overflow it is the best; and the worst step alone never does.
    cost[0, 1] = cost[1, 3] = 1.0
    if large > 0:
        assert optimal_paths(cost, [2])[2].indices == (0, 1, 3)
    assert optimal_paths(np.full((4, 4), large), [3], combine="max")[3].indices == (0, 1, 2, 3)
    with pytest.raises(InputError, match="beyond float64"):
        optimal_paths(np.ones((40, 40)), [39], gamma=1e9)
