"""Grids of timesteps from 0 (noise) to 1 (data), and their validation.

Every function returns float64 numpy arrays of n + 1 times for n steps; InputError for n
below 1.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from boss_core.errors import InputError

Times = NDArray[np.float64]


def validate_timesteps(timesteps: ArrayLike, *, from_noise: bool = True) -> Times:
    """The timesteps as a float64 array; ``InputError`` unless they are finite, strictly
    increasing, and run from 0 to 1. ``from_noise=False``: they may begin between, as for steps
    from an image with some noise."""
    times = np.asarray(timesteps, dtype=np.float64)
    if times.ndim != 1 or len(times) < 2:
        raise InputError(f"timesteps: shape {times.shape}; at least two times in one row needed")
    if not np.isfinite(times).all():
        raise InputError(f"timesteps: entry {int(np.argmin(np.isfinite(times)))} is not finite")
    if not (times[0] == 0.0 or (0.0 < times[0] < 1.0 and not from_noise)) or times[-1] != 1.0:
        raise InputError(f"timesteps: run from {times[0]} to {times[-1]}; 0 to 1 needed")
    steps = np.diff(times)
    if (steps <= 0).any():
        where = int(np.argmax(steps <= 0))
        raise InputError(
            f"timesteps: {times[where]} is followed by {times[where + 1]}; they must increase"
        )
    return times


def uniform(n: int) -> Times:
    """n equal steps: the paper's fine grid, and its baseline schedule."""
    # Each is i/n as a reader writes it: 0.57, where 57 times 0.01 is 0.5700000000000001.
    return np.arange(_positive(n) + 1) / n


def karras(n: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Times:
    """The steps of EDM (Karras et al. 2022, eq. 5) in the flow's time:

    sigma_i = (sigma_max^(1/rho) + i/(n-1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho for i < n,
    and sigma_n = 0. EDM's sigma is a noise-to-signal ratio, (1 - t) / t on the linear path, so
    t = 1 / (1 + sigma); the first time, 1 / (1 + sigma_max), becomes 0, as a flow starts from
    pure noise.
    """
    ramp = np.linspace(0.0, 1.0, _positive(n))
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    times = np.append(1.0 / (1.0 + (high + ramp * (low - high)) ** rho), 1.0)
    times[0] = 0.0
    return times


def quadratic(n: int) -> Times:
    """Steps that shrink linearly towards the data: noise level ``1 - t = (1 - i/n)^2``
    (the quadratic sub-sequence of DDIM, Song et al. 2021, in the flow's time)."""
    return 1.0 - (1.0 - uniform(n)) ** 2


def shifted(n: int, shift: float = 3.0) -> Times:
    """Uniform noise levels moved towards the noise by ``shift``
    (Esser et al. 2024, eq. 23): sigma' = shift sigma / (1 + (shift - 1) sigma).
    InputError unless ``shift`` is positive."""
    if shift <= 0:
        raise InputError(f"shift: {shift}; a positive number needed")
    sigma = 1.0 - uniform(n)
    times = 1.0 - shift * sigma / (1.0 + (shift - 1.0) * sigma)
    times[0], times[-1] = 0.0, 1.0
    return times


# The grids above by name, for those that choose one.
GRIDS: dict[str, Callable[[int], Times]] = {
    "uniform": uniform,
    "karras": karras,
    "quadratic": quadratic,
    "shifted": shifted,
}


def nearest_indices(grid: ArrayLike, timesteps: ArrayLike) -> tuple[int, ...]:
    """The indices of the grid points nearest to the given timesteps (ties to the earlier), which
    may begin after 0, as for steps from an image with some noise.

    ``InputError`` when two timesteps share a grid point: the grid is then too coarse.
    """
    points, times = validate_timesteps(grid), validate_timesteps(timesteps, from_noise=False)
    indices = np.abs(points[None, :] - times[:, None]).argmin(axis=1)
    if len(np.unique(indices)) < len(indices):
        raise InputError(
            f"timesteps: {len(times) - 1} steps do not fit on a grid of {len(points) - 1} without"
            " two sharing a grid point; a finer grid needed"
        )
    return tuple(int(i) for i in indices)


def union(index_lists: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """The sorted union of the grid indices of several schedules."""
    return tuple(sorted({int(i) for indices in index_lists for i in indices}))


def validate_steps(indices: Sequence[int], n: int, name: str) -> tuple[int, ...]:
    """The steps as a tuple; InputError that starts with ``name`` unless they are grid indices
    that increase from 0 to n."""
    path = tuple(int(i) for i in indices)
    if path[:1] != (0,) or path[-1:] != (n,) or any(np.diff(path) <= 0):
        raise InputError(f"{name}: {path}; increasing grid indices from 0 to {n} needed")
    return path


def _positive(n: int) -> int:
    if n < 1:
        raise InputError(f"steps: {n}; at least 1 needed")
    return n
