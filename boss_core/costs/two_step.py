"""The cost of a step of a two-step method, from the same Gram matrix as Euler's (eq. 5).

From knots i and j a step to k is Euler's step from j, corrected by the slope of the velocity
between them: with the weight w_1 of the earlier velocity (`boss_core.ode.solver_table`),

    x_j + H v_j - H w_1 (v_j - v_i),   h = t_j - t_i,  H = t_k - t_j,

which for Adams-Bashforth is H^2 / (2 h) (v_j - v_i) more than Euler's. With e_jk the error of
Euler's step it errs on the fine trajectory by e_jk + H w_1 (v_j - v_i), whose square is made of
inner products of velocity increments (`boss_core.costs.fitted`).
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from boss_core.costs.fitted import moments
from boss_core.errors import InputError
from boss_core.ode.solver_table import SOLVERS, multistep_weights
from boss_core.ode.timesteps import validate_timesteps


def two_step_costs(
    gram: ArrayLike, timesteps: ArrayLike, solver: str = "ab2"
) -> list[NDArray[np.float64]]:
    """The cost of every step of a two-step method, of all triples i < j < k: for each j in 0..n-1,
    (..., j, n-j) float64, whose entry (i, k - j - 1) is the step from j to k after one from i to
    j. The first step of a path is Euler's and costs what eq. 5 says.

    gram: (..., n+1, n+1) of the increments, or (..., 2n+2, 2n+2), of residuals too, each
        symmetric (`CostMatrix.gram`). timesteps: (n+1,). solver: that looks back one step.

    Raises InputError when the grid has more steps than the solver's ``largest_grid``.
    """
    weights_of, largest = multistep_weights(solver), SOLVERS[solver].largest_grid
    if SOLVERS[solver].looks_back != 1:
        raise InputError(f"solver: {solver}; one that looks back one step needed")
    times = validate_timesteps(timesteps)
    n = len(times) - 1
    if largest is not None and n > largest:
        raise InputError(
            f"timesteps: {n} steps; at most {largest} needed, as a cost is kept for every"
            " three points of the grid"
        )
    blocks = []
    for of in moments(np.asarray(gram, dtype=np.float64), times):
        j = of.j
        length, before = times[j + 1 :] - times[j], (times[j] - times[:j])[:, None]
        factor = -length * weights_of((length, before))[1]
        cost = of.error[..., None, :] - 2 * factor * of.cross + factor**2 * of.square[..., None]
        # A mean of squares that rounds to a negative number is a zero.
        blocks.append(cost.clip(min=0.0))
    return blocks[::-1]
