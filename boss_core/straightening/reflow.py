"""Reflow (Liu et al. 2023, Flow Straight and Fast): pairs of noise and image that the teacher
itself gives, and batches on the straight lines between them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from boss_core.ode.schedule import Schedule
from boss_core.ode.timesteps import Times
from boss_core.ode.velocity import Velocity, with_labels
from boss_core.straightening.segments import mean_losses, places, stored_rows
from boss_core.training.device_rows import DeviceRows, to_device
from boss_core.training.flow_matching import flow_matching_loss
from boss_core.training.randomness import BatchShare, Loss, step_generator

# Where the loss of uniform t is validated: the middles of ten equal parts of [0, 1].
VALIDATION_TIMES = (np.arange(10) + 0.5) / 10


@dataclass(frozen=True)
class Pairs:
    """Both ends of stored trajectories, x_0 and x_1: what reflow trains on. The loss is that of
    x_t = (1 - t) x_0 + t x_1 with the target x_1 - x_0 (`flow_matching_loss`).

    states: (N, U, ...), the states at U knots, float32 (float16 on a GPU that is too small).
    first, last: the places of t = 0 and t = 1 among the U knots.
    times: (K,), the only t to train at (distill-K reflow); None for t uniform in [0, 1].
    labels: (N,) int64, those that the trajectories were rolled out with; None without any.
    """

    states: DeviceRows
    first: int
    last: int
    times: Times | None = None
    labels: DeviceRows | None = None

    @classmethod
    def of(
        cls,
        states: NDArray[np.float32] | DeviceRows,
        knots: Sequence[int],
        schedule: Schedule,
        labels: NDArray[np.int64] | None = None,
        *,
        distill: bool = False,
        device: torch.device | None = None,
    ) -> "Pairs":
        """``states``, ``device``: as for `boss_core.straightening.segments.Segments.of`.
        ``knots``: the grid index of each of the U states. ``schedule``: the steps to sample on,
        whose starts are the only t to train at with ``distill``: on K uniform steps 0, 1/K, ...,
        (K-1)/K, or their nearest points of the grid. InputError when the trajectories lack an end
        of the schedule,
        or have not one label each."""
        rows, of_rows = stored_rows(states, labels, device)
        first, last = places(knots, (schedule.indices[0], schedule.indices[-1]))
        times = np.asarray(schedule.timesteps[:-1]) if distill else None
        return cls(rows, first, last, times, of_rows)

    def draw_times(self, generator: np.random.Generator, count: int) -> Times:
        """(count,) times to train at, uniform; of K times each has its equal share."""
        if self.times is None:
            return generator.random(count)
        first = int(generator.integers(len(self.times)))
        return self.times[(first + np.arange(count)) % len(self.times)]

    def loss(self, velocity: Velocity, rows: ArrayLike, times: ArrayLike) -> Tensor:
        """The loss of the given trajectories, each at its own time and with its own label.

        rows: (B,) trajectories; times: (B,) in [0, 1].
        """
        rows, times = np.asarray(rows), np.asarray(times)
        return self._loss(velocity, self.states.take(*self._ends_of(rows)), rows, times)

    def training_loss(self, *, seed: int, trajectories: int, batch_size: int) -> Loss:
        """The loss of random batches of the first ``trajectories``, at times of `draw_times`, for
        `boss_core.training.loop.train`."""

        def batch(step: int, share: BatchShare) -> tuple[NDArray, NDArray]:
            draw = step_generator(seed, step)
            rows = draw.integers(trajectories, size=batch_size)
            return share.take(rows), share.take(self.draw_times(draw, batch_size))

        ends = self.states.batches(lambda step, share: self._ends_of(batch(step, share)[0]))

        def loss(velocity: Velocity, step: int, share: BatchShare) -> Tensor:
            return self._loss(velocity, ends(step, share), *batch(step, share))

        return loss

    def time_losses(self, velocity: Velocity, rows: range, batch_size: int) -> list[float]:
        """The mean loss over the given trajectories at each of the times, or at each of
        `VALIDATION_TIMES` where t is uniform."""
        times = VALIDATION_TIMES if self.times is None else self.times
        return mean_losses(self.loss, velocity, times, rows, batch_size)

    def _ends_of(self, rows: NDArray) -> tuple[NDArray, NDArray]:
        return rows[:, None], np.array([[self.first, self.last]])

    def _loss(self, velocity: Velocity, ends: Tensor, rows: NDArray, times: NDArray) -> Tensor:
        labels = None if self.labels is None else self.labels.take(rows)
        t = to_device(times.astype(np.float32), self.states.device)
        return flow_matching_loss(with_labels(velocity, labels), ends[:, 1], ends[:, 0], t)
