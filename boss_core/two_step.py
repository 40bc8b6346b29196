"""The cost of a two-step Adams-Bashforth step, from the same Gram matrix as Euler's (eq. 5).

From knots i and j a step to k is Euler's step from j, corrected by the slope of the velocity
between them (see `boss_core.solvers.ab2`):

    x_j + H v_j + H^2 / (2 h) (v_j - v_i),   h = t_j - t_i,  H = t_k - t_j.

With e_jk the error of Euler's step it errs on the fine trajectory by e_jk - H^2 / (2 h) (v_j -
v_i), and both terms are sums of velocity increments d_l:

    e_jk = sum over l in (j, k) of (t_k - t_l) d_l,   v_j - v_i = sum over m in (i, j] of d_m.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from boss_core.errors import InputError
from boss_core.timesteps import validate_timesteps

LARGEST_GRID = 300  # n + 1 cubed costs are held: 218 MB


def ab2_costs(gram: ArrayLike, timesteps: ArrayLike) -> NDArray[np.float64]:
    """The cost of every step of two-step Adams-Bashforth: (n+1, n+1, n+1) float64, entry (i, j,
    k) for i < j < k, else 0. The first step of a path is Euler's and costs what eq. 5 says.

    gram: (n+1, n+1), symmetric, of the increments (`CostMatrix.gram`). timesteps: (n+1,).

    Raises InputError when the grid has more than `LARGEST_GRID` steps.
    """
    times = validate_timesteps(timesteps)
    g = np.asarray(gram, dtype=np.float64)
    n = len(times) - 1
    if g.shape != (n + 1, n + 1):
        raise InputError(f"gram: shape {g.shape} for {n + 1} timesteps; ({n + 1}, {n + 1}) needed")
    if n > LARGEST_GRID:
        raise InputError(
            f"timesteps: {n} steps; at most {LARGEST_GRID} needed, as a cost is kept for every"
            " three points of the grid"
        )
    ahead = np.triu(times[None, :] - times[:, None], k=1)  # t_k - t_l for l < k
    cost = np.zeros((n + 1, n + 1, n + 1))
    for j in range(1, n):
        i, later = np.arange(j), np.arange(j + 1, n + 1)
        weights = ahead[j + 1 :, j + 1 :]  # (l, k)
        # d_m summed over (i, j], against every increment l: sums run from j down, so that small
        # ones are not differences of large ones.
        slope = g[j:0:-1].cumsum(axis=0)[::-1]  # (i, l)
        slope_square = slope[:, j:0:-1].cumsum(axis=1)[:, ::-1][i, i]
        cross = slope[:, j + 1 :] @ weights  # (i, k)
        euler = (weights * (g[j + 1 :, j + 1 :] @ weights)).sum(axis=0)  # (k,)
        factor = (times[later] - times[j]) ** 2 / (2 * (times[j] - times[i])[:, None])
        cost[:j, j, j + 1 :] = euler - 2 * factor * cross + factor**2 * slope_square[:, None]
    # A mean of squares that rounds to a negative number is a zero.
    return cost.clip(min=0.0)
