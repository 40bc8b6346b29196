"""The weights of ``multistep``, for steps that were found before."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from boss_core.costs.fine_states import fitting_noises, roll_out_states
from boss_core.costs.fit import fit_paths
from boss_core.costs.matrix import CostMatrix
from boss_core.ode.noise import COSTS, NoiseSource
from boss_core.ode.velocity import Velocity
from boss_core.search.settings import Progress, SearchSettings, no_progress
from boss_core.search.steps import FoundSteps


@dataclass(frozen=True)
class FineStates:
    """The teacher's states (n+1, N, ...) at all points of a grid, from the first N noises that the
    costs were measured on, and the labels of these, (N,) int64, where it has any."""

    states: Tensor
    labels: Tensor | None = None


# Its many arguments are what a search is made of.
def with_weights(
    velocity: Velocity,
    matrix: CostMatrix,
    found: Mapping[int, FoundSteps],
    settings: SearchSettings,
    source: NoiseSource,
    fine: FineStates | None = None,
    *,
    reference: str = "euler",
    progress: Progress = no_progress,
) -> dict[int, FoundSteps]:
    """The steps of every budget, however they were found, with the weights that are best along the
    solver's own states.

    fine: kept from the trajectories of the costs; rolled out again where it is None, by the
    solver that ``reference`` names. Other arguments are those of
    `boss_core.search.find.find_steps`.
    """
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
    total = fine.states.shape[1] * (1 + sum(budget - 1 for budget in found))
    with progress("schedule: weights", total, "evaluations") as advance:
        fits = fit_paths(
            velocity,
            fine.states,
            times,
            [steps.indices for steps in found.values()],
            order=settings.order,
            batch_size=batch_size,
            labels=fine.labels,
            on_evaluations=advance,
        )
    return {
        budget: replace(steps, fitted=fitted)
        for (budget, steps), fitted in zip(found.items(), fits, strict=True)
    }
