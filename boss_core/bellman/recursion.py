"""The Bellman recursion: the cheapest path with exactly K steps (paper, eqs. 6 to 8)."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from boss_core.errors import InputError

Combine = Literal["sum", "max"]
_COMBINE = {"sum": np.add, "max": np.maximum}


@dataclass(frozen=True)
class Path:
    """The cheapest path for one budget.

    indices: K + 1 increasing grid indices, from 0 to n.
    cost: the sum of the costs of its steps, in the unit of the cost matrix; or what else the
        recursion that found it makes of them.
    """

    indices: tuple[int, ...]
    cost: float


@dataclass(frozen=True)
class PathBatch:
    """The cheapest paths of one budget for each of R cost matrices.

    indices: (R, K + 1) int. cost: (R,) float64.
    """

    indices: NDArray[np.intp]
    cost: NDArray[np.float64]

    def path(self, row: int = 0) -> Path:
        """That of one of the matrices."""
        return Path(tuple(int(i) for i in self.indices[row]), float(self.cost[row]))


def optimal_paths(
    cost: ArrayLike, budgets: Iterable[int], *, gamma: float = 1.0, combine: Combine = "sum"
) -> dict[int, Path]:
    """For every budget K, the cheapest path from node 0 to node n in exactly K steps.

    cost: (n+1, n+1); entry (i, j), i < j, is the cost of a step from i to j (eq. 5). Only the
    part above the diagonal is read. Entries may be negative.

    With V_1(i) = c_in and V_k(i) = min_{j>i} c_ij + V_{k-1}(j) (eqs. 7 and 8), one backward
    pass gives all budgets. Of several cheapest paths, the one whose first differing index is
    smallest is returned.

    gamma: V_k(i) = min_{j>i} c_ij + gamma V_{k-1}(j), so that step m of a path (from 0) weighs
        gamma^m (GITS, Chen et al. 2024).
    combine: ``max`` for the larger of the two terms instead of their sum: the cost of a path is
        that of its worst step. Among paths with the same worst step, the rest from each knot on
        is itself a best one; ties after that go to the smallest index.

    Raises InputError (a ValueError) when the matrix is not square, has fewer than two rows, or
    has an entry above the diagonal that is not finite, when a budget is not an integer in 1..n,
    when gamma is not a positive number, and when the costs of every path overflow.
    """
    costs = validate_cost(cost)
    found = batched_paths(costs[None], budgets, gamma=gamma, combine=combine)
    return {budget: paths.path() for budget, paths in found.items()}


def optimal_two_step_paths(
    first: ArrayLike,
    cost: ArrayLike,
    budgets: Iterable[int],
    *,
    gamma: float = 1.0,
    combine: Combine = "sum",
) -> dict[int, Path]:
    """As `optimal_paths` for a solver whose step depends on the step before: the states of the
    recursion are pairs of knots.

    first: (n+1,); entry j is the cost of the first step, from 0 to j.
    cost: (n+1, n+1, n+1); entry (i, j, k), i < j < k, is the cost of the step from j to k after
        one from i to j. Nothing else is read.

    V_1(i, j) = c_ijn and V_m(i, j) = min_{k>j} c_ijk + V_{m-1}(j, k); the budget K is worth
    min_j first_j + V_{K-1}(0, j). ``gamma``, ``combine``, ties and errors as for
    `optimal_paths`.
    """
    start, costs = np.asarray(first, dtype=np.float64), np.asarray(cost, dtype=np.float64)
    n = len(start) - 1
    if start.ndim != 1 or n < 1 or costs.shape != (n + 1, n + 1, n + 1):
        raise InputError(
            f"cost: shapes {start.shape} and {costs.shape}; (n+1,) and (n+1, n+1, n+1) needed"
        )
    blocks = [costs[None, :j, j, j + 1 :] for j in range(n)]
    if not all(np.isfinite(part).all() for part in (start[1:], *blocks)):
        raise InputError("cost: an entry is not finite; finite costs needed")
    found = batched_two_step_paths(start[None], blocks, budgets, gamma=gamma, combine=combine)
    return {budget: paths.path() for budget, paths in found.items()}


@np.errstate(over="ignore", invalid="ignore")  # see `check_values`
def batched_paths(
    costs: NDArray[np.float64],
    budgets: Iterable[int],
    *,
    gamma: float = 1.0,
    combine: Combine = "sum",
) -> dict[int, PathBatch]:
    """`optimal_paths` of R cost matrices of one size, (R, n+1, n+1), side by side. Their entries
    are not checked."""
    n = costs.shape[-1] - 1
    budgets = [validate_budget(budget, n) for budget in budgets]
    join = validate_rule(gamma, combine)

    # Steps go forward only: everything else costs infinity.
    forward = np.where(np.triu(np.ones((n + 1, n + 1), dtype=bool), k=1), costs, np.inf)
    values = forward[:, :, n].copy()
    value_of = {1: values[:, 0]}
    next_node = [
        np.full(values.shape, n)
    ]  # next_node[k - 1][r, i]: where the first of k steps leads
    for k in range(2, max(budgets, default=0) + 1):
        candidates = join(forward, gamma * values[:, None, :])
        choice = candidates.argmin(axis=2)
        values = np.take_along_axis(candidates, choice[:, :, None], axis=2)[:, :, 0]
        next_node.append(choice)
        value_of[k] = values[:, 0]

    rows = np.arange(len(costs))
    paths = {}
    check_values(value_of[budget] for budget in budgets)
    for budget in budgets:
        indices = [np.zeros(len(costs), dtype=np.intp)]
        for k in range(budget, 0, -1):
            indices.append(next_node[k - 1][rows, indices[-1]])
        paths[budget] = PathBatch(np.stack(indices, axis=1), value_of[budget])
    return paths


@np.errstate(over="ignore", invalid="ignore")
def batched_two_step_paths(
    first: NDArray[np.float64],
    blocks: Sequence[NDArray[np.float64]],
    budgets: Iterable[int],
    *,
    gamma: float = 1.0,
    combine: Combine = "sum",
) -> dict[int, PathBatch]:
    """`optimal_two_step_paths` of R sets of costs of one size side by side, without the five
    sixths of a cube that are never read. Entries are not checked.

    first: (R, n+1). blocks: for each j in 0..n-1, (R, j, n-j): entry (i, k - j - 1) is the cost
    of the step from j to k after one from i to j.
    """
    samples, n = len(first), first.shape[1] - 1
    budgets = [validate_budget(budget, n) for budget in budgets]
    join = validate_rule(gamma, combine)

    begun = first.copy()
    begun[:, 0] = np.inf
    best = {1: (np.full(samples, n), begun[:, n])}
    values = np.full((samples, n + 1, n + 1), np.inf)  # of the pair (i, j), i < j
    for j in range(1, n):
        values[:, :j, j] = blocks[j][:, :, -1]
    choices = [
        np.full(values.shape, n)
    ]  # choices[m - 1][r, i, j]: where the first of m steps leads
    for k in range(2, max(budgets, default=0) + 1):
        total = join(begun, gamma * values[:, 0])
        best[k] = (total.argmin(axis=1), total.min(axis=1))
        choice, new = np.full(values.shape, n), np.full(values.shape, np.inf)
        for j in range(1, n):
            candidates = join(blocks[j], gamma * values[:, j, None, j + 1 :])
            place = candidates.argmin(axis=2)
            new[:, :j, j] = np.take_along_axis(candidates, place[:, :, None], axis=2)[:, :, 0]
            choice[:, :j, j] = place + j + 1
        choices.append(choice)
        values = new

    rows = np.arange(samples)
    paths = {}
    check_values(best[budget][1] for budget in budgets)
    for budget in budgets:
        second, value = best[budget]
        indices = [np.zeros(samples, dtype=np.intp), second]
        for m in range(budget - 1, 0, -1):
            indices.append(choices[m - 1][rows, indices[-2], indices[-1]])
        paths[budget] = PathBatch(np.stack(indices, axis=1), value)
    return paths


@np.errstate(over="ignore", invalid="ignore")
def path_cost(cost: ArrayLike, indices: Iterable[int]) -> float:
    """The summed cost of the steps of a path given by its grid indices. cost: (n+1, n+1).
    InputError for indices that do not increase or are off the grid."""
    costs = validate_cost(cost)
    nodes = list(indices)
    if any(not 0 <= i < len(costs) for i in nodes) or any(np.diff(nodes) <= 0):
        raise InputError(f"indices: {nodes}; increasing grid indices in 0..{len(costs) - 1} needed")
    found = float(sum(costs[i, j] for i, j in itertools.pairwise(nodes)))
    check_values([np.array(found)])
    return found


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


def check_values(values: Iterable[NDArray[np.float64]]) -> None:
    """InputError where the cost of a best path is not finite: then every path overflowed, all are
    equal, and the one that is found need not even be a path."""
    if not all(np.isfinite(value).all() for value in values):
        raise InputError(
            "cost: the sum over the best steps is beyond float64, though each is finite; costs in a"
            " larger unit, or a gamma nearer to 1, needed"
        )


def validate_rule(gamma: float, combine: str) -> np.ufunc:
    """What joins the cost of a step and that of the rest; InputError for what is not known."""
    if combine not in _COMBINE:
        raise InputError(f"combine: {combine!r}; {', '.join(_COMBINE)} known")
    if not 0 < gamma < np.inf:
        raise InputError(f"gamma: {gamma}; a positive number needed")
    return _COMBINE[combine]


def validate_budget(budget: int, n: int) -> int:
    """The budget as an integer; InputError unless it is one of 1..n."""
    if isinstance(budget, bool) or not isinstance(budget, int | np.integer):
        raise InputError(f"budget: {budget!r}; an integer needed")
    if not 1 <= budget <= n:
        raise InputError(f"budget: {budget}; 1..{n} needed (the grid has {n} steps)")
    return int(budget)
