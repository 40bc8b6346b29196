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
    error: E||y_K - x_K||^2, of the noises that they were fitted to; NaN where it is not known.
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
    parts = [slice(at, at + batch_size) for at in range(0, len(noise), batch_size)]
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
        target = states[k + 1]
        products = torch.cat(
            [
                step_products(y[rows], v[rows], [b[rows] for b in before], target[rows], length)
                for rows in parts
            ]
        )
        found = fit_step(products, prior[k], ridges)
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
    """The parts of the normal equations for each of several sets of noises: A (..., m, m), b (...,
    m), and the squares of r (...)."""

    normal: NDArray[np.float64]
    right: NDArray[np.float64]
    square: NDArray[np.float64]

    def of(self, groups: NDArray[np.bool_]) -> "_Sums":
        """Sums over some of the sets. groups: (..., G), which of them; so many sums are made."""
        parts = (self.normal, self.right, self.square)
        return _Sums(*(np.tensordot(groups.astype(float), part, axes=1) for part in parts))

    def residual(self, free: NDArray[np.float64]) -> NDArray[np.float64]:
        """The squared errors that these weights, (..., m), leave of each set."""
        linear = (free * self.right).sum(axis=-1)
        return (
            self.square - 2.0 * linear + np.einsum("...i,...ij,...j->...", free, self.normal, free)
        )

    def fitted(self, start: NDArray[np.float64], ridge: ArrayLike) -> NDArray[np.float64]:
        """The weights, (..., m), that leave least of each set, drawn to ``start`` by a ridge, one
        or some of them (..., 1, 1, 1)."""
        return start + solve(self.normal, self.right - self.normal @ start, ridge)


@dataclass(frozen=True)
class FittedStep:
    """The weights of one step, with what `Fitted` says of each; ``left`` is the mean squared error
    that they leave, of a sample."""

    weights: tuple[float, ...]
    standard_error: tuple[float, ...]
    ridge: float
    left: float


def step_products(
    y: Tensor, v: Tensor, before: Sequence[Tensor], target: Tensor, length: float
) -> Tensor:
    """(B, m, m) float64: the inner products, for each sample by itself, of D_1, ..., D_{m-1} and r,
    of which the normal equations of a step are made.

    y, v, target: (B, ...), the states that the step starts from, the velocities there and the
    teacher's states at the next knot. before: m - 1 of (B, ...), the velocities at the knots
    before, the latest first. length: of the step.
    """
    now = v.flatten(1).double()
    left = target.flatten(1).double() - y.flatten(1) - length * now
    vectors = torch.stack([*(length * (old.flatten(1) - now) for old in before), left], dim=1)
    return vectors @ vectors.transpose(1, 2)


def fit_step(
    products: Tensor, prior: Sequence[float], ridges: Sequence[float] = RIDGES
) -> FittedStep:
    """The weights of a step, by the ridge that leaves least on the folds left out.

    products: (N, m, m), of `step_products` for N samples. prior: the weights that a ridge draws to,
    those of the latest velocity first; of missing ones 0.
    """
    samples, m = len(products), products.shape[1] - 1
    groups = min(GROUPS, samples)
    of = products.new_zeros(groups, m + 1, m + 1)
    of.index_add_(0, torch.arange(samples, device=of.device) % groups, products)
    found = of.cpu().numpy()
    sums = _Sums(found[:, :m, :m], found[:, :m, m], found[:, m, m])
    every = sums.of(np.ones(groups, dtype=bool))
    if not m:
        return FittedStep((1.0,), (0.0,), 0.0, float(every.square) / samples)
    if not np.isfinite(found).all():
        return FittedStep((np.nan,) * (m + 1), (np.nan,) * (m + 1), 0.0, np.nan)
    start = np.array((*prior[1:], *[0.0] * m)[:m])
    folds = np.arange(groups) % FOLDS == np.arange(FOLDS)[:, None]
    within, others = sums.of(folds), sums.of(~folds)
    tried = others.fitted(start, np.reshape(ridges, (-1, 1, 1, 1)))  # of each ridge and fold
    ridge = ridges[int(within.residual(tried).sum(axis=1).argmin())]
    free = every.fitted(start, ridge)
    parts = sums.of(~np.eye(groups, dtype=bool)).fitted(start, ridge)
    both = np.column_stack([1.0 - parts.sum(1), parts])
    spread = np.sqrt((groups - 1) * both.var(axis=0))
    weights = (1.0 - float(free.sum()), *(float(w) for w in free))
    least = max(0.0, float(every.residual(free))) / samples
    return FittedStep(weights, tuple(float(s) for s in spread), ridge, least)
