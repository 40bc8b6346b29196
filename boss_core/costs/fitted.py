"""The cost of a step with the best weights that it could have, from the Gram matrix of Euler's.

From knots h < i < j a step to k of length H = t_k - t_j along three velocities, whose weights add
up to 1, errs on the fine trajectory by

    e_jk + H (w_1 (v_j - v_i) + w_2 (v_j - v_h)),

with e_jk the error of Euler's step (`boss_core.costs.matrix`). The best weights solve a linear
least-squares problem of two unknowns whose normal matrix and right side are inner products of
velocity increments, all of which the Gram matrix holds; what is left of the error is its Schur
complement,

    c = E||e_jk||^2 - b^T A^{-1} b,   A = E[D^T D],  b = E[D^T e_jk],  D = (v_j - v_i, v_j - v_h).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from boss_core.costs.gram import step_weights
from boss_core.errors import InputError
from boss_core.ode.solver_table import LARGEST_ORDER, SOLVERS
from boss_core.ode.timesteps import Times, validate_steps, validate_timesteps

# Added to the diagonal of the normal matrices, relative to it: velocities of neighbouring knots
# are alike, and weights that tell them apart by rounding alone would be large.
RIDGE = 1e-6


@dataclass(frozen=True)
class Moments:
    """The inner products that the steps from one knot j are made of, for each of R sets of
    trajectories: of the errors e_jk of Euler's steps to k > j, and of the differences v_j - v_i of
    velocities to earlier knots i < j.

    error: (..., n-j), E||e_jk||^2. cross: (..., j, n-j), of v_j - v_i and e_jk. square: (..., j),
    E||v_j - v_i||^2. increments: (..., n+1, n+1), of all d_m, of which `slopes` are made.
    """

    j: int
    error: NDArray[np.float64]
    cross: NDArray[np.float64]
    square: NDArray[np.float64]
    increments: NDArray[np.float64]

    def slopes(self) -> NDArray[np.float64]:
        """(..., j, j): of v_j - v_i and v_j - v_h."""
        back = slice(self.j, 0, -1)
        inner = self.increments[..., back, back].cumsum(axis=-1).cumsum(axis=-2)
        return inner[..., ::-1, ::-1]


@dataclass(frozen=True)
class FittedCosts:
    """What the best step of each kind costs, squared L2 error of a sample, mean over trajectories.

    first: (n+1,), the step from 0 to j, by Euler. two: for each j in 0..n-1 (j, n-j): entry (i,
    k - j - 1) is the step from j to k along the velocities at j and i. three: for each j (n-j,
    j (j-1) / 2): entry (k - j - 1, i (i-1) / 2 + h) is along those at j, i and h; None where steps
    use two at most.
    """

    first: NDArray[np.float64]
    two: Sequence[NDArray[np.float64]]
    three: Sequence[NDArray[np.float64]] | None

    def norms(self) -> "FittedCosts":
        """The roots of all costs."""
        three = None if self.three is None else [np.sqrt(block) for block in self.three]
        return FittedCosts(np.sqrt(self.first), [np.sqrt(block) for block in self.two], three)


def fitted_costs(gram: ArrayLike, timesteps: ArrayLike, order: int = LARGEST_ORDER) -> FittedCosts:
    """The costs of all steps with fitted weights.

    gram: (n+1, n+1) of the increments, or (2n+2, 2n+2), of residuals too, symmetric
    (`CostMatrix.gram`). timesteps: (n+1,). order: velocities of a step, 2 or 3.

    Time and memory grow with n^4 / 24 for order 3: 4 million costs for 100 steps. Raises InputError
    for another order and on a grid of more steps than the solver's ``largest_grid``.
    """
    check_order(order)
    times = validate_timesteps(timesteps)
    n, largest = len(times) - 1, SOLVERS["multistep"].largest_grid
    if largest is not None and n > largest:
        raise InputError(f"timesteps: {n} steps; at most {largest} needed for fitted weights")
    first = np.zeros(n + 1)
    two: list[NDArray[np.float64]] = [np.zeros((0, n))] * n
    three: list[NDArray[np.float64]] = [np.zeros((n, 0))] * n
    for of in moments(np.asarray(gram, dtype=np.float64), times):
        j = of.j
        if j == 0:
            first[1:] = of.error
            continue
        inverse = np.zeros(j)
        np.divide(1.0, of.square * (1.0 + RIDGE), where=of.square > 0, out=inverse)
        # A mean of squares that rounds to a negative number is a zero.
        two[j] = (of.error - of.cross**2 * inverse[:, None]).clip(min=0.0)
        if order == 3:
            three[j] = _three(of)
    return FittedCosts(first, two, three if order == 3 else None)


def _three(of: Moments) -> NDArray[np.float64]:
    i, h = np.tril_indices(of.j, -1)
    square = of.square * (1.0 + RIDGE)
    own, far, mixed = square[i], square[h], of.slopes()[i, h]
    determinant = own * far - mixed**2
    scale = np.divide(1.0, determinant, where=determinant > 0, out=np.zeros(len(i)))
    a, b, c = (part * scale for part in (far, -2.0 * mixed, own))
    cross = np.ascontiguousarray(of.cross.T)
    near, back = cross.take(i, axis=1), cross.take(h, axis=1)  # [:, i] would lie in memory by i
    gain = a * near
    gain += b * back
    gain *= near
    gain += c * back**2
    return np.subtract(of.error[:, None], gain, out=gain).clip(min=0.0, out=gain)


def path_weights(
    gram: ArrayLike, timesteps: ArrayLike, indices: Sequence[int], order: int = LARGEST_ORDER
) -> tuple[tuple[float, ...], ...]:
    """The weights of every step of a path that are best on the fine trajectories: those behind
    `fitted_costs`. Sampling along its own states wants others (`boss_core.costs.fit`)."""
    check_order(order)
    times = validate_timesteps(timesteps)
    nodes = validate_steps(indices, len(times) - 1, "indices")
    found: dict[int, tuple[float, ...]] = {0: (1.0,)}
    at = {node: k for k, node in enumerate(nodes[:-1])}
    for of in moments(np.asarray(gram, dtype=np.float64), times):
        k = at.get(of.j, 0)
        if k == 0:
            continue
        before = [nodes[k - back] for back in range(1, min(k, order - 1) + 1)]
        target = nodes[k + 1] - of.j - 1
        normal = of.slopes()[np.ix_(before, before)]
        free = solve(normal, -of.cross[before, target] / (times[nodes[k + 1]] - times[of.j]), RIDGE)
        found[k] = (1.0 - float(free.sum()), *(float(w) for w in free))
    return tuple(found[k] for k in range(len(nodes) - 1))


def path_costs(
    gram: NDArray[np.float64],
    timesteps: ArrayLike,
    indices: Sequence[int],
    weights: Sequence[Sequence[float]],
) -> NDArray[np.float64]:
    """(..., K): the costs of the steps of a path with given weights, for each set of trajectories:
    gram (..., n+1, n+1) or (..., 2n+2, 2n+2), symmetric."""
    times = validate_timesteps(timesteps)
    nodes = validate_steps(indices, len(times) - 1, "indices")
    at = {node: k for k, node in enumerate(nodes[:-1])}
    costs = np.zeros((*gram.shape[:-2], len(nodes) - 1))
    for of in moments(gram, times):
        if of.j not in at:
            continue
        k = at[of.j]
        before = [nodes[k - back] for back in range(1, len(weights[k]))]
        target = nodes[k + 1] - of.j - 1
        free = (times[nodes[k + 1]] - times[of.j]) * np.array(weights[k][1:])
        slopes = of.slopes()[..., before, :][..., before]
        cost = of.error[..., target] + 2.0 * of.cross[..., before, target] @ free
        costs[..., k] = cost + np.einsum("...ij,i,j->...", slopes, free, free)
    return costs.clip(min=0.0)


def solve(
    normal: NDArray[np.float64], right: NDArray[np.float64], ridge: ArrayLike
) -> NDArray[np.float64]:
    """The least-squares solution of (A + ridge diag(A)) w = b; none along directions that are not
    there. normal: (..., m, m). right: (..., m). ridge: one, or some of them (..., 1, 1)."""
    scale = np.sqrt(np.diagonal(normal, axis1=-2, axis2=-1))
    inverse = np.divide(1.0, scale, where=scale > 0, out=np.zeros_like(scale))
    # Of unit diagonal, so that the ridge is a share and the pseudo-inverse sees no units.
    unit = normal * inverse[..., :, None] * inverse[..., None, :]
    unit = unit + np.asarray(ridge) * np.eye(normal.shape[-1])
    found = np.linalg.pinv(unit, hermitian=True) @ (right * inverse)[..., None]
    return found[..., 0] * inverse


def moments(gram: NDArray[np.float64], times: Times) -> Iterator[Moments]:
    """The inner products of every knot j, from n - 1 down to 0. gram: (..., n+1, n+1) or (...,
    2n+2, 2n+2), symmetric. InputError for other shapes."""
    n = len(times) - 1
    vectors = 2 if gram.shape[-1] == 2 * (n + 1) else 1  # of each grid point, the increment last
    if gram.shape[-2:] != (vectors * (n + 1), vectors * (n + 1)):
        raise InputError(
            f"gram: shape {gram.shape} for {n + 1} timesteps; ({n + 1}, {n + 1}) needed"
        )
    weights = step_weights(times, gram.shape[-1])
    increments = gram[..., vectors - 1 :: vectors, vectors - 1 :: vectors]
    # d_m with itself, and twice with all those after it up to d_j: (m, j).
    own = 2 * np.triu(increments, k=1).cumsum(axis=-1)
    own += increments.diagonal(axis1=-2, axis2=-1)[..., None]
    # As j goes down, the terms of one more increment, d_{j+1}, come in, the smallest first, so
    # that no small sum is a difference of large ones.
    euler = np.zeros((*gram.shape[:-2], n + 1))  # the square of e_jk: (k,)
    product = np.zeros((*gram.shape[:-1], n + 1))  # of each vector and e_jk: (m, k)
    for j in range(n - 1, -1, -1):
        new = j + 1
        for row in reversed(range(vectors * new, vectors * (new + 1))):
            weight = weights[row]
            euler += weight * (gram[..., row, row, None] * weight + 2 * product[..., row, :])
            product[..., vectors:row, new:] += gram[..., vectors:row, row, None] * weight[new:]
        slope = product[..., vectors - 1 :: vectors, new:]  # of d_m and e_jk
        # Sums over m in (i, j], for each i < j.
        cross = slope[..., j:0:-1, :].cumsum(axis=-2)[..., ::-1, :]
        square = own[..., j:0:-1, j].cumsum(axis=-1)[..., ::-1]
        yield Moments(j, euler[..., new:].copy(), cross, square, increments)


def check_order(order: int) -> None:
    """InputError for an order that fitted weights cannot have."""
    if order not in range(2, LARGEST_ORDER + 1):
        raise InputError(f"order: {order}; 2 to {LARGEST_ORDER} velocities of a step needed")
