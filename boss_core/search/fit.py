"""Weights of a linear multistep method, fitted to a network by least squares along its own states.

Step k of solver ``multistep`` goes along the last m velocities, two or three,

    y_{k+1} = y_k + h_k (w_k0 v_k + w_k1 v_{k-1} + ...),   w_k0 + w_k1 + ... = 1,

and its weights are those for which y_{k+1} is nearest to the teacher's fine path from the same
noise, in the mean over noises. The states are the solver's own, so a step also mends what those
before it left. Its m - 1 free weights are the solution of normal equations of inner products,

    A w = b,   A_ij = sum <D_i, D_j>,   b_i = sum <D_i, r>,
    D_i = h_k (v_{k-i} - v_k),   r = x_{k+1} - y_k - h_k v_k,

summed in float64 over all elements of all samples.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from boss_core.costs.fitted import check_order, solve
from boss_core.costs.matrix import GROUPS
from boss_core.errors import InputError
from boss_core.ode.batches import batches, check_batches
from boss_core.ode.schedule import StepWeights
from boss_core.ode.solver_table import LARGEST_ORDER, weights_of_steps
from boss_core.ode.solvers import linear_step
from boss_core.ode.timesteps import validate_timesteps
from boss_core.ode.velocity import Velocity, evaluate

# Shares of the diagonal of A that are added to it; which, is found on noises left out.
RIDGES = tuple(10.0**power for power in range(-6, 2))
FOLDS = 5
# Fewer noises than this leave no groups for standard errors and folds.
FEWEST_NOISES = 2 * FOLDS


@dataclass(frozen=True)
class Fitted:
    """The weights of K steps.

    weights: for each step k those of the velocities at knots k, k - 1, ... .
    standard_error: of each, by the jackknife over groups of noises, the weights of the steps
        before taken as they are.
    ridge: of each step.
    error: E||y_K - x_K||^2, of the noises that they were fitted to.
    """

    weights: StepWeights
    standard_error: StepWeights
    ridge: tuple[float, ...]
    error: float


@torch.no_grad()
def fit_weights(
    velocity: Velocity,
    states: Sequence[Tensor] | Tensor,
    timesteps: ArrayLike,
    *,
    order: int = LARGEST_ORDER,
    batch_size: int,
    labels: Tensor | None = None,
    first: Tensor | None = None,
    ridges: Sequence[float] = RIDGES,
    on_evaluations: Callable[[int], None] | None = None,
) -> Fitted:
    """Fit the weights of every step to the teacher's states at the knots.

    states: K + 1 of (N, ...), the teacher's from N noises at the K + 1 timesteps, the first the
        noise itself, on the device to compute on. Held beside them are the solver's own states
        and its last velocities, each of (N, ...).
    timesteps: K + 1 increasing times from 0 to 1.
    order: velocities of a step, 2 or 3; the first steps have fewer.
    batch_size: samples in one call of the network.
    first: (N, ...), the velocities at the noise, which are the same for all schedules
        (`velocities_at`); evaluated here where it is None. Then K evaluations for each noise, else
        K - 1.
    labels: (N,) int64 there, when the velocity is conditional.
    ridges: shares of the normal matrix's diagonal to try.
    on_evaluations: called after every call of the network with the number of samples in it.

    Where data is short, weights are drawn to those of Adams-Bashforth (``ab2``) by a ridge, whose
    size is found for each step on noises left out (`FOLDS` folds).

    Raises InputError for another order, fewer than `FEWEST_NOISES` noises, states that are not as
    many as timesteps, and where a state or velocity is not finite.
    """
    check_order(order)
    times = validate_timesteps(timesteps).tolist()
    noise = states[0]
    check_batches(noise, labels, batch_size)
    if len(states) != len(times):
        raise InputError(
            f"states: at {len(states)} knots for {len(times)} timesteps; as many needed"
        )
    if len(noise) < FEWEST_NOISES:
        raise InputError(f"states: of {len(noise)} noises; at least {FEWEST_NOISES} needed")
    lengths = [after - before for before, after in itertools.pairwise(times)]
    prior = weights_of_steps("ab2", lengths)
    y, before = noise, list[Tensor]()
    weights, errors, chosen = [], [], []
    for k, length in enumerate(lengths):
        if k == 0 and first is not None:
            v = first
        else:
            v = velocities_at(
                velocity, y, times[k],
                batch_size=batch_size, labels=labels, on_evaluations=on_evaluations,
            )  # fmt: skip
        found = _fit_step(
            _moments(y, v, before, states[k + 1], length, batch_size),
            np.array((*prior[k][1:], *[0.0] * len(before))[: len(before)]),
            ridges,
        )
        y = linear_step(y, length, found.weights, [v, *before])
        if not y.isfinite().all():  # this and the sums are waited for
            raise InputError(
                f"velocity: states of {len(lengths)} steps are not finite at t = {times[k + 1]:g};"
                " a network with finite outputs, or more steps, needed"
            )
        weights.append(found.weights)
        errors.append(found.standard_error)
        chosen.append(found.ridge)
        before = [v, *before][: order - 1]
    error = float((y - states[-1]).flatten(1).double().square().sum(1).mean())
    return Fitted(tuple(weights), tuple(errors), tuple(chosen), error)


@torch.no_grad()
def velocities_at(
    velocity: Velocity,
    x: Tensor,
    t: float,
    *,
    batch_size: int,
    labels: Tensor | None = None,
    on_evaluations: Callable[[int], None] | None = None,
) -> Tensor:
    """(N, ...): the velocities at states x, (N, ...), of one time; other arguments are those of
    `fit_weights`."""
    found = torch.empty_like(x)
    for rows, part, of_batch in batches(velocity, x, labels, batch_size):
        found[rows] = evaluate(of_batch, part, part.new_full((len(part),), t))
        if on_evaluations is not None:
            on_evaluations(len(part))
    return found


@dataclass(frozen=True)
class _Sums:
    """The parts of the normal equations for each of G groups of noises: A (G, m, m), b (G, m), and
    the squares of r (G,)."""

    normal: NDArray[np.float64]
    right: NDArray[np.float64]
    square: NDArray[np.float64]

    def without(self, group: int) -> "_Sums":
        """Of all groups but one, together."""
        return self.of(np.arange(len(self.square)) != group)

    def of(self, groups: NDArray[np.bool_]) -> "_Sums":
        parts = (self.normal, self.right, self.square)
        return _Sums(*(part[groups].sum(axis=0) for part in parts))

    def residual(self, free: NDArray[np.float64]) -> float:
        """The squared error that these weights leave, of sums over groups."""
        return float(self.square - 2.0 * free @ self.right + free @ self.normal @ free)


@dataclass(frozen=True)
class _Step:
    weights: tuple[float, ...]
    standard_error: tuple[float, ...]
    ridge: float


def _moments(
    y: Tensor, v: Tensor, before: Sequence[Tensor], target: Tensor, length: float, batch_size: int
) -> _Sums:
    """The sums of a step, batch by batch."""
    groups, m = min(GROUPS, len(y)), len(before)
    sums = torch.zeros(groups, m + 1, m + 1, dtype=torch.float64, device=y.device)
    for start in range(0, len(y), batch_size):
        rows = slice(start, min(start + batch_size, len(y)))
        now = v[rows].flatten(1).double()
        residual = target[rows].flatten(1).double() - y[rows].flatten(1) - length * now
        slopes = [length * (old[rows].flatten(1) - now) for old in before]
        vectors = torch.stack([*slopes, residual], dim=1)  # (B, m + 1, elements)
        of_sample = vectors @ vectors.transpose(1, 2)
        group = torch.arange(rows.start, rows.stop, device=y.device) % groups
        sums.index_add_(0, group, of_sample)
    found = sums.cpu().numpy()
    return _Sums(found[:, :m, :m], found[:, :m, m], found[:, m, m])


def _fit_step(sums: _Sums, prior: NDArray[np.float64], ridges: Sequence[float]) -> _Step:
    """The weights of a step, by the ridge that leaves least on the folds left out."""
    groups = len(sums.square)
    every = np.ones(groups, dtype=bool)
    if not len(prior):
        return _Step((1.0,), (0.0,), 0.0)
    if not np.isfinite(sums.normal).all() or not np.isfinite(sums.right).all():
        return _Step((1.0, *prior * np.nan), (np.nan,) * (len(prior) + 1), 0.0)

    def fitted(of: _Sums, ridge: float) -> NDArray[np.float64]:
        return prior + solve(of.normal, of.right - of.normal @ prior, ridge)

    fold = np.arange(groups) % FOLDS
    left = [
        sum(sums.of(fold == f).residual(fitted(sums.of(fold != f), ridge)) for f in range(FOLDS))
        for ridge in ridges
    ]
    ridge = ridges[int(np.argmin(left))]
    free = fitted(sums.of(every), ridge)
    parts = np.stack([fitted(sums.without(g), ridge) for g in range(groups)])
    both = np.column_stack([1.0 - parts.sum(1), parts])
    spread = np.sqrt((groups - 1) * both.var(axis=0))
    weights = (1.0 - float(free.sum()), *(float(w) for w in free))
    return _Step(weights, tuple(float(s) for s in spread), ridge)
