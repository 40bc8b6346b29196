"""The chosen steps of every budget: those of one objective, or the best of all of them."""

import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from boss_core.bellman.bootstrap import bootstrap
from boss_core.bellman.objectives import OBJECTIVES, optimal_steps
from boss_core.bellman.recursion import Path, optimal_paths
from boss_core.costs.matrix import CostMatrix
from boss_core.errors import InputError
from boss_core.ode.schedule import HeldOut
from boss_core.ode.timesteps import nearest_indices, uniform
from boss_core.ode.velocity import Velocity
from boss_core.search.choose import Choice, Reference, roll_out, search_steps
from boss_core.search.distances import Distance, energy, feature_frechet, sliced_wasserstein
from boss_core.search.forward import oss_paths
from boss_core.search.refine import refine
from flows.config import ScheduleSearch
from flows.progress import progress

# One of so many noises is enough for the forward recursion when it is one candidate of several: it
# takes K n evaluations for each, as many as all of the refinement.
OSS_SHARE = 4
# One of so many noises for the perceptual costs: n (n - 1) / 2 evaluations for each, of a network
# that is mostly larger than the teacher.
LPIPS_SHARE = 8

# Start states and labels to search on, or, held out, to compare on.
Noise = Callable[[bool], tuple[Tensor, Tensor | None]]


@dataclass(frozen=True)
class Chosen:
    """The steps of one budget, and the name of the objective that they are the best of.
    held_out: what ``auto`` went by."""

    objective: str
    indices: tuple[int, ...]
    held_out: HeldOut | None = None


def chosen_steps(
    velocity: Velocity,
    matrix: CostMatrix,
    budgets: Sequence[int],
    settings: ScheduleSearch,
    noise: Noise,
    distance: Callable[[Tensor], Distance],
) -> Iterator[tuple[int, Chosen]]:
    """What the settings ask for, budget by budget, each as soon as it is found.

    velocity: the teacher that the costs were measured on, on the device. noise: called for what
    evaluates it again only. distance: what ``refine`` and ``auto`` go by, to given samples.
    """
    if settings.objective in OBJECTIVES:
        return from_costs(matrix, budgets, settings)
    search = _Search(velocity, matrix, budgets, settings, distance)
    if settings.objective == "oss":
        return _named("oss", search.oss(*noise(False)))
    if settings.objective == "lpips":
        return _named("lpips", search.lpips(*noise(False)))
    near = search.ends(*noise(False))
    if settings.objective == "refine":
        return search.refined(near)
    return search.best_of_all(near, search.ends(*noise(True)))


def distance_named(
    name: str, extractor: pathlib.Path, batch_size: int, on: torch.device
) -> Callable[[Tensor], Distance]:
    """What makes the distance of that name, of ``schedule.distance``, to given samples.

    extractor: the folder of the one behind ``features``, which sees so many samples at once.
    """
    match name:
        case "sliced_wasserstein":
            return sliced_wasserstein
        case "energy":
            return energy
        case "features":
            # torch-fidelity takes a second to import.
            from boss_core.evaluation.frechet import feature_function
            from flows.records.extractor import read_extractor

            features = feature_function(read_extractor(extractor), batch_size, on)
            return partial(feature_frechet, features=features)
        case _:
            raise InputError(f"distance: {name!r}; sliced_wasserstein, energy or features needed")


def from_costs(
    matrix: CostMatrix, budgets: Sequence[int], settings: ScheduleSearch
) -> Iterator[tuple[int, Chosen]]:
    """The best steps of every budget by the cost matrix alone."""
    return _named(settings.objective, _cheapest(matrix, budgets, settings, settings.objective))


def candidates(
    matrix: CostMatrix, budgets: Sequence[int], settings: ScheduleSearch
) -> dict[int, dict[str, tuple[int, ...]]]:
    """For every budget, the steps of every objective of the costs, and uniform ones."""
    found = {name: _cheapest(matrix, budgets, settings, name) for name in OBJECTIVES}
    named = {k: {name: paths[k].indices for name, paths in found.items()} for k in budgets}
    for k, steps in named.items():
        even = uniform_indices(matrix, k)
        if even is not None:
            steps["uniform"] = even
    return named


def uniform_indices(matrix: CostMatrix, budget: int) -> tuple[int, ...] | None:
    """The grid points nearest to uniform steps; None where the grid is too coarse for them."""
    try:
        return nearest_indices(matrix.timesteps, uniform(budget))
    except InputError:
        return None


def knot_stability(
    matrix: CostMatrix, budget: int, chosen: Chosen, settings: ScheduleSearch, *, seed: int = 0
) -> tuple[float, ...] | None:
    """As `boss_core.bellman.bootstrap.Stability.knots`; None for steps that the costs did not
    choose."""
    if chosen.objective not in OBJECTIVES:
        return None
    found = bootstrap(
        matrix,
        [budget],
        objective=chosen.objective,
        solver=settings.solver,
        gamma=settings.gamma,
        seed=seed,
    )
    return found[budget].knots


def chosen_by(choice: Choice, budget: int, solver: str) -> Chosen:
    """What ``auto`` makes of a comparison; a printed line says how it came to it."""
    print(f"schedule: K = {budget}, {solver}: {_verdict(choice)}", flush=True)
    held_out = HeldOut(
        winner=choice.winner,
        gain=choice.gain,
        standard_error=choice.standard_error,
        rivals=choice.rivals,
    )
    return Chosen(choice.objective, choice.indices, held_out)


