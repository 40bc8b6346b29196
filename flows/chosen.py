"""The chosen steps of every budget: those of one objective, or the best of all of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from boss_core import distances
from boss_core.bellman import Path
from boss_core.checkpoints import Network
from boss_core.cost import CostMatrix
from boss_core.distances import Distance
from boss_core.frechet import Extractor, feature_function
from boss_core.objectives import OBJECTIVES, optimal_steps
from boss_core.oss import oss_paths
from boss_core.refine import refine
from boss_core.selection import Choice, Reference, roll_out, search_steps
from boss_core.timesteps import nearest_indices, uniform
from boss_core.velocity import sample_noise
from flows import paths
from flows.config import Params, ScheduleSearch
from flows.labels import draw_labels
from flows.progress import progress
from flows.records import read_json
from flows.seeds import CHOOSE

# One of so many noises is enough for the forward recursion when it is one candidate of several: it
# takes K n evaluations for each, as many as all of the refinement.
OSS_SHARE = 4


@dataclass(frozen=True)
class Chosen:
    """The steps of one budget, and the name of the objective that they are the best of."""

    objective: str
    indices: tuple[int, ...]


def chosen_steps(
    params: Params, matrix: CostMatrix, network: Network, on: torch.device
) -> dict[int, Chosen]:
    """What params.yaml asks for, for every budget. network: the teacher that the costs were
    measured on, on the device."""
    objective = params.schedule.objective
    if objective in OBJECTIVES:
        return _named(objective, _cheapest(params, matrix, objective))
    search = _ends(params, matrix, network, on, half=0)
    if objective == "oss":
        return _named("oss", _oss(params, matrix, network, search, len(search.noise)))
    if objective == "refine":
        return _refined(params, matrix, network, search, on)
    test = _ends(params, matrix, network, on, half=1)
    return _best_of_all(params, matrix, network, search, test, on)


def _best_of_all(
    params: Params,
    matrix: CostMatrix,
    network: Network,
    search: Reference,
    test: Reference,
    on: torch.device,
) -> dict[int, Chosen]:
    """For each budget the objective whose samples are nearest to the teacher's, if beyond chance;
    a line for each says what came out."""
    settings = params.schedule
    found = {name: _cheapest(params, matrix, name) for name in OBJECTIVES}
    found["oss"] = _oss(params, matrix, network, search, len(search.noise) // OSS_SHARE)
    distance = _distance(settings, on)
    chosen = {}
    for budget in params.budgets:
        with progress(f"schedule: refine, K = {budget}", None, "evaluations") as advance:
            choice = search_steps(
                network,
                matrix.timesteps,
                {name: of_budget[budget].indices for name, of_budget in found.items()},
                search,
                test,
                distance=distance,
                solver=settings.solver,
                batch_size=settings.batch_size,
                on_evaluations=advance,
            )
        print(f"schedule: K = {budget}, {settings.solver}: {_verdict(choice)}", flush=True)
        chosen[budget] = Chosen(choice.objective, choice.indices)
    return chosen


def _verdict(choice: Choice) -> str:
    if choice.winner == "l2_squared":
        return "nothing is nearer to the teacher's samples than l2_squared, which stays"
    gain = (
        f"{choice.winner} is {choice.gain:.1%} nearer to the teacher's samples than l2_squared"
        f" (standard error {choice.standard_error:.1%}, held-out noise)"
    )
    if choice.objective == choice.winner:
        return f"{gain}: more than chance, chosen"
    return f"{gain}: not more than chance, l2_squared stays"


def _refined(
    params: Params, matrix: CostMatrix, network: Network, search: Reference, on: torch.device
) -> dict[int, Chosen]:
    settings = params.schedule
    distance = _distance(settings, on)(search.ends)
    cheapest = _cheapest(params, matrix, "l2_squared")
    chosen = {}
    for budget in params.budgets:
        starts = [
            cheapest[budget].indices,
            nearest_indices(matrix.timesteps, uniform(len(cheapest[budget].indices) - 1)),
        ]
        with progress(f"schedule: refine, K = {budget}", None, "evaluations") as advance:
            refined = refine(
                network,
                search.noise,
                matrix.timesteps,
                starts,
                distance,
                solver=settings.solver,
                batch_size=settings.batch_size,
                labels=search.labels,
                on_evaluations=advance,
            )
        chosen[budget] = Chosen("refine", refined.indices)
    return chosen


def _oss(
    params: Params, matrix: CostMatrix, network: Network, search: Reference, samples: int
) -> dict[int, Path]:
    settings = params.schedule
    labels = None if search.labels is None else search.labels[:samples]
    with progress("schedule: oss", None, "evaluations") as advance:
        return oss_paths(
            network,
            search.noise[:samples],
            matrix.timesteps,
            params.budgets,
            solver=settings.solver,
            labels=labels,
            batch_size=settings.batch_size,
            on_step=advance,
        )


def _cheapest(params: Params, matrix: CostMatrix, objective: str) -> dict[int, Path]:
    settings = params.schedule
    return optimal_steps(
        matrix,
        params.budgets,
        objective=objective,
        solver=settings.solver,
        gamma=settings.gamma,
    )


def _ends(
    params: Params, matrix: CostMatrix, network: Network, on: torch.device, half: int
) -> Reference:
    """Where the teacher goes on the fine grid, from the noise to search on (0) or held out (1)."""
    samples, seed = params.schedule.samples, params.seed + CHOOSE
    # A label comes with the index of its sample: those of both halves are drawn at once.
    labels = draw_labels(network.config.classes, 2 * samples, seed)
    rows = range(half * samples, (half + 1) * samples)
    print(
        f"schedule: {samples} {'held-out ' * half}trajectories of {len(matrix.timesteps) - 1}"
        " steps to compare with",
        flush=True,
    )
    return roll_out(
        network,
        sample_noise(rows, network.config.sample_shape, seed).to(on),
        matrix.timesteps,
        batch_size=params.schedule.batch_size,
        labels=None if labels is None else labels[rows.start : rows.stop].to(on),
    )


def _distance(settings: ScheduleSearch, on: torch.device) -> Callable[[Tensor], Distance]:
    """What makes the distance of params.yaml to given samples of the teacher."""
    match settings.distance:
        case "sliced_wasserstein":
            return distances.sliced_wasserstein
        case "energy":
            return distances.energy
        case "features":
            card = read_json(paths.FEATURES / "card.json")
            extractor = Extractor(card["extractor"], paths.FEATURES / card["weights"])
            features = feature_function(extractor, settings.batch_size, on)
            return partial(distances.feature_frechet, features=features)


def _named(objective: str, found: Mapping[int, Path]) -> dict[int, Chosen]:
    return {budget: Chosen(objective, path.indices) for budget, path in found.items()}
