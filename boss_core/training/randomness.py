"""The random numbers of a training step, and the part of its batch that one process takes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Golden ratio times 2^64, odd: seeds that differ little are far apart, in its low half too, which
# is all that torch's CPU generator uses.
_SPREAD = 0x9E3779B97F4A7C15


@dataclass(frozen=True)
class BatchShare:
    """Which samples of a batch this process takes: every ``of``-th, from ``rank`` on.

    All processes draw the whole batch, which depends on seed and step alone, and so agree on it
    however many they are.
    """

    rank: int = 0
    of: int = 1

    def take(self, batch: Any) -> Any:
        """The part of an array or tensor, (B, ...) to (B / of, ...)."""
        return batch[self.rank :: self.of]


# ``loss(network, step, share)``: the mean loss over this process's share of the step's batch.
Loss = Callable[[Any, int, BatchShare], Tensor]


def step_generator(seed: int, step: int) -> np.random.Generator:
    """For what the host has to know, as the rows of a batch: depends on seed and step alone."""
    return np.random.Generator(np.random.Philox(key=[seed, step]))


def device_generator(seed: int, step: int, device: torch.device) -> torch.Generator:
    """For what only the device sees, as noise and times: as `step_generator`, and independent of
    it. The numbers are others on another kind of device."""
    return torch.Generator(device).manual_seed(_mixed(seed, step))


def seed_all(seed: int, step: int) -> None:
    """The same for what torch draws without being given a generator, on every device."""
    torch.manual_seed(_mixed(seed + 1, step))


def _mixed(seed: int, step: int) -> int:
    return (seed * _SPREAD + step) % 2**63
