"""How sure a search is: of its predicted errors, and of where its knots are.

Costs are means over groups of trajectories, so a resample of the groups (bootstrap, Efron 1979) is
a weighted mean of what the groups cost, and needs no further evaluation of the network.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, stdtrit  # those of scipy.stats take a second to import

from boss_core.bellman.names import GITS_GAMMA
from boss_core.bellman.objectives import (
    StepCosts,
    best_paths,
    group_step_costs,
    optimal_steps,
    path_values,
    weighted,
)
from boss_core.bellman.recursion import Path
from boss_core.costs.heun import HeunCosts
from boss_core.costs.matrix import CostMatrix
from boss_core.errors import InputError
from boss_core.ode.solver_table import steps_of

RESAMPLES = 200
# The costs of resamples that are searched together.
_BYTES = 32 << 20


@dataclass(frozen=True)
class Stability:
    """How far the choice of a path depends on the trajectories that it was found on.

    indices: those of the path.
    interval: low and high end of the 95 % interval of `Path.cost` for these steps; None where
        there is one group only.
    knots: for each knot, the share of resamples whose own best path has it within one grid step
        of here; None where there is one group only. The ends are always 1.
    """

    indices: tuple[int, ...]
    interval: tuple[float, float] | None
    knots: tuple[float, ...] | None


def bootstrap(
    matrix: CostMatrix,
    budgets: Iterable[int],
    *,
    objective: str = "l2_squared",
    solver: str = "euler",
    gamma: float = GITS_GAMMA,
    heun_costs: HeunCosts | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[int, Stability]:
    """How sure the best steps of every budget are: the interval of their error, and the stability
    of each knot. Arguments and errors are those of `optimal_steps`.

    The interval is the percentile bootstrap's over the groups, with the percentiles moved
    outwards for few groups (Hesterberg 2015, What Teachers Should Know About the Bootstrap). It
    leaves out that the steps were chosen for a low cost on these same trajectories. From 20 groups
    of known costs it covers the truth in 94 to 95 % of repeats (the percentiles themselves in
    92 %), but in 91 % (88 %) where three paths cost nearly the same and the luckiest is taken.
    """
    chosen, resampled = _resampled(
        matrix, budgets, objective, solver, gamma, heun_costs, resamples, seed
    )
    if resampled is None:
        return {budget: Stability(path.indices, None, None) for budget, path in chosen.items()}
    tail = _tail(len(_source(matrix, solver, heun_costs).group_sizes))
    found = {}
    for budget, path in chosen.items():
        low, high = np.quantile(resampled[budget].values, [tail, 1.0 - tail])
        near = (resampled[budget].shifts <= 1).mean(axis=0)
        found[budget] = Stability(path.indices, (float(low), float(high)), tuple(near.tolist()))
    return found


# Its many arguments are what one call differs by from the next; all but the first few have names.
def settled(
    matrix: CostMatrix,
    budgets: Iterable[int],
    *,
    objective: str = "l2_squared",
    solver: str = "euler",
    share: float = 0.95,
    gamma: float = GITS_GAMMA,
    heun_costs: HeunCosts | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> bool:
    """Whether more trajectories would hardly move a knot: in at least ``share`` of the resamples
    no knot of any budget moves by more than one grid step. Never with one group.

    Where two paths cost nearly the same this may take any number of trajectories: who asks while
    adding some needs a limit of their own. Other arguments are `bootstrap`'s.
    """
    _, resampled = _resampled(
        matrix, budgets, objective, solver, gamma, heun_costs, resamples, seed
    )
    if resampled is None:
        return False
    still = np.ones(resamples, dtype=bool)
    for of_budget in resampled.values():
        still &= (of_budget.shifts <= 1).all(axis=1)
    return bool(still.mean() >= share)


@dataclass(frozen=True)
class _Resampled:
    """One budget over R resamples: the value of the chosen path, (R,), and by how many grid steps
    each knot of the resample's own best path is off the chosen one's, (R, K + 1)."""

    values: NDArray[np.float64]
    shifts: NDArray[np.intp]


def _resampled(
    matrix: CostMatrix,
    budgets: Iterable[int],
    objective: str,
    solver: str,
    gamma: float,
    heun_costs: HeunCosts | None,
    resamples: int,
    seed: int,
) -> tuple[dict[int, Path], dict[int, _Resampled] | None]:
    """The chosen paths, and what becomes of them in the resamples; None with one group."""
    chosen = optimal_steps(
        matrix, budgets, objective=objective, solver=solver, gamma=gamma, heun_costs=heun_costs
    )
    sizes = _source(matrix, solver, heun_costs).group_sizes
    groups = len(sizes)
    if groups < 2:
        return chosen, None
    if resamples < 1:
        raise InputError(f"resamples: {resamples}; at least 1 needed")
    costs = group_step_costs(matrix, objective=objective, solver=solver, heun_costs=heun_costs)
    drawn = np.random.default_rng(seed).multinomial(groups, [1 / groups] * groups, size=resamples)
    weights = drawn * sizes
    weights = weights / weights.sum(axis=1, keepdims=True)

    values: dict[int, list[NDArray]] = {budget: [] for budget in chosen}
    shifts: dict[int, list[NDArray]] = {budget: [] for budget in chosen}
    together = max(1, _BYTES // _row_bytes(costs))
    for start in range(0, resamples, together):
        part = weighted(costs, weights[start : start + together])
        steps = {budget: steps_of(budget, solver) for budget in chosen}
        best = best_paths(part, steps.values(), objective=objective, gamma=gamma)
        for budget, path in chosen.items():
            values[budget].append(path_values(part, path.indices, objective=objective, gamma=gamma))
            shifts[budget].append(np.abs(best[steps[budget]].indices - np.array(path.indices)))
    return chosen, {
        budget: _Resampled(np.concatenate(values[budget]), np.concatenate(shifts[budget]))
        for budget in chosen
    }


def _source(
    matrix: CostMatrix, solver: str, heun_costs: HeunCosts | None
) -> CostMatrix | HeunCosts:
    return heun_costs if solver == "heun" and heun_costs is not None else matrix


def _row_bytes(costs: StepCosts) -> int:
    """The bytes of one set of costs."""
    return sum(part[0].nbytes for part in (costs.cost, *(costs.after or ())))


def _tail(groups: int) -> float:
    """The percentile at which a bootstrap of a mean over few groups has the width of Student's
    interval: the resamples' spread is sqrt((G - 1) / G) of the sample's, and normal."""
    return float(ndtr(np.sqrt(groups / (groups - 1)) * stdtrit(groups - 1, 0.025)))
