"""Reflow's loss against closed forms: a linear flow, and Gaussians."""

import numpy as np
import pytest
import torch

from boss_core.ode.noise import sample_noise
from boss_core.ode.schedule import Schedule
from boss_core.ode.solvers import euler
from boss_core.ode.timesteps import uniform
from boss_core.straightening.reflow import VALIDATION_TIMES, Pairs
from boss_core.training.randomness import BatchShare
from tests.helpers.linear import Linear

KNOTS = (0, 25, 100)
FOUR = Schedule(
    timesteps=(0.0, 0.25, 0.5, 0.75, 1.0), indices=(0, 25, 50, 75, 100), objective="uniform"
)


def pairs(noise: torch.Tensor, images: torch.Tensor, *, distill: bool = False) -> Pairs:
    """With a state between the two that neither loss may read."""
    states = torch.stack([noise, torch.full_like(noise, torch.nan), images], dim=1).numpy()
    return Pairs.of(states, KNOTS, FOUR, distill=distill)


def straight(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """The velocity of the straight lines x_t from x_0 to e^a x_0 + c, where `Linear` takes it:
    x_0 is (x_t - t c) / (1 - t + t e^a), for lines of this flow do not cross."""
    growth = float(np.exp(Linear.a))
    c = float(Linear().solution(torch.zeros(())))
    t = t.view(-1, 1, 1)
    return (growth - 1) * (x - t * c) / (1 - t + t * growth) + c


@pytest.mark.parametrize("distill", [False, True])
def test_no_loss_is_left_for_the_straight_lines_of_a_linear_flow(distill: bool) -> None:
    noise = sample_noise(range(12), (2, 3), 0)
    images = Linear().solution(noise).float()
    found = pairs(noise, images, distill=distill)
    loss = found.training_loss(seed=0, trajectories=12, batch_size=8)
    for step in range(5):
        assert float(loss(straight, step, BatchShare())) < 1e-10
    losses = found.time_losses(straight, range(12), 5)
    assert len(losses) == (4 if distill else 10)
    assert max(losses) < 1e-10
    # Half a unit too fast in all elements.
    losses = found.time_losses(lambda x, t: straight(x, t) + 0.5, range(12), 5)
    np.testing.assert_allclose(losses, 0.25, rtol=1e-4)
    # That velocity reaches the teacher's images in any number of Euler steps.
    for steps in (1, 3):
        np.testing.assert_allclose(euler(straight, noise, uniform(steps)), images, atol=1e-5)


def test_least_loss_between_independent_gaussians() -> None:
    """x_0 of variance 1, x_1 of variance s^2: x_1 - x_0 given x_t has the mean
    (t s^2 - (1 - t)) / ((1 - t)^2 + t^2 s^2) x_t and the variance s^2 / ((1 - t)^2 + t^2 s^2)."""
    s = 0.5
    noise = sample_noise(range(4000), (4, 4), 1)
    images = s * sample_noise(range(4000), (4, 4), 2)

    def variance(t):
        return (1 - t) ** 2 + (t * s) ** 2

    def best(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        t = t.view(-1, 1, 1)
        return (t * s**2 - (1 - t)) / variance(t) * x

    found = pairs(noise, images)
    losses = found.time_losses(best, range(4000), 1000)
    np.testing.assert_allclose(losses, s**2 / variance(VALIDATION_TIMES), rtol=0.03)
    # The mean over t of s^2 / variance is s pi / 2, as its integral is an arc tangent.
    loss = found.training_loss(seed=0, trajectories=4000, batch_size=1000)
    random = [float(loss(best, step, BatchShare())) for step in range(40)]
    assert np.mean(random) == pytest.approx(s * np.pi / 2, rel=0.02)


def test_times_of_distillation_are_the_k_with_equal_shares_and_of_reflow_uniform() -> None:
    noise = sample_noise(range(6), (2, 3), 0)
    seen: dict[bool, list[float]] = {False: [], True: []}
    for distill, times in seen.items():
        found = pairs(noise, noise, distill=distill)

        def velocity(x, t, times=times):
            times.extend(t.tolist())
            return x

        loss = found.training_loss(seed=0, trajectories=6, batch_size=8)
        for step in range(50):
            loss(velocity, step, BatchShare(0, 2))
            loss(velocity, step, BatchShare(1, 2))
    values, counts = np.unique(seen[True], return_counts=True)
    assert values.tolist() == [0.0, 0.25, 0.5, 0.75]
    assert counts.tolist() == [100, 100, 100, 100]
    # Kolmogorov and Smirnov's distance of 400 draws is above 0.081 once in a hundred times.
    drawn = np.sort(seen[False])
    assert 0.0 <= drawn[0] < drawn[-1] <= 1.0
    assert np.abs(drawn - (np.arange(400) + 0.5) / 400).max() < 0.08


def test_labels_stay_with_their_trajectories_and_validation_is_apart() -> None:
    labels = np.arange(7)
    states = np.zeros((7, 2, 1), dtype=np.float32)
    states[:, 0, 0] = states[:, 1, 0] = labels
    found = Pairs.of(states, (0, 100), FOUR, labels)
    rows = set()

    def velocity(x, t, given):
        assert given.tolist() == x[:, 0].tolist()
        rows.update(given.tolist())
        return x

    loss = found.training_loss(seed=0, trajectories=4, batch_size=6)
    for step in range(20):
        loss(velocity, step, BatchShare())
    assert rows == {0, 1, 2, 3}
    rows.clear()
    found.time_losses(velocity, range(4, 7), 2)
    assert rows == {4, 5, 6}
    with pytest.raises(ValueError, match="labels: 3 for 7 samples"):
        Pairs.of(states, (0, 100), FOUR, labels[:3])


def test_a_missing_end_is_named() -> None:
    with pytest.raises(ValueError, match=r"no states at grid indices \[100\]"):
        Pairs.of(np.zeros((3, 2, 1), dtype=np.float32), (0, 25), FOUR)
