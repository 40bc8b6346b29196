"""The best steps for every budget, the fixed grids beside them, and their predicted errors."""

from collections.abc import Callable, Iterator

import torch

from boss_core.bellman.bootstrap import Stability, bootstrap
from boss_core.bellman.predicted import PredictedErrors
from boss_core.bellman.recursion import optimal_paths, path_cost
from boss_core.checkpoints.folder import Network, load_checkpoint
from boss_core.costs.cost_file import CostKey, read_costs
from boss_core.costs.matrix import CostMatrix
from boss_core.errors import InputError
from boss_core.networks.threads import is_small
from boss_core.ode import timesteps
from boss_core.ode.schedule import Schedule
from boss_core.ode.solver_table import SOLVERS
from boss_core.search.find import find_steps
from boss_core.search.multistep import with_weights
from boss_core.search.settings import SAMPLED, UNIFORM, SearchSettings
from boss_core.search.steps import FoundSteps, build_schedule, from_costs, hash_settings
from flows import paths
from flows.config import Params
from flows.measure.energy import Usage, measured
from flows.measure.usage import write_usage
from flows.progress import progress
from flows.records.extractor import read_extractor
from flows.records.json_files import write_json
from flows.records.labels import noise_source
from flows.records.searches import distance_named, say, search_settings
from flows.records.tables import write_table
from flows.records.teachers import is_pipeline
from flows.stages.runner import device, run_stage

Build = Callable[[FoundSteps], Schedule]

# The predicted-error curve goes this far, so that a user sees which budget is worth paying for.
CURVE_BUDGETS = 20
# The paper's, which stand beside whatever is chosen.
PAPERS = SearchSettings()


def main(params: Params) -> None:
    try:
        key, total = read_costs(paths.COST)
    except InputError as error:
        raise InputError(f"{error}; `dvc repro` makes it") from error
    matrix = total.result()
    shown = range(1, min(key.grid, max(CURVE_BUDGETS, *params.budgets)) + 1)
    best = optimal_paths(matrix.cost, shown)  # of all budgets too
    stable = bootstrap(matrix, shown, seed=params.seed)
    build = builder(matrix, key, PAPERS, params.seed)
    found = {k: fixed_schedules(matrix, k, best[k].indices, build) for k in params.budgets}
    if not is_pipeline() and not SOLVERS[params.schedule.solver].fitted:
        add_multistep(found, params, matrix, key)
    usage: Usage | None = None
    if not search_settings(params.schedule).papers:
        usage = add_chosen(found, params, matrix, key)
    if is_pipeline():
        from flows.stages.pipelines.search import with_evaluations

        found = with_evaluations(found, best, build)
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
            "uniform": path_cost(matrix.cost, nearest_uniform(matrix, k)),
            **stability(stable[k]),
        }
        for k in shown
    ]
    write_table(paths.PREDICTED_ERROR, rows)


def nearest_uniform(matrix: CostMatrix, budget: int) -> tuple[int, ...]:
    """Uniform steps on the grid."""
    return timesteps.nearest_indices(matrix.timesteps, timesteps.uniform(budget))


def fixed_schedules(
    matrix: CostMatrix, budget: int, bellman: tuple[int, ...], build: Build
) -> dict[str, Schedule]:
    """The steps of the paper, and those of the fixed grids, for one budget."""
    found = {"bellman": build(FoundSteps(PAPERS.objective, bellman))}
    for name, make in timesteps.GRIDS.items():
        try:
            indices = timesteps.nearest_indices(matrix.timesteps, make(budget))
        except InputError:
            continue  # so many steps that this grid puts two on one point: nothing to compare
        found[name] = build(FoundSteps(name, indices))
    return found


