"""Reflow (Liu et al. 2023, Flow Straight and Fast): pairs of noise and image that the teacher
itself gives, and batches on the straight lines between them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from boss_core.errors import InputError
from boss_core.losses import flow_matching_loss
from boss_core.schedules import Schedule
from boss_core.timesteps import Times
from boss_core.velocity import Velocity, check_labels, with_labels

# Where the loss of uniform t is validated: the middles of ten equal parts of [0, 1].
VALIDATION_TIMES = (np.arange(10) + 0.5) / 10


@dataclass(frozen=True)
class Pairs:
    """Both ends of stored trajectories: x_0 and x_1, for the loss of x_t = (1 - t) x_0 + t x_1
    with the target x_1 - x_0 (`flow_matching_loss`).

    states: (N, U, ...) float32, the states at U knots; memory-mapped or in memory.
    first, last: the places of t = 0 and t = 1 among the U knots.
    times: (K,), the only t to train at (distill-K reflow); None for t uniform in [0, 1].
    labels: (N,) int64, those that the trajectories were rolled out with; None without any.
    """

    states: NDArray[np.float32]
    first: int
    last: int
    times: Times | None = None
    labels: NDArray[np.int64] | None = None

    @classmethod
    def of(
        cls,
        states: NDArray[np.float32],
        knots: Sequence[int],
        schedule: Schedule,
        labels: NDArray[np.int64] | None = None,
        *,
        distill: bool = False,
    ) -> "Pairs":
        """``knots``: the grid index of each of the U states. ``schedule``: the steps to sample
        on, whose starts are the only t to train at with ``distill``: on K uniform steps 0, 1/K,
        ..., (K-1)/K, or their nearest points of the grid. InputError when the trajectories lack
        an end of the schedule, or have not one label each."""
        check_labels(labels, len(states))
        ends = schedule.indices[0], schedule.indices[-1]
        missing = set(ends) - set(knots)
        if missing:
            raise InputError(f"trajectories: no states at grid indices {sorted(missing)}")
        first, last = (list(knots).index(i) for i in ends)
        times = np.asarray(schedule.timesteps[:-1]) if distill else None
        return cls(states, first, last, times, labels)

    def draw_times(self, generator: np.random.Generator, count: int) -> Times:
        """(count,) times to train at, uniform; of K times each has its equal share."""
        if self.times is None:
            return generator.random(count)
        first = int(generator.integers(len(self.times)))
        return self.times[(first + np.arange(count)) % len(self.times)]

    def loss(
        self, velocity: Velocity, rows: ArrayLike, times: ArrayLike, device: torch.device
    ) -> Tensor:
        """The loss of the given trajectories, each at its own time and with its own label.

        rows: (B,) trajectories; times: (B,) in [0, 1].
        """
        rows = np.asarray(rows)

        def to_device(values: ArrayLike) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).to(device)

        labels = None if self.labels is None else torch.from_numpy(self.labels[rows]).to(device)
        return flow_matching_loss(
            with_labels(velocity, labels),
            to_device(self.states[rows, self.last]),
            to_device(self.states[rows, self.first]),
            to_device(times),
        )

    def random_loss(
        self,
        velocity: Velocity,
        generator: np.random.Generator,
        trajectories: int,
        batch_size: int,
        device: torch.device,
    ) -> Tensor:
        """The loss of a random batch of the first ``trajectories``, at times of `draw_times`."""
        rows = generator.integers(trajectories, size=batch_size)
        return self.loss(velocity, rows, self.draw_times(generator, batch_size), device)

    def time_losses(
        self, velocity: Velocity, rows: range, batch_size: int, device: torch.device
    ) -> list[float]:
        """The mean loss over the given trajectories at each of the times, or at each of
        `VALIDATION_TIMES` where t is uniform."""
        losses = []
        for t in VALIDATION_TIMES if self.times is None else self.times:
            total = 0.0
            for start in range(rows.start, rows.stop, batch_size):
                part = np.arange(start, min(start + batch_size, rows.stop))
                total += float(self.loss(velocity, part, np.full(len(part), t), device)) * len(part)
            losses.append(total / len(rows))
        return losses
