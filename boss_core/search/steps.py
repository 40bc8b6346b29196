"""The steps that a search found, and the schedule that they make."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from boss_core.bellman.bootstrap import bootstrap
from boss_core.bellman.names import OBJECTIVES
from boss_core.bellman.objectives import optimal_steps
from boss_core.bellman.predicted import PredictedErrors
from boss_core.bellman.recursion import Path
from boss_core.costs.cost_file import CostKey
from boss_core.costs.fit import Fitted
from boss_core.costs.matrix import CostMatrix
from boss_core.errors import InputError
from boss_core.ode.schedule import HeldOut, Schedule
from boss_core.ode.solver_table import SOLVERS
from boss_core.ode.timesteps import nearest_indices, uniform
from boss_core.search.settings import UNIFORM, SearchSettings


@dataclass(frozen=True)
class FoundSteps:
    """The steps that a search found for one budget, and the objective whose best they are.

    indices: K + 1 grid indices. held_out: the comparison by which ``auto`` chose; else None.
    fitted: the weights of ``multistep``; else None."""

    objective: str
    indices: tuple[int, ...]
    held_out: HeldOut | None = None
    fitted: Fitted | None = None


def from_costs(
    matrix: CostMatrix, budgets: Sequence[int], settings: SearchSettings
) -> Iterator[tuple[int, FoundSteps]]:
    """The best steps of every budget by the cost matrix alone; or equal ones, for the objective
    ``uniform``. InputError where the grid is too coarse for these."""
    if settings.objective == UNIFORM:
        return ((budget, FoundSteps(UNIFORM, _even(matrix, budget))) for budget in budgets)
    return named(settings.objective, cheapest(matrix, budgets, settings, settings.objective))


def cheapest(
    matrix: CostMatrix, budgets: Sequence[int], settings: SearchSettings, objective: str
) -> dict[int, Path]:
    """The best path of every budget under an objective of the costs, for the settings' solver."""
    return optimal_steps(
        matrix,
        budgets,
        objective=objective,
        solver=settings.solver,
        gamma=settings.gamma,
        order=settings.order,
    )


def uniform_indices(matrix: CostMatrix, budget: int) -> tuple[int, ...] | None:
    """The grid points nearest to uniform steps; None where the grid is too coarse for them."""
    try:
        return nearest_indices(matrix.timesteps, uniform(budget))
    except InputError:
        return None


def _even(matrix: CostMatrix, budget: int) -> tuple[int, ...]:
    found = uniform_indices(matrix, budget)
    if found is None:
        raise InputError(
            f"budget: {budget}, whose equal steps share points of a grid of"
            f" {len(matrix.timesteps) - 1} steps; fewer, or a finer grid, needed"
        )
    return found


def build_schedule(
    errors: PredictedErrors,
    steps: FoundSteps,
    settings: SearchSettings,
    *,
    seed: int = 0,
    teacher_hash: str | None = None,
    settings_hash: str | None = None,
    evaluations: float | None = None,
) -> Schedule:
    """The schedule of steps on the grid of a matrix, with its predicted error and, where the
    costs chose the steps, the stability of its knots.

    errors: for the settings' solver, on the matrix. seed: of the bootstrap. evaluations: for one
    sample, where a step takes others than the solver's.
    """
    matrix = errors.matrix
    predicted, error = errors.of(steps.indices)
    budget = len(steps.indices) - 1
    knots = None
    if steps.objective in OBJECTIVES and not SOLVERS[settings.solver].fitted:
        stability = bootstrap(
            matrix, [budget], objective=steps.objective, solver=settings.solver,
            gamma=settings.gamma, seed=seed,
        )  # fmt: skip
        knots = stability[budget].knots
    return Schedule(
        timesteps=tuple(float(matrix.timesteps[i]) for i in steps.indices),
        indices=steps.indices,
        solver=settings.solver,
        objective=steps.objective,
        predicted_error=predicted,
        standard_error=error,
        knot_stability=knots,
        teacher_hash=teacher_hash,
        settings_hash=settings_hash,
        held_out=steps.held_out,
        evaluations=evaluations,
        weights=None if steps.fitted is None else steps.fitted.weights,
        weights_error=None if steps.fitted is None else steps.fitted.standard_error,
    )


def hash_settings(
    key: CostKey, samples: int, settings: SearchSettings, extractor: str | None = None
) -> str:
    """The hash of all that steps depend on beside the teacher: of the costs, so many trajectories,
    and the search. extractor: the hash of the one that samples are compared by."""
    found: dict[str, object] = asdict(key) | {"samples": samples}
    del found["teacher_hash"]
    if not settings.papers:
        chosen = asdict(settings)
        del chosen["batch_size"]
        del chosen["lpips"]
        if not SOLVERS[settings.solver].fitted:
            del chosen["order"]
        compares = settings.objective in ("refine", "auto")
        found |= {"schedule": chosen, "extractor": extractor if compares else None}
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def named(objective: str, found: Mapping[int, Path]) -> Iterator[tuple[int, FoundSteps]]:
    """The paths of every budget as the steps of an objective."""
    for budget, path in found.items():
        yield budget, FoundSteps(objective, path.indices)
