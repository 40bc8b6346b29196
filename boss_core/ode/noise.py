"""Noise and labels of samples, each from a seed and the sample's index alone.

What has to be independent draws with an offset to the seed of its own, the same everywhere: of one
seed a schedule is not judged on the noise that it was searched on, nor a student on the noise that
it was trained on. Seeds that are multiples of 2^32 apart do share noise, for other purposes.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from boss_core.errors import InputError

# Seeds are below this: numpy's generators take no larger ones beside an index, torch's none.
SEEDS = 2**63
# Offsets to the seed, by what the noise is for.
COSTS = 1 << 32
TRAJECTORIES = 2 << 32
EVALUATION = 3 << 32
SEARCH = 4 << 32


def seed_for(purpose: int, seed: int) -> int:
    """The seed of one of the purposes above; InputError for a seed as in `sample_noise`."""
    check_seed(seed)
    return (int(seed) + purpose) % SEEDS


@dataclass(frozen=True)
class NoiseSource:
    """Draws what samples start from: their noise, and their labels.

    shape: of one sample. seed: of all its noise and labels. device: where they go.
    classes: of a conditional network, else None. frequencies: (classes,), how often each label
    comes; all alike without it.
    """

    shape: tuple[int, ...]
    seed: int
    device: torch.device | str = "cpu"
    classes: int | None = None
    frequencies: tuple[float, ...] | None = None

    def draw(self, rows: range, purpose: int) -> tuple[Tensor, Tensor | None]:
        """The noise of samples with these indices, (len(rows), *shape) float32, and their labels,
        (len(rows),) int64, None without classes; both on the device."""
        seed = seed_for(purpose, self.seed)
        noise = sample_noise(rows, self.shape, seed).to(self.device)
        if self.classes is None:
            return noise, None
        labels = sample_labels(rows, self.classes, seed, frequencies=self.frequencies)
        return noise, labels.to(self.device)


def check_seed(seed: int) -> None:
    """InputError for a seed that the generators here and torch's do not both take."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < SEEDS:
        raise InputError(f"seed: {seed!r}; an integer from 0 to 2^63 - 1 needed")


def sample_noise(indices: range, shape: tuple[int, ...], seed: int) -> Tensor:
    """Standard normal noise, float32 on the CPU, shape (len(indices), *shape).

    Sample ``i`` depends on ``seed`` and ``i`` alone (a counter-based generator keyed with
    both), never on the batch it is drawn in or on the device: any batch size gives the same
    samples. torch's CPU generator would not do: it uses only the low 32 bits of a seed.
    InputError for a seed below 0 or above 2^63 - 1.
    """
    check_seed(seed)
    noise = np.empty((len(indices), *shape), dtype=np.float32)
    for row, index in enumerate(indices):
        generator = np.random.Generator(np.random.Philox(key=[seed, index]))
        generator.standard_normal(out=noise[row], dtype=np.float32)
    return torch.from_numpy(noise)


def sample_labels(
    indices: range, classes: int, seed: int, *, frequencies: ArrayLike | None = None
) -> Tensor:
    """One label for each sample, in 0..classes-1: int64 on the CPU, shape (len(indices),).

    As in `sample_noise`, sample ``i`` depends on ``seed`` and ``i`` alone; its label is
    independent of its noise. ``frequencies``: (classes,), how often each label shall come, of
    any sum; all alike without it. InputError when they are not one number >= 0 a class, and for a
    seed as in `sample_noise`.
    """
    check_seed(seed)
    weights = np.asarray(np.ones(classes) if frequencies is None else frequencies, dtype=float)
    if weights.shape != (classes,) or not (weights >= 0).all() or not 0 < weights.sum() < np.inf:
        raise InputError(
            f"frequencies: {weights.tolist()} found; one for each of {classes} classes, none"
            " negative and not all zero, needed"
        )
    cumulative = weights.cumsum()
    cumulative /= cumulative[-1]
    # Noise takes the generator's numbers from counter 0 on; no sample is large enough for it to
    # reach this one.
    generators = (
        np.random.Generator(np.random.Philox(key=[seed, index], counter=[0, 0, 0, 1]))
        for index in indices
    )
    uniform = np.array([generator.random() for generator in generators])
    return torch.from_numpy(np.searchsorted(cumulative, uniform, side="right").astype(np.int64))
