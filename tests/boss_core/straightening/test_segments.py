"""Knot states and the straightening loss against trajectories computed by hand."""

import numpy as np
import pytest
import torch

from boss_core.ode.noise import sample_noise
from boss_core.ode.schedule import Schedule
from boss_core.ode.solvers import ab2, euler
from boss_core.ode.timesteps import quadratic, uniform
from boss_core.straightening.loss import straightening_loss
from boss_core.straightening.segments import Segments, chord_weights, knot_states
from boss_core.training.flow_matching import flow_matching_loss
from boss_core.training.randomness import BatchShare
from tests.helpers.linear import Linear

CPU = torch.device("cpu")
KNOTS = (0, 3, 5, 10)


def states(seed: int = 0) -> np.ndarray:
    out = np.full((7, len(KNOTS), 2, 3), np.nan, dtype=np.float32)
    knot_states(Linear(), uniform(10), KNOTS, out, seed=seed, batch_size=3, device=CPU)
    return out


def test_states_are_those_of_the_rollout_at_the_knots() -> None:
    seen = {}
    noise = sample_noise(range(7), (2, 3), 0)
    euler(Linear(), noise, uniform(10), observer=lambda k, x, v: seen.update({k: x}))
    expected = torch.stack([seen[k] for k in KNOTS], dim=1)
    np.testing.assert_allclose(states(), expected.numpy(), rtol=1e-6)


def test_rollouts_tell_their_progress() -> None:
    out, told = np.empty((7, 1, 2, 3), dtype=np.float32), []
    knot_states(
        Linear(), uniform(10), [10], out, seed=0, batch_size=3, device=CPU, on_step=told.append
    )
    assert told == [3] * 20 + [1] * 10


def test_a_network_that_is_not_finite_is_refused() -> None:
    out = np.zeros((4, 2, 3), dtype=np.float32)
    with pytest.raises(ValueError, match="trajectories 0 to 2 are not finite"):
        knot_states(lambda x, t: x / 0.0, uniform(4), (0, 4), out, seed=0, batch_size=3, device=CPU)


def test_loss_is_equation_9_written_out() -> None:
    schedule = Schedule(timesteps=(0.0, 0.3, 1.0), indices=(0, 3, 10), objective="l2_squared")
    stored = states()
    segments = Segments.of(stored, KNOTS, schedule)
    ode = Linear()

    def by_hand(row: int, k: int) -> float:
        start, end = ((0, 1), (1, 3))[k]
        t = torch.tensor([schedule.timesteps[k]])
        chord = (stored[row, end] - stored[row, start]) / (
            schedule.timesteps[k + 1] - schedule.timesteps[k]
        )
        v = ode(torch.from_numpy(stored[row, start])[None], t)[0].numpy()
        return float(((v - chord) ** 2).mean())

    found = float(segments.loss(ode, [0, 4, 4], [0, 1, 0]))
    assert found == pytest.approx((by_hand(0, 0) + by_hand(4, 1) + by_hand(4, 0)) / 3, rel=1e-5)
    each = segments.segment_losses(ode, range(2, 7), 2)
    for k in (0, 1):
        assert each[k] == pytest.approx(np.mean([by_hand(r, k) for r in range(2, 7)]), rel=1e-5)


def test_loss_is_zero_for_a_velocity_that_is_the_chord() -> None:
    stored = states()
    schedule = Schedule(timesteps=(0.0, 0.5, 1.0), indices=(0, 5, 10), objective="uniform")
    segments = Segments.of(stored, KNOTS, schedule)
    chord = torch.from_numpy((stored[:3, 3] - stored[:3, 2]) / 0.5)
    assert float(segments.loss(lambda x, t: chord, range(3), [1, 1, 1])) < 1e-12


