"""Fine paths that steps are compared with, other than Euler's: more accurate on the same grid.

A path of any solver has states x_m and velocities v_m = v(x_m, t_m) at the points of a grid, but
its own steps are not Euler's. What Euler's leave out are the residuals

    r_m = x_m - x_{m-1} - (t_m - t_{m-1}) v_{m-1},

which, with the velocities, are all that `boss_core.costs.matrix` needs.
"""

from collections.abc import Callable
from functools import partial

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from boss_core.errors import InputError
from boss_core.ode.solvers import heun, rk45
from boss_core.ode.timesteps import validate_timesteps
from boss_core.ode.velocity import VelocityField, check_finite, evaluate

REFERENCES = ("euler", "heun", "rk45")
# Of RK45, relative and absolute: below what one step of a usual grid errs by, above what float32
# networks round off.
TOLERANCE = 1e-6


def check_reference(reference: str) -> None:
    """InputError for a name that is not one of `REFERENCES`."""
    if reference not in REFERENCES:
        raise InputError(f"reference: {reference!r}; {', '.join(REFERENCES)} known")


@torch.no_grad()
def roll_out_path(
    velocity: VelocityField,
    noise: Tensor,
    timesteps: ArrayLike,
    reference: str,
    *,
    tolerance: float = TOLERANCE,
    states: Tensor | None = None,
    on_step: Callable[[int], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """The velocities v_0 to v_{n-1} and the residuals r_1 to r_n of one batch, (n, B, elements)
    each: the first in the dtype of the noise, the others at least float32.

    noise: (B, ...) start states. timesteps: n + 1. reference: ``heun``, 2 n evaluations, or
    ``rk45``, which takes steps of its own and passes through the grid, and evaluates once more at
    each of its points but the last. tolerance: of ``rk45``.
    states: (n + 1, B or fewer, ...), filled with those of the first trajectories.
    on_step: called at each grid point but the last with the number of trajectories.

    States are carried in float64, and rounded where the network sees them: residuals are small
    differences of states. Raises InputError when the velocity is not finite or not of the shape
    and dtype of its input.
    """
    times = validate_timesteps(timesteps)
    wide = torch.promote_types(noise.dtype, torch.float32)
    shape = (len(times) - 1, len(noise), noise[0].numel())
    velocities = torch.empty(shape, dtype=noise.dtype, device=noise.device)
    residuals = torch.empty(shape, dtype=wide, device=noise.device)
    ahead = noise  # where Euler's step from the point before ends

    def rounded(x: Tensor, t: Tensor, /) -> Tensor:
        v = evaluate(velocity, x.to(noise.dtype), t.to(noise.dtype))
        check_finite(v, t)
        return v.double()

    def keep(k: int, x: Tensor, v: Tensor | None) -> None:
        nonlocal ahead
        if states is not None:
            states[k] = x[: states.shape[1]]
        if k > 0:
            residuals[k - 1] = (x - ahead).flatten(1)
        if k == len(times) - 1:
            return
        if v is None:
            v = rounded(x, torch.full((len(x),), times[k], dtype=x.dtype, device=x.device))
        velocities[k] = v.flatten(1)
        ahead = x + (times[k + 1] - times[k]) * v
        if on_step is not None:
            on_step(len(x))

    solve = heun if reference == "heun" else partial(rk45, rtol=tolerance, atol=tolerance)
    solve(rounded, noise.double(), times, observer=keep)
    return velocities, residuals
