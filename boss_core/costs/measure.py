"""The trajectories behind a cost matrix, batch by batch, from where a sum of costs has got to."""

from collections.abc import Callable

from torch import Tensor

from boss_core.costs.matrix import CostSum, add_trajectories
from boss_core.ode.noise import COSTS, NoiseSource
from boss_core.ode.velocity import Velocity


def measure_costs(
    total: CostSum,
    velocity: Velocity,
    source: NoiseSource,
    *,
    samples: int,
    batch_size: int,
    states: Tensor | None = None,
    on_step: Callable[[int], None] | None = None,
    on_batch: Callable[[], bool | None] | None = None,
) -> None:
    """Roll out trajectories into the sum until it has ``samples`` of them.

    states: (n+1, M, ...), filled with those of the first M trajectories, as far as these are still
    to be rolled out. batch_size: trajectories rolled out together. on_step: called after each grid
    step with the number of trajectories in it. on_batch: called after each batch; the measurement
    ends where it returns True.

    Raises InputError as `boss_core.costs.matrix.estimate_cost_matrix` does.
    """
    while total.samples < samples:
        rows = range(total.samples, min(total.samples + batch_size, samples))
        noise, labels = source.draw(rows, COSTS)
        add_trajectories(
            total,
            velocity,
            noise,
            batch_size=batch_size,
            labels=labels,
            states=None if states is None else states[:, rows.start : rows.stop],
            on_step=on_step,
        )
        if on_batch is not None and on_batch():
            return
