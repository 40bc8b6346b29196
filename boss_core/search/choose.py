"""The steps of a budget chosen by what their samples look like, on noise that was not searched.

Objectives that are sums over steps predict quality only roughly, so each proposes its steps, and
a distance between their samples and the teacher's picks among them. The pick has to beat the
paper's steps by more than chance; otherwise these stay.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.special import stdtrit  # that of scipy.stats takes a second to import
from torch import Tensor

from boss_core.errors import InputError
from boss_core.ode.batches import batches
from boss_core.ode.solvers import SOLVERS
from boss_core.ode.timesteps import (
    Times,
    nearest_indices,
    uniform,
    validate_steps,
    validate_timesteps,
)
from boss_core.ode.velocity import Velocity
from boss_core.search.distances import Distance
from boss_core.search.refine import Indices, refine

# The objective that others have to beat: the paper's.
BASELINE = "l2_squared"
# Parts of the test noise; what leaving out one changes gives the standard error of a gain.
BLOCKS = 10


@dataclass(frozen=True)
class Reference:
    """Noise, and where the teacher takes it: the same for every budget, so rolled out once
    (`roll_out`, or any finer solver).

    noise, ends: (N, ...) states at t = 0 and t = 1, in the same order and on one device. For
        `choose_sampled`, noise is whatever its samples start from, N of them.
    labels: (N,) int64 there, when the velocity is conditional.
    """

    noise: Tensor
    ends: Tensor
    labels: Tensor | None = None


# From candidates and a reference to the final states of each from the reference's noise.
Sampler = Callable[[dict[str, Indices], Reference], dict[str, Tensor]]


@dataclass(frozen=True)
class Choice:
    """The steps of one budget, and how sure the choice is.

    objective: whose steps they are: ``winner``, or `BASELINE` when that does not beat it by more
        than chance.
    indices: the chosen steps, as grid indices.
    winner: the nearest of the candidates on the test noise.
    gain: by how much the winner is nearer than the baseline there, as a share of the baseline's
        distance; 0 when it is the baseline, as where that is at no distance.
    standard_error: of ``gain``, by the jackknife over blocks of the test noise.
    rivals: the number of different steps beside the baseline's, which the bar depends on.
    distances: of every candidate, on the whole test noise; infinite where samples are.
    candidates: the grid indices of every candidate.
    evaluations: network evaluations that refinement took for one sample of the selection noise.
    """

    objective: str
    indices: Indices
    winner: str
    gain: float
    standard_error: float
    rivals: int
    distances: dict[str, float]
    candidates: dict[str, Indices]
    evaluations: int = 0


def roll_out(
    velocity: Velocity,
    noise: Tensor,
    timesteps: ArrayLike,
    *,
    batch_size: int,
    labels: Tensor | None = None,
) -> Reference:
    """Roll out the teacher by Euler through the whole grid: n evaluations for a sample.

    noise: (N, ...), on the device to compute on. labels: (N,) int64 there, or None.
    InputError when there are labels, but not one a sample, and for a batch size below 1.
    """
    grid = validate_timesteps(timesteps)
    ends = _ends(velocity, noise, labels, grid, "euler", batch_size)
    return Reference(noise, ends, labels)


def choose(
    velocity: Velocity,
    timesteps: ArrayLike,
    candidates: Mapping[str, Sequence[int]],
    test: Reference,
    *,
    distance: Callable[[Tensor], Distance],
    solver: str = "euler",
    batch_size: int,
) -> Choice:
    """The candidate whose samples are nearest to the teacher's on the test noise, if it beats the
    paper's steps there by more than chance; otherwise the paper's.

    timesteps: (n+1,), the grid.
    candidates: name to K + 1 increasing grid indices from 0 to n; `BASELINE` is one of them.
    test: the teacher's samples from noise that no candidate was searched on.
    distance: from reference samples, (N, ...), to a distance to them
        (`boss_core.search.distances`).
    solver: any of `boss_core.ode.solvers.SOLVERS`.
    batch_size: samples in one call of the network.

    The gain is of the distances on all test noise, where winner and baseline start from the same;
    its standard error is the jackknife's (Efron 1982), each of `BLOCKS` blocks left out in turn.
    Blocks by themselves would not do: a distance between small sets is mostly that of any two.
    More than chance is Student's t at 2.5 %, over the number of rivals (Bonferroni): the best of
    m looks better than it is.

    Raises InputError when the baseline is not among the candidates, for an unknown solver, steps
    that cannot be, and fewer than two test samples a block.
    """
    grid = validate_timesteps(timesteps)
    sample = _sampler(velocity, grid, solver, batch_size)
    return choose_sampled(sample, len(grid) - 1, candidates, test, distance=distance)


def choose_sampled(
    sample: Sampler,
    n: int,
    candidates: Mapping[str, Sequence[int]],
    test: Reference,
    *,
    distance: Callable[[Tensor], Distance],
) -> Choice:
    """As `choose`, for a teacher that is no velocity, such as a diffusers pipeline.

    sample: to the final states, (N, ...), of every candidate from a reference's noise.
    n: the steps of the grid that the candidates are on.
    """
    return _choice(sample, _validate(n, candidates, test), test, distance)


# Its many arguments are what one call differs by from the next; all but the first few have names.
def search_steps(
    velocity: Velocity,
    timesteps: ArrayLike,
    candidates: Mapping[str, Sequence[int]],
    selection: Reference,
    test: Reference,
    *,
    distance: Callable[[Tensor], Distance],
    solver: str = "euler",
    batch_size: int,
    best: int = 1,
    on_evaluations: Callable[[int], None] | None = None,
) -> Choice:
    """As `choose`, with one more candidate, ``refine``: the best steps that `refine` finds on the
    selection noise from the ``best`` nearest candidates there and from uniform steps.

    Arguments and errors are those of `choose`, and of `boss_core.search.refine.refine`, which takes
    solvers of one evaluation a step only. selection: the teacher's samples from other noise than
    ``test``'s. on_evaluations: as there.
    """
    grid = validate_timesteps(timesteps)
    steps = _validate(len(grid) - 1, candidates, test)
    sample = _sampler(velocity, grid, solver, batch_size)
    to_selection = distance(selection.ends)
    nearest = _distances(sample(steps, selection), to_selection)
    # Even steps of the index: on a grid that is not uniform, its own spacing.
    even = nearest_indices(uniform(len(grid) - 1), uniform(len(steps[BASELINE]) - 1))
    starts = [steps[name] for name in sorted(nearest, key=nearest.__getitem__)[:best]]
    if np.isfinite(nearest.get("uniform", 0.0)):
        starts.append(even)
    refined = refine(
        velocity,
        selection.noise,
        grid,
        starts,
        to_selection,
        solver=solver,
        batch_size=batch_size,
        labels=selection.labels,
        on_evaluations=on_evaluations,
    )
    steps = {**steps, "refine": refined.indices}
    return _choice(sample, steps, test, distance, evaluations=refined.evaluations)


def _choice(
    sample: Sampler,
    candidates: dict[str, Indices],
    test: Reference,
    distance: Callable[[Tensor], Distance],
    *,
    evaluations: int = 0,
) -> Choice:
    """The choice, from the samples of the test noise."""
    ends = sample(candidates, test)
    to_test = distance(test.ends)
    distances = _distances(ends, to_test)
    # Of equals the baseline, so that a copy of it is no winner.
    winner = min(distances, key=lambda name: (distances[name], name != BASELINE))
    rivals = len(set(candidates.values()) - {candidates[BASELINE]})
    gain, error = 0.0, 0.0
    if candidates[winner] != candidates[BASELINE]:
        pair = torch.stack([ends[BASELINE], ends[winner]])
        block = torch.arange(len(test.ends), device=test.ends.device) % BLOCKS
        without = [distance(test.ends[block != b])(pair[:, block != b]) for b in range(BLOCKS)]
        found = torch.stack([to_test(pair), *without]).cpu().numpy()
        if (found[:, 0] > 0).all():
            gain, *left_out = 1.0 - found[:, 1] / found[:, 0]
            error = float(np.sqrt((BLOCKS - 1) * np.var(left_out)))
        else:  # the baseline is there already, but for rounding: nothing can be nearer
            winner = BASELINE
    beyond_chance = rivals and gain > stdtrit(BLOCKS - 1, 1.0 - 0.025 / rivals) * error
    objective = winner if beyond_chance else BASELINE
    return Choice(
        objective=objective,
        indices=candidates[objective],
        winner=winner,
        gain=float(gain),
        standard_error=error,
        rivals=rivals,
        distances=distances,
        candidates=candidates,
        evaluations=evaluations,
    )


def _distances(ends: dict[str, Tensor], distance: Distance) -> dict[str, float]:
    """Infinite where samples are not finite, whatever a distance makes of them; InputError when
    those of the baseline are not."""
    if not ends[BASELINE].isfinite().all():
        raise InputError(
            f"velocity: samples of the steps of {BASELINE} are not finite; a network with finite"
            " outputs needed"
        )
    return {
        name: float(distance(x[None])) if bool(x.isfinite().all()) else float("inf")
        for name, x in ends.items()
    }


def _sampler(velocity: Velocity, grid: Times, solver: str, batch_size: int) -> Sampler:
    if solver not in SOLVERS:
        raise InputError(f"solver: {solver!r}; {', '.join(SOLVERS)} known")
    return partial(_sample, velocity, grid, solver, batch_size)


def _sample(
    velocity: Velocity,
    grid: Times,
    solver: str,
    batch_size: int,
    candidates: dict[str, Indices],
    to: Reference,
) -> dict[str, Tensor]:
    """The final states of every candidate from the noise of a reference; the same steps are
    sampled once."""
    ends = {
        path: _ends(velocity, to.noise, to.labels, grid[list(path)], solver, batch_size)
        for path in dict.fromkeys(candidates.values())
    }
    return {name: ends[path] for name, path in candidates.items()}


def _ends(
    velocity: Velocity,
    noise: Tensor,
    labels: Tensor | None,
    timesteps: ArrayLike,
    solver: str,
    batch_size: int,
) -> Tensor:
    ends = torch.empty_like(noise)
    for rows, start, of_batch in batches(velocity, noise, labels, batch_size):
        ends[rows] = SOLVERS[solver](of_batch, start, timesteps)
    return ends


def _validate(
    n: int, candidates: Mapping[str, Sequence[int]], test: Reference
) -> dict[str, Indices]:
    """The candidates as tuples; InputError when they cannot be."""
    if BASELINE not in candidates:
        raise InputError(
            f"candidates: {', '.join(candidates) or 'none'}; {BASELINE}, which the others have to"
            " beat, needed"
        )
    if len(test.noise) < 2 * BLOCKS:
        raise InputError(
            f"test noise: {len(test.noise)} samples; {2 * BLOCKS} or more, two for each of"
            f" {BLOCKS} blocks, needed"
        )
    steps = {
        name: validate_steps(indices, n, f"candidates: {name}")
        for name, indices in candidates.items()
    }
    counts = sorted({len(path) - 1 for path in steps.values()})
    if len(counts) > 1:
        raise InputError(f"candidates: of {counts} steps; as many in all needed")
    return steps
