"""The weights of ``multistep``, for steps that were found before."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from boss_core.costs.fine_states import fitting_noises, roll_out_states
from boss_core.costs.fit import fit_weights, velocities_at
from boss_core.costs.matrix import CostMatrix
from boss_core.ode.noise import COSTS, NoiseSource
from boss_core.ode.timesteps import Times
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
) -> Iterator[tuple[int, FoundSteps]]:
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
    shared = _Shared(velocity, fine, times, batch_size, [steps.indices for steps in found.values()])
    total = fine.states.shape[1] * shared.evaluations
    with progress("schedule: weights", total, "evaluations") as advance:
        for budget, steps in found.items():
            indices = list(steps.indices)
            fitted = fit_weights(
                velocity,
                [fine.states[i] for i in indices],
                times[indices],
                order=settings.order,
                batch_size=batch_size,
                labels=fine.labels,
                evaluate_at=shared.velocities(indices, advance),
            )
            yield budget, replace(steps, fitted=fitted)


class _Shared:
    """The velocities along the states of several schedules, each evaluated once: those that begin
    alike, with the same noise at least, have the same states until they part."""

    def __init__(
        self,
        velocity: Velocity,
        fine: FineStates,
        times: Times,
        batch_size: int,
        paths: Sequence[Sequence[int]],
    ) -> None:
        self._velocity, self._fine, self._times = velocity, fine, times
        self._batch_size = batch_size
        # How many schedules still need what is kept at the end of each beginning.
        self._wanted = Counter(tuple(path[:k]) for path in paths for k in range(1, len(path)))
        self._kept: dict[tuple[int, ...], Tensor] = {}
        self.evaluations = len(self._wanted)

    def velocities(
        self, path: Sequence[int], advance: Callable[[int], None] | None
    ) -> Callable[[int, Tensor], Tensor]:
        """`evaluate_at` of `fit_weights` for the next schedule. advance: told of evaluations."""

        def at(k: int, y: Tensor) -> Tensor:
            beginning = tuple(path[: k + 1])
            self._wanted[beginning] -= 1
            v = self._kept.pop(beginning, None)
            if v is None:
                v = velocities_at(
                    self._velocity, y, float(self._times[path[k]]), batch_size=self._batch_size,
                    labels=self._fine.labels, on_evaluations=advance,
                )  # fmt: skip
            if self._wanted[beginning]:
                self._kept[beginning] = v
            return v

        return at
