"""Knot states of the teacher's trajectories, and batches of segments between them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from boss_core.errors import InputError
from boss_core.ode.noise import sample_noise
from boss_core.ode.schedule import Schedule, check_weights
from boss_core.ode.solver_table import LINEAR, SOLVERS, weights_of_steps
from boss_core.ode.solvers import euler
from boss_core.ode.timesteps import Times, validate_timesteps
from boss_core.ode.velocity import Velocity, check_labels, with_labels
from boss_core.straightening.loss import straightening_loss
from boss_core.training.device_rows import DeviceRows, to_device
from boss_core.training.randomness import BatchShare, Loss, step_generator


# Its many arguments are what one call differs by from the next; all but the first few have names.
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
    rows: range | None = None,
    on_step: Callable[[int], None] | None = None,
) -> None:
    """Roll out Euler trajectories on the fine grid and keep the states at the given knots.

    timesteps: the n + 1 times of the grid.
    knots: increasing grid indices; the union of all schedules' knots serves every budget with
        one rollout.
    out: (N, len(knots), ...), filled in place; N is the number of trajectories. It may be
        memory-mapped: only one batch is held.
    labels: (N,) int64, when the velocity is conditional; InputError when they are not as many.
    rows: of the trajectories to roll out, where not all; each is what it is among all.
    on_step: called after each grid step with the number of trajectories in the batch.
    """
    times = validate_timesteps(timesteps)
    check_labels(labels, len(out))
    place = {knot: position for position, knot in enumerate(knots)}
    wanted = range(len(out)) if rows is None else rows
    for start in range(wanted.start, wanted.stop, batch_size):
        rows = range(start, min(start + batch_size, wanted.stop))

        def keep(k: int, x: Tensor, v: Tensor | None, rows: range = rows) -> None:
            if k in place:
                out[rows.start : rows.stop, place[k]] = x.cpu().numpy()
            if v is not None and on_step is not None:
                on_step(len(rows))

        noise = sample_noise(rows, out.shape[2:], seed).to(device)
        of_batch = None if labels is None else labels[rows.start : rows.stop].to(device)
        last = euler(with_labels(velocity, of_batch), noise, times, observer=keep)
        if not last.isfinite().all():
            raise InputError(
                f"velocity: trajectories {rows.start} to {rows.stop - 1} are not finite at t = 1;"
                " a network with finite outputs needed"
            )


def chord_weights(
    timesteps: ArrayLike, solver: str, weights: Sequence[Sequence[float]] | None = None
) -> Times:
    """(K, L): what the network has to say at each of K knots for the solver to pass through all
    of the teacher's, as weights of the chords of the trajectory. Entry (k, l) is that of the
    chord from knot k - l to the next, 0 where there is none; rows add up to 1.

    For Euler it is the chord itself (L = 1). A step of a linear multistep method with the weights w
    (`boss_core.ode.solver_table`) ends on the next knot when chord_k = w_0 u_k + w_1 u_{k-1} + ...,
    with the velocities u at the knots; solved from the first knot on,

        u_k = (chord_k - w_1 u_{k-1} - ...) / w_0.

    weights: of ``multistep``, those of the schedule, which stay as they are while the network is
    trained. InputError for solvers that are no linear multistep methods.
    """
    lengths = np.diff(validate_timesteps(timesteps)).tolist()
    if solver not in SOLVERS or not SOLVERS[solver].linear:
        raise InputError(
            f"schedule: for solver {solver}; {' or '.join(LINEAR)} needed to straighten for"
        )
    if weights is not None or SOLVERS[solver].fitted:
        check_weights(solver, weights, len(lengths))
    found = np.eye(1, len(lengths) if SOLVERS[solver].looks_back else 1)
    found = found.repeat(len(lengths), axis=0)
    for k, (now, *before) in enumerate(weights or weights_of_steps(solver, lengths)):
        for back, weight in enumerate(before, start=1):
            found[k, back:] -= weight * found[k - back, :-back]
        found[k] /= now
    return found


def stored_rows(
    states: NDArray[np.float32] | DeviceRows,
    labels: NDArray[np.int64] | None,
    device: torch.device | None,
) -> tuple[DeviceRows, DeviceRows | None]:
    """The rows of stored trajectories and of their labels, on the device of the first where they
    are rows already. InputError when there is not one label a trajectory."""
    if not isinstance(states, DeviceRows):
        states = DeviceRows.of(states, device or torch.device("cpu"), halve=True)
    check_labels(labels, len(states.array))
    return states, None if labels is None else DeviceRows.of(labels, states.device)


def places(knots: Sequence[int], wanted: Sequence[int]) -> tuple[int, ...]:
    """Where the wanted grid indices are among the knots; InputError naming those that are not."""
    missing = set(wanted) - set(knots)
    if missing:
        raise InputError(f"trajectories: no states at grid indices {sorted(missing)}")
    return tuple(list(knots).index(i) for i in wanted)


def mean_losses(
    loss: Callable[..., Tensor],
    velocity: Velocity,
    at: Iterable[float],
    rows: range,
    batch_size: int,
) -> list[float]:
    """The mean of ``loss(velocity, rows, places)`` over all rows, for each place alone."""
    parts = [
        np.arange(start, min(start + batch_size, rows.stop))
        for start in range(rows.start, rows.stop, batch_size)
    ]
    with torch.no_grad():
        return [
            float(sum(loss(velocity, p, np.full(len(p), one)).double() * len(p) for p in parts))
            / len(rows)
            for one in at
        ]


@dataclass(frozen=True)
class Segments:
    """Stored trajectories cut at the knots of one schedule: what straightening trains on (eq. 9).

    states: (N, U, ...), the states at U knots, float32 (float16 on a GPU that is too small).
    positions: for each of the K + 1 times of the schedule, its place among the U knots.
    timesteps: the K + 1 times.
    weights: the `chord_weights` of the schedule's solver.
    labels: (N,) int64, those that the trajectories were rolled out with; None without any.
    """

    states: DeviceRows
    positions: tuple[int, ...]
    timesteps: Times
    weights: Times
    labels: DeviceRows | None = None

    @classmethod
    def of(
        cls,
        states: NDArray[np.float32] | DeviceRows,
        knots: Sequence[int],
        schedule: Schedule,
        labels: NDArray[np.int64] | None = None,
        *,
        device: torch.device | None = None,
    ) -> "Segments":
        """``states``: an array, memory-mapped or in memory, or its `DeviceRows`, for several
        schedules to share. ``knots``: the grid index of each of the U states. ``device``: where
        an array's rows go; None for the CPU. InputError when the trajectories lack a knot of the
        schedule, or have not one label each, and for a schedule of a solver that is no
        linear multistep method."""
        rows, of_rows = stored_rows(states, labels, device)
        return cls(
            rows,
            places(knots, schedule.indices),
            np.asarray(schedule.timesteps),
            chord_weights(schedule.timesteps, schedule.solver, schedule.weights),
            of_rows,
        )

    def loss(self, velocity: Velocity, rows: ArrayLike, segment: ArrayLike) -> Tensor:
        """The straightening loss (eq. 9, for the schedule's solver) of the given trajectories,
        each on its own segment and with its own label.

        rows: (B,) trajectories; segment: (B,) in 0..K-1.
        """
        rows, segment = np.asarray(rows), np.asarray(segment)
        states = self.states.take(*self._states_of(rows, segment))
        return self._loss(velocity, states, rows, segment)

    def training_loss(self, *, seed: int, trajectories: int, batch_size: int) -> Loss:
        """The loss of random batches of the first ``trajectories``, for
        `boss_core.training.loop.train`; every segment has its equal share of a batch, which keeps
        the noise of the loss low."""
        segments = len(self.positions) - 1

        def batch(step: int, share: BatchShare) -> tuple[NDArray, NDArray]:
            draw = step_generator(seed, step)
            rows = draw.integers(trajectories, size=batch_size)
            segment = (int(draw.integers(segments)) + np.arange(batch_size)) % segments
            return share.take(rows), share.take(segment)

        states = self.states.batches(lambda step, share: self._states_of(*batch(step, share)))

        def loss(velocity: Velocity, step: int, share: BatchShare) -> Tensor:
            return self._loss(velocity, states(step, share), *batch(step, share))

        return loss

    def segment_losses(self, velocity: Velocity, rows: range, batch_size: int) -> list[float]:
        """The mean loss of every segment over the given trajectories."""
        segments = range(len(self.positions) - 1)
        return mean_losses(self.loss, velocity, segments, rows, batch_size)

    def _knots(self, segment: NDArray) -> NDArray:
        """(B, L + 1), places in the schedule: from the end of the segment back; before the first
        knot, where weights are 0, it repeats."""
        return np.maximum(segment[:, None] + 1 - np.arange(self.weights.shape[1] + 1), 0)

    def _states_of(self, rows: NDArray, segment: NDArray) -> tuple[NDArray, NDArray]:
        return rows[:, None], np.asarray(self.positions)[self._knots(segment)]

    def _loss(self, velocity: Velocity, states: Tensor, rows: NDArray, segment: NDArray) -> Tensor:
        labels = None if self.labels is None else self.labels.take(rows)
        device = self.states.device
        return straightening_loss(
            with_labels(velocity, labels),
            states,
            to_device(self.timesteps[self._knots(segment)].astype(np.float32), device),
            to_device(self.weights[segment].astype(np.float32), device),
        )
