"""Knot states of the teacher's trajectories, and batches of segments between them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from boss_core.errors import InputError
from boss_core.losses import straightening_loss
from boss_core.schedules import Schedule
from boss_core.solvers import euler
from boss_core.timesteps import Times
from boss_core.velocity import Velocity, check_labels, sample_noise, with_labels


def knot_states(
    velocity: Velocity,
    timesteps: ArrayLike,
    knots: Sequence[int],
    out: NDArray[np.float32],
    *,
    seed: int,
    batch_size: int,
    device: torch.device,
    labels: Tensor | None = None,
    on_step: Callable[[int], None] | None = None,
) -> None:
    """Roll out Euler trajectories on the fine grid and keep the states at the given knots.

    timesteps: the n + 1 times of the grid.
    knots: increasing grid indices; the union of all schedules' knots serves every budget with
        one rollout.
    out: (N, len(knots), ...), filled in place; N is the number of trajectories. It may be
        memory-mapped: only one batch is held.
    labels: (N,) int64, when the velocity is conditional; InputError when they are not as many.
    on_step: called after each grid step with the number of trajectories in the batch.
    """
    check_labels(labels, len(out))
    place = {knot: position for position, knot in enumerate(knots)}
    for start in range(0, len(out), batch_size):
        rows = range(start, min(start + batch_size, len(out)))

        def keep(k: int, x: Tensor, v: Tensor | None, rows: range = rows) -> None:
            if k in place:
                out[rows.start : rows.stop, place[k]] = x.cpu().numpy()
            if v is not None and on_step is not None:
                on_step(len(rows))

        noise = sample_noise(rows, out.shape[2:], seed).to(device)
        of_batch = None if labels is None else labels[rows.start : rows.stop].to(device)
        last = euler(with_labels(velocity, of_batch), noise, timesteps, observer=keep)
        if not last.isfinite().all():
            raise InputError(
                f"velocity: trajectories {rows.start} to {rows.stop - 1} are not finite at t = 1;"
                " a network with finite outputs needed"
            )


@dataclass(frozen=True)
class Segments:
    """The segments of one schedule on stored trajectories.

    states: (N, U, ...) float32, the states at U knots; memory-mapped or in memory.
    positions: for each of the K + 1 times of the schedule, its place among the U knots.
    timesteps: the K + 1 times.
    labels: (N,) int64, those that the trajectories were rolled out with; None without any.
    """

    states: NDArray[np.float32]
    positions: tuple[int, ...]
    timesteps: Times
    labels: NDArray[np.int64] | None = None

    @classmethod
    def of(
        cls,
        states: NDArray[np.float32],
        knots: Sequence[int],
        schedule: Schedule,
        labels: NDArray[np.int64] | None = None,
    ) -> "Segments":
        """``knots``: the grid index of each of the U states. InputError when the trajectories
        lack a knot of the schedule, or have not one label each."""
        check_labels(labels, len(states))
        missing = set(schedule.indices) - set(knots)
        if missing:
            raise InputError(f"trajectories: no states at grid indices {sorted(missing)}")
        positions = tuple(list(knots).index(i) for i in schedule.indices)
        return cls(states, positions, np.asarray(schedule.timesteps), labels)

    def loss(
        self, velocity: Velocity, rows: ArrayLike, segment: ArrayLike, device: torch.device
    ) -> Tensor:
        """The straightening loss (eq. 9) of the given trajectories, each on its own segment and
        with its own label.

        rows: (B,) trajectories; segment: (B,) in 0..K-1.
        """
        rows, segment = np.asarray(rows), np.asarray(segment)
        position = np.asarray(self.positions)

        def to_device(values: NDArray) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).to(device)

        labels = None if self.labels is None else torch.from_numpy(self.labels[rows]).to(device)
        return straightening_loss(
            with_labels(velocity, labels),
            to_device(self.states[rows, position[segment]]),
            to_device(self.states[rows, position[segment + 1]]),
            to_device(self.timesteps[segment]),
            to_device(self.timesteps[segment + 1]),
        )

    def random_loss(
        self,
        velocity: Velocity,
        generator: np.random.Generator,
        trajectories: int,
        batch_size: int,
        device: torch.device,
    ) -> Tensor:
        """The loss of a random batch of the first ``trajectories``; every segment has its equal
        share of the batch, which keeps the noise of the loss low."""
        segments = len(self.positions) - 1
        rows = generator.integers(trajectories, size=batch_size)
        first = int(generator.integers(segments))
        return self.loss(velocity, rows, (first + np.arange(batch_size)) % segments, device)

    def segment_losses(
        self, velocity: Velocity, rows: range, batch_size: int, device: torch.device
    ) -> list[float]:
        """The mean loss of every segment over the given trajectories."""
        losses = []
        for segment in range(len(self.positions) - 1):
            total = 0.0
            for start in range(rows.start, rows.stop, batch_size):
                part = np.arange(start, min(start + batch_size, rows.stop))
                value = self.loss(velocity, part, np.full(len(part), segment), device)
                total += float(value) * len(part)
            losses.append(total / len(rows))
        return losses
