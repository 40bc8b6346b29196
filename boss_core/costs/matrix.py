"""The cost of every possible Euler step (paper, eq. 5), from one matrix product.

On a grid t_0 < ... < t_n a fine Euler rollout has states x_m and velocities v_m. One Euler step
from i to j instead of the fine ones errs by

    e_ij = x_j - x_i - (t_j - t_i) v_i = sum over l in (i, j) of (t_j - t_l) d_l,
    d_l = v_l - v_{l-1},

so the cost c_ij = mean ||e_ij||^2 is a quadratic form in the Gram matrix of the velocity
*increments* d_l alone. Writing it in increments, rather than in velocities, subtracts what all
velocities share before anything is squared: costs next to the diagonal come out as accurate as
the largest, though they may be many orders of magnitude smaller.

On a path of another solver (`boss_core.costs.references`) each increment brings along the residual
of the fine step to its point, r_l = x_l - x_{l-1} - (t_l - t_{l-1}) v_{l-1}, 0 for Euler:

    e_ij = sum over l in (i, j] of (t_j - t_l) d_l + r_l,

and the Gram matrix is that of r_0, d_0, r_1, d_1, ..., r_n, d_n.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from boss_core.costs.gram import cost_from_gram, gram_matrices, step_weights_tensor
from boss_core.costs.references import check_reference, roll_out_path
from boss_core.errors import InputError
from boss_core.ode.batches import batches
from boss_core.ode.solvers import euler
from boss_core.ode.timesteps import Times, validate_timesteps
from boss_core.ode.velocity import (
    Velocity,
    VelocityField,
)

# Gram matrices of samples that become costs together.
_GRAM_BYTES = 4 << 20


# Samples fall into this many groups, whose spread tells how sure a sum of costs is.
GROUPS = 20


@dataclass(frozen=True)
class CostMatrix:
    """The cost of an Euler step between any two points of a grid.

    cost: (n+1, n+1) float64; entry (i, j), i < j, is the squared L2 error (summed over the
        elements of a sample, mean over samples) of one step from t_i to t_j; 0 elsewhere, and
        exactly 0 for j = i + 1 where the reference path is Euler's.
    timesteps: (n+1,) float64, from 0 to 1.
    standard_error: (n+1, n+1) float64, of each mean; NaN when there is one sample only.
    samples: the number of trajectories behind the mean.
    group_gram: (G, n+1, n+1) float64, the mean Gram matrix of the velocity increments d_1 to
        d_{n-1}, on and above the diagonal, over each of G disjoint groups of trajectories:
        trajectory m is in group m modulo G, and G = min(samples, GROUPS). Costs are linear in it.
        (G, 2n+2, 2n+2) for other reference paths, with the residual r_l before each d_l.
    group_norm: (G, n+1, n+1) float64, the mean over each group of the norm of the error of a
        step, the square root of each trajectory's cost; 0 where the cost is.
    """

    cost: NDArray[np.float64]
    timesteps: Times
    standard_error: NDArray[np.float64]
    samples: int
    group_gram: NDArray[np.float64]
    group_norm: NDArray[np.float64]

    @property
    def group_sizes(self) -> NDArray[np.int64]:
        """(G,): the number of trajectories in each group."""
        return group_sizes(self.samples)

    @cached_property
    def group_cost(self) -> NDArray[np.float64]:
        """(G, n+1, n+1): the cost over each group, from its Gram matrix."""
        gram = torch.from_numpy(self.group_gram.copy())
        return cost_from_gram(gram, step_weights_tensor(self.timesteps, gram.shape[-1])).numpy()

    @cached_property
    def gram(self) -> NDArray[np.float64]:
        """As one of `group_gram`, both halves: the mean Gram matrix over all trajectories."""
        upper = np.tensordot(self.group_sizes, self.group_gram, axes=1) / self.samples
        return np.triu(upper) + np.triu(upper, k=1).T

    @property
    def group_grams(self) -> NDArray[np.float64]:
        """As `group_gram`, both halves of each."""
        upper = np.triu(self.group_gram)
        return upper + np.triu(upper, k=1).swapaxes(1, 2)

    @cached_property
    def norm(self) -> NDArray[np.float64]:
        """(n+1, n+1): the mean norm of the error of a step over all trajectories."""
        return np.tensordot(self.group_sizes, self.group_norm, axes=1) / self.samples


class CostSum:
    """Costs summed over trajectories that come batch by batch, from anywhere: `add` their
    velocities, then ask for the `result`. Memory does not grow with the number of them.

    reference: the solver of the trajectories, one of `boss_core.costs.references.REFERENCES`.
    """

    def __init__(
        self,
        timesteps: ArrayLike,
        device: torch.device | str = "cpu",
        *,
        reference: str = "euler",
    ) -> None:
        check_reference(reference)
        self.timesteps = validate_timesteps(timesteps)
        self.reference = reference
        self.samples = 0
        nodes = len(self.timesteps)
        rows = nodes if reference == "euler" else 2 * nodes
        self.grams = torch.zeros(GROUPS, rows, rows, dtype=torch.float64, device=device)
        self.sums = torch.zeros(nodes, nodes, dtype=torch.float64, device=device)
        self.squares = torch.zeros_like(self.sums)
        self.norms = self.sums.repeat(GROUPS, 1, 1)
        self._weights = step_weights_tensor(self.timesteps, rows).to(device)

    def add(self, velocities: Tensor, residuals: Tensor | None = None) -> None:
        """velocities: (n, B, elements), those of B trajectories at all grid points but the last,
        on the device given. residuals: (n, B, elements), r_1 to r_n, unless they are Euler's.

        InputError, and nothing added, when they are not finite, or residuals are missing."""
        if (residuals is None) != (self.reference == "euler"):
            found = "none" if residuals is None else "some"
            raise InputError(
                f"residuals: {found} for a sum over {self.reference} trajectories; those of the"
                " same reference needed"
            )
        per_group = max(1, _GRAM_BYTES // self.grams[0].nbytes)
        grams, sums, squares = self.grams.clone(), self.sums.clone(), self.squares.clone()
        norms = self.norms.clone()
        samples = self.samples
        for first in range(0, velocities.shape[1], per_group):
            these = slice(first, first + per_group)
            part = velocities[:, these]
            gram = gram_matrices(part, None if residuals is None else residuals[:, these])
            group = torch.arange(samples, samples + part.shape[1], device=gram.device) % GROUPS
            grams.index_add_(0, group, gram)
            cost = cost_from_gram(gram, self._weights)
            sums += cost.sum(dim=0)
            norms.index_add_(0, group, cost.sqrt())
            squares += cost.square_().sum(dim=0)
            samples += part.shape[1]
        if not sums.isfinite().all():  # the only synchronisation of a batch
            finite = velocities.isfinite().flatten(1).all(dim=1)
            if finite.all():
                raise InputError(
                    f"velocity: finite, but up to {float(velocities.abs().max()):g}: squared errors"
                    " of steps overflow; a network with smaller outputs needed"
                )
            where = int(finite.int().argmin())
            raise InputError(
                f"velocity: not finite at t = {self.timesteps[where]:g} (step {where} of"
                f" {len(self.timesteps) - 1}); a network with finite outputs needed"
            )
        self.grams, self.sums, self.squares, self.samples = grams, sums, squares, samples
        self.norms = norms

    def state(self) -> dict[str, NDArray]:
        """All that `from_state` needs to go on, as arrays for an ``.npz`` file."""
        return {
            "timesteps": self.timesteps,
            "reference": np.array(self.reference),
            "samples": np.array(self.samples),
            "grams": self.grams.cpu().numpy(),
            "sums": self.sums.cpu().numpy(),
            "squares": self.squares.cpu().numpy(),
            "norms": self.norms.cpu().numpy(),
        }

    @classmethod
    def from_state(
        cls, state: Mapping[str, NDArray], device: torch.device | str = "cpu"
    ) -> "CostSum":
        """The sum that `state` described; where it names no reference, it is Euler's. InputError
        for arrays of another kind or shape, of no trajectory, not finite, or negative where no sum
        can be."""
        reference = str(state["reference"]) if "reference" in state else "euler"
        times = state["timesteps"]
        if times.dtype != np.float64:
            raise InputError(f"timesteps: {times.dtype}; float64 needed")
        total = cls(times, device, reference=reference)
        total.samples = _count(state["samples"])
        total.grams = _like(total.grams, state["grams"], "grams")
        total.sums = _like(total.sums, state["sums"], "sums", least=0.0)
        total.squares = _like(total.squares, state["squares"], "squares", least=0.0)
        total.norms = _like(total.norms, state["norms"], "norms", least=0.0)
        return total

    def result(self) -> CostMatrix:
        """The mean over all trajectories so far; at least one is needed."""
        samples = self.samples
        mean = self.sums / samples
        variance = (self.squares / samples - mean**2).clamp_min(0.0)
        error = (variance / (samples - 1)).sqrt() if samples > 1 else mean * torch.nan
        sizes = group_sizes(samples)[:, None, None]
        return CostMatrix(
            mean.cpu().numpy(),
            self.timesteps,
            error.cpu().numpy(),
            samples,
            self.grams[: len(sizes)].cpu().numpy() / sizes,
            self.norms[: len(sizes)].cpu().numpy() / sizes,
        )


def _count(samples: NDArray) -> int:
    """The number of trajectories, at least one."""
    if samples.shape != () or samples.dtype.kind not in "iu" or samples < 1:
        raise InputError(f"samples: {samples!r:.60}; a number of 1 or more needed")
    return int(samples)


def _like(empty: Tensor, found: NDArray, name: str, least: float = -np.inf) -> Tensor:
    """An array of a state, where ``empty`` is, whose shape it has to have."""
    if found.shape != tuple(empty.shape) or found.dtype != np.float64:
        raise InputError(
            f"{name}: {found.dtype} of shape {found.shape}; float64 of {tuple(empty.shape)} needed"
        )
    if not np.isfinite(found).all() or (found < least).any():
        raise InputError(f"{name}: an entry is not finite or negative; a sum of costs needed")
    return torch.from_numpy(found).to(empty.device)


def group_sizes(samples: int) -> NDArray[np.int64]:
    """(G,): the number of trajectories in each group: trajectory m is in group m modulo G."""
    groups = min(samples, GROUPS)
    return np.array([len(range(group, samples, groups)) for group in range(groups)])


def rollout_bytes(
    steps: int,
    sample_numel: int,
    batch_size: int,
    dtype: torch.dtype = torch.float32,
    *,
    reference: str = "euler",
) -> int:
    """The bytes that `estimate_cost_matrix` holds for one batch: the velocities at all grid
    points but the last, in their own dtype; for other references than Euler's the residuals too,
    and for RK45 all states in float64. The rest does not grow with the batch."""
    each = steps * dtype.itemsize
    if reference != "euler":
        each += steps * max(4, dtype.itemsize)
    if reference == "rk45":
        each += (steps + 1) * 8
    return batch_size * sample_numel * each


def estimate_cost_matrix(
    velocity: Velocity,
    noise: Tensor,
    timesteps: ArrayLike,
    *,
    batch_size: int,
    labels: Tensor | None = None,
    reference: str = "euler",
    on_step: Callable[[int], None] | None = None,
) -> CostMatrix:
    """Roll out fine trajectories and return the cost of every step of their grid (eq. 5).

    velocity: evaluated n times for each batch of noise, or more with another reference.
    noise: (N, ...) start states at t = 0, on the device to compute on.
    timesteps: n + 1 increasing times from 0 to 1; they need not be uniform.
    batch_size: trajectories rolled out together; bounds the memory (see `rollout_bytes`).
    labels: (N,) int64 on the device of the noise, when the velocity is conditional.
    reference: the solver of the trajectories: ``euler`` (the paper), ``heun`` or ``rk45``
        (`boss_core.costs.references.roll_out_path`).
    on_step: called after each grid step of each batch with the number of trajectories in it.

    Raises InputError when there is no noise, the batch size is below 1, there is not one label a
    sample, the reference is not known, or the velocity is not finite or not of the shape and
    dtype of its input.
    """
    found = CostSum(timesteps, noise.device, reference=reference)
    add_trajectories(found, velocity, noise, batch_size=batch_size, labels=labels, on_step=on_step)
    return found.result()


def add_trajectories(
    total: CostSum,
    velocity: Velocity,
    noise: Tensor,
    *,
    batch_size: int,
    labels: Tensor | None = None,
    states: Tensor | None = None,
    on_step: Callable[[int], None] | None = None,
) -> None:
    """Roll out further trajectories, by the sum's reference, into a sum of costs; arguments and
    errors are those of `estimate_cost_matrix`. A search that stopped goes on from its `CostSum`.

    states: (n+1, M, ...), filled with those of the first M trajectories, N or fewer.
    """
    held: Tensor | None = None
    for rows, x, of_batch in batches(velocity, noise, labels, batch_size):
        kept = None if states is None else states[:, rows]
        if total.reference == "euler":
            held = _rollout_velocities(of_batch, x, total.timesteps, held, kept, on_step)
            total.add(held[:, : len(x)])
        else:
            total.add(
                *roll_out_path(
                    of_batch, x, total.timesteps, total.reference, states=kept, on_step=on_step
                )
            )


def _rollout_velocities(
    velocity: VelocityField,
    x: Tensor,
    times: Times,
    held: Tensor | None,
    states: Tensor | None,
    on_step: Callable[[int], None] | None,
) -> Tensor:
    """The velocities of one batch at all grid points but the last: (n, B or more, elements),
    in ``held``, the buffer of the batch before, where there is one. states: as in
    `add_trajectories`."""

    def keep(k: int, state: Tensor, v: Tensor | None) -> None:
        nonlocal held
        if states is not None:
            states[k] = state[: states.shape[1]]
        if v is None:
            return
        if held is None:
            held = torch.empty(len(times) - 1, len(x), x[0].numel(), dtype=v.dtype, device=v.device)
        held[k, : len(x)] = v.flatten(1)
        if on_step is not None:
            on_step(len(x))

    euler(velocity, x, times, observer=keep)
    assert held is not None  # a grid has at least one step
    return held
