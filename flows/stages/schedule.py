"""The best steps for every budget, the fixed grids beside them, and their predicted errors."""

import hashlib
import json

import numpy as np
import pandas as pd

from boss_core import timesteps
from boss_core.bellman import optimal_paths, path_cost, path_standard_error
from boss_core.errors import InputError
from boss_core.files import write_bytes
from boss_core.schedules import Schedule
from flows import paths
from flows.config import Params
from flows.records import write_json
from flows.runtime import run_stage

# The predicted-error curve goes this far, so that a user sees which budget is worth paying for.
CURVE_BUDGETS = 20


def main(params: Params) -> None:
    with np.load(paths.COST) as file:
        cost, grid, teacher_hash = file["cost"], file["timesteps"], str(file["teacher_hash"])
        group_cost = file["group_cost"]
    settings = json.dumps(
        {"cost": params.cost.model_dump(), "schedule": params.schedule.model_dump()},
        sort_keys=True,
    )
    settings_hash = hashlib.sha256(settings.encode()).hexdigest()

    def schedule(indices: tuple[int, ...], objective: str) -> Schedule:
        return Schedule(
            timesteps=tuple(float(grid[i]) for i in indices),
            indices=indices,
            objective=objective,
            predicted_error=path_cost(cost, indices),
            standard_error=path_standard_error(group_cost, indices),
            teacher_hash=teacher_hash,
            settings_hash=settings_hash,
        )

    shown = range(1, min(len(grid) - 1, max(CURVE_BUDGETS, *params.budgets)) + 1)
    best = optimal_paths(cost, {*shown, *params.budgets})
    schedules: dict[str, dict[str, object]] = {}
    for budget in params.budgets:
        found = {"bellman": schedule(best[budget].indices, params.schedule.objective)}
        for name, make in timesteps.GRIDS.items():
            try:
                indices = timesteps.nearest_indices(grid, make(budget))
            except InputError:
                continue  # so many steps that this grid puts two on one point: nothing to compare
            found[name] = schedule(indices, name)
        schedules[str(budget)] = {k: v.model_dump(mode="json") for k, v in found.items()}
    write_json(paths.SCHEDULES, schedules)

    rows = [
        {
            "nfe": k,
            "bellman": best[k].cost,
            "uniform": path_cost(cost, timesteps.nearest_indices(grid, timesteps.uniform(k))),
        }
        for k in shown
    ]
    write_bytes(paths.PREDICTED_ERROR, pd.DataFrame(rows).to_csv(index=False).encode())


if __name__ == "__main__":
    run_stage(main)
