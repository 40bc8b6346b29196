"""The best steps of ``multistep`` and their weights: found on the costs, then fitted."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from boss_core.costs.fine_states import fitting_noises, roll_out_states
from boss_core.costs.fit import fit_weights, velocities_at
from boss_core.costs.matrix import CostMatrix
from boss_core.ode.noise import COSTS, NoiseSource
from boss_core.ode.velocity import Velocity
from boss_core.search.settings import Progress, SearchSettings, no_progress
from boss_core.search.steps import FoundSteps, cheapest


@dataclass(frozen=True)
class FineStates:
    """The teacher's states (n+1, N, ...) at all points of a grid, from the first N noises that the
    costs were measured on, and the labels of these, (N,) int64, where it has any."""

    states: Tensor
    labels: Tensor | None = None


def multistep_steps(
    velocity: Velocity,
    matrix: CostMatrix,
    budgets: Sequence[int],
    settings: SearchSettings,
    source: NoiseSource,
    fine: FineStates | None = None,
    *,
    reference: str = "euler",
    progress: Progress = no_progress,
) -> Iterator[tuple[int, FoundSteps]]:
    """For every budget the steps that cost least with the best weights of each, and the weights
    that are best along the solver's own states.

    fine: kept from the trajectories of the costs; rolled out again where it is None, by the
    solver that ``reference`` names. Other arguments are those of
    `boss_core.search.find.find_steps`.
    """
    found = cheapest(matrix, budgets, settings, settings.objective)
    paths = {budget: path.indices for budget, path in found.items()}
    yield from fitted_to(
        velocity,
        matrix,
        paths,
        settings,
        source,
        fine,
        settings.objective,
        reference=reference,
        progress=progress,
    )


# Its many arguments are what a search is made of.
def fitted_to(
    velocity: Velocity,
    matrix: CostMatrix,
    paths: dict[int, tuple[int, ...]],
    settings: SearchSettings,
    source: NoiseSource,
    fine: FineStates | None,
    objective: str,
    *,
    reference: str = "euler",
    progress: Progress = no_progress,
) -> Iterator[tuple[int, FoundSteps]]:
    """The weights of given steps of every budget, by whichever objective they were found."""
    times, batch_size = matrix.timesteps, settings.batch_size
    if fine is None:
        count = fitting_noises(source.shape, len(times) - 1, matrix.samples)
        noise, labels = source.draw(range(count), COSTS)
        total = count * (len(times) - 1)
        with progress("schedule: trajectories to fit weights to", total, "sample steps") as advance:
            states = roll_out_states(
                velocity,
                noise,
                times,
                reference=reference,
                batch_size=batch_size,
                labels=labels,
                on_step=advance,
            )
        fine = FineStates(states, labels)
    total = fine.states.shape[1] * (1 + sum(budget - 1 for budget in paths))
    with progress("schedule: weights", total, "evaluations") as advance:
        first = velocities_at(
            velocity, fine.states[0], float(times[0]),
            batch_size=batch_size, labels=fine.labels, on_evaluations=advance,
        )  # fmt: skip
        for budget, indices in paths.items():
            fitted = fit_weights(
                velocity,
                [fine.states[i] for i in indices],
                times[np.array(indices)],
                order=settings.order,
                batch_size=batch_size,
                labels=fine.labels,
                first=first,
                on_evaluations=advance,
            )
            yield budget, FoundSteps(objective, indices, fitted=fitted)