def test_every_segment_has_its_share_of_a_batch_and_validation_is_apart() -> None:
    schedule = Schedule(timesteps=(0.0, 0.3, 0.5, 1.0), indices=KNOTS, objective="l2_squared")
    segments = Segments.of(states(), KNOTS, schedule)
    times, rows = [], []

    def velocity(x, t):
        times.extend(t.tolist())
        rows.extend(int(np.argmin([np.abs(x[i].numpy() - s).sum() for s in starts])) for i in
                    range(len(x)))  # fmt: skip
        return x

    starts = [segments.states.array[r, p] for r in range(7) for p in range(3)]
    loss = segments.training_loss(seed=0, trajectories=4, batch_size=6)
    for step in range(20):
        loss(velocity, step, BatchShare())
    counts = np.unique(np.array(times).round(3), return_counts=True)[1]
    assert list(counts) == [40, 40, 40]
    assert {r // 3 for r in rows} == {0, 1, 2, 3}  # of 7 trajectories, the last 3 are held out


def test_a_missing_knot_is_named() -> None:
    schedule = Schedule(timesteps=(0.0, 0.4, 1.0), indices=(0, 4, 10), objective="uniform")
    with pytest.raises(ValueError, match=r"no states at grid indices \[4\]"):
        Segments.of(states(), KNOTS, schedule)


def test_losses_by_hand() -> None:
    data, noise = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 4.0]])
    seen = {}

    def velocity(x, t):
        seen["x"], seen["t"] = x, t
        return torch.tensor([[1.0, 1.0]])

    # x_t = (0.5, 3), target (2, -4): ((1 - 2)^2 + (1 + 4)^2) / 2.
    assert float(flow_matching_loss(velocity, data, noise, torch.tensor([0.25]))) == 13.0
    torch.testing.assert_close(seen["x"], torch.tensor([[0.5, 3.0]]))
    # Chord ((2 - 0), (0 - 4)) / 0.5 = (4, -8).
    states, times = torch.stack([data, noise], dim=1), torch.tensor([[0.75, 0.25]])
    loss = straightening_loss(velocity, states, times, torch.ones(1, 1))
    assert float(loss) == ((1 - 4) ** 2 + (1 + 8) ** 2) / 2
    torch.testing.assert_close(seen["x"], noise)
    torch.testing.assert_close(seen["t"], torch.tensor([0.25]))
    # The chord before that, from (1, 3) at t = 0: (-1, 1) / 0.25 = (-4, 4). Of both, three to one:
    # (2, -5).
    states = torch.cat([states, torch.tensor([[[1.0, 3.0]]])], dim=1)
    times = torch.tensor([[0.75, 0.25, 0.0]])
    loss = straightening_loss(velocity, states, times, torch.tensor([[0.75, 0.25]]))
    assert float(loss) == ((1 - 2) ** 2 + (1 + 5) ** 2) / 2


def test_chord_weights_of_equal_steps_by_hand() -> None:
    """w = 1/2, so each target is two thirds of its chord and one third of the target before."""
    expected = np.array([[27, 0, 0, 0], [18, 9, 0, 0], [18, 6, 3, 0], [18, 6, 2, 1]]) / 27
    np.testing.assert_allclose(chord_weights(uniform(4), "ab2"), expected, rtol=1e-14)
    np.testing.assert_array_equal(chord_weights(uniform(4), "euler"), np.ones((4, 1)))
    np.testing.assert_array_equal(chord_weights(uniform(1), "ab2"), np.ones((1, 1)))


def test_chord_weights_solve_for_a_residual_of_zero() -> None:
    """The residuals of all steps, (1 + w_k) u_k - w_k u_{k-1} - chord_k, are one linear system."""
    times = quadratic(6)
    h = np.diff(times)
    w = np.append(0.0, h[1:] / (2 * h[:-1]))
    solution = np.linalg.inv(np.diag(1.0 + w) - np.diag(w[1:], k=-1))
    found = chord_weights(times, "ab2")
    for k in range(6):
        np.testing.assert_allclose(found[k, : k + 1], solution[k, k::-1], rtol=1e-12)
        assert not found[k, k + 1 :].any()
    np.testing.assert_allclose(found.sum(axis=1), 1.0, rtol=1e-12)


def test_a_network_that_meets_its_targets_takes_ab2_through_the_knots() -> None:
    """Whatever the velocity says elsewhere: targets from the weights, states from the solver."""
    schedule = Schedule(
        timesteps=(0.0, 0.3, 0.5, 1.0), indices=KNOTS, solver="ab2", objective="l2_squared"
    )
    stored = states()
    times = np.array(schedule.timesteps)
    of_step = np.diff(times)[None, :, None, None]
    chords = np.diff(stored.astype(np.float64), axis=1) / of_step
    weights = chord_weights(times, "ab2")
    targets = np.stack(
        [sum(weights[k, j] * chords[:, k - j] for j in range(k + 1)) for k in range(3)], axis=1
    ).astype(np.float32)

    def met(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        k = [int(np.abs(times - float(value)).argmin()) for value in t]
        rows = [int(np.abs(stored[:, k[i]] - x[i].numpy()).sum((1, 2)).argmin()) for i in
                range(len(x))]  # fmt: skip
        return torch.from_numpy(targets[rows, k])

    seen = {}
    ab2(met, torch.from_numpy(stored[:, 0]), times, observer=lambda k, x, v: seen.update({k: x}))
    for k in range(4):
        np.testing.assert_allclose(seen[k].numpy(), stored[:, k], rtol=1e-5, atol=1e-6)
    segments = Segments.of(stored, KNOTS, schedule)
    assert max(segments.segment_losses(met, range(7), 3)) < 1e-11
    loss = segments.training_loss(seed=0, trajectories=7, batch_size=16)
    assert float(loss(met, 0, BatchShare())) < 1e-11
    # It is another target than Euler's.
    for_euler = Segments.of(stored, KNOTS, schedule.model_copy(update={"solver": "euler"}))
    assert min(for_euler.segment_losses(met, range(7), 3)[1:]) > 1e-3


def test_other_solvers_are_refused() -> None:
    schedule = Schedule(
        timesteps=(0.0, 1.0), indices=(0, 10), solver="heun", objective="l2_squared"
    )
    with pytest.raises(ValueError, match="solver heun; euler or ab2 or multistep needed"):
        Segments.of(states(), KNOTS, schedule)
