"""The Bellman recursion: the cheapest path with exactly K steps (paper, eqs. 6 to 8)."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from boss_core.errors import InputError


@dataclass(frozen=True)
class Path:
    """The cheapest path for one budget.

    indices: K + 1 increasing grid indices, from 0 to n.
    cost: the sum of the costs of its steps, in the unit of the cost matrix.
    """

    indices: tuple[int, ...]
    cost: float


def optimal_paths(cost: ArrayLike, budgets: Iterable[int]) -> dict[int, Path]:
    """For every budget K, the cheapest path from node 0 to node n in exactly K steps.

    cost: (n+1, n+1); entry (i, j), i < j, is the cost of a step from i to j (eq. 5). Only the
    part above the diagonal is read. Entries may be negative.

    With V_1(i) = c_in and V_k(i) = min_{j>i} c_ij + V_{k-1}(j) (eqs. 7 and 8), one backward
    pass gives all budgets. Of several cheapest paths, the one whose first differing index is
    smallest is returned.

    Raises InputError (a ValueError) when the matrix is not square, has fewer than two rows, or
    has an entry above the diagonal that is not finite, and when a budget is not an integer in
    1..n.
    """
    costs = validate_cost(cost)
    n = len(costs) - 1
    budgets = [_validate_budget(budget, n) for budget in budgets]
    if not budgets:
        return {}

    # Steps go forward only: everything else costs infinity.
    forward = np.where(np.triu(np.ones_like(costs, dtype=bool), k=1), costs, np.inf)
    values = forward[:, n].copy()
    value_of = {1: values[0]}
    next_node = [np.full(n + 1, n)]  # next_node[k - 1][i]: where the first of k steps leads
    for k in range(2, max(budgets) + 1):
        candidates = forward + values[None, :]
        choice = candidates.argmin(axis=1)
        values = np.take_along_axis(candidates, choice[:, None], axis=1)[:, 0]
        next_node.append(choice)
        value_of[k] = values[0]

    paths = {}
    for budget in budgets:
        indices = [0]
        for k in range(budget, 0, -1):
            indices.append(int(next_node[k - 1][indices[-1]]))
        paths[budget] = Path(tuple(indices), float(value_of[budget]))
    return paths


def optimal_two_step_paths(
    first: ArrayLike, cost: ArrayLike, budgets: Iterable[int]
) -> dict[int, Path]:
    """As `optimal_paths` for a solver whose step depends on the step before: the states of the
    recursion are pairs of knots.

    first: (n+1,); entry j is the cost of the first step, from 0 to j.
    cost: (n+1, n+1, n+1); entry (i, j, k), i < j < k, is the cost of the step from j to k after
        one from i to j. Nothing else is read.

    V_1(i, j) = c_ijn and V_m(i, j) = min_{k>j} c_ijk + V_{m-1}(j, k); the budget K is worth
    min_j first_j + V_{K-1}(0, j). Ties and errors as for `optimal_paths`.
    """
    start, costs = np.asarray(first, dtype=np.float64), np.asarray(cost, dtype=np.float64)
    n = len(start) - 1
    if start.ndim != 1 or n < 1 or costs.shape != (n + 1, n + 1, n + 1):
        raise InputError(
            f"cost: shapes {start.shape} and {costs.shape}; (n+1,) and (n+1, n+1, n+1) needed"
        )
    node = np.arange(n + 1)
    allowed = (node[:, None, None] < node[None, :, None]) & (node[None, :, None] < node)
    if not np.isfinite(start[1:]).all() or not np.isfinite(costs[allowed]).all():
        raise InputError("cost: an entry is not finite; finite costs needed")
    budgets = [_validate_budget(budget, n) for budget in budgets]

    forward = np.where(allowed, costs, np.inf)
    values = forward[:, :, n].copy()
    choices = [np.full((n + 1, n + 1), n)]  # choices[m - 1][i, j]: where the first of m steps leads
    begun = np.where(node > 0, start, np.inf)
    best = {1: (n, float(start[n]))}
    for k in range(2, max(budgets, default=0) + 1):
        total = begun + values[0]
        best[k] = (int(total.argmin()), float(total.min()))
        candidates = forward + values[None, :, :]
        choices.append(candidates.argmin(axis=2))
        values = candidates.min(axis=2)

    paths = {}
    for budget in budgets:
        second, value = best[budget]
        indices = [0, second]
        for m in range(budget - 1, 0, -1):
            indices.append(int(choices[m - 1][indices[-2], indices[-1]]))
        paths[budget] = Path(tuple(indices), value)
    return paths


def path_cost(cost: ArrayLike, indices: Iterable[int]) -> float:
    """The summed cost of the steps of a path given by its grid indices."""
    costs = validate_cost(cost)
    nodes = list(indices)
    if any(not 0 <= i < len(costs) for i in nodes) or any(np.diff(nodes) <= 0):
        raise InputError(f"indices: {nodes}; increasing grid indices in 0..{len(costs) - 1} needed")
    return float(sum(costs[i, j] for i, j in itertools.pairwise(nodes)))


def path_standard_error(group_cost: ArrayLike, indices: Sequence[int]) -> float | None:
    """The standard error of the summed cost of a path's steps; None where there is one group only.

    group_cost: (G, n+1, n+1), the costs over G groups of trajectories (`CostMatrix.group_cost`).
    The entries of one trajectory are not independent, so their own standard errors do not add up
    to that of their sum; its spread between groups does.
    """
    groups = np.asarray(group_cost, dtype=np.float64)
    if len(groups) < 2:
        return None
    sums = groups[:, list(indices[:-1]), list(indices[1:])].sum(axis=1)
    return float(sums.std(ddof=1) / np.sqrt(len(sums)))


def validate_cost(cost: ArrayLike) -> NDArray[np.float64]:
    """The cost matrix as a float64 array; InputError when it cannot be one (see above)."""
    costs = np.asarray(cost, dtype=np.float64)
    if costs.ndim != 2 or costs.shape[0] != costs.shape[1] or len(costs) < 2:
        raise InputError(f"cost: shape {costs.shape}; a square matrix of two rows or more needed")
    above = np.triu(~np.isfinite(costs), k=1)
    if above.any():
        i, j = (int(k) for k in np.argwhere(above)[0])
        raise InputError(f"cost: entry ({i}, {j}) is {costs[i, j]}; finite costs needed")
    return costs


def _validate_budget(budget: int, n: int) -> int:
    if isinstance(budget, bool) or not isinstance(budget, int | np.integer):
        raise InputError(f"budget: {budget!r}; an integer needed")
    if not 1 <= budget <= n:
        raise InputError(f"budget: {budget}; 1..{n} needed (the grid has {n} steps)")
    return int(budget)
