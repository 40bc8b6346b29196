"""What a schedule minimises, from the costs of its steps alone.

With e_m the error of step m of a path (0 the one from the noise), a mean over trajectories:

    l2_squared   sum of E||e_m||^2               the paper's (eqs. 5 to 8)
    l2           sum of E||e_m||                 less ruled by one bad step
    minimax      largest E||e_m||^2              the worst step as good as it can be
    gits         sum of gamma^m E||e_m||         GITS: later steps weigh more

GITS is Chen et al. 2024, On the Trajectory Regularity of ODE-based Diffusion Sampling. Each is
solved exactly by the Bellman recursion; none counts the error that earlier steps left in the state
(see `boss_core.search.forward`).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from boss_core.bellman.fitted import fitted_paths
from boss_core.bellman.names import GITS_GAMMA, OBJECTIVES
from boss_core.bellman.recursion import (
    Combine,
    Path,
    PathBatch,
    batched_paths,
    batched_two_step_paths,
    validate_cost,
)
from boss_core.costs.fitted import fitted_costs
from boss_core.costs.heun import HeunCosts
from boss_core.costs.matrix import CostMatrix
from boss_core.costs.two_step import two_step_costs
from boss_core.errors import InputError
from boss_core.ode.solver_table import LARGEST_ORDER, SOLVERS, solver_named, steps_of
from boss_core.ode.timesteps import validate_steps


@dataclass(frozen=True)
class StepCosts:
    """What each step of a solver costs in the measure of an objective, for R sets of
    trajectories: E||e||^2, or E||e|| for ``l2`` and ``gits``.

    cost: (R, n+1, n+1) float64; entry (i, j), i < j, is the step from i to j; of a two-step
        solver only row 0 counts: the first step, by Euler.
    after: of a two-step solver, for each j in 0..n-1, (R, j, n-j) float64: entry (i, k - j - 1)
        is the step from j to k after one from i to j. None for others.
    """

    cost: NDArray[np.float64]
    after: Sequence[NDArray[np.float64]] | None = None


def optimal_steps(
    matrix: CostMatrix,
    budgets: Iterable[int],
    *,
    objective: str = "l2_squared",
    solver: str = "euler",
    gamma: float = GITS_GAMMA,
    heun_costs: HeunCosts | None = None,
    order: int = LARGEST_ORDER,
) -> dict[int, Path]:
    """For every budget, the best steps for a solver under an objective.

    budgets: in network evaluations; a path has `steps_of(budget, solver)` steps, and its cost is
        the value of the objective: squared L2 error of a sample for ``l2_squared`` and
        ``minimax``, L2 error for ``l2`` and ``gits``.
    objective: one of `OBJECTIVES`. gamma: for ``gits`` only.
    heun_costs: for ``heun``, whose costs the matrix does not hold
        (`boss_core.costs.heun.estimate_heun_costs`).

    order: velocities of a step of ``multistep``, 2 or 3; each step has the best weights that it
        could (`boss_core.costs.fitted`).

    For ``ab2`` with ``l2`` or ``gits`` the mean norms are not known, only mean squares: see
    `group_step_costs`. For ``multistep`` the root of the mean square over all trajectories stands
    for the mean norm.

    Raises InputError for what is not known or missing, for a budget that the solver cannot
    spend or the grid has too few steps for, and on a grid of more steps than the solver's
    ``largest_grid`` (`boss_core.ode.solver_table`).
    """
    steps = {budget: steps_of(budget, solver) for budget in budgets}
    if SOLVERS[solver].fitted:
        factor, combine = _rule(objective, gamma)
        of_steps = fitted_costs(matrix.gram, matrix.timesteps, order)
        if _of_norms(objective):
            of_steps = of_steps.norms()
        return fitted_paths(of_steps, steps.values(), gamma=factor, combine=combine)
    costs = step_costs(matrix, objective=objective, solver=solver, heun_costs=heun_costs)
    found = best_paths(costs, steps.values(), objective=objective, gamma=gamma)
    return {budget: found[count].path() for budget, count in steps.items()}


def step_costs(
    matrix: CostMatrix,
    *,
    objective: str = "l2_squared",
    solver: str = "euler",
    heun_costs: HeunCosts | None = None,
) -> StepCosts:
    """The costs of all steps over all trajectories: R = 1. Arguments are `optimal_steps`'s."""
    two_step = _looks_back(solver)
    if two_step and not _of_norms(objective):
        blocks = two_step_costs(matrix.gram, matrix.timesteps, solver)
        return StepCosts(matrix.cost[None], [block[None] for block in blocks])
    if two_step:
        groups = group_step_costs(matrix, objective=objective, solver=solver)
        return weighted(groups, matrix.group_sizes[None] / matrix.samples)
    source = _source(matrix, solver, heun_costs)
    cost = source.norm if _of_norms(objective) else source.cost
    return StepCosts(validate_cost(cost)[None])


