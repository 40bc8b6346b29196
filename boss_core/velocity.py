"""What the rest of the library asks of a network: a velocity ``v(x, t)``, or one of labels too."""

from collections.abc import Sized
from typing import Protocol, cast

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from boss_core.errors import InputError


class VelocityField(Protocol):
    """The velocity ``dx/dt`` of a flow from noise (t = 0) to data (t = 1)."""

    def __call__(self, x: Tensor, t: Tensor, /) -> Tensor:
        """``x``: (B, ...) states; ``t``: (B,) times in [0, 1]; returns (B, ...)."""
        ...


class ConditionalVelocity(Protocol):
    """The velocity of a flow whose data depends on a class."""

    def __call__(self, x: Tensor, t: Tensor, labels: Tensor, /) -> Tensor:
        """``x``, ``t``: as for `VelocityField`; ``labels``: (B,) int64 in 0..classes-1."""
        ...


Velocity = VelocityField | ConditionalVelocity


def with_labels(network: Velocity, labels: Tensor | None) -> VelocityField:
    """The velocity of a batch whose samples have these labels, (B,) int64, on its device; None
    for a network that takes none, which is returned as it is."""
    if labels is None:
        return cast(VelocityField, network)
    conditional = cast(ConditionalVelocity, network)
    return lambda x, t: conditional(x, t, labels)


def check_labels(labels: Sized | None, samples: int) -> None:
    """InputError when there are labels, but not one for each sample."""
    if labels is not None and len(labels) != samples:
        raise InputError(f"labels: {len(labels)} for {samples} samples; one for each needed")


class CountedVelocity:
    """A velocity that counts its network evaluations (NFE), at the call itself.

    ``evaluations_per_call`` is 2 for a velocity that evaluates its network twice for each
    call, as classifier-free guidance does.
    """

    def __init__(self, velocity: Velocity, evaluations_per_call: int = 1) -> None:
        self.velocity = velocity
        self.evaluations_per_call = evaluations_per_call
        self.nfe = 0

    def __call__(self, x: Tensor, t: Tensor, labels: Tensor | None = None, /) -> Tensor:
        self.nfe += self.evaluations_per_call
        return with_labels(self.velocity, labels)(x, t)


def sample_noise(indices: range, shape: tuple[int, ...], seed: int) -> Tensor:
    """Standard normal noise, float32 on the CPU, shape (len(indices), *shape).

    Sample ``i`` depends on ``seed`` and ``i`` alone (a counter-based generator keyed with
    both), never on the batch it is drawn in or on the device: any batch size gives the same
    samples. torch's CPU generator would not do: it uses only the low 32 bits of a seed.
    """
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
    any sum; all alike without it. InputError when they are not one number >= 0 a class.
    """
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
