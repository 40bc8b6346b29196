"""Schedules refined on a distance between samples and a reference, by coordinate descent.

A step's cost (eq. 5) says nothing about what later steps make of its error. Here candidates are
sampled to the end, all from the same noise, and compared there. Moving knot k leaves the
trajectory up to knot k - 1, and the velocity there, as they are: both are kept at every knot of
the current steps, so that a candidate costs the evaluations at knots k to K - 1 alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from boss_core.errors import InputError
from boss_core.ode.batches import check_batches
from boss_core.ode.solver_table import SOLVERS, multistep_weights, weights_of_steps
from boss_core.ode.solvers import linear_step
from boss_core.ode.timesteps import Times, validate_steps, validate_timesteps
from boss_core.ode.velocity import Velocity, evaluate, with_labels
from boss_core.search.distances import Distance

# How far a knot moves, in grid steps to either side: from coarse to fine.
OFFSETS = ((8,), (4,), (2,), (1,))

Indices = tuple[int, ...]
Step = tuple[float, tuple[float, ...]]  # its length, and the weights of its velocities


@dataclass(frozen=True)
class Refined:
    """The best steps found.

    indices: K + 1 increasing grid indices, from 0 to n.
    distance: of their samples on the noise of the search, where it is too low, as it was chosen
        for that; measure it again on other noise.
    evaluations: network evaluations of the whole search for one sample of the noise: N times as
        many in all.
    """

    indices: Indices
    distance: float
    evaluations: int


# Its many arguments are what one call differs by from the next; all but the first few have names.
@torch.no_grad()
def refine(
    velocity: Velocity,
    noise: Tensor,
    timesteps: ArrayLike,
    starts: Sequence[Sequence[int]],
    distance: Distance,
    *,
    solver: str = "euler",
    batch_size: int,
    labels: Tensor | None = None,
    offsets: Sequence[Sequence[int]] = OFFSETS,
    sweeps: int = 2,
    on_evaluations: Callable[[int], None] | None = None,
) -> Refined:
    """The steps whose samples are nearest to a reference, by moving one knot at a time until no
    move helps: from every start, keeping the best of all.

    noise: (N, ...) start states, the same for every candidate, on the device to compute on.
    timesteps: (n+1,), the grid.
    starts: one or more sequences of K + 1 increasing indices, from 0 to n; K the same in all.
    distance: of final states, (C, N, ...), from a reference (`boss_core.search.distances`). Choose
        `endpoint_error` only knowing what it says about itself.
    solver: a linear multistep method (`boss_core.ode.solver_table.MULTISTEP`).
    batch_size: samples in one call of the network. Candidates share calls where their times are
        the same; a call has one time throughout, which some networks need.
    labels: (N,) int64 on the device of the noise, when the velocity is conditional.
    offsets: groups of distances in grid steps, taken in turn. A knot is tried that far to either
        side, as long as it stays between its neighbours, with all distances of a group together.
    sweeps: at most so many passes over the knots with one group; a pass that changes nothing ends
        it sooner.
    on_evaluations: called after every call of the network with the number of samples in it.

    Steps that were seen are not sampled again, whichever start led to them: they can be no better
    than the best so far. The host waits for the device once for each knot visited, when it reads
    the distances of that knot's candidates.

    Raises InputError for another solver, starts that cannot be, no noise, a batch size or number
    of sweeps below 1, labels that are not one a sample, a velocity of another shape or dtype than
    its input, and a start whose distance is not finite.
    """
    grid = validate_timesteps(timesteps)
    paths = _validate_starts(starts, len(grid) - 1)
    multistep_weights(solver)
    if sweeps < 1:
        raise InputError(f"sweeps: {sweeps}; at least 1 needed")
    check_batches(noise, labels, batch_size)
    trial = _Trial(velocity, noise, grid, solver, batch_size, labels, on_evaluations)

    first = trial.evaluate(noise[None], [0])[0]
    states, velocities = trial.roll(paths, 1, [noise], [first])
    found = distance(states[-1]).tolist()
    for path, value in zip(paths, found, strict=True):
        if not np.isfinite(value):
            raise InputError(
                f"velocity: samples of the steps {path} are not finite, or their distance is"
                f" {value}; a network with finite outputs needed"
            )
    seen = dict(zip(paths, found, strict=True))
    begun = [
        ([noise, *(x[c] for x in states[:-1])], [first, *(v[c] for v in velocities)])
        for c in range(len(paths))
    ]
    for path, (own_states, own_velocities) in sorted(
        zip(paths, begun, strict=True), key=lambda start: seen[start[0]]
    ):
        _descend(trial, path, own_states, own_velocities, distance, seen, offsets, sweeps)
    best = min(seen, key=seen.__getitem__)
    return Refined(best, seen[best], trial.evaluations)


def _descend(
    trial: "_Trial",
    path: Indices,
    states: list[Tensor],
    velocities: list[Tensor],
    distance: Distance,
    seen: dict[Indices, float],
    offsets: Sequence[Sequence[int]],
    sweeps: int,
) -> None:
    """Coordinate descent from a path with these states and velocities at its knots 0 to K - 1.
    Everything tried is added to ``seen``."""
    for group in offsets:
        for _ in range(sweeps):
            before = path
            for k in range(1, len(path) - 1):
                moves = (path[k] + sign * offset for offset in group for sign in (-1, 1))
                inside = (node for node in moves if path[k - 1] < node < path[k + 1])
                moved = ((*path[:k], node, *path[k + 1 :]) for node in inside)
                candidates = [candidate for candidate in moved if candidate not in seen]
                if not candidates:
                    continue
                rest, rest_velocities = trial.roll(candidates, k, states[:k], velocities[:k])
                # One that is not finite is no candidate.
                found = distance(rest[-1]).nan_to_num(nan=torch.inf).tolist()
                seen.update(zip(candidates, found, strict=True))
                best = min(range(len(found)), key=found.__getitem__)
                if found[best] < seen[path]:
                    path = candidates[best]
                    # Copies, as a part would keep the trajectories of all candidates alive.
                    states[k:] = [x[best].clone() for x in rest[:-1]]
                    velocities[k:] = [v[best].clone() for v in rest_velocities]
            if path == before:
                break


class _Trial:
    """Samples candidates from one noise, and counts the evaluations."""

    def __init__(
        self,
        velocity: Velocity,
        noise: Tensor,
        grid: Times,
        solver: str,
        batch_size: int,
        labels: Tensor | None,
        on_evaluations: Callable[[int], None] | None,
    ) -> None:
        self.velocity, self.labels, self.batch_size = velocity, labels, batch_size
        self.samples, self.grid, self.solver = len(noise), grid, solver
        self.looks_back = SOLVERS[solver].looks_back
        self.on_evaluations = on_evaluations
        self.evaluations = 0

    def roll(
        self, paths: list[Indices], k: int, states: list[Tensor], velocities: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Sample paths that share their knots before k >= 1, from the states and velocities at
        those, each (N, ...). Returns the states at knots k to K and the velocities at knots k to
        K - 1, each (C, N, ...)."""
        count = len(paths)
        steps = [self._steps(path) for path in paths]
        x = states[-1].expand(count, *states[-1].shape)
        last = velocities[-1 - self.looks_back :]
        along = [v.expand_as(x) for v in reversed(last)]  # the latest first
        found: list[Tensor] = []
        found_velocities: list[Tensor] = []
        for knot in range(k, len(paths[0])):
            x = _step(x, along, [of_path[knot - 1] for of_path in steps])
            found.append(x)
            if knot < len(paths[0]) - 1:
                v = self.evaluate(x, [path[knot] for path in paths])
                along = [v, *along][: self.looks_back + 1]
                found_velocities.append(v)
        return found, found_velocities

    def evaluate(self, x: Tensor, nodes: Sequence[int]) -> Tensor:
        """The velocities at states (C, N, ...), with one grid index for each candidate."""
        together = x.flatten(0, 1)
        labels = None if self.labels is None else self.labels.repeat(len(x))
        found = torch.empty_like(together)
        length = len(together) if len(set(nodes)) == 1 else self.samples
        for first in range(0, len(together), length):
            for start in range(first, first + length, self.batch_size):
                rows = slice(start, min(start + self.batch_size, first + length))
                part = together[rows]
                of_part = with_labels(self.velocity, None if labels is None else labels[rows])
                # Filled on the device: a tensor of several times would be copied there, and waits.
                t = part.new_full((len(part),), self.grid[nodes[start // self.samples]])
                found[rows] = evaluate(of_part, part, t)
                if self.on_evaluations is not None:
                    self.on_evaluations(len(part))
        self.evaluations += len(x)
        return found.reshape(x.shape)

    def _steps(self, path: Indices) -> list[Step]:
        lengths = np.diff(self.grid[list(path)]).tolist()
        return list(zip(lengths, weights_of_steps(self.solver, lengths), strict=True))


def _step(x: Tensor, along: Sequence[Tensor], steps: Sequence[Step]) -> Tensor:
    """One step of each candidate, (C, N, ...), along velocities, each (C, N, ...)."""
    after = torch.empty_like(x, memory_format=torch.contiguous_format)
    for c, (length, weights) in enumerate(steps):
        after[c] = linear_step(x[c], length, weights, [v[c] for v in along])
    return after


def _validate_starts(starts: Sequence[Sequence[int]], n: int) -> list[Indices]:
    """The starts without repetitions; InputError when they cannot be."""
    paths = list(dict.fromkeys(validate_steps(start, n, "starts") for start in starts))
    if not paths:
        raise InputError("starts: none found; at least one needed")
    counts = sorted({len(path) - 1 for path in paths})
    if len(counts) > 1:
        raise InputError(f"starts: of {counts} steps; as many in all needed")
    return paths