def add_chosen(
    found: dict[int, dict[str, Schedule]], params: Params, matrix: CostMatrix, key: CostKey
) -> Usage | None:
    """Beside these the steps that params.yaml asks for, and uniform ones for their solver where
    they are others; what the search took, where it took more than the costs."""
    settings = search_settings(params.schedule)
    compared = settings.solver != PAPERS.solver and settings.objective != UNIFORM
    uniform = {k: FoundSteps(UNIFORM, found[k]["uniform"].indices) for k in params.budgets}
    if is_pipeline():
        from flows.stages.pipelines.search import pipeline_steps

        with measured(device(params)) as usage:
            steps = dict(pipeline_steps(params, matrix, key))
    else:
        network, _ = load_checkpoint(paths.TEACHER)
        on = device(params, small=_is_small(params, network))
        network = network.to(on)
        with measured(on) as usage:
            steps = dict(chosen_steps(params, matrix, network, on, key.reference))
        if compared and SOLVERS[settings.solver].fitted:  # the weights are part of the solver
            source = noise_source(network, params.seed, on)
            uniform = with_weights(
                network, matrix, uniform, settings, source, reference=key.reference
            )
    build = builder(matrix, key, settings, params.seed)
    for budget, chosen in steps.items():
        found[budget]["chosen"] = build(chosen)
        if compared:
            found[budget]["chosen_uniform"] = build(uniform[budget])
    return usage if settings.objective in SAMPLED else None


def add_multistep(
    found: dict[int, dict[str, Schedule]], params: Params, matrix: CostMatrix, key: CostKey
) -> None:
    """Beside the paper's steps those of fitted weights, which take no training either; none where
    the grid is too fine for their costs."""
    largest = SOLVERS["multistep"].largest_grid
    if largest is not None and key.grid > largest:
        return
    settings = SearchSettings(
        solver="multistep", order=params.schedule.order, batch_size=params.schedule.batch_size
    )
    network, _ = load_checkpoint(paths.TEACHER)
    on = device(params, small=_is_small(params, network))
    network = network.to(on)
    build = builder(matrix, key, settings, params.seed)
    source = noise_source(network, params.seed, on)
    steps_of = dict(from_costs(matrix, params.budgets, settings))
    weighted = with_weights(
        network, matrix, steps_of, settings, source, reference=key.reference, progress=progress
    )
    for budget, steps in weighted.items():
        found[budget]["multistep"] = build(steps)


def _is_small(params: Params, network: Network) -> bool:
    """Whether all that a search computes with is small."""
    return params.features.extractor == "classifier" and is_small(network)


def builder(matrix: CostMatrix, key: CostKey, settings: SearchSettings, seed: int) -> Build:
    """What makes schedules of steps that one search found."""
    by_features = settings.distance == "features" and settings.objective in ("refine", "auto")
    extractor = read_extractor(paths.FEATURES).hash if by_features else None
    errors = PredictedErrors(matrix, settings.solver, settings.order)
    of_search = hash_settings(key, matrix.samples, settings, extractor)

    def build(steps: FoundSteps) -> Schedule:
        return build_schedule(
            errors, steps, settings,
            seed=seed, teacher_hash=key.teacher_hash, settings_hash=of_search,
        )  # fmt: skip

    return build


def chosen_steps(
    params: Params,
    matrix: CostMatrix,
    network: Network,
    on: torch.device,
    reference: str = "euler",
) -> Iterator[tuple[int, FoundSteps]]:
    """The chosen steps, budget by budget. network: the teacher, on the device. reference: the
    solver of the trajectories of the costs."""
    settings = search_settings(params.schedule)
    source = noise_source(network, params.seed, on)
    distance = distance_named(settings.distance, paths.FEATURES, settings.batch_size, on)
    return find_steps(
        network, matrix, params.budgets, settings, source, distance,
        reference=reference, progress=progress, say=say,
    )  # fmt: skip


def stability(found: Stability) -> dict[str, float]:
    """The columns on how sure the predicted error of Bellman's steps is, and their knots."""
    assert found.interval is not None  # the schema asks for two trajectories
    assert found.knots is not None
    low, high = found.interval
    return {"bellman_low": low, "bellman_high": high, "bellman_stability": min(found.knots)}


if __name__ == "__main__":
    run_stage(main)
