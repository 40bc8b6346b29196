"""The cost of a step of a two-step method, from the same Gram matrix as Euler's (eq. 5).

From knots i and j a step to k is Euler's step from j, corrected by the slope of the velocity
between them: with the weight w_1 of the earlier velocity (`boss_core.ode.solver_table`),

    x_j + H v_j - H w_1 (v_j - v_i),   h = t_j - t_i,  H = t_k - t_j,

which for Adams-Bashforth is H^2 / (2 h) (v_j - v_i) more than Euler's. With e_jk the error of
Euler's step it errs on the fine trajectory by e_jk + H w_1 (v_j - v_i), and both terms are sums of
velocity increments d_l:

    e_jk = sum over l in (j, k) of (t_k - t_l) d_l,   v_j - v_i = sum over m in (i, j] of d_m.

On a path other than Euler's e_jk has the residuals of its fine steps too
(`boss_core.costs.matrix`).
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from boss_core.costs.gram import step_weights
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
    g = np.asarray(gram, dtype=np.float64)
    n = len(times) - 1
    vectors = 2 if g.shape[-1] == 2 * (n + 1) else 1  # of each grid point, the increment last
    if g.shape[-2:] != (vectors * (n + 1), vectors * (n + 1)):
        raise InputError(f"gram: shape {g.shape} for {n + 1} timesteps; ({n + 1}, {n + 1}) needed")
    if largest is not None and n > largest:
        raise InputError(
            f"timesteps: {n} steps; at most {largest} needed, as a cost is kept for every"
            " three points of the grid"
        )
    weights = step_weights(times, g.shape[-1])
    # d_m with itself, and twice with all those after it up to d_j: (m, j).
    increments = g[..., vectors - 1 :: vectors, vectors - 1 :: vectors]
    own = 2 * np.triu(increments, k=1).cumsum(axis=-1)
    own += increments.diagonal(axis1=-2, axis2=-1)[..., None]
    # As j goes down, the terms of one more increment, d_{j+1}, come in, the smallest first, so
    # that no small sum is a difference of large ones.
    euler = np.zeros((*g.shape[:-2], n + 1))  # the square of e_jk: (k,)
    product = np.zeros((*g.shape[:-1], n + 1))  # of each vector and e_jk: (m, k)
    blocks = []
    for j in range(n - 1, 0, -1):
        new = j + 1
        for row in reversed(range(vectors * new, vectors * (new + 1))):
            weight = weights[row]
            euler += weight * (g[..., row, row, None] * weight + 2 * product[..., row, :])
            product[..., vectors:row, new:] += g[..., vectors:row, row, None] * weight[new:]
        slope = product[..., vectors - 1 :: vectors, new:]  # of d_m and e_jk
        # Sums over m in (i, j], for each i < j.
        cross = slope[..., j:0:-1, :].cumsum(axis=-2)[..., ::-1, :]
        slope_square = own[..., j:0:-1, j].cumsum(axis=-1)[..., ::-1, None]
        length, before = times[new:] - times[j], (times[j] - times[:j])[:, None]
        factor = -length * weights_of((length, before))[1]
        cost = euler[..., None, new:] - 2 * factor * cross + factor**2 * slope_square
        # A mean of squares that rounds to a negative number is a zero.
        blocks.append(cost.clip(min=0.0))
    blocks.append(np.zeros((*g.shape[:-2], 0, n)))
    return blocks[::-1]
