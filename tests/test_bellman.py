"""The dynamic programme against enumeration."""

import itertools
import json
import time

import numpy as np
import pytest

from boss_core.bellman import optimal_paths, optimal_two_step_paths, path_cost
from tests.conftest import SHARED, needs_shared


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


def test_one_pass_for_all_budgets_is_fast_enough() -> None:
    # The bounds, with the best of three runs: a busy machine is not what is tested.
    def seconds(n: int) -> float:
        cost = np.random.default_rng(0).random((n + 1, n + 1))
        times = []
        for _ in range(3):
            start = time.perf_counter()
            optimal_paths(cost, range(1, 101))
            times.append(time.perf_counter() - start)
        return min(times)

    assert seconds(100) < 0.05
    assert seconds(1000) < 1.0
