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
from functools import partial

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
from boss_core.ode.timesteps import Times, validate_steps, validate_timesteps
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
    ridges: Sequence[float] = RIDGES,
    on_evaluations: Callable[[int], None] | None = None,
) -> Fitted:
    """Fit the weights of every step to the teacher's states at the knots.

    states: K + 1 of (N, ...), the teacher's from N noises at the K + 1 timesteps, the first the
        noise itself, on the device to compute on.
    timesteps: K + 1 increasing times from 0 to 1.
    Other arguments and errors are those of `fit_paths`.
    """
    (found,) = fit_paths(
        velocity, states, timesteps, [range(len(states))],
        order=order, batch_size=batch_size, labels=labels, ridges=ridges,
        on_evaluations=on_evaluations,
    )  # fmt: skip
    return found


@torch.no_grad()
def fit_paths(
    velocity: Velocity,
    states: Sequence[Tensor] | Tensor,
    timesteps: ArrayLike,
    paths: Sequence[Sequence[int]],
    *,
    order: int = LARGEST_ORDER,
    batch_size: int,
    labels: Tensor | None = None,
    ridges: Sequence[float] = RIDGES,
    on_evaluations: Callable[[int], None] | None = None,
) -> list[Fitted]:
    """Fit the weights of every step of several paths of knots. They go side by side, a step of all
    before the next of any: the host waits for a device once a step, not once for each path.

    states: n + 1 of (N, ...), the teacher's from N noises at the n + 1 timesteps, the first the
        noise itself, on the device to compute on. Held beside them are for each path its own states
        and its last velocities, each of (N, ...).
    timesteps: n + 1 increasing times from 0 to 1. paths: of each its knots, indices from 0 to n.
    order: velocities of a step, 2 or 3; the first steps have fewer.
    batch_size: samples in one call of the network. The velocities at the noise are evaluated once;
        so 1 + sum(K - 1) evaluations for each noise.
    labels: (N,) int64 there, when the velocity is conditional.
    ridges: shares of the normal matrix's diagonal to try.
    on_evaluations: called after every call of the network with the number of samples in it.

    Where data is short, weights are drawn to those of Adams-Bashforth (``ab2``) by a ridge, whose
    size is found for each step on noises left out (`FOLDS` folds).

    Raises InputError for another order, fewer than `FEWEST_NOISES` noises, states that are not as
    many as timesteps, and where a state or velocity is not finite.
    """
    check_order(order)
    times = validate_timesteps(timesteps)
    noise = states[0]
    check_batches(noise, labels, batch_size)
    if len(states) != len(times):
        raise InputError(
            f"states: at {len(states)} knots for {len(times)} timesteps; as many needed"
        )
    if len(noise) < FEWEST_NOISES:
        raise InputError(f"states: of {len(noise)} noises; at least {FEWEST_NOISES} needed")
    knots = [validate_steps(path, len(times) - 1, "paths") for path in paths]
    velocities = partial(
        velocities_at, velocity, batch_size=batch_size, labels=labels, on_evaluations=on_evaluations
    )
    first = velocities(noise, float(times[0]))
    walks = [_Walk(path, times, noise, first) for path in knots]
    for k in range(1, max((walk.steps for walk in walks), default=0)):
        going = [walk for walk in walks if k < walk.steps]
        products = []
        for walk in going:
            walk.turn(velocities(walk.y, walk.times[k]), order)
            products.append(walk.products(states[walk.knots[k + 1]], batch_size))
        priors = [walk.prior[k] for walk in going]
        for walk, step in zip(going, fit_steps(torch.stack(products), priors, ridges), strict=True):
            if not np.isfinite(step.weights).all():
                raise _explodes(walk, k + 1)
            walk.take(step)
    errors = [(walk.y - states[-1]).flatten(1).double().square().sum(1).mean() for walk in walks]
    found = []
    for walk, error in zip(walks, torch.stack(errors).tolist() if errors else [], strict=True):
        if not np.isfinite(error):
            raise _explodes(walk, walk.steps)
        found.append(walk.fitted(error))
    return found


