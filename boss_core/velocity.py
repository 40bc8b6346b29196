"""What the rest of the library asks of a network: a velocity ``v(x, t)``."""

from typing import Protocol

import numpy as np
import torch
from torch import Tensor


class VelocityField(Protocol):
    """The velocity ``dx/dt`` of a flow from noise (t = 0) to data (t = 1)."""

    def __call__(self, x: Tensor, t: Tensor, /) -> Tensor:
        """``x``: (B, ...) states; ``t``: (B,) times in [0, 1]; returns (B, ...)."""
        ...


class CountedVelocity:
    """A velocity that counts its network evaluations (NFE), at the call itself.

    ``evaluations_per_call`` is 2 for a velocity that evaluates its network twice for each
    call, as classifier-free guidance does.
    """

    def __init__(self, velocity: VelocityField, evaluations_per_call: int = 1) -> None:
        self.velocity = velocity
        self.evaluations_per_call = evaluations_per_call
        self.nfe = 0

    def __call__(self, x: Tensor, t: Tensor, /) -> Tensor:
        self.nfe += self.evaluations_per_call
        return self.velocity(x, t)


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
