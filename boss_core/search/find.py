"""The best steps of every budget, by whichever objective: what the pipeline's stage and
`boss schedule` both call."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from torch import Tensor

from boss_core.bellman.names import OBJECTIVES
from boss_core.costs.fitted import check_order
from boss_core.costs.matrix import CostMatrix
from boss_core.errors import InputError
from boss_core.ode.noise import SEARCH, NoiseSource
from boss_core.ode.solver_table import SEARCHED, SOLVERS
from boss_core.ode.velocity import Velocity
from boss_core.search.auto import auto_steps
from boss_core.search.distances import Distance
from boss_core.search.multistep import FineStates, with_weights
from boss_core.search.sampled import NetworkSearch
from boss_core.search.settings import (
    FEWEST,
    HELD_OUT,
    SAMPLED,
    UNIFORM,
    Progress,
    SearchSettings,
    no_progress,
)
from boss_core.search.steps import FoundSteps, from_costs, named


def find_steps(
    velocity: Velocity,
    matrix: CostMatrix,
    budgets: Sequence[int],
    settings: SearchSettings,
    source: NoiseSource,
    distance: Callable[[Tensor], Distance],
    *,
    fine: FineStates | None = None,
    reference: str = "euler",
    progress: Progress = no_progress,
    say: Callable[[str], None] = lambda line: None,
) -> Iterator[tuple[int, FoundSteps]]:
    """The best steps of every budget by any objective, each budget as soon as it is found.

    velocity: the teacher that the costs were measured on, on the device of the source.
    Steps of ``multistep`` by one of the `SAMPLED` objectives are those of ``ab2``, with weights
    fitted to them.

    source: of the noise of the `SAMPLED` objectives. distance: from samples of the teacher to a
    distance to them, which ``refine`` and ``auto`` minimise (`boss_core.search.distances`).
    fine: of the trajectories of the costs, where they were kept, for the weights of ``multistep``;
    where not, some are rolled out by the solver that ``reference`` names.
    progress: shows it. say: takes a line for each result.
    """
    check_search(settings, budgets, len(matrix.timesteps) - 1)
    if SOLVERS[settings.solver].fitted:
        if settings.objective in (*OBJECTIVES, UNIFORM):
            found = dict(from_costs(matrix, budgets, settings))
        else:  # compared by the samples of ab2, whose weights are near the fitted ones
            of_ab2 = replace(settings, solver="ab2")
            found = dict(
                find_steps(
                    velocity, matrix, budgets, of_ab2, source, distance, progress=progress, say=say
                )
            )
        weighted = with_weights(
            velocity, matrix, found, settings, source, fine, reference=reference, progress=progress
        )
        return iter(weighted.items())
    if settings.objective in OBJECTIVES:
        return from_costs(matrix, budgets, settings)
    search = NetworkSearch(velocity, matrix, budgets, settings, distance, progress, say)
    noise = source.draw(range(settings.samples), SEARCH)
    if settings.objective == "oss":
        return named("oss", search.oss(*noise))
    if settings.objective == "lpips":
        return named("lpips", search.lpips(*noise))
    near = search.ends(*noise)
    if settings.objective == "refine":
        return search.refined(near)
    held_out = range(settings.samples, (1 + HELD_OUT) * settings.samples)
    return auto_steps(search, near, search.ends(*source.draw(held_out, SEARCH)))


def check_search(settings: SearchSettings, budgets: Sequence[int], grid: int) -> None:
    """InputError, before any work, for what cannot be searched on so many grid steps."""
    solver, objective = settings.solver, settings.objective
    known = (*OBJECTIVES, *SAMPLED, UNIFORM)
    if objective not in known:
        raise InputError(f"objective: {objective!r}; {', '.join(known)} known")
    if solver not in SEARCHED:
        raise InputError(f"solver: {solver!r}; {' or '.join(SEARCHED)} needed for a search")
    if objective == "lpips" and solver != "euler":
        raise InputError(f"solver: {solver} with objective lpips; euler needed")
    if objective == UNIFORM and not SOLVERS[solver].fitted:
        raise InputError(f"solver: {solver} with objective uniform; multistep needed")
    check_order(settings.order)
    largest = SOLVERS[solver].largest_grid
    if largest is not None and grid > largest:
        raise InputError(f"grid: {grid} steps; at most {largest} needed with solver {solver}")
    for budget in budgets:
        if not 1 <= budget <= grid:
            raise InputError(f"budget: {budget}; 1..{grid}, the steps of the grid, needed")
    if objective in SAMPLED and settings.samples < FEWEST:
        raise InputError(f"samples: {settings.samples}; at least {FEWEST} needed")
