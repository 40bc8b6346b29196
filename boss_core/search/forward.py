"""Steps chosen forward, on the student's own state (Pei et al. 2025, Optimal Stepsize for
Diffusion Sampling).

The teacher's fine Euler path passes x_0, ..., x_n. With s_k(j) the state of a student that
reaches grid point j in k steps, and i -> j its step from s_{k-1}(i),

    S_k(j) = argmin over i < j of mean over samples of || x_j - (i -> j) ||^2,

and s_k(j) is the state that comes from the best i. Unlike the objectives of
`boss_core.bellman.objectives`, it counts the error carried forward; but it keeps one state for
each (k, j) and takes the nearest at each, so no Bellman principle says that the end is the best
reachable.
"""

from collections.abc import Callable, Iterable

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from boss_core.bellman.recursion import Path
from boss_core.errors import InputError
from boss_core.ode.batches import batches, check_batches
from boss_core.ode.solver_table import SOLVERS, Weights, multistep_weights
from boss_core.ode.solvers import euler, linear_step
from boss_core.ode.timesteps import Times, validate_timesteps
from boss_core.ode.velocity import Velocity, evaluate


@torch.no_grad()
def oss_paths(
    velocity: Velocity,
    noise: Tensor,
    timesteps: ArrayLike,
    budgets: Iterable[int],
    *,
    solver: str = "euler",
    labels: Tensor | None = None,
    batch_size: int,
    on_step: Callable[[int], None] | None = None,
) -> dict[int, Path]:
    """For every budget K, the steps of the forward recursion; a path's cost is the mean squared
    L2 distance of the student's endpoint from the teacher's, on the noise given.

    velocity: evaluated about K n times a sample for the largest K, which serves all budgets.
    noise: (N, ...) start states. One schedule is found for all of them, so the states of all are
        held: 3 (n + 1) N of them in their own dtype (4 for a solver that looks back), and a
        few times n more for each sample of a batch.
    timesteps: n + 1 increasing times from 0 to 1.
    solver: the student's, a linear multistep method that looks back one step at most; the
        teacher's is Euler.
    labels: (N,) int64 on the device of the noise, when the velocity is conditional.
    batch_size: samples evaluated together.
    on_step: called after each evaluation with the number of samples in it.

    Of several best i the smallest is taken. Raises InputError for another solver, a budget that
    is not in 1..n, no noise, labels that are not as many, or a velocity that is not finite or not
    of the shape and dtype of its input.
    """
    times = validate_timesteps(timesteps)
    n = len(times) - 1
    budgets = list(budgets)
    weights = multistep_weights(solver)
    looks_back = SOLVERS[solver].looks_back
    if looks_back > 1:
        raise InputError(f"solver: {solver}, which looks back {looks_back} steps; at most 1 needed")
    for budget in budgets:
        if not 1 <= budget <= n:
            raise InputError(f"budget: {budget}; 1..{n} needed (the grid has {n} steps)")
    check_batches(noise, labels, batch_size)
    student = _Student(velocity, noise, times, labels, batch_size, weights, looks_back, on_step)

    choices, errors = [], []
    for k in range(1, max(budgets, default=0) + 1):
        best, error = student.advance(k)
        choices.append(best)
        errors.append(error)
    paths = {}
    for budget in budgets:
        indices = [n]
        for k in range(budget, 0, -1):
            indices.append(choices[k - 1][indices[-1]])
        paths[budget] = Path(tuple(reversed(indices)), errors[budget - 1])
    return paths


class _Student:
    """The states s_k(j) for one k, and the teacher's, of all samples."""

    def __init__(
        self,
        velocity: Velocity,
        noise: Tensor,
        times: Times,
        labels: Tensor | None,
        batch_size: int,
        weights: Weights,
        looks_back: int,
        on_step: Callable[[int], None] | None,
    ) -> None:
        self.times, self.weights, self.on_step = times, weights, on_step
        found = batches(velocity, noise, labels, batch_size)
        self.batches = [(rows, of_batch) for rows, _, of_batch in found]

        n = len(times) - 1
        self.teacher = noise.new_empty(n + 1, *noise.shape)
        self.state = torch.empty_like(self.teacher)
        self.velocity = torch.empty_like(self.teacher[:n])  # at the states
        # For a two-step solver: the velocity of the knot before, and that knot.
        self.before = torch.empty_like(self.teacher) if looks_back else None
        self.knot_before = [0] * (n + 1)

        for rows, of_batch in self.batches:

            def keep(k: int, x: Tensor, v: Tensor | None, rows: slice = rows) -> None:
                self.teacher[k, rows] = x
                if v is not None:
                    if k == 0:
                        self.velocity[0, rows] = v
                    self._evaluated(rows)

            euler(of_batch, noise[rows], times, observer=keep)
        self.state[0] = noise

    def advance(self, k: int) -> tuple[list[int], float]:
        """From s_{k-1} to s_k: the best i for each j (0 where j < k), and the error at the end."""
        n = len(self.times) - 1
        device = self.teacher.device
        total = torch.full((n + 1, n + 1), torch.inf, dtype=torch.float64, device=device)
        for i in range(k - 1, n if k > 1 else 1):
            total[i, i + 1 :] = 0.0
            for rows, of_batch in self.batches:
                if k > 1:
                    x = self.state[i, rows]
                    at = torch.full((len(x),), self.times[i], dtype=x.dtype, device=x.device)
                    self.velocity[i, rows] = evaluate(of_batch, x, at)
                    self._evaluated(rows)
                error = self.teacher[i + 1 :, rows] - self._step(k, i, range(i + 1, n + 1), rows)
                norms = torch.linalg.vector_norm(error.flatten(2), dim=2, dtype=torch.float64)
                total[i, i + 1 :] += norms.square_().sum(dim=1)
        found = total[:, k:].min(dim=0)
        if not found.values.isfinite().all():
            raise InputError(
                "velocity: not finite on the trajectories of the teacher or the student; a network"
                " with finite outputs needed"
            )
        best = [0] * k + found.indices.tolist()
        # From the end, so that the states that are stepped from are still those of k - 1.
        for j in range(n, k - 1, -1):
            i = best[j]
            for rows, _ in self.batches:
                self.state[j, rows] = self._step(k, i, range(j, j + 1), rows)[0]
            if self.before is not None:
                self.before[j] = self.velocity[i]
            self.knot_before[j] = i
        return best, float(found.values[-1]) / self.state.shape[1]

    def _step(self, k: int, i: int, ends: range, rows: slice) -> Tensor:
        """Where step k leads from s_{k-1}(i), for each end: (len(ends), B, ...)."""
        x, v = self.state[i, rows], self.velocity[i, rows]
        h = self.times[ends.start : ends.stop] - self.times[i]

        def along(values: np.ndarray) -> Tensor:
            factors = torch.as_tensor(values, dtype=x.dtype, device=x.device)
            return factors.view(-1, *[1] * x.ndim)

        lengths, velocities = [h], [v]
        if self.before is not None and k > 1:
            lengths.append(self.times[i] - self.times[self.knot_before[i]])
            velocities.append(self.before[i, rows])
        return linear_step(x, 1.0, [along(h * w) for w in self.weights(lengths)], velocities)

    def _evaluated(self, rows: slice) -> None:
        if self.on_step is not None:
            self.on_step(rows.stop - rows.start)
