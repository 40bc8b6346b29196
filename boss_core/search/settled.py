"""How many trajectories a search needs: until more of them would hardly better its steps.

A bootstrap over groups of trajectories (`boss_core.bellman.bootstrap`) stands for searches on other
trajectories of the same number. Where nearly all of its resamples find no steps that are more than
a little better than those chosen, the search has settled.

By cost, and not by how far knots move: within a grid step of the best place, as `settled` there
asks, costs a third more on a grid of 12 steps, and nothing where two places are as good.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from boss_core.bellman.bootstrap import RESAMPLES
from boss_core.bellman.names import GITS_GAMMA, OBJECTIVES
from boss_core.bellman.objectives import (
    best_paths,
    group_step_costs,
    optimal_steps,
    path_values,
    weighted,
)
from boss_core.costs.matrix import GROUPS, CostMatrix, CostSum
from boss_core.ode.solver_table import steps_of
from boss_core.search.settings import SearchSettings

# A resample agrees where its own best steps are less than this share better than those chosen.
LOSS = 0.02
# And this share of the resamples has to agree.
SHARE = 0.95
# No fewer trajectories than groups: the bootstrap of fewer is of fewer, and too narrow.
FEWEST = GROUPS
# The number of the paper.
MOST = 100
# Each look is on half as many trajectories again: few looks have little luck.
_GROWTH = 1.5
_ROUNDING = 1e-12  # of sums in another order
_TOGETHER = 10  # resamples that are searched together; ab2's costs take n times Euler's memory


def agreement(
    matrix: CostMatrix,
    budgets: Sequence[int],
    *,
    objective: str = "l2_squared",
    solver: str = "euler",
    gamma: float = GITS_GAMMA,
    loss: float = LOSS,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> float:
    """The share of bootstrap resamples that agree with the steps found for every budget: whose own
    best steps are better, on the resample, by at most ``loss``. 0 with one group. Other arguments
    and errors are those of `optimal_steps`."""
    chosen = optimal_steps(matrix, budgets, objective=objective, solver=solver, gamma=gamma)
    sizes = matrix.group_sizes
    if len(sizes) < 2:
        return 0.0
    costs = group_step_costs(matrix, objective=objective, solver=solver)
    even = [1 / len(sizes)] * len(sizes)
    drawn = np.random.default_rng(seed).multinomial(len(sizes), even, size=resamples)
    weights = drawn * sizes
    weights = weights / weights.sum(axis=1, keepdims=True)
    steps = {budget: steps_of(budget, solver) for budget in chosen}
    agree = np.ones(resamples, dtype=bool)
    for start in range(0, resamples, _TOGETHER):
        rows = slice(start, start + _TOGETHER)
        part = weighted(costs, weights[rows])
        best = best_paths(part, steps.values(), objective=objective, gamma=gamma)
        for budget, path in chosen.items():
            here = path_values(part, path.indices, objective=objective, gamma=gamma)
            least = best[steps[budget]].cost
            agree[rows] &= here <= least * (1.0 + loss + _ROUNDING)
    return float(agree.mean())


@dataclass(frozen=True)
class Look:
    """What a search that ends by itself sees in its costs so far.

    samples: the trajectories to have before the next look; those there are where it ends.
    reason: why it ends, for people; empty where it goes on.
    """

    samples: int
    reason: str = ""


def look(
    total: CostSum,
    budgets: Sequence[int],
    settings: SearchSettings,
    *,
    batch_size: int,
    seed: int = 0,
) -> Look:
    """Whether a search has trajectories enough for the best steps of all budgets: from `FEWEST` on
    as soon as `SHARE` of the resamples agree (`agreement`), and with `MOST` in any case.

    It depends on the sum alone: asked again, it ends where it ended. Rounds are whole batches, so
    that there may be up to a batch more than `MOST`. An objective that compares samples is judged
    by the steps of ``l2_squared``, which it starts from.
    """
    there = total.samples
    if there < FEWEST:
        return Look(_whole(there, FEWEST, batch_size))
    objective = settings.objective if settings.objective in OBJECTIVES else "l2_squared"
    share = agreement(
        total.result(), budgets, objective=objective, solver=settings.solver,
        gamma=settings.gamma, seed=seed,
    )  # fmt: skip
    said = f"in {share:.0%} of resamples these steps are within {LOSS:.0%} of the best"
    if share >= SHARE:
        return Look(there, f"{said}: enough")
    if there >= MOST:
        return Look(there, f"{said}, {SHARE:.0%} needed; {MOST} are the limit")
    return Look(_whole(there, min(MOST, int(there * _GROWTH)), batch_size))


def _whole(there: int, wanted: int, batch_size: int) -> int:
    """At least as many as wanted, in whole batches beyond those that are there."""
    return there + -(-(wanted - there) // batch_size) * batch_size
