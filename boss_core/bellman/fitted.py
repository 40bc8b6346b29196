"""The Bellman recursion for steps with fitted weights, whose cost depends on the knots before."""

from collections.abc import Iterable, Sequence

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
    # values[m][k, i (i-1) / 2 + h]: what m steps from k on cost at least after knots h and i < k.
    # Infinity for no steps, and from n.
    values = [np.full((n + 1, n * (n - 1) // 2), np.inf)]
    most = max(budgets, default=0)
    for m in range(most - 1):
        found[m + 2] = _begun(costs, values, join, gamma)
        if m + 2 == most:  # none goes on from here
            break
        least = np.full_like(values[0], np.inf)
        for j, block in enumerate(costs.three):
            ahead = _ahead(values[m], j)
            least[j, : block.shape[1]] = _least(block, ahead, join, gamma) if m else block[-1]
        values.append(least)
    check_values(np.array(found[budget].cost) for budget in budgets)
    return {budget: found[budget] for budget in budgets}


def _ahead(values: NDArray[np.float64], j: int) -> NDArray[np.float64]:
    """(n-j, j): what the steps from k > j on cost after knots i < j and j."""
    return values[j + 1 :, j * (j - 1) // 2 : j * (j + 1) // 2]


def _least(
    costs: NDArray[np.float64], ahead: NDArray[np.float64], join: np.ufunc, gamma: float
) -> NDArray[np.float64]:
    """For each triple that ends in j what its steps from there on cost at least. Where the first of
    them leads is found again for the triples of the best path alone: to find it for all of them
    takes three times as long."""
    candidates = np.repeat(gamma * ahead, np.arange(ahead.shape[1]), axis=1)  # of i, for each h < i
    join(costs, candidates, out=candidates)
    return candidates.min(axis=0)


def _begun(
    costs: FittedCosts,
    values: Sequence[NDArray[np.float64]],
    join: np.ufunc,
    gamma: float,
) -> Path:
    """The best path of two steps, by Euler and along two velocities, and as many more as the last
    of ``values`` is of."""
    assert costs.three is not None
    n, more = len(costs.first) - 1, len(values) - 1
    pairs = np.full(n, np.inf)  # what steps from j on cost after the first to j
    leads = np.full(n, n)
    for j in range(1, n):
        if not more:
            pairs[j] = costs.two[j][0, -1]
            continue
        candidates = join(costs.two[j][0], gamma * _ahead(values[-1], j)[:, 0])
        place = int(candidates.argmin())
        pairs[j], leads[j] = candidates[place], place + j + 1
    total = join(costs.first[:n], gamma * pairs)
    total[0] = np.inf
    j = int(total.argmin())
    if not np.isfinite(total[j]):  # of no path
        return Path((*range(more + 2), n), np.inf)
    indices = [0, j, int(leads[j])]
    for left in range(more, 1, -1):
        h, i, j = indices[-3:]
        step = costs.three[j][:, i * (i - 1) // 2 + h]
        indices.append(int(join(step, gamma * _ahead(values[left - 1], j)[:, i]).argmin()) + j + 1)
    return Path((*indices, n) if more else tuple(indices), float(total[indices[1]]))
