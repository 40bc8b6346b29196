"""The best steps for every budget, the fixed grids beside them, and their predicted errors."""

import hashlib
import json
from collections.abc import Iterator
from typing import Literal

import pandas as pd
import torch
from torch import Tensor

from boss_core.bellman.bootstrap import Stability, bootstrap, predicted_error
from boss_core.bellman.objectives import OBJECTIVES, group_step_costs
from boss_core.bellman.recursion import optimal_paths, path_cost
from boss_core.checkpoints.folder import Network, load_checkpoint
from boss_core.costs.matrix import CostMatrix
from boss_core.errors import InputError
from boss_core.files import write_bytes
from boss_core.ode import timesteps
from boss_core.ode.schedule import HeldOut, Schedule
from boss_core.ode.velocity import sample_noise
from flows import paths
from flows.config import Params, ScheduleSearch
from flows.measure.energy import Usage, measured
from flows.measure.usage import write_usage
from flows.records.cost_file import read_cost_matrix
from flows.records.json_files import write_json
from flows.records.labels import draw_labels
from flows.records.seeds import CHOOSE
from flows.search.chosen import Chosen, chosen_steps, distance_named, knot_stability
from flows.stages.runner import device, run_stage

# The predicted-error curve goes this far, so that a user sees which budget is worth paying for.
CURVE_BUDGETS = 20
# Those of the paper, which stand beside whatever is chosen.
Solver = Literal["euler", "ab2"]
SOLVER: Solver = "euler"
OBJECTIVE = "l2_squared"


def main(params: Params) -> None:
    matrix, teacher_hash = read_cost_matrix(paths.COST)
    cost, grid = matrix.cost, matrix.timesteps
    solver = params.schedule.solver
    of_groups = {name: group_step_costs(matrix, solver=name) for name in {SOLVER, solver}}

    def schedule(
        indices: tuple[int, ...],
        objective: str,
        solver: Solver = SOLVER,
        found_by: ScheduleSearch | None = None,
        held_out: HeldOut | None = None,
        knot_stability: tuple[float, ...] | None = None,
    ) -> Schedule:
        predicted, error = predicted_error(of_groups[solver], matrix.group_sizes, indices)
        return Schedule(
            timesteps=tuple(float(grid[i]) for i in indices),
            indices=indices,
            solver=solver,
            objective=objective,
            predicted_error=predicted,
            standard_error=error,
            knot_stability=knot_stability,
            teacher_hash=teacher_hash,
            settings_hash=settings_hash(params, found_by),
            held_out=held_out,
        )

    shown = range(1, min(len(grid) - 1, max(CURVE_BUDGETS, *params.budgets)) + 1)
    best = optimal_paths(cost, shown)  # of all budgets too
    stable = bootstrap(matrix, shown, objective=OBJECTIVE, solver=SOLVER, seed=params.seed)
    found: dict[int, dict[str, Schedule]] = {}
    for budget in params.budgets:
        knots = stable[budget].knots
        found[budget] = {"bellman": schedule(best[budget].indices, OBJECTIVE, knot_stability=knots)}
        for name, make in timesteps.GRIDS.items():
            try:
                indices = timesteps.nearest_indices(grid, make(budget))
            except InputError:
                continue  # so many steps that this grid puts two on one point: nothing to compare
            found[budget][name] = schedule(indices, name)

    usage: Usage | None = None
    if not params.schedule.papers:
        on = device(params)
        network, _ = load_checkpoint(paths.TEACHER)
        network = network.to(on)
        with measured(on) as search:
            steps = dict(choose(params, matrix, network, on))
        if params.schedule.objective not in OBJECTIVES:  # those take the costs alone
            usage = search
        for budget, chosen in steps.items():
            found[budget]["chosen"] = schedule(
                chosen.indices,
                chosen.objective,
                solver,
                params.schedule,
                chosen.held_out,
                knot_stability(matrix, budget, chosen, params.schedule, seed=params.seed),
            )
            if solver != SOLVER:
                uniform = found[budget]["uniform"].indices
                found[budget]["chosen_uniform"] = schedule(uniform, "uniform", solver)
    write_json(
        paths.SCHEDULES,
        {
            str(budget): {name: of_name.model_dump(mode="json") for name, of_name in named.items()}
            for budget, named in found.items()
        },
    )

    write_usage("schedule", {"search": usage})

    rows = [
        {
            "nfe": k,
            "bellman": best[k].cost,
            "uniform": path_cost(cost, timesteps.nearest_indices(grid, timesteps.uniform(k))),
            **stability(stable[k]),
        }
        for k in shown
    ]
    write_bytes(paths.PREDICTED_ERROR, pd.DataFrame(rows).to_csv(index=False).encode())


def settings_hash(params: Params, found_by: ScheduleSearch | None) -> str:
    """The hash of what steps depend on beside the teacher; ``found_by``: of chosen ones."""
    settings: dict[str, object] = {"cost": params.cost.model_dump()}
    if found_by is not None:
        settings["schedule"] = found_by.model_dump(exclude={"batch_size"})
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def choose(
    params: Params, matrix: CostMatrix, network: Network, on: torch.device
) -> Iterator[tuple[int, Chosen]]:
    """The chosen steps, budget by budget. network: the teacher, on the device."""
    samples, seed = params.schedule.samples, params.seed + CHOOSE

    def noise(held_out: bool) -> tuple[Tensor, Tensor | None]:
        rows = range(samples, 3 * samples) if held_out else range(samples)
        # A label comes with the index of its sample: those of both are drawn at once.
        labels = draw_labels(network.config.classes, 3 * samples, seed)
        start = sample_noise(rows, network.config.sample_shape, seed).to(on)
        return start, None if labels is None else labels[rows.start : rows.stop].to(on)

    settings = params.schedule
    distance = distance_named(settings.distance, paths.FEATURES, settings.batch_size, on)
    return chosen_steps(network, matrix, params.budgets, settings, noise, distance)


def stability(found: Stability) -> dict[str, float]:
    """The columns on how sure the predicted error of Bellman's steps is, and their knots."""
    assert found.interval is not None  # the schema asks for two trajectories
    assert found.knots is not None
    low, high = found.interval
    return {"bellman_low": low, "bellman_high": high, "bellman_stability": min(found.knots)}


if __name__ == "__main__":
    run_stage(main)
