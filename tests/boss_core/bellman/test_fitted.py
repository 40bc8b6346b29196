"""The recursion over pairs and triples of knots, against all paths there are."""

import itertools

import numpy as np
import pytest

from boss_core.bellman.fitted import fitted_paths
from boss_core.costs.fitted import FittedCosts
from boss_core.errors import InputError

N = 8


def random_costs(order: int) -> FittedCosts:
    draw = np.random.default_rng(order)
    two = [draw.random((j, N - j)) for j in range(N)]
    three = [draw.random((N - j, j * (j - 1) // 2)) for j in range(N)]
    return FittedCosts(draw.random(N + 1), two, three if order == 3 else None)


def step_costs(costs: FittedCosts, path: tuple[int, ...]) -> list[float]:
    found = [costs.first[path[1]]]
    for m in range(1, len(path) - 1):
        i, j, k = path[m - 1 : m + 2]
        if costs.three is None or m == 1:
            found.append(costs.two[j][i, k - j - 1])
        else:
            found.append(costs.three[j][k - j - 1, i * (i - 1) // 2 + path[m - 2]])
    return found


@pytest.mark.parametrize("gamma", [1.0, 1.3])
@pytest.mark.parametrize("combine", ["sum", "max"])
@pytest.mark.parametrize("order", [2, 3])
def test_the_path_is_the_best_of_all(order: int, combine: str, gamma: float) -> None:
    costs = random_costs(order)
    found = fitted_paths(costs, range(1, N + 1), gamma=gamma, combine=combine)

    def value(path: tuple[int, ...]) -> float:
        each = [gamma**m * cost for m, cost in enumerate(step_costs(costs, path))]
        return max(each) if combine == "max" else sum(each)

    for budget in range(1, N + 1):
        paths = [(0, *c, N) for c in itertools.combinations(range(1, N), budget - 1)]
        best = min(map(value, paths))
        assert found[budget].cost == pytest.approx(best, rel=1e-12)
        assert value(found[budget].indices) == pytest.approx(best, rel=1e-12)


def test_budgets_alone_and_what_cannot_be() -> None:
    costs = random_costs(3)
    every = fitted_paths(costs, range(1, N + 1))
    assert {k: fitted_paths(costs, [k])[k] for k in every} == every
    with pytest.raises(InputError, match=r"budget: 9; 1\.\.8 needed"):
        fitted_paths(costs, [9])
    with pytest.raises(InputError, match="beyond float64"):
        fitted_paths(FittedCosts(costs.first * np.inf, costs.two, costs.three), [3])