@dataclass(frozen=True)
class _Search:
    """Searches that evaluate the teacher again; the fields are `chosen_steps`'s."""

    velocity: Velocity
    matrix: CostMatrix
    budgets: Sequence[int]
    settings: ScheduleSearch
    distance: Callable[[Tensor], Distance]

    def ends(self, noise: Tensor, labels: Tensor | None) -> Reference:
        """Where the teacher goes on the fine grid."""
        steps = len(self.matrix.timesteps) - 1
        print(f"schedule: {len(noise)} trajectories of {steps} steps to compare with", flush=True)
        return roll_out(
            self.velocity,
            noise,
            self.matrix.timesteps,
            batch_size=self.settings.batch_size,
            labels=labels,
        )

    def best_of_all(self, search: Reference, test: Reference) -> Iterator[tuple[int, Chosen]]:
        """For each budget the objective whose samples are nearest to the teacher's, if beyond
        chance; a line for each says what came out."""
        found = candidates(self.matrix, self.budgets, self.settings)
        share = len(search.noise) // OSS_SHARE
        labels = None if search.labels is None else search.labels[:share]
        forward = self.oss(search.noise[:share], labels)
        for budget in self.budgets:
            with progress(f"schedule: refine, K = {budget}", None, "evaluations") as advance:
                choice = search_steps(
                    self.velocity,
                    self.matrix.timesteps,
                    found[budget] | {"oss": forward[budget].indices},
                    search,
                    test,
                    distance=self.distance,
                    solver=self.settings.solver,
                    batch_size=self.settings.batch_size,
                    on_evaluations=advance,
                )
            yield budget, chosen_by(choice, budget, self.settings.solver)

    def refined(self, search: Reference) -> Iterator[tuple[int, Chosen]]:
        """The steps nearest to the teacher's samples, from the cheapest and from uniform ones."""
        distance = self.distance(search.ends)
        cheapest = _cheapest(self.matrix, self.budgets, self.settings, "l2_squared")
        for budget in self.budgets:
            starts = [cheapest[budget].indices, uniform_indices(self.matrix, budget)]
            with progress(f"schedule: refine, K = {budget}", None, "evaluations") as advance:
                refined = refine(
                    self.velocity,
                    search.noise,
                    self.matrix.timesteps,
                    [start for start in starts if start is not None],
                    distance,
                    solver=self.settings.solver,
                    batch_size=self.settings.batch_size,
                    labels=search.labels,
                    on_evaluations=advance,
                )
            yield budget, Chosen("refine", refined.indices)

    def oss(self, noise: Tensor, labels: Tensor | None) -> dict[int, Path]:
        """The forward recursion for all budgets."""
        held = (4 if self.settings.solver == "ab2" else 3) * len(self.matrix.timesteps)
        memory = held * noise.numel() * noise.element_size()
        print(
            f"schedule: oss on {len(noise)} noises, holding {memory / 2**20:,.0f} MiB of states",
            flush=True,
        )
        with progress("schedule: oss", None, "evaluations") as advance:
            return oss_paths(
                self.velocity,
                noise,
                self.matrix.timesteps,
                self.budgets,
                solver=self.settings.solver,
                labels=labels,
                batch_size=self.settings.batch_size,
                on_step=advance,
            )

    def lpips(self, noise: Tensor, labels: Tensor | None) -> dict[int, Path]:
        """The perceptually cheapest steps, on a share of the noises."""
        # torch-fidelity takes a second to import.
        from boss_core.search.lpips import estimate_lpips_costs, load_lpips, lpips_distances

        share, steps = len(noise) // LPIPS_SHARE, len(self.matrix.timesteps) - 1
        distance = load_lpips(pathlib.Path(self.settings.lpips), noise.device)
        count = lpips_distances(steps, share)
        print(f"schedule: lpips on {share} noises: {count:,} perceptual distances", flush=True)
        with progress("schedule: lpips", count, "distances") as advance:
            cost = estimate_lpips_costs(
                self.velocity,
                noise[:share],
                self.matrix.timesteps,
                distance,
                batch_size=self.settings.batch_size,
                labels=None if labels is None else labels[:share],
                on_distances=advance,
            )
        return optimal_paths(cost, self.budgets)


def _cheapest(
    matrix: CostMatrix, budgets: Sequence[int], settings: ScheduleSearch, objective: str
) -> dict[int, Path]:
    return optimal_steps(
        matrix, budgets, objective=objective, solver=settings.solver, gamma=settings.gamma
    )


def _verdict(choice: Choice) -> str:
    if choice.candidates[choice.winner] == choice.candidates["l2_squared"]:
        return "nothing is nearer to the teacher's samples than l2_squared, which stays"
    gain = (
        f"{choice.winner} is {choice.gain:.1%} nearer to the teacher's samples than l2_squared"
        f" (standard error {choice.standard_error:.1%}, held-out noise)"
    )
    if choice.objective == choice.winner:
        return f"{gain}: more than chance, chosen"
    return f"{gain}: not more than chance, l2_squared stays"


def _named(objective: str, found: Mapping[int, Path]) -> Iterator[tuple[int, Chosen]]:
    for budget, path in found.items():
        yield budget, Chosen(objective, path.indices)