class _Walk:
    """The solver's own states along the knots of one path, its first step by Euler taken."""

    def __init__(self, knots: Sequence[int], times: Times, noise: Tensor, first: Tensor) -> None:
        self.knots, self.steps = knots, len(knots) - 1
        self.times = times[list(knots)].tolist()
        self.lengths = [after - before for before, after in itertools.pairwise(self.times)]
        self.prior = weights_of_steps("ab2", self.lengths)
        self.taken: list[FittedStep] = []
        self.y, self.velocities = noise, [first]  # the latest first
        self.take(FittedStep((1.0,), (0.0,), 0.0, np.nan))

    def turn(self, v: Tensor, order: int) -> None:
        """Take the velocity at the state, for the next step to go along."""
        self.velocities = [v, *self.velocities][:order]

    def products(self, target: Tensor, batch_size: int) -> Tensor:
        """(N, m, m): those of the next step (`step_products`)."""
        length, (v, *before) = self.lengths[len(self.taken)], self.velocities
        parts = []
        for at in range(0, len(v), batch_size):
            rows = slice(at, at + batch_size)
            olds = [old[rows] for old in before]
            parts.append(step_products(self.y[rows], v[rows], olds, target[rows], length))
        return torch.cat(parts)

    def take(self, step: "FittedStep") -> None:
        """Take the next step."""
        self.y = linear_step(self.y, self.lengths[len(self.taken)], step.weights, self.velocities)
        self.taken.append(step)

    def fitted(self, error: float) -> Fitted:
        return Fitted(
            tuple(step.weights for step in self.taken),
            tuple(step.standard_error for step in self.taken),
            tuple(step.ridge for step in self.taken),
            error,
        )


def _explodes(walk: _Walk, k: int) -> InputError:
    return InputError(
        f"velocity: states of {walk.steps} steps are not finite at t = {walk.times[k]:g};"
        " a network with finite outputs, or more steps, needed"
    )


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
    """The parts of the normal equations of P steps, of each for several sets of noises: A (..., P,
    m, m), b (..., P, m), and the squares of r (..., P)."""

    normal: NDArray[np.float64]
    right: NDArray[np.float64]
    square: NDArray[np.float64]

    def of(self, groups: NDArray[np.bool_]) -> "_Sums":
        """Sums over some of G sets. groups: (S, G), which of them; so many sums are made."""
        parts = (self.normal, self.right, self.square)
        return _Sums(*(np.tensordot(groups.astype(float), part, axes=1) for part in parts))

    def residual(self, free: NDArray[np.float64]) -> NDArray[np.float64]:
        """The squared errors that these weights, (..., P, m), leave of each set."""
        linear = (free * self.right).sum(axis=-1)
        return (
            self.square - 2.0 * linear + np.einsum("...i,...ij,...j->...", free, self.normal, free)
        )

    def fitted(self, start: NDArray[np.float64], ridge: ArrayLike) -> NDArray[np.float64]:
        """The weights, (..., P, m), that leave least of each set, drawn to ``start``, (P, m), by a
        ridge, one or some of them (..., 1, 1)."""
        right = self.right - (self.normal @ start[..., None])[..., 0]
        return start + solve(self.normal, right, ridge)


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


def fit_steps(
    products: Tensor, priors: Sequence[Sequence[float]], ridges: Sequence[float] = RIDGES
) -> list[FittedStep]:
    """The weights of P steps along as many velocities each, by the ridge that leaves least on the
    folds left out; NaN where products are not finite.

    products: (P, N, m, m), of `step_products` for N samples. priors: for each step the weights that
    a ridge draws to, those of the latest velocity first; of missing ones 0.
    """
    steps, samples, rows = products.shape[:3]
    groups, m = min(GROUPS, samples), rows - 1
    of = products.new_zeros(groups, steps, rows, rows)
    of.index_add_(0, torch.arange(samples, device=of.device) % groups, products.transpose(0, 1))
    found = of.cpu().numpy()
    finite = np.isfinite(found).all(axis=(0, 2, 3))
    found[:, ~finite] = 0.0
    sums = _Sums(found[..., :m, :m], found[..., :m, m], found[..., m, m])
    every = sums.of(np.ones((1, groups), dtype=bool))
    start = np.array([(*prior[1:], *[0.0] * m)[:m] for prior in priors])
    folds = np.arange(groups) % FOLDS == np.arange(FOLDS)[:, None]
    within, others = sums.of(folds), sums.of(~folds)
    tried = others.fitted(start, np.reshape(ridges, (-1, 1, 1, 1, 1)))  # of each ridge and fold
    ridge = np.array(ridges)[within.residual(tried).sum(axis=1).argmin(axis=0)]
    free = every.fitted(start, ridge[:, None, None])
    left = every.residual(free)[0].clip(min=0.0) / samples
    parts = sums.of(~np.eye(groups, dtype=bool)).fitted(start, ridge[:, None, None])
    spread = np.sqrt((groups - 1) * _all_weights(parts).var(axis=0))
    spread[~finite] = left[~finite] = np.nan
    weights = np.where(finite[:, None], _all_weights(free[0]), np.nan)
    return [
        FittedStep(
            tuple(weights[p].tolist()), tuple(spread[p].tolist()), float(ridge[p]), float(left[p])
        )
        for p in range(steps)
    ]


def _all_weights(free: NDArray[np.float64]) -> NDArray[np.float64]:
    """(..., m + 1): with that of the latest velocity, which makes them add up to 1."""
    return np.concatenate([1.0 - free.sum(axis=-1, keepdims=True), free], axis=-1)
