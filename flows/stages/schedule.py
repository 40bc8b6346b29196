"""The best steps for every budget, the fixed grids beside them, and their predicted errors."""

import hashlib
import json

import pandas as pd

from boss_core import timesteps
from boss_core.bellman import optimal_paths, path_cost
from boss_core.checkpoints import load_checkpoint
from boss_core.errors import InputError
from boss_core.files import write_bytes
from boss_core.prediction import predict
from boss_core.schedules import Schedule
from boss_core.uncertainty import bootstrap
from flows import paths
from flows.chosen import chosen_steps
from flows.config import Params
from flows.costs import read_cost_matrix
from flows.records import write_json
from flows.runtime import device, run_stage

# The predicted-error curve goes this far, so that a user sees which budget is worth paying for.
CURVE_BUDGETS = 20
# Those of the paper, which stand beside whatever is chosen.
SOLVER, OBJECTIVE = "euler", "l2_squared"


def main(params: Params) -> None:
    matrix, teacher_hash = read_cost_matrix(paths.COST)
    cost, grid = matrix.cost, matrix.timesteps
    settings = json.dumps(
        {"cost": params.cost.model_dump(), "schedule": params.schedule.model_dump()},
        sort_keys=True,
    )
    settings_hash = hashlib.sha256(settings.encode()).hexdigest()

    def schedule(indices: tuple[int, ...], objective: str, solver: str = SOLVER) -> Schedule:
        predicted = predict(matrix, indices, solver)
        return Schedule(
            timesteps=tuple(float(grid[i]) for i in indices),
            indices=indices,
            solver=solver,
            objective=objective,
            predicted_error=predicted.error,
            standard_error=predicted.standard_error,
            teacher_hash=teacher_hash,
            settings_hash=settings_hash,
        )

    shown = range(1, min(len(grid) - 1, max(CURVE_BUDGETS, *params.budgets)) + 1)
    best = optimal_paths(cost, {*shown, *params.budgets})
    found: dict[int, dict[str, Schedule]] = {}
    for budget in params.budgets:
        found[budget] = {"bellman": schedule(best[budget].indices, OBJECTIVE)}
        for name, make in timesteps.GRIDS.items():
            try:
                indices = timesteps.nearest_indices(grid, make(budget))
            except InputError:
                continue  # so many steps that this grid puts two on one point: nothing to compare
            found[budget][name] = schedule(indices, name)

    solver = params.schedule.solver
    if (solver, params.schedule.objective) != (SOLVER, OBJECTIVE):
        on = device(params)
        network, _ = load_checkpoint(paths.TEACHER)
        for budget, chosen in chosen_steps(params, matrix, network.to(on), on).items():
            found[budget]["chosen"] = schedule(chosen.indices, chosen.objective, solver)
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

    stable = bootstrap(matrix, shown, objective=OBJECTIVE, solver=SOLVER, seed=params.seed)
    rows = [
        {
            "nfe": k,
            "bellman": best[k].cost,
            "uniform": path_cost(cost, timesteps.nearest_indices(grid, timesteps.uniform(k))),
            "bellman_low": stable[k].interval[0],
            "bellman_high": stable[k].interval[1],
            "bellman_stability": min(stable[k].knots),
        }
        for k in shown
    ]
    write_bytes(paths.PREDICTED_ERROR, pd.DataFrame(rows).to_csv(index=False).encode())


if __name__ == "__main__":
    run_stage(main)
