"""Solvers with all that they need beside a schedule's timesteps."""

from functools import partial

from boss_core.ode.schedule import StepWeights
from boss_core.ode.solvers import SOLVERS, Solve


def some_weights(steps: int) -> StepWeights:
    """Of ``multistep``: three velocities, weights without a meaning that do not explode."""
    return tuple(((1.0,), (1.4, -0.4))[:steps]) + ((1.5, -0.75, 0.25),) * (steps - 2)


def solvers(steps: int = 3) -> dict[str, Solve]:
    """Every solver of fixed steps by its name, for schedules of so many steps."""
    weights = some_weights(steps)
    return SOLVERS | {"multistep": partial(SOLVERS["multistep"], weights=weights)}