def group_step_costs(
    matrix: CostMatrix,
    *,
    objective: str = "l2_squared",
    solver: str = "euler",
    heun_costs: HeunCosts | None = None,
) -> StepCosts:
    """The costs of all steps over each group of trajectories: R = G. Their mean, weighted by
    `CostMatrix.group_sizes`, is `step_costs`.

    For ``ab2`` only mean squares follow from the groups' Gram matrices, so for ``l2`` and
    ``gits`` the root of each group's mean square stands for its mean norm, the first step's too.
    It is never less than that (Jensen), and is exact with one trajectory a group. Memory:
    G n^3 / 6 numbers, 26 MB for 100 steps and 720 MB for 300.
    """
    if _looks_back(solver):
        blocks = two_step_costs(matrix.group_grams, matrix.timesteps, solver)
        found = StepCosts(matrix.group_cost, blocks)
        if not _of_norms(objective):
            return found
        assert found.after is not None
        return StepCosts(np.sqrt(found.cost), [np.sqrt(block) for block in found.after])
    source = _source(matrix, solver, heun_costs)
    return StepCosts(source.group_norm if _of_norms(objective) else source.group_cost)


def weighted(costs: StepCosts, weights: NDArray[np.float64]) -> StepCosts:
    """Weighted sums of G sets of costs, for each row of the weights (R, G)."""

    def sums(part: NDArray[np.float64]) -> NDArray[np.float64]:
        # As fast as a matrix product for shapes like these, and no threads to wait for.
        return np.einsum("rg,gij->rij", weights, part)

    after = None if costs.after is None else [sums(block) for block in costs.after]
    return StepCosts(sums(costs.cost), after)


def best_paths(
    costs: StepCosts,
    steps: Iterable[int],
    *,
    objective: str = "l2_squared",
    gamma: float = GITS_GAMMA,
) -> dict[int, PathBatch]:
    """The best paths for each of R sets of costs, by their number of steps."""
    factor, combine = _rule(objective, gamma)
    if costs.after is None:
        return batched_paths(costs.cost, steps, gamma=factor, combine=combine)
    return batched_two_step_paths(
        costs.cost[:, 0], costs.after, steps, gamma=factor, combine=combine
    )


def path_values(
    costs: StepCosts,
    indices: Sequence[int],
    *,
    objective: str = "l2_squared",
    gamma: float = GITS_GAMMA,
) -> NDArray[np.float64]:
    """(R,): the value of the objective for any path, given by its increasing grid indices from 0
    to n: uniform steps, say, beside the best ones. InputError for any other indices."""
    n = costs.cost.shape[-1] - 1
    nodes = validate_steps(indices, n, "indices")
    factor, combine = _rule(objective, gamma)
    each = [costs.cost[:, 0, nodes[1]]]
    for i, j, k in zip(nodes, nodes[1:], nodes[2:], strict=False):
        each.append(costs.cost[:, j, k] if costs.after is None else costs.after[j][:, i, k - j - 1])
    terms = np.stack(each, axis=1)
    if combine == "max":
        return terms.max(axis=1)
    return terms @ factor ** np.arange(len(each))


def _looks_back(solver: str) -> bool:
    """Whether a step depends on the one before; InputError where it depends on more."""
    steps = solver_named(solver).looks_back
    if steps > 1:
        raise InputError(
            f"solver: {solver}, which looks back {steps} steps; at most 1 needed for such costs"
        )
    return steps == 1


def _rule(objective: str, gamma: float) -> tuple[float, Combine]:
    """What the recursion does with the step costs of an objective."""
    _of_norms(objective)
    return gamma if objective == "gits" else 1.0, "max" if objective == "minimax" else "sum"


def _of_norms(objective: str) -> bool:
    if objective not in OBJECTIVES:
        raise InputError(f"objective: {objective!r}; {', '.join(OBJECTIVES)} known")
    return objective in ("l2", "gits")


def _source(
    matrix: CostMatrix, solver: str, heun_costs: HeunCosts | None
) -> CostMatrix | HeunCosts:
    """Where the costs of the steps of a one-step solver are."""
    if SOLVERS[solver].weights is not None:
        return matrix
    if solver != "heun":
        raise InputError(f"solver: {solver!r}, whose steps have no costs; another needed")
    if heun_costs is None:
        raise InputError("heun_costs: missing; those of `estimate_heun_costs` needed")
    if heun_costs.group_cost.shape[1:] != matrix.cost.shape:
        raise InputError(
            f"heun_costs: of {heun_costs.group_cost.shape[-1]} timesteps;"
            f" {len(matrix.timesteps)}, those of the matrix, needed"
        )
    return heun_costs
