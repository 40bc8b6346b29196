"""The Bellman recursion for steps with fitted weights, whose cost depends on the knots before."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from boss_core.bellman.recursion import (
    Combine,
    Path,
    batched_two_step_paths,
    check_values,
    validate_budget,
    validate_rule,
)
from boss_core.costs.fitted import FittedCosts


@np.errstate(over="ignore", invalid="ignore")  # see `check_values`
def fitted_paths(
    costs: FittedCosts,
    budgets: Iterable[int],
    *,
    gamma: float = 1.0,
    combine: Combine = "sum",
) -> dict[int, Path]:
    """For every budget K, the cheapest path from node 0 to node n in exactly K steps: exact, over
    all pairs or, where steps use three velocities, triples of knots.

    costs: of `boss_core.costs.fitted.fitted_costs`. ``gamma``, ``combine`` and ties as for
    `boss_core.bellman.recursion.optimal_paths`. With c the cost of a step to k from j after knots
    h and i,

        V_1(h, i, j) = c(h, i, j, n),  V_m(h, i, j) = min_{k>j} c(h, i, j, k) + V_{m-1}(i, j, k),

    and the budget K is worth min over j and k of first_j + c(0, j, k) + V_{K-2}(0, j, k).

    InputError for a budget that is not an integer in 1..n, and when all paths overflow.
    """
    n = len(costs.first) - 1
    budgets = [validate_budget(budget, n) for budget in budgets]
    if costs.three is None:
        blocks = [block[None] for block in costs.two]
        pairs = batched_two_step_paths(
            costs.first[None], blocks, budgets, gamma=gamma, combine=combine
        )
        return {budget: paths.path() for budget, paths in pairs.items()}
    join = validate_rule(gamma, combine)
    found = {1: Path((0, n), float(costs.first[n]))}
    # Of the triple (h, i, j) with so many steps to go: entry [j][i (i-1) / 2 + h]. None yet.
    values = [np.full(len(block), np.inf) for block in costs.three]
    choices: list[list[NDArray[np.intp]]] = []  # choices[m - 1]: where the first of m leads
    most = max(budgets, default=0)
    for m in range(most - 1):
        ahead = [_ahead(values, j) for j in range(n)]
        found[m + 2] = _begun(costs, ahead, choices, join, gamma)
        if m + 2 == most:  # none goes on from here
            break
        least = [_least(costs.three[j], ahead[j], join, gamma, last=m == 0) for j in range(n)]
        values = [value for value, _ in least]
        choices.append([choice for _, choice in least])
    check_values(np.array(found[budget].cost) for budget in budgets)
    return {budget: found[budget] for budget in budgets}


def _ahead(values: list[NDArray[np.float64]], j: int) -> NDArray[np.float64]:
    """(j, n-j): what the steps from k > j on cost after knots i < j and j; none are from n."""
    before = slice(j * (j - 1) // 2, j * (j + 1) // 2)
    of = [values[k][before] for k in range(j + 1, len(values))]
    return np.stack([*of, np.full(j, np.inf)], axis=1)


def _least(
    costs: NDArray[np.float64], ahead: NDArray[np.float64], join: np.ufunc, gamma: float, last: bool
) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """For each triple that ends in j what its steps from there on cost at least, and where the
    first of them leads. last: it is the only one, to n."""
    j, far = ahead.shape
    if last:
        return costs[:, -1], np.full(len(costs), j + far)
    candidates = np.repeat(gamma * ahead, np.arange(j), axis=0)  # of i, for each h < i
    join(costs, candidates, out=candidates)
    place = candidates.argmin(axis=1)
    return np.take_along_axis(candidates, place[:, None], axis=1)[:, 0], place + j + 1


def _begun(
    costs: FittedCosts,
    ahead: list[NDArray[np.float64]],
    choices: list[list[NDArray[np.intp]]],
    join: np.ufunc,
    gamma: float,
) -> Path:
    """The best path of two steps, by Euler and along two velocities, and as many more as there
    are choices for."""
    n, more = len(costs.first) - 1, len(choices)
    pairs = np.full(n, np.inf)  # what steps from j on cost after the first to j
    leads = np.full(n, n)
    for j in range(1, n):
        if not more:
            pairs[j] = costs.two[j][0, -1]
            continue
        candidates = join(costs.two[j][0], gamma * ahead[j][0])
        place = int(candidates.argmin())
        pairs[j], leads[j] = candidates[place], place + j + 1
    total = join(costs.first[:n], gamma * pairs)
    total[0] = np.inf
    j = int(total.argmin())
    if not np.isfinite(total[j]):  # of no path
        return Path((*range(more + 2), n), np.inf)
    indices = [0, j, int(leads[j])]
    for m in range(more, 0, -1):
        h, i, j = indices[-3:]
        indices.append(int(choices[m - 1][j][i * (i - 1) // 2 + h]))
    return Path(tuple(indices), float(total[indices[1]]))
